"""The one door for files of one record a line, and what all files of rows have in common.

Every row is either accepted or refused with its line number and the reason, all of them at once:
`rows = accepted + refused`.
"""

import ast
import codecs
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from shards.files import InputError
from shards.json_files import parse_object

Value = TypeVar("Value")
MOST_LISTED = 20
"""Refused rows that a message lists before it only counts."""


class Refused(NamedTuple):
    """A row that cannot be read."""

    line: int
    reason: str


class Parsed(NamedTuple):
    """A line that could be parsed."""

    line: int
    """Its number, from 1."""
    fields: Any
    """What the parser made of it; by default a JSON object."""


def json_object(line: str) -> dict[str, Any]:
    """A JSON object, or an `InputError` that names no place."""
    try:
        return parse_object(line, "line")
    except InputError as error:
        raise InputError(str(error).removeprefix("line: ")) from None


def python_literal(line: str) -> Any:
    """A number, text, list or dict as Python writes it, or an `InputError` that names no place."""
    try:
        return ast.literal_eval(line.strip())
    except (ValueError, SyntaxError, MemoryError, RecursionError, TypeError):
        raise InputError("not a Python literal") from None


def read_records(
    path: str | Path, parser: Callable[[str], Any] = json_object, *, gaps: bool = True
) -> list[Parsed | Refused]:
    """Every line of a UTF-8 file that is not empty, or why it is refused.

    Args:
        gaps: whether empty lines between others are passed over; at the end they always are.
    """
    try:
        content = Path(path).read_bytes().removeprefix(codecs.BOM_UTF8)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    # Only \n and \r\n end a line: U+2028, at which `str.splitlines` cuts, may stand in a text.
    lines = content.split(b"\n")
    while lines and not lines[-1].strip():
        lines.pop()
    records: list[Parsed | Refused] = []
    for number, line in enumerate(lines, start=1):
        if line.strip() or not gaps:
            try:
                text = line.removesuffix(b"\r").decode()
                records.append(Parsed(number, parser(text)))
            except UnicodeDecodeError as error:
                byte = f"byte 0x{line[error.start]:02x} at position {error.start}"
                records.append(Refused(number, f"{byte} is no UTF-8; convert the file"))
            except InputError as error:
                records.append(Refused(number, str(error)))
    return records


def parse_records(
    path: str | Path, records: Sequence[Parsed | Refused], parse: Callable[[int, Any], Value]
) -> list[Value]:
    """`parse(row, fields)` of each record; rows are counted from 0.

    Args:
        parse: its `InputError` refuses the record, and names no place.

    Raises:
        InputError: lists the refused ones.
    """
    values: list[Value | Refused] = []
    for row, record in enumerate(records):
        if isinstance(record, Refused):
            values.append(record)
            continue
        try:
            values.append(parse(row, record.fields))
        except InputError as error:
            values.append(Refused(record.line, str(error)))
    return accepted(path, values)


def accepted(path: str | Path, rows: Sequence[Value | Refused]) -> list[Value]:
    """The rows of a file that must hold no refused one.

    Raises:
        InputError: lists the refused ones.
    """
    refuse(path, [row for row in rows if isinstance(row, Refused)], len(rows))
    return [row for row in rows if not isinstance(row, Refused)]


def refuse(path: str | Path, refused: Sequence[Refused], rows: int) -> None:
    """An `InputError` that lists the refused rows, if there are any."""
    if len(refused) == 1:
        raise InputError(f"{path}: line {refused[0].line}: {refused[0].reason}")
    if refused:
        raise InputError(f"{path}: {len(refused)} of {rows} rows cannot be read:{listed(refused)}")


def listed(refused: Sequence[Refused]) -> str:
    """The first rows, a line each, then how many more there are."""
    lines = [f"\n  line {row.line}: {row.reason}" for row in refused[:MOST_LISTED]]
    more = len(refused) - MOST_LISTED
    return "".join(lines) + (f"\n  and {more} more" if more > 0 else "")
