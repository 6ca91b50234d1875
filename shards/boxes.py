"""Boxes that somebody else detected, as JSON lines: the `file` detector of `shards detect`."""

import hashlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from shards.files import InputError
from shards.images import SIDEWAYS, turned_box
from shards.json_files import is_number
from shards.records import Parsed, Refused, read_records, refuse
from shards.schema import DetectedObject, PictureMeta
from shards.shard import Picture
from shards.stream import ShardReader


class Line(NamedTuple):
    """What the file says of one picture."""

    number: int
    objects: tuple[DetectedObject, ...]
    size: tuple[float, float] | None
    """(width, height) of the picture that the boxes are pixels of; None: of the stored one."""
    upright: bool | None
    """Whether the boxes are those of the picture as it is seen; None: the shape must tell."""


class FileDetector:
    """Boxes from JSON lines `{"image_id", "objects": [{"box", "score", "label"}], "size"?}`.

    `size` is the [width, height] of the picture that the boxes are pixels of; without it, they
    are taken as pixels of the stored picture, and one that leaves it by over a pixel is an error.
    Boxes of a picture as a camera stored it, lying on its side, are turned with it; where its shape
    does not tell (half a turn, a square), the line says `"upright": true` or `false`.
    A picture without a line has no objects.
    """

    def __init__(self, path: Path | None) -> None:
        """
        Raises:
            InputError: lists all lines that cannot be used.
        """
        if path is None:
            raise InputError("--detector file needs --boxes FILE.jsonl")
        self.path, self.lines = path, dict[str, Line]()
        self.matched: set[str] = set()
        """Pictures met so far that have a line."""
        rows = read_records(path)
        self.provenance: dict[str, Any] = {"boxes": hashlib.sha256(path.read_bytes()).hexdigest()}
        refused = []
        for row in rows:
            problem = row if isinstance(row, Refused) else self._take(row)
            refused += [problem] if problem else []
        refuse(path, refused, len(rows))

    def _take(self, row: Parsed) -> Refused | None:
        image_id, objects = row.fields.get("image_id"), row.fields.get("objects")
        size, upright = row.fields.get("size"), row.fields.get("upright")
        if type(image_id) is int:  # as VisualNews itself writes its ids
            image_id = str(image_id)
        if not isinstance(image_id, str) or not isinstance(objects, list):
            return Refused(row.line, "needs an `image_id`, a list `objects`")
        if image_id in self.lines:
            return Refused(row.line, f"image_id {image_id} appears twice")
        if size is not None and not (
            isinstance(size, list) and len(size) == 2 and all(is_number(x) and x > 0 for x in size)
        ):
            return Refused(row.line, "`size` is not [width, height]")
        if not isinstance(upright, bool | None):
            return Refused(row.line, "`upright` is neither true nor false")
        try:
            boxes = tuple(DetectedObject.from_dict(entry, "object") for entry in objects)
        except InputError as error:
            return Refused(row.line, str(error).removeprefix("object: "))
        self.lines[image_id] = Line(row.line, boxes, (size[0], size[1]) if size else None, upright)
        return None

    def require_match(self, reader: ShardReader) -> None:
        """Look for the first picture that has a line.

        Raises:
            InputError: none has: the ids are called otherwise.
        """
        if not self.lines:
            raise InputError(f"{self.path}: holds no line of a picture; it is empty")
        image_id = "?"
        for shard in range(len(reader.index.shards)):
            for picture in reader.pictures(shard):
                image_id = picture.meta.image_id
                if image_id in self.lines:
                    return
        raise InputError(
            f"{self.path}: none of its {len(self.lines)} image_ids is a picture of "
            f"{reader.location}: they are called {next(iter(self.lines))!r} here and "
            f"{image_id!r} there"
        )

    def tell(self, pictures: int) -> None:
        """What did not match, once `pictures` pictures were looked at."""
        unused = [image_id for image_id in self.lines if image_id not in self.matched]
        if unused:
            share = f"{len(unused)} of {len(self.lines)} lines name no picture here"
            print(f"warning: {self.path}: {share}, for example {unused[0]!r}", file=sys.stderr)
        if len(self.matched) < pictures:
            without = f"{pictures - len(self.matched)} of {pictures} pictures have no line"
            print(f"warning: {self.path}: {without}: they have no objects", file=sys.stderr)

    def detect(self, pictures: Sequence[Picture]) -> list[list[DetectedObject]]:
        """See `shards.objects.Detector`."""
        return [self._objects(picture.meta) for picture in pictures]

    def _objects(self, meta: PictureMeta) -> list[DetectedObject]:
        line = self.lines.get(meta.image_id)
        if line is None:
            return []
        self.matched.add(meta.image_id)
        size = line.size or meta.size
        turn = self._turn(line, meta)
        upright = (size[1], size[0]) if turn in SIDEWAYS else size
        scale = (meta.size[0] / upright[0], meta.size[1] / upright[1]) * 2
        objects = []
        for item in line.objects:
            x1, y1, x2, y2 = item.box
            # Detectors round outwards by a pixel; more is a box of a larger copy of the picture.
            if min(x1, y1) < -1 or x2 > size[0] + 1 or y2 > size[1] + 1:
                raise InputError(
                    f"{self.path}: line {line.number}: box {list(item.box)} leaves the "
                    f"{size[0]}x{size[1]} picture; give the line the `size` that its boxes are "
                    "pixels of"
                )
            box = [a * b for a, b in zip(turned_box(item.box, size, turn), scale, strict=True)]
            objects.append(DetectedObject((box[0], box[1], box[2], box[3]), item.score, item.label))
        return objects

    def _turn(self, line: Line, meta: PictureMeta) -> int:
        """The EXIF orientation by which the boxes of a line are still to be turned."""
        turn = meta.orientation
        if line.size is None:
            return 1
        (width, height), (stored_width, stored_height) = line.size, meta.size
        # Sizes are rounded, and both pictures may be smaller copies: shapes are equal within 2 %.
        same = abs(width * stored_height / (height * stored_width) - 1) < 0.02
        lying = abs(height * stored_height / (width * stored_width) - 1) < 0.02
        name = f"{self.path}: line {line.number}: {meta.image_id}"
        if turn == 1:
            if lying and not same and not line.upright:
                raise InputError(
                    f"{name}: `size` {[width, height]} lies on its side beside the stored picture "
                    f"of {stored_width}x{stored_height}: turn the boxes, or build the shards again "
                    "(they then know which pictures were turned)"
                )
            return 1
        if line.upright is not None:
            return 1 if line.upright else turn
        if turn in SIDEWAYS and same != lying:
            return turn if lying else 1
        raise InputError(
            f'{name}: the picture was turned (EXIF orientation {turn}): say `"upright": true` if '
            "the boxes are those of the picture as it is seen, or false"
        )
