"""The one door for delimited files: nothing in them is lost without a line.

Every row is either accepted or refused with its line number and the reason, all of them at once:
`rows = accepted + refused`. Delimiter and encoding are detected, or named by the caller.
"""

import codecs
import csv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, NoReturn

from shards.files import InputError
from shards.records import Refused, accepted

DELIMITERS = {"comma": ",", "tab": "\t", "semicolon": ";", "pipe": "|"}
_BOMS = ((codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF16_LE, "utf-16"),
         (codecs.BOM_UTF16_BE, "utf-16"))  # fmt: skip


class TableRow(NamedTuple):
    """An accepted row."""

    line: int
    """Where it begins, from 1."""
    fields: dict[str, str]
    """By column."""


@dataclass(frozen=True)
class Table:
    """A delimited file: its rows in their order, refused ones among them."""

    path: Path
    columns: tuple[str, ...]
    delimiter: str
    encoding: str
    rows: tuple[TableRow | Refused, ...]

    @property
    def refused(self) -> list[Refused]:
        """The rows that cannot be read."""
        return [row for row in self.rows if isinstance(row, Refused)]

    def accepted(self) -> list[TableRow]:
        """All rows, of a file that must hold no other.

        Raises:
            InputError: lists the refused ones.
        """
        return accepted(self.path, self.rows)


def read_table(
    path: str | Path,
    columns: Sequence[str],
    *,
    delimiter: str | None = None,
    encoding: str | None = None,
) -> Table:
    """A CSV or TSV file with a header that names at least `columns`.

    Refused are rows with more or fewer fields than the header, bytes that the encoding does not
    know, and quotes that are not closed or that swallow lines which look like rows.

    Args:
        columns: the first is the row's key, such as its picture's file name.
        delimiter: a key or a value of `DELIMITERS`; default: what the header's columns are
            separated by.
        encoding: as Python names it; default: by the byte order mark, else UTF-8.

    Raises:
        InputError: unreadable, or a header without these columns.
    """
    path = Path(path)
    text, encoding = _text(path, encoding)
    newline = "\n" if "\n" in text else "\r"
    lines = text.split(newline)
    first = 1 if lines[0].lower().startswith("sep=") else 0  # as Excel writes it
    header = lines[first].removesuffix("\r") if len(lines) > first else ""
    delimiter = DELIMITERS.get(delimiter or "", delimiter) or _delimiter(path, header, columns)
    if len(delimiter) != 1:
        raise InputError(f"--delimiter {delimiter}: {', '.join(DELIMITERS)}, or one character")
    names = _header(path, header, delimiter, columns)
    rows = tuple(_rows(lines, newline, first + 1, names, delimiter, columns[0], encoding))
    return Table(path, tuple(names), delimiter, encoding, rows)


