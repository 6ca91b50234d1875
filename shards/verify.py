"""Rereads a shard directory: every byte, key, count and column. Says what mends what is wrong."""

import io
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
from PIL import Image

from shards.claim import STATE, build_command
from shards.command import Tool
from shards.files import InputError, file_sha256, read_json_lines
from shards.progress import Progress
from shards.schema import (
    COLUMN_COMMANDS,
    COLUMN_NAME,
    COLUMN_SUFFIXES,
    INDEX_NAME,
    KEY_PATTERN,
    REJECTS_NAME,
    TEACHER,
    TEACHER_TENSORS,
    ShardInfo,
    parse_column,
    read_index,
)
from shards.shard import open_teacher, read_objects
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
        f"({index.matched} matched) + {index.rejects} rejects; {len(index.shards)} shards, "
        f"columns: {', '.join(columns) or 'none'}"
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
    keys: list[str] = []
    for sample in reader.samples(number):
        name = f"{info.name}: {sample.key}"
        if not KEY_PATTERN.fullmatch(sample.key):
            raise InputError(f"{name}: key has other characters than [A-Za-z0-9_-]")
        if sample.key in seen:
            raise InputError(f"{name}: key appears twice")
        seen.add(sample.key)
        keys.append(sample.key)
        try:
            with Image.open(io.BytesIO(sample.image), formats=("JPEG",)) as image:
                image.load()
        except (OSError, SyntaxError, Image.DecompressionBombError) as error:
            raise InputError(f"{name}: picture cannot be decoded ({error})") from error
        if image.size != sample.meta.size:
            raise InputError(f"{name}: picture is {image.size}, its JSON says {sample.meta.size}")
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
        file = directory / column / f"{shard.stem}{COLUMN_SUFFIXES[column]}"
        if part is None or part.tar_sha256 != shard.sha256 or part.samples != shard.samples:
            yield f"{file}: missing from {COLUMN_NAME}, or made from another tar"
            continue
        problem = _checksum(file, part.sha256)
        try:
            if problem is None and column == TEACHER:
                _check_teacher(file, shard.samples)
            elif problem is None and shard.stem in keys:
                read_objects(file, keys[shard.stem])
        except InputError as error:
            problem = str(error)
        if problem:
            yield problem


def _check_teacher(file: Path, samples: int) -> None:
    tensors = open_teacher(file, samples)
    for name in TEACHER_TENSORS:
        values = tensors.get_tensor(name)
        if not np.isfinite(values).all():
            raise InputError(f"{file}: `{name}` holds values that are not finite")
