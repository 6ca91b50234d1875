"""THE contract of a shard directory: members, JSON fields, columns, index, versions.

A shard directory holds one split::

    train-000000.tar …     members {key}.jpg and {key}.json, in that order, keys [A-Za-z0-9_-];
                           matched pairs first
    index.json             written last, by rename: its presence means "complete"
    rejects.jsonl          every raw row that did not become a sample, with the reason
    objects/column.json    a column: one file per shard, written later, replaceable alone
    objects/<shard>.jsonl
    teacher/column.json
    teacher/<shard>.safetensors

Whatever reads or writes these files takes names and shapes from here.
"""

import json
import os
import re
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from shards.files import InputError, is_number, parse_object

FORMAT_VERSION = 1
INDEX_NAME = "index.json"
REJECTS_NAME = "rejects.jsonl"
COLUMN_NAME = "column.json"
OBJECTS = "objects"
TEACHER = "teacher"
TEACHER_TENSORS = ("image_feat", "object_feat", "has_object")
COLUMN_COMMANDS = {OBJECTS: "python -m shards detect", TEACHER: "python -m pretrain label"}
COLUMN_SUFFIXES = {OBJECTS: ".jsonl", TEACHER: ".safetensors"}
SHA256 = re.compile(r"[0-9a-f]{64}")
SHARD_NAME = re.compile(r"[A-Za-z0-9_-]+-\d{6}\.tar")
KEY_PATTERN = re.compile(r"[A-Za-z0-9_-]+")


@dataclass(frozen=True)
class PairMeta:
    """The `{key}.json` member: everything about a pair but its pixels."""

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

    def to_json(self) -> str:
        """One JSON object; `similarity` is left out where unknown, `orientation` where 1."""
        fields = asdict(self)
        if self.similarity is None:
            del fields["similarity"]
        if self.orientation == 1:
            del fields["orientation"]
        return json.dumps(fields, ensure_ascii=False)

    @classmethod
    def parse(cls, content: bytes, name: str) -> "PairMeta":
        """Parse and check a `{key}.json` member; `name` is what error messages call it."""
        fields = parse_object(content, name)
        for field_name in ("caption", "caption_id", "image_id", "source"):
            if not isinstance(fields.get(field_name), str):
                raise InputError(f"{name}: `{field_name}` is missing or no text")
        if not isinstance(fields.get("matched"), bool):
            raise InputError(f"{name}: `matched` is missing or neither true nor false")
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
        return cls(
            caption=fields["caption"],
            matched=fields["matched"],
            caption_id=fields["caption_id"],
            image_id=fields["image_id"],
            size=(size[0], size[1]),
            source=fields["source"],
            similarity=similarity,
            orientation=orientation,
        )


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


def _check(good: Any, what: str) -> None:
    if not good:
        raise ValueError(f"wrong {what}")


def _check_counts(*counts: Any) -> None:
    for count in counts:
        _check(type(count) is int and count >= 0, f"count {count!r}")


def _check_sha256(text: Any) -> None:
    _check(isinstance(text, str) and SHA256.fullmatch(text), f"sha256 {text!r}")


@dataclass(frozen=True)
class ShardInfo:
    """One line of the index."""

    name: str
    samples: int
    matched: int
    """Matched pairs; they are the first ones in the tar."""
    bytes: int
    sha256: str

    def __post_init__(self) -> None:
        _check(SHARD_NAME.fullmatch(self.name), f"shard name {self.name!r}")
        _check_counts(self.samples, self.matched, self.bytes)
        _check_sha256(self.sha256)

    @property
    def stem(self) -> str:
        """Name without `.tar`: the stem of this shard's column files."""
        return self.name.removesuffix(".tar")


