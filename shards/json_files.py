"""JSON that is whole or not there, and lines of text: one careful writer and reader of each."""

import json
import math
import os
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from shards.files import InputError, atomic_path

_CRC = "_crc32"
LINES = "_lines"
"""In the header of `write_json_lines`."""


def write_json(path: str | os.PathLike[str], content: Any, *, checksum: bool = False) -> None:
    """Write JSON atomically.

    Args:
        checksum: whether an object gets one, which whoever reads it with `read_json` checks.
    """
    if checksum:
        content = with_crc32(content)
    with atomic_path(path) as temporary:
        text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
        temporary.write_text(text, encoding="utf-8")


def write_json_lines(
    path: str | os.PathLike[str], header: Mapping[str, Any], records: Iterable[Mapping[str, Any]]
) -> None:
    """A JSON object a line, each with its crc32, atomically; the first, `header`, also gets
    `_lines`, the number of the others."""
    lines = [json.dumps(with_crc32(record), ensure_ascii=False) + "\n" for record in records]
    first = json.dumps(with_crc32({**header, LINES: len(lines)}), ensure_ascii=False) + "\n"
    with atomic_path(path) as temporary:
        temporary.write_text(first + "".join(lines), encoding="utf-8")


def is_number(value: Any) -> bool:
    """A finite JSON number; `true` and `false` are none."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def with_crc32(content: Mapping[str, Any]) -> dict[str, Any]:
    """A JSON object and, as its last key, the crc32 of what it says, however it is spaced."""
    plain = json.loads(json.dumps(content))
    return {**plain, _CRC: f"{zlib.crc32(json.dumps(plain, sort_keys=True).encode()):08x}"}


def parse_object(content: bytes | str, name: str, advice: str = "") -> dict[str, Any]:
    """A JSON object, or an `InputError` that says where it is not one and what to do."""
    ending = f"; {advice}" if advice else ""
    try:
        fields = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{name}: not valid JSON ({error}){ending}") from error
    if not isinstance(fields, dict):
        raise InputError(f"{name}: not a JSON object{ending}")
    checksum = fields.pop(_CRC, None)
    if checksum is not None and with_crc32(fields)[_CRC] != checksum:
        raise InputError(f"{name}: not what was written (its {_CRC} differs){ending}")
    return fields


def read_json(path: str | os.PathLike[str], advice: str = "") -> dict[str, Any]:
    """The JSON object that a file holds.

    Args:
        advice: what a person does about a damaged file, for example "delete it and run again".

    Raises:
        InputError: missing, unreadable, damaged, or no object: one line that names the file.
    """
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        ending = f"; {advice}" if advice else ""
        raise InputError(f"{path}: cannot be read ({error.strerror}){ending}") from error
    return parse_object(content, str(path), advice)


def read_lines(path: str | os.PathLike[str]) -> Iterator[tuple[int, str]]:
    """(number, line without its end) of a UTF-8 text file, from 1; a byte order mark is cut.

    Only \\n and \\r\\n end a line: U+2028 and its like, which `str.splitlines` cuts at, may stand
    inside a JSON text.

    Raises:
        InputError: unreadable, or a byte that is no UTF-8: names file, line and byte.
    """
    try:
        with open(path, "rb") as file:
            for number, line in enumerate(file, start=1):
                content = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
                yield number, content.removesuffix(b"\n").removesuffix(b"\r").decode()
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path}: line {number}: byte 0x{error.object[error.start]:02x} at position "
            f"{error.start} is no UTF-8"
        ) from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error


def read_json_lines(path: str | os.PathLike[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    """(number, object) of a file of one JSON object a line; empty lines are passed over.

    Raises:
        InputError: as `read_lines`, or a line that is no JSON object: names file and line.
    """
    for number, line in read_lines(path):
        if line.strip():
            yield number, parse_object(line, f"{path}: line {number}")
