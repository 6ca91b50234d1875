"""One shard and its columns, opened for access by row and by picture."""

import os
import weakref
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from shards.arrays import map_arrays
from shards.detections import Detections, map_detections, read_lines_of_objects
from shards.files import InputError, file_sha256
from shards.index import ColumnIndex, ShardIndex, ShardInfo
from shards.location import Location, mend
from shards.rows import Member, Rows, check_rows, make_rows
from shards.schema import (
    COLUMN_COMMANDS,
    COLUMN_NAME,
    OBJECTS,
    ROWS,
    TEACHER,
    TEACHER_TENSORS,
    DetectedObject,
    PairMeta,
    PictureMeta,
)

_CRC_NAME = b', "crc32": '
_CRC = _CRC_NAME + b"%d}"
BLOCK = 512  # bytes, of a tar


@dataclass(frozen=True)
class Sample:
    """A pair as stored, with its columns where these were asked for."""

    key: str
    image: bytes
    """JPEG."""
    meta: PairMeta
    objects: tuple[DetectedObject, ...] | None = None
    """Best first; None: column not asked for."""
    teacher: dict[str, np.ndarray] | None = None
    """image_feat (256,) f16, object_feat (256,) f16, has_object () bool."""


@dataclass(frozen=True)
class Picture:
    """A stored picture, with its objects where these were asked for."""

    key: str
    image: bytes
    """JPEG."""
    meta: PictureMeta
    objects: tuple[DetectedObject, ...] | None = None
    """Best first; None: column not asked for."""


class PairPlace(NamedTuple):
    """What training needs of a pair beside its pixels and caption; no JSON is read for it."""

    key: str
    picture: int
    """Number of its picture in the shard."""
    size: tuple[int, int]
    """(width, height) of the stored picture."""
    matched: bool
    ids: tuple[int, int]
    """`id_hash` of caption and picture."""
    box: tuple[float, float, float, float]
    """Of the best object; all 0: none, or column not asked for."""
    teacher: dict[str, np.ndarray] | None
    """As of `Sample`."""


class OpenShard:
    """One shard: open file, table of rows, columns."""

    def __init__(
        self,
        source: Location,
        info: ShardInfo,
        columns: Mapping[str, ColumnIndex],
        index: ShardIndex,
    ) -> None:
        self.path = source.path(info.name, info.sha256, info.bytes)
        self.matched, self.checksums = info.matched, index.checksums
        self.objects: Detections | None = None
        self.teacher: dict[str, np.ndarray] | None = None
        self.file = os.open(self.path, os.O_RDONLY)
        try:
            self.rows = self._rows(source, info)
            if OBJECTS in columns:
                path = _column_path(source, columns[OBJECTS], info.stem)
                self.objects = self._objects(path)
            if TEACHER in columns:
                path = _column_path(source, columns[TEACHER], info.stem)
                self.teacher = map_teacher(path, info.pictures)
        except BaseException:
            os.close(self.file)
            raise
        weakref.finalize(self, os.close, self.file)

    def _rows(self, source: Location, info: ShardInfo) -> Rows:
        if info.rows_sha256 is None:
            rows = make_rows(read_metas(self.file, str(self.path)))
            if len(rows.picture) != info.samples:
                raise InputError(
                    f"{self.path}: {len(rows.picture)} samples, the index says {info.samples}; "
                    f"{mend(self.path.parent)}"
                )
            return rows
        path = source.path(rows_name(info.stem), info.rows_sha256)
        if file_sha256(path) != info.rows_sha256:
            raise InputError(
                f"{path}: another checksum than the index says; {mend(path.parent.parent)}"
            )
        return check_rows(map_arrays(path).tensors, str(path), info.pictures, info.samples)

    def _objects(self, path: Path) -> Detections:
        pictures = range(len(self.rows.sizes))
        if path.suffix == ".jsonl":
            return read_lines_of_objects(path, [self.rows.picture_key(n) for n in pictures])
        return map_detections(path, len(pictures))

    def image(self, number: int) -> bytes:
        """The JPEG of a picture, checked."""
        return self._content(number)[1]

    def picture(self, number: int) -> Picture:
        """A picture by its number."""
        key, image, meta = self._content(number)
        about = PictureMeta.parse(meta, f"{self.path}: {key}.json")
        return Picture(key, image, about, self.objects_of(number))

    def place(self, row: int) -> PairPlace:
        """A pair by its row, without its picture."""
        rows, number = self.rows, int(self.rows.picture[row])
        width, height = rows.sizes[number].tolist()
        best = [0.0] * 4 if self.objects is None else self.objects.best[number].tolist()
        return PairPlace(
            key=rows.key(row),
            picture=number,
            size=(width, height),
            matched=row < self.matched,
            ids=(int(rows.caption_ids[row]), int(rows.image_ids[number])),
            box=(best[0], best[1], best[2], best[3]),
            teacher=self.teacher_of(number),
        )

    def objects_of(self, number: int) -> tuple[DetectedObject, ...] | None:
        """Of a picture; None: column not asked for."""
        return None if self.objects is None else self.objects.of(number)

    def teacher_of(self, number: int) -> dict[str, np.ndarray] | None:
        """Of a picture; None: column not asked for."""
        return self.teacher and {name: self.teacher[name][number] for name in TEACHER_TENSORS}

    def read(self, row: int) -> Sample:
        """A pair by its row."""
        number = int(self.rows.picture[row])
        picture = self.picture(number)
        key, place = self.rows.key(row), int(self.rows.pair[row])
        pairs = picture.meta.pairs
        if place >= len(pairs) or pairs[place].matched != (row < self.matched):
            raise InputError(
                f"{self.path}: {key} is {'' if row >= self.matched else 'not '}matched, unlike the "
                f"index says; {mend(self.path.parent)}"
            )
        return Sample(key, picture.image, pairs[place], picture.objects, self.teacher_of(number))

    def _content(self, number: int) -> tuple[str, bytes, bytes]:
        """(key, JPEG, JSON), checked."""
        image_at, image_size, meta_at, meta_size = self.rows.places[number].tolist()
        content = os.pread(self.file, meta_at + meta_size - image_at, image_at)
        key = self.rows.picture_key(number)
        if len(content) != meta_at + meta_size - image_at:
            raise InputError(f"{self.path}: {key} is cut; {mend(self.path.parent)}")
        image, meta = content[:image_size], content[meta_at - image_at :]
        if self.checksums and not is_intact(key, image, meta):
            raise InputError(
                f"{self.path}: {key} is damaged (its checksum differs); {mend(self.path.parent)}"
            )
        return key, image, meta


