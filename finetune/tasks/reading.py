"""How JSON and the files beside the rows are read: strictly; lines, by `shards/records.py`.

Each damage is an `InputError` that names file and line, or key. Nothing is executed.
"""

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import UnionType
from typing import Any, Literal, TypeGuard, TypeVar, Union, get_args, get_origin

from shards.files import InputError
from shards.json_files import LINES, read_json
from shards.records import Parsed, read_records

AnyKey = TypeVar("AnyKey")


def read_with_header(path: Path, key: str, hint: Any) -> tuple[dict[str, Any], list[Any]]:
    """The header object of a `.jsonl` file, and the records below it.

    Args:
        key, hint: what the header must hold, as `checked` takes it.
    """
    records = read_records(path)
    header = records[0].fields if records and isinstance(records[0], Parsed) else {}
    if not fits(header.get(key), hint):
        raise InputError(f"{path}: line 1: no header that says {key}")
    if header.pop(LINES, len(records) - 1) != len(records) - 1:
        raise InputError(f"{path}: {len(records) - 1} lines below a header that counts others")
    return header, records[1:]


def read_text(path: Path) -> str:
    """The whole of a UTF-8 file, with or without a byte order mark."""
    try:
        return path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise InputError(f"{path}:{line}: not UTF-8; convert the file") from None


def read_object(path: Path, expected: Mapping[str, Any], remedy: str) -> dict[str, Any]:
    """A JSON object that an earlier command wrote.

    Args:
        expected: what must be in it, as `checked` takes it. remedy: what to do about a damaged one.

    Raises:
        InputError: it cannot be read, is no JSON, or lacks something; names the file and the key.
    """
    try:
        return checked(read_json(path), expected, str(path))
    except InputError as error:
        raise damaged(path, error, remedy) from None


def damaged(path: Path, error: Exception, remedy: str) -> InputError:
    """What `error` says of a file that an earlier command wrote, with what to do about it."""
    reason = str(error).removeprefix(str(path)).lstrip(": ")
    return InputError(f"{path}: damaged ({reason}); {remedy}")


def checked(value: Any, expected: Any, where: str) -> Any:
    """`value`, once it is what `expected` says: a type hint of plain JSON (`float`: finite, whole
    numbers too), or an object's keys with a hint each; further keys are let through.

    Raises:
        InputError: names the place, as `where: key`.
    """
    if isinstance(expected, Mapping):
        for key, hint in expected.items():
            if not isinstance(value, dict) or key not in value:
                raise InputError(f"{where}: {key} is missing")
            checked(value[key], hint, f"{where}: {key}")
    elif not fits(value, expected):
        name = getattr(expected, "__name__", str(expected)) if not get_args(expected) else expected
        raise InputError(f"{where}: expected {name}, not {shown(value)}".replace("typing.", ""))
    return value


def fits(value: Any, hint: Any) -> bool:
    """Whether a JSON value is of a type hint; a list counts as a tuple of any length."""
    origin, choices = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return any(fits(value, choice) for choice in choices)
    if origin is Literal:
        return isinstance(value, str | int) and value in choices
    if origin in (list, tuple):
        return isinstance(value, list) and all(fits(item, choices[0]) for item in value)
    if hint is float:
        return type(value) in (int, float) and math.isfinite(value)
    return hint is Any or type(value) is (origin or hint)


def shown(value: Any) -> str:
    """The beginning of a value, for a message."""
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:40]}…"


def finite_number(value: Any) -> float | None:
    """A finite number, or None."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


def is_row(value: Any) -> TypeGuard[int]:
    """Whether a value is a row number; True and False are none."""
    return type(value) is int and value >= 0


def not_empty(values: dict[AnyKey, Any], path: Path) -> dict[AnyKey, Any]:
    """`values`, of which there must be some. Raises: InputError for an empty file."""
    if not values:
        raise InputError(f"{path}: no entry in it")
    return values


def keyed_lists(path: Path) -> Iterator[tuple[Any, list[Any]]]:
    """Items of a dict of lists that `torch.save` wrote; nothing in it is executed."""
    import torch

    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from None
    except Exception as error:  # torch and pickle raise a dozen types on damaged files
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(
            f"{path}: not a file of plain lists and tensors ({reason}); download it again"
        ) from None
    if not isinstance(content, dict):
        raise InputError(f"{path}: expected a dict of lists")
    for key, items in content.items():
        if not isinstance(items, list):
            raise InputError(f"{path}: key {key!r}: expected a list")
        yield key, items
