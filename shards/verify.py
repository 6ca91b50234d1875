"""Rereads a shard directory: every byte, key, count and column. Says what mends what is wrong."""

import hashlib
import io
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
from PIL import Image

from shards.arrays import pack
from shards.claim import STATE, build_command
from shards.command import Tool
from shards.detections import check_detections, read_lines_of_objects
from shards.files import InputError, file_sha256
from shards.index import ShardInfo, parse_column, read_index
from shards.json_files import read_json_lines
from shards.progress import Progress
from shards.rows import make_rows
from shards.schema import (
    COLUMN_COMMANDS,
    COLUMN_NAME,
    INDEX_NAME,
    KEY_PATTERN,
    REJECTS_NAME,
    TEACHER,
    TEACHER_TENSORS,
)
from shards.shard import map_teacher, read_metas, rows_name
from shards.stream import ShardReader


@dataclass(frozen=True, kw_only=True)
class VerifyConfig:
    """Reread every byte, key, count and column of a shard directory; say what mends it."""

    POSITIONAL: ClassVar = ("shards",)
    shards: Path
    """Shard directory."""


def verify(config: VerifyConfig) -> None:
    """Print every problem, or what is there.

    Raises:
        InputError: something is wrong.
    """
    directory = config.shards
    index, problems = read_index(directory), list(check(directory))
    for problem in problems:
        print(problem)
    if problems:
        raise InputError(f"{directory}: {len(problems)} problem(s), listed above")
    columns = [name for name in COLUMN_COMMANDS if (directory / name / COLUMN_NAME).is_file()]
    print(
        f"{directory}: complete; {index.rows} rows = {index.samples} samples "
        f"({index.matched} matched) + {index.rejects} rejects; {index.pictures} pictures in "
        f"{len(index.shards)} shards, columns: {', '.join(columns) or 'none'}"
    )


VERIFY = Tool(VerifyConfig, verify, "shards/train")


def check(directory: Path) -> Iterator[str]:
    """Problems, one line each; none if everything is as the index says."""
    reader = ShardReader(directory)
    seen: set[str] = set()
    keys: dict[str, list[str]] = {}
    shards = Progress(reader.index.shards, unit="shard", desc="verify")
    for number, info in enumerate(shards):
        problem = _checksum(directory / info.name, info.sha256)
        if problem is None and info.rows_sha256 is not None:
            problem = _checksum(directory / rows_name(info.stem), info.rows_sha256)
        if problem:
            yield f"{problem}: {_again(directory, info.name)}"
            continue
        try:
            keys[info.stem] = _check_shard(reader, number, info, seen)
        except InputError as error:
            yield f"{error}: {_again(directory, info.name)}"
    yield from _check_rejects(directory, reader.index.rejects)
    place = shlex.quote(str(directory))
    for column in COLUMN_COMMANDS:
        for problem in _check_column(directory, column, reader.index.shards, keys):
            yield f"{problem}: run `{COLUMN_COMMANDS[column]} {place} …` again, as before"


def _again(directory: Path, name: str) -> str:
    """How to write one file again."""
    delete = f"rm -f {shlex.quote(str(directory / name))}"
    return f"run `{delete}; {build_command(directory)}` (as {directory}/{STATE} records it)"


def _checksum(path: Path, expected: str) -> str | None:
    actual = file_sha256(path)
    if actual is None:
        return f"{path}: missing"
    return None if actual == expected else f"{path}: checksum differs"


def _check_shard(reader: ShardReader, number: int, info: ShardInfo, seen: set[str]) -> list[str]:
    opened = reader.shard(number)
    if info.rows_sha256 is not None:
        made = pack(make_rows(read_metas(opened.file, info.name))._asdict())
        if hashlib.sha256(made).hexdigest() != info.rows_sha256:
            raise InputError(f"{rows_name(info.stem)}: says something else than {info.name}")
    keys: list[str] = []
    matched = 0
    for picture in reader.pictures(number):
        matched += sum(pair.matched for pair in picture.meta.pairs)
        name = f"{info.name}: {picture.key}"
        if not KEY_PATTERN.fullmatch(picture.key):
            raise InputError(f"{name}: key has other characters than [A-Za-z0-9_-]")
        keys.append(picture.key)
        try:
            with Image.open(io.BytesIO(picture.image), formats=("JPEG",)) as image:
                image.load()
        except (OSError, SyntaxError, Image.DecompressionBombError) as error:
            raise InputError(f"{name}: picture cannot be decoded ({error})") from error
        if image.size != picture.meta.size:
            raise InputError(f"{name}: picture is {image.size}, its JSON says {picture.meta.size}")
    if matched != info.matched:
        raise InputError(f"{info.name}: {matched} pairs are matched, the index says {info.matched}")
    pairs = [opened.rows.key(row) for row in range(info.samples)]
    # Several pairs of a picture are called by their rows, the first as the picture.
    for key in {*pairs, *keys}:
        if key in seen:
            raise InputError(f"{info.name}: {key}: key appears twice")
        seen.add(key)
    if len({*pairs}) < len(pairs) or len({*keys}) < len(keys):
        raise InputError(f"{info.name}: a key appears twice")
    return keys


def _check_rejects(directory: Path, expected: int) -> Iterator[str]:
    path = directory / REJECTS_NAME
    try:
        lines = list(read_json_lines(path))
    except InputError as error:
        yield f"{error}: {_again(directory, INDEX_NAME)}"
        return
    if len(lines) != expected:
        yield (
            f"{path}: {len(lines)} lines, the index says {expected}: "
            f"{_again(directory, INDEX_NAME)}"
        )


def _check_column(
    directory: Path, column: str, shards: tuple[ShardInfo, ...], keys: dict[str, list[str]]
) -> Iterator[str]:
    path = directory / column / COLUMN_NAME
    if not path.is_file():
        if (directory / column).exists():
            yield f"{directory / column}: no {COLUMN_NAME}"
        return
    try:
        index = parse_column(path.read_bytes(), str(path))
    except InputError as error:
        yield str(error)
        return
    if not index.complete:
        yield f"{path}: the column is not finished"
    for shard in shards:
        part = index.shards.get(shard.stem)
        file = directory / index.file(shard.stem)
        if part is None or part.tar_sha256 != shard.sha256 or part.samples != shard.pictures:
            yield f"{file}: missing from {COLUMN_NAME}, or made from another tar"
            continue
        problem = _checksum(file, part.sha256)
        try:
            if problem is None and column == TEACHER:
                _check_teacher(file, shard.pictures)
            # Lines of format 1 name their pictures, whose keys only a sound shard tells.
            elif problem is None and file.suffix == ".jsonl" and shard.stem in keys:
                read_lines_of_objects(file, keys[shard.stem])
            elif problem is None and file.suffix != ".jsonl":
                check_detections(file, shard.pictures)
        except InputError as error:
            problem = str(error)
        if problem:
            yield problem


def _check_teacher(file: Path, pictures: int) -> None:
    tensors = map_teacher(file, pictures)
    for name in TEACHER_TENSORS:
        if not np.isfinite(tensors[name]).all():
            raise InputError(f"{file}: `{name}` holds values that are not finite")
