"""One shard and its columns, opened for access by row."""

import os
import weakref
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from shards.files import InputError, file_sha256, parse_object
from shards.location import Location, mend
from shards.schema import (
    COLUMN_COMMANDS,
    COLUMN_NAME,
    OBJECTS,
    TEACHER,
    TEACHER_TENSORS,
    ColumnIndex,
    DetectedObject,
    PairMeta,
    ShardInfo,
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


class OpenShard:
    """One shard: open file, offset table, columns."""

    def __init__(
        self,
        source: Location,
        info: ShardInfo,
        columns: Mapping[str, ColumnIndex],
        checksums: bool,
    ) -> None:
        self.path = source.path(info.name, info.sha256, info.bytes)
        self.matched, self.checksums = info.matched, checksums
        self.objects, self.teacher = None, None
        self.file = os.open(self.path, os.O_RDONLY)
        try:
            self.members = list(scan_shard(self.file, str(self.path)))
            if len(self.members) != info.samples:
                raise InputError(
                    f"{self.path}: {len(self.members)} samples, the index says {info.samples}; "
                    f"{mend(self.path.parent)}"
                )
            if OBJECTS in columns:
                path = _column_path(source, columns[OBJECTS], info.stem, ".jsonl")
                self.objects = read_objects(path, [member.key for member in self.members])
            if TEACHER in columns:
                path = _column_path(source, columns[TEACHER], info.stem, ".safetensors")
                self.teacher = open_teacher(path, info.samples)
        except BaseException:
            os.close(self.file)
            raise
        weakref.finalize(self, os.close, self.file)

    def read(self, row: int) -> Sample:
        member = self.members[row]
        image = os.pread(self.file, member.image_size, member.image_at)
        meta = os.pread(self.file, member.meta_size, member.meta_at)
        if len(image) != member.image_size or len(meta) != member.meta_size:
            raise InputError(f"{self.path}: {member.key} is cut; {mend(self.path.parent)}")
        if self.checksums and not is_intact(member.key, image, meta):
            raise InputError(
                f"{self.path}: {member.key} is damaged (its checksum differs); "
                f"{mend(self.path.parent)}"
            )
        pair = PairMeta.parse(meta, f"{self.path}: {member.key}.json")
        if pair.matched != (row < self.matched):
            raise InputError(
                f"{self.path}: {member.key} is {'' if pair.matched else 'not '}matched, unlike the "
                f"index says; {mend(self.path.parent)}"
            )
        teacher = self.teacher and {
            name: np.asarray(self.teacher.get_slice(name)[row]) for name in TEACHER_TENSORS
        }
        return Sample(
            key=member.key,
            image=image,
            meta=pair,
            objects=None if self.objects is None else self.objects[row],
            teacher=teacher,
        )


class Member(NamedTuple):
    """Where a sample lies in its tar, in bytes."""

    key: str
    image_at: int
    image_size: int
    meta_at: int
    meta_size: int


def scan_shard(file: int, name: str) -> Iterator[Member]:
    """The samples of an open tar, from its headers alone.

    Reads the plain USTAR that `write.py` writes. `tarfile` reads it as well, 15 times slower; that
    counts, since every worker scans every shard once per epoch.

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


def read_objects(path: Path, keys: Sequence[str]) -> list[tuple[DetectedObject, ...]]:
    """A shard's objects, in tar order, checked against the shard's keys."""
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); run detect again") from error
    if len(lines) != len(keys):
        raise InputError(f"{path}: {len(lines)} lines for {len(keys)} samples; run detect again")
    result = []
    for number, (line, key) in enumerate(zip(lines, keys, strict=True), start=1):
        name = f"{path}: line {number}"
        fields = parse_object(line, name)
        objects = fields.get("objects")
        if fields.get("key") != key or not isinstance(objects, list):
            raise InputError(f"{name}: not the objects of {key}; run detect again")
        result.append(tuple(DetectedObject.from_dict(item, f"{name}, {key}") for item in objects))
    return result


def _column_path(source: Location, column: ColumnIndex, stem: str, suffix: str) -> Path:
    """A column's file, whose bytes are those that were written: hashing them takes about a
    millisecond a shard, and a shifted, edited or damaged column would train on unseen."""
    sha256 = column.shards[stem].sha256
    path = source.path(f"{column.column}/{stem}{suffix}", sha256)
    if file_sha256(path) != sha256:
        raise InputError(
            f"{path}: another checksum than {COLUMN_NAME} says; run "
            f"`{COLUMN_COMMANDS[column.column]}` again"
        )
    return path


def open_teacher(path: Path, samples: int) -> Any:
    """A shard's teacher features, memory-mapped, after checking their names and shapes."""
    from safetensors import SafetensorError, safe_open

    try:
        tensors = safe_open(path, framework="np")
        for name in TEACHER_TENSORS:
            shape = tensors.get_slice(name).get_shape()
            if shape[0] != samples or len(shape) != (1 if name == "has_object" else 2):
                raise InputError(f"{path}: `{name}` is {shape} for {samples} samples; label again")
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path}: damaged ({error}); run pretrain.label again") from error
    return tensors
