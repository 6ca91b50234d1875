"""THE contract of a shard directory: members, JSON fields, columns, index, versions.

A shard directory holds one split::

    train-000000.tar …     a picture: members {key}.jpg and {key}.json, in that order, keys
                           [A-Za-z0-9_-]; the JSON holds all pairs of the picture
    rows/<shard>.safetensors   the shard's table: where its pictures lie, which pairs it has
    index.json             written last, by rename: its presence means "complete"
    rejects.jsonl          every raw row that did not become a sample, with the reason
    objects/column.json    a column: one file per shard, written later, replaceable alone; it says
    objects/<shard>.safetensors    what is about pictures once for each of them
    teacher/column.json
    teacher/<shard>.safetensors

A row of a shard is a pair: matched ones first, each kind in the order of the pictures. In format 1
a picture is stored again with each pair, and objects are JSON lines; it is read, not written.

Whatever reads or writes these files takes names and shapes from here.
"""

import json
import re
from dataclasses import dataclass
from typing import Any

from shards.files import InputError
from shards.json_files import is_number, parse_object

FORMAT_VERSION = 2
INDEX_NAME = "index.json"
REJECTS_NAME = "rejects.jsonl"
COLUMN_NAME = "column.json"
OBJECTS = "objects"
ROWS = "rows"
TEACHER = "teacher"
TEACHER_TENSORS = ("image_feat", "object_feat", "has_object")
COLUMN_COMMANDS = {OBJECTS: "python -m shards detect", TEACHER: "python -m pretrain label"}
PAIR_FIELDS = ("row", "caption", "matched", "caption_id", "source", "similarity")
KEY_PATTERN = re.compile(r"[A-Za-z0-9_-]+")


@dataclass(frozen=True)
class PairMeta:
    """Everything about a pair but its pixels."""

    caption: str
    matched: bool
    """True: the caption belongs to the image. False: a constructed mismatch."""
    caption_id: str
    """Equal ids mean the same caption; such rows are never each other's negatives."""
    image_id: str
    size: tuple[int, int]
    """(width, height) of the stored image in pixels."""
    source: str
    """The (sub-)corpus the row comes from, for example `merged_balanced`."""
    similarity: float | None = None
    orientation: int = 1
    """EXIF's, by which the raw picture was turned: boxes of its raw pixels are turned likewise."""
    row: int | None = None
    """Number of the raw row; None: that of the picture's key."""

    @classmethod
    def from_dict(cls, fields: dict[str, Any], name: str) -> "PairMeta":
        """Check the fields of a pair and its picture; `name` is what error messages call it."""
        for field_name in ("caption", "caption_id", "image_id", "source"):
            if not isinstance(fields.get(field_name), str):
                raise InputError(f"{name}: `{field_name}` is missing or no text")
        if not isinstance(fields.get("matched"), bool):
            raise InputError(f"{name}: `matched` is missing or neither true nor false")
        # `type`, not isinstance: true and false are ints to Python, not to a reader of JSON.
        size = fields.get("size")
        if not (isinstance(size, list) and len(size) == 2 and all(type(x) is int for x in size)):
            raise InputError(f"{name}: `size` is missing or not [width, height]")
        if min(size) < 1:
            raise InputError(f"{name}: `size` {size} is not positive")
        similarity = fields.get("similarity")
        if similarity is not None and not is_number(similarity):
            raise InputError(f"{name}: `similarity` is no finite number")
        orientation = fields.get("orientation", 1)
        if type(orientation) is not int or not 1 <= orientation <= 8:
            raise InputError(f"{name}: `orientation` is not EXIF's 1 to 8")
        row = fields.get("row")
        if row is not None and (type(row) is not int or row < 0):
            raise InputError(f"{name}: `row` is no row number")
        return cls(
            caption=fields["caption"],
            matched=fields["matched"],
            caption_id=fields["caption_id"],
            image_id=fields["image_id"],
            size=(size[0], size[1]),
            source=fields["source"],
            similarity=similarity,
            orientation=orientation,
            row=row,
        )


@dataclass(frozen=True)
class PictureMeta:
    """The `{key}.json` member: everything about a picture, and the pairs that it is part of."""

    image_id: str
    size: tuple[int, int]
    """(width, height) of the stored image in pixels."""
    orientation: int
    """As of `PairMeta`."""
    pairs: tuple[PairMeta, ...]
    """In the order of their raw rows."""

    def to_json(self) -> str:
        """One JSON object; `similarity` is left out where unknown, `orientation` where 1."""
        fields: dict[str, Any] = {"image_id": self.image_id, "size": self.size}
        if self.orientation != 1:
            fields["orientation"] = self.orientation
        fields["pairs"] = [
            {name: value for name in PAIR_FIELDS if (value := getattr(pair, name)) is not None}
            for pair in self.pairs
        ]
        return json.dumps(fields, ensure_ascii=False)

    @classmethod
    def parse(cls, content: bytes, name: str) -> "PictureMeta":
        """Parse and check a `{key}.json` member; `name` is what error messages call it.

        A member without `pairs` is one pair, as shards of format 1 have it.
        """
        fields = parse_object(content, name)
        entries = fields.pop("pairs", [{}])
        if not isinstance(entries, list) or not entries:
            raise InputError(f"{name}: `pairs` is no list, or empty")
        pairs = []
        for number, entry in enumerate(entries):
            if not isinstance(entry, dict):
                raise InputError(f"{name}: pair {number} is not a JSON object")
            pairs.append(PairMeta.from_dict(fields | entry, name))
        first = pairs[0]
        return cls(first.image_id, first.size, first.orientation, tuple(pairs))


@dataclass(frozen=True)
class DetectedObject:
    """One detected box, in absolute pixels of the stored image."""

    box: tuple[float, float, float, float]
    """(x1, y1, x2, y2)"""
    score: float
    label: str

    @classmethod
    def from_dict(cls, fields: Any, name: str) -> "DetectedObject":
        """Check one element of an `objects` list; `name` is what error messages call it."""
        if not isinstance(fields, dict):
            raise InputError(f"{name}: an object is not a JSON object")
        box, score, label = (fields.get(key) for key in ("box", "score", "label"))
        if not (isinstance(box, list) and len(box) == 4 and all(map(is_number, box))):
            raise InputError(f"{name}: `box` {box!r} is not four finite numbers [x1, y1, x2, y2]")
        if not (box[0] < box[2] and box[1] < box[3]):
            raise InputError(f"{name}: `box` {box} is empty or its corners are swapped")
        if score is None or not is_number(score) or not isinstance(label, str):
            raise InputError(f"{name}: `score` must be a finite number and `label` a text")
        return cls(box=(box[0], box[1], box[2], box[3]), score=score, label=label)
