"""`index.json` and `column.json`: what a shard directory holds, and which columns it has."""

import os
import re
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from shards.files import InputError
from shards.json_files import parse_object
from shards.schema import COLUMN_COMMANDS, FORMAT_VERSION, INDEX_NAME, OBJECTS

SHA256 = re.compile(r"[0-9a-f]{64}")
SHARD_NAME = re.compile(r"[A-Za-z0-9_-]+-\d{6}\.tar")


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
    """Pairs."""
    matched: int
    """Matched pairs; they are the first rows."""
    bytes: int
    sha256: str
    pictures: int
    rows_sha256: str | None = None
    """Of the table of rows; None: format 1, which has none."""

    def __post_init__(self) -> None:
        _check(SHARD_NAME.fullmatch(self.name), f"shard name {self.name!r}")
        _check_counts(self.samples, self.matched, self.bytes, self.pictures)
        _check_sha256(self.sha256)
        if self.rows_sha256 is not None:
            _check_sha256(self.rows_sha256)

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

    @property
    def pictures(self) -> int:
        """Stored pictures over all shards: different ones, but in format 1."""
        return sum(shard.pictures for shard in self.shards)

    def to_dict(self) -> dict[str, Any]:
        """The JSON form, totals included."""
        fields = asdict(self)
        fields["shards"] = [asdict(shard) for shard in self.shards]
        fields |= {name: getattr(self, name) for name in ("samples", "matched", "pictures")}
        return fields


@dataclass(frozen=True)
class ColumnShard:
    """One shard's line of `column.json`."""

    samples: int
    """Pictures; in format 1, pairs."""
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

    def file(self, stem: str) -> str:
        """Name of a shard's file, in the shard directory."""
        objects = self.column == OBJECTS and self.format == 1
        return f"{self.column}/{stem}{'.jsonl' if objects else '.safetensors'}"

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
        return ColumnIndex(
            fields["column"], fields["complete"], shards, fields["provenance"], fields["format"]
        )
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
            # Format 1 counts no pictures: it stores one with each pair.
            shards=tuple(
                ShardInfo(**({"pictures": shard["samples"]} | shard)) for shard in fields["shards"]
            ),
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
    if version > 1 and any(shard.rows_sha256 is None for shard in index.shards):
        raise InputError(f"{name}: a shard has no `rows_sha256`; build the shards again")
    # A list with a shard taken out or twice in it parses: totals and names tell.
    totals = (index.samples, index.matched, index.samples + index.rejects)
    if len({shard.stem for shard in index.shards}) < len(index.shards):
        raise InputError(f"{name}: names a shard twice; build the shards again")
    if totals != (fields.get("samples"), fields.get("matched"), index.rows):
        raise InputError(f"{name}: totals disagree with the shard list; build the shards again")
    return index