def _text(path: Path, encoding: str | None) -> tuple[str, str]:
    """Undecodable bytes become surrogates: they refuse their own row only."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    if encoding is None:
        encoding = next((name for bom, name in _BOMS if content.startswith(bom)), "utf-8")
        if b"\0" in content[:1000] and encoding == "utf-8":
            raise InputError(f"{path}: holds zero bytes; try --encoding utf-16-le, or utf-16-be")
    try:
        encoding = codecs.lookup(encoding).name
        errors = "surrogateescape" if encoding.startswith("utf-8") else "strict"
        return content.decode(encoding, errors).removeprefix("\ufeff"), encoding
    except UnicodeDecodeError as error:
        byte = f"byte 0x{content[error.start]:02x} at position {error.start}"
        raise InputError(f"{path}: {byte} is no {encoding}; give another --encoding") from error
    except (LookupError, UnicodeError) as error:
        raise InputError(f"--encoding {encoding}: unknown; for example utf-8 or cp1252") from error


def _delimiter(path: Path, header: str, columns: Sequence[str]) -> str:
    fitting = [
        delimiter for delimiter in DELIMITERS.values()
        if set(columns) <= set(_fields(header, delimiter) or ())
    ]  # fmt: skip
    return fitting[0] if fitting else _no_header(path, header, columns)


def _header(path: Path, header: str, delimiter: str, columns: Sequence[str]) -> list[str]:
    names = _fields(header, delimiter) or []
    if not set(columns) <= set(names):
        _no_header(path, header, columns)
    repeated = [name for name in names if names.count(name) > 1]
    if repeated:
        raise InputError(f"{path}: the header names `{repeated[0]}` twice")
    return names


def _no_header(path: Path, header: str, columns: Sequence[str]) -> NoReturn:
    names = " and ".join(f"`{name}`" for name in columns)
    raise InputError(
        f"{path}: the header must name {names}, separated by {', '.join(DELIMITERS)}; it is "
        f"{header[:80]!r}"
    )


def _fields(line: str, delimiter: str) -> list[str] | None:
    """The fields of one line, None where a quote is not closed in it."""
    if '"' not in line:
        return [field.strip() for field in line.split(delimiter)]
    try:
        return [
            field.strip() for field in next(csv.reader([line], delimiter=delimiter, strict=True))
        ]
    except (csv.Error, StopIteration):
        return None


def _rows(
    lines: list[str],
    newline: str,
    at: int,
    names: list[str],
    delimiter: str,
    key: str,
    encoding: str,
) -> Iterator[TableRow | Refused]:
    place, number = names.index(key), len(names)
    while at < len(lines):
        line, span = lines[at].removesuffix("\r"), 1
        if not line.strip():
            at += 1
            continue
        fields, reason = line.split(delimiter), ""
        if '"' in line:
            fields, span, reason = _quoted(lines, newline, at, delimiter)
            own = fields[place] if len(fields) > place else ""
            # A table of one column has texts of several lines, each of which looks like a row.
            for other in range(at + 1, at + span) if number > 1 else ():
                # A quote that somebody forgot ends at the next one, rows further on.
                inner = _fields(lines[other].removesuffix("\r"), delimiter)
                if inner and len(inner) == number and _alike(inner[place], own, lines[other]):
                    reason = f"a quote is not closed: it would swallow line {other + 1}"
                    break
            span = 1 if reason else span  # what follows is read by itself
        if not reason and len(fields) != number:
            counted = f"{len(fields)} field{'s' * (len(fields) > 1)}, the header names {number}"
            more = len(fields) > number
            reason = f"{counted} (a text with {delimiter!r} stands in quotes)" if more else counted
        reason = reason or _bad_byte("".join(fields), encoding)
        if reason:
            yield Refused(at + 1, reason)
        else:
            yield TableRow(at + 1, dict(zip(names, fields, strict=True)))
        at += span


def _alike(key: str, other: str, line: str) -> bool:
    """Whether both may be keys of rows, rather than the first, of `line`, a part of a text."""
    # A quoted text ends with an odd quote, which a row has none of; only names tell more surely.
    names = Path(other).suffix != "" and " " not in other
    alike = Path(key).suffix == Path(other).suffix and (" " in key) <= (" " in other)
    return alike and (names or line.count('"') % 2 == 0)


def _quoted(lines: list[str], newline: str, at: int, delimiter: str) -> tuple[list[str], int, str]:
    """(fields, lines taken, why not) of a record with quotes, which may go over several lines;
    their ends stay in the field as they are in the file."""
    rest = (f"{lines[number]}{newline}" for number in range(at, len(lines)))
    reader = csv.reader(rest, delimiter=delimiter, strict=True)
    try:
        fields = next(reader)
    except csv.Error as error:
        if reader.line_num > 1:
            return [], 1, "a quote is not closed"
        return [], 1, f"quotes: {error}"
    return fields, reader.line_num, ""


def _bad_byte(text: str, encoding: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        byte = f"byte 0x{ord(text[error.start]) - 0xDC00:02x}"
        return f"{byte} is no {encoding.removesuffix('-sig').upper()}; --encoding names another"
    return ""