def rows_name(stem: str) -> str:
    """Where a shard's table lies, in the shard directory."""
    return f"{ROWS}/{stem}.safetensors"


def read_metas(file: int, name: str) -> Iterator[tuple[Member, PictureMeta]]:
    """The pictures of an open tar, without their pixels."""
    for member in scan_shard(file, name):
        meta = os.pread(file, member.meta_size, member.meta_at)
        yield member, PictureMeta.parse(meta, f"{name}: {member.key}.json")


def scan_shard(file: int, name: str) -> Iterator[Member]:
    """The pictures of an open tar, from its headers alone.

    Reads the plain USTAR that `write.py` writes. `tarfile` reads it as well, 15 times slower.

    Raises:
        InputError: anything but pairs of `{key}.jpg` and `{key}.json`.
    """
    at, image = 0, None
    while header := os.pread(file, BLOCK, at):
        if not any(header):
            break  # the end mark
        try:
            member, size = header[:100].rstrip(b"\0").decode("ascii"), int(header[124:135], 8)
        except ValueError as error:
            raise InputError(f"{name}: damaged tar header at byte {at}") from error
        if header[257:262] != b"ustar" or header[156:157] != b"0":
            raise InputError(f"{name}: no plain tar header at byte {at}")
        key, _, suffix = member.rpartition(".")
        if image is None and suffix == "jpg":
            image = (key, at + BLOCK, size)
        elif image and suffix == "json" and key == image[0]:
            yield Member(*image, at + BLOCK, size)
            image = None
        else:
            raise InputError(f"{name}: member {member!r} at byte {at} is not expected there")
        at += BLOCK + -(-size // BLOCK) * BLOCK
    if image:
        raise InputError(f"{name}: {image[0]} has no .json; the file is cut")


def with_checksum(key: str, image: bytes, meta: str) -> bytes:
    """A `{key}.json` whose last field is the crc32 of key, picture and what
    stands before it."""
    text = meta.removesuffix("}").encode()
    return text + _CRC % _checksum(key, image, text)


def is_intact(key: str, image: bytes, meta: bytes) -> bool:
    """Whether a sample is what `with_checksum` wrote."""
    text, _, _ = meta.rpartition(_CRC_NAME)
    return meta == text + _CRC % _checksum(key, image, text)


def _checksum(key: str, image: bytes, text: bytes) -> int:
    return zlib.crc32(text, zlib.crc32(image, zlib.crc32(key.encode())))


def _column_path(source: Location, column: ColumnIndex, stem: str) -> Path:
    """A column's file, whose bytes are those that were written: hashing them takes about a
    millisecond a shard, and a shifted, edited or damaged column would train on unseen."""
    sha256 = column.shards[stem].sha256
    path = source.path(column.file(stem), sha256)
    if file_sha256(path) != sha256:
        raise InputError(
            f"{path}: another checksum than {COLUMN_NAME} says; run "
            f"`{COLUMN_COMMANDS[column.column]}` again"
        )
    return path


def map_teacher(path: Path, pictures: int) -> dict[str, np.ndarray]:
    """A shard's teacher features, memory-mapped, after checking their names and shapes."""
    tensors = map_arrays(path).tensors
    for name in TEACHER_TENSORS:
        shape = tensors[name].shape if name in tensors else ()
        if shape[:1] != (pictures,) or len(shape) != (1 if name == "has_object" else 2):
            raise InputError(
                f"{path}: `{name}` is {list(shape)} for {pictures} pictures; run "
                "`python -m pretrain label` again"
            )
    return tensors