@dataclass(frozen=True)
class ShardIndex:
    """`index.json`: what a complete shard directory holds."""

    split: str
    shards: tuple[ShardInfo, ...]
    rows: int
    """Raw rows read: samples + rejects."""
    rejects: int
    provenance: dict[str, Any] = field(default_factory=dict)
    """Source, options, versions."""
    checksums: bool = False
    """Whether every `{key}.json` ends in its sample's crc32; older shards have none."""
    format: int = FORMAT_VERSION

    @property
    def samples(self) -> int:
        """Pairs over all shards."""
        return sum(shard.samples for shard in self.shards)

    @property
    def matched(self) -> int:
        """Matched pairs over all shards."""
        return sum(shard.matched for shard in self.shards)

    def to_dict(self) -> dict[str, Any]:
        """The JSON form, totals included."""
        fields = asdict(self)
        fields["shards"] = [asdict(shard) for shard in self.shards]
        fields |= {"samples": self.samples, "matched": self.matched}
        return fields


@dataclass(frozen=True)
class ColumnShard:
    """One shard's line of `column.json`."""

    samples: int
    sha256: str
    """Of the column's file."""
    tar_sha256: str
    """Of the tar it was computed from: a rebuilt shard outdates its columns."""

    def __post_init__(self) -> None:
        _check_counts(self.samples)
        _check_sha256(self.sha256)
        _check_sha256(self.tar_sha256)


@dataclass(frozen=True)
class ColumnIndex:
    """`<column>/column.json`: which shards have their column file, and how it was made."""

    column: str
    complete: bool
    shards: dict[str, ColumnShard]
    """By the shard's stem."""
    provenance: dict[str, Any]
    format: int = FORMAT_VERSION

    def to_dict(self) -> dict[str, Any]:
        """The JSON form."""
        return asdict(self)


def parse_column(content: bytes, name: str) -> ColumnIndex:
    """Parse and check `column.json`; `name` is what error messages call it."""
    fields = parse_object(content, name)
    try:
        if fields["format"] > FORMAT_VERSION:
            raise InputError(f"{name}: format {fields['format']} is newer; update fusion-mre")
        _check(type(fields["complete"]) is bool, "`complete`")
        _check(fields["column"] in COLUMN_COMMANDS, f"column {fields['column']!r}")
        shards = {stem: ColumnShard(**shard) for stem, shard in fields["shards"].items()}
        return ColumnIndex(fields["column"], fields["complete"], shards, fields["provenance"])
    except InputError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{name}: damaged ({error!r}); delete it and write the column again"
        ) from error


def read_index(directory: str | os.PathLike[str]) -> ShardIndex:
    """The index of a local shard directory.

    Raises:
        InputError: no index (not a shard directory, or an unfinished one), damaged, or newer.
    """
    path = Path(directory) / INDEX_NAME
    return parse_index(path.read_bytes() if path.is_file() else None, str(path))


def parse_index(content: bytes | None, name: str) -> ShardIndex:
    """Parse and check `index.json` (None: there is none); `name` is what error messages call it."""
    if content is None:
        raise InputError(
            f"{name.removesuffix('/' + INDEX_NAME)}: no {INDEX_NAME}: not a shard directory, or an "
            "unfinished one; run `python -m shards build … --out` on it (it resumes)"
        )
    try:
        fields = parse_object(content, name)
        version = fields["format"]
        _check_counts(version, fields["rows"], fields["rejects"])
        if version > FORMAT_VERSION:
            raise InputError(
                f"{name}: format {version} is newer than {FORMAT_VERSION}; update fusion-mre"
            )
        index = ShardIndex(
            split=fields["split"],
            shards=tuple(ShardInfo(**shard) for shard in fields["shards"]),
            rows=fields["rows"],
            rejects=fields["rejects"],
            provenance=fields["provenance"],
            checksums=fields.get("checksums", False) is True,
            format=version,
        )
    except InputError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(f"{name}: damaged index ({error!r}); build the shards again") from error
    totals = (index.samples, index.matched, index.samples + index.rejects)
    if len({shard.stem for shard in index.shards}) < len(index.shards):
        raise InputError(f"{name}: names a shard twice; build the shards again")
    if totals != (fields.get("samples"), fields.get("matched"), index.rows):
        raise InputError(f"{name}: totals disagree with the shard list; build the shards again")
    return index
