"""The one door for texts and for spans in them: of posts, CSV and JSON lines, page and Python.

A text is taken as it is given: no Unicode normalisation, no case, nothing cut, so that a position
is the same before and after. Positions count code points, unless `offsets` says UTF-16 units (as
JavaScript and Java count: an emoji is two) or bytes of UTF-8. Marks of writing direction and a byte
order mark inside a text are characters like others; half a character or a NUL is refused.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import pairwise, product
from typing import Any, Literal, get_args
from unicodedata import category

from finetune.tasks.reading import shown
from shards.files import InputError

Span = tuple[int, int]
"""[start, end)"""
Offsets = Literal["characters", "utf-16", "bytes"]
UNITS: tuple[str, ...] = get_args(Offsets)
Occurrence = Literal["error", "first", "nearest"]
MOST_CHARACTERS = 20_000
MARK = "[{}]".format(
    "".join(chr(c) for c in range(0x300, 0xFE00) if category(chr(c)) in ("Mn", "Mc"))
)
"""Accents apart from their letters, vowel signs of Hindi, tones of Thai, points of Arabic: parts of
the word before them, which `\\w` leaves out. Not what chooses the look of an emoji (U+FE0F)."""
NOT_TEXT = re.compile("[\ud800-\udfff\0]")
"""A surrogate, in a Python string always one without its other half; a NUL."""


def check_text(value: Any, name: str) -> None:
    """Refuse what no file in UTF-8 can hold or no tokenizer reads, in strings and within lists.

    Raises:
        InputError: one line without a place, which the caller knows.
    """
    if isinstance(value, str) and (bad := NOT_TEXT.search(value)):
        what = "a NUL character" if bad[0] == "\0" else (
            f"half a character (the surrogate U+{ord(bad[0]):04X} alone"
        )  # fmt: skip
        end = f", after {bad.start()} characters" + ("" if bad[0] == "\0" else ")")
        raise InputError(f"{name} holds {what}{end}")
    items: Any = ()
    if isinstance(value, dict):
        items = [*value, *value.values()]
    elif isinstance(value, list | tuple):
        items = value
    for item in items:
        check_text(item, name)


def check_record(record: dict[str, Any]) -> None:
    """`check_text` of an object's keys and values."""
    for key, value in record.items():
        check_text(key, "a key")
        check_text(value, key)


def size_of(text: str, unit: str) -> int:
    """Length of a text in a unit of `UNITS`."""
    if unit == "characters":
        return len(text)
    return len(text.encode("utf-8")) if unit == "bytes" else len(text.encode("utf-16-le")) // 2


def to_characters(span: Span, text: str, unit: str) -> Span | None:
    """A span in `unit` as code points; None where an end is inside a character or outside."""
    if unit == "characters":
        return span if 0 <= span[0] <= span[1] <= len(text) else None
    encoding, width = ("utf-8", 1) if unit == "bytes" else ("utf-16-le", 2)
    content = text.encode(encoding)
    ends = []
    for place in span:
        if not 0 <= place * width <= len(content):
            return None
        try:
            ends.append(len(content[: place * width].decode(encoding)))
        except UnicodeDecodeError:
            return None
    return ends[0], ends[1]


def read_span(value: Any, length: int, name: str, unit: str) -> Span:
    """[start, end) of a list of two whole numbers, not empty and inside `length`.

    Raises:
        InputError: names `name`.
    """
    if not isinstance(value, list | tuple) or [type(place) for place in value] != [int, int]:
        raise InputError(f"{name} must be [start, end) in {unit}, not {shown(value)}")
    start, end = value
    if not 0 <= start < end <= length:
        raise InputError(f"{name} [{start}, {end}) is empty or outside {length} {unit}")
    return start, end


def offsets_of(record: Mapping[str, Any], default: str | None) -> str | None:
    """What the positions of a record count: its own `offsets`, else what the caller was told.

    Raises:
        InputError: no unit of `UNITS`.
    """
    offsets = default if record.get("offsets") is None else record["offsets"]
    if offsets not in (None, *UNITS):
        raise InputError(f"offsets must be one of {', '.join(UNITS)}, not {shown(offsets)}")
    return offsets


def place_span(
    value: Any, text: str, name: str, offsets: str | None = None, words: str | None = None
) -> Span:
    """A span in `offsets` as code points of the text.

    Args:
        offsets: None: nobody said; code points then, unless these cut a word, or leave the text,
            and another unit does not.
        words: what the span must read.

    Raises:
        InputError: a span that is none, or reads otherwise; both readings are named.
    """
    unit = offsets or "characters"
    pair = read_span(value, max(size_of(text, u) for u in UNITS), name, unit)
    span = to_characters(pair, text, unit)
    others = {
        other: place for other in UNITS
        if other != unit and (place := to_characters(pair, text, other)) not in (None, span)
    }  # fmt: skip
    if words is not None:
        fits = [other for other, (start, end) in others.items() if text[start:end] == words]
        reads = "is no place" if span is None else f"reads {shown(text[span[0] : span[1]])}"
        if span is None or text[span[0] : span[1]] != words:
            hint = f"; in {fits[0]} it reads that: --offsets {fits[0]}" if fits else ""
            raise InputError(
                f"{name} {list(pair)} {reads} in {unit}, but its text is {shown(words)}{hint}"
            )
    elif offsets is None and (span is None or _cuts(text, span)):
        whole = [other for other, place in others.items() if _whole(text, place)]
        if whole:
            start, end = others[whole[0]]
            reads = "is outside the text" if span is None else f"reads {shown(text[slice(*span)])}"
            raise InputError(
                f"{name} {list(pair)} {reads} in characters, {shown(text[start:end])} in "
                f"{whole[0]}; say which: --offsets {whole[0]}, or characters"
            )
    if span is None:
        read_span(value, size_of(text, unit), name, unit)
        raise InputError(f"{name} {list(pair)} ends inside a character in {unit}")
    if span[0] == span[1]:
        raise InputError(f"{name} {list(pair)} is empty")
    return span


def _cuts(text: str, span: Span) -> bool:
    """Whether a span begins or ends inside a word."""
    return any(
        0 < end < len(text) and text[end - 1].isalnum() and text[end].isalnum() for end in span
    )


def _whole(text: str, span: Span) -> bool:
    """Whether a span is words, with no blank at an end."""
    words = text[slice(*span)]
    return words != "" and words == words.strip() and not _cuts(text, span)


def mentions(words: str, text: str) -> list[Span]:
    """Where words occur with nothing of a word around them; any blanks stand for any others."""
    before = rf"(?<!\w)(?<!\w{MARK})(?<!\w{MARK}{MARK})"
    spaced = r"\s+".join(map(re.escape, words.split()))
    pattern = rf"{before}{spaced}(?!\w|{MARK})"
    return [place.span() for place in re.finditer(pattern, text)]


def locate(
    values: Sequence[Any],
    text: str,
    names: Sequence[str],
    offsets: str | None = None,
    occurrence: str = "error",
) -> list[Span | None]:
    """The entities of a text, a span of code points each; None for a value of None.

    Args:
        values: words; [start, end); or {"start", "end", "text"}, of which `text` alone is words,
            and with positions is what these must read. A head "10:30" is words.
        occurrence: of words that occur more than once. first: the first place that no earlier
            entity took. nearest: the places nearest to each other, not within one another if
            possible. error: refused.

    Raises:
        InputError: one line without a place.
    """
    choices: list[list[Span | None]] = [
        [None] if value is None else list(_places(value, text, name, offsets, occurrence))
        for value, name in zip(values, names, strict=True)
    ]
    if occurrence == "first":
        taken: list[Span | None] = []
        for places in choices:
            taken.append(next((place for place in places if place not in taken), places[0]))
        return taken
    return list(min(product(*choices), key=_apart)) if choices else []


def _apart(spans: Iterable[Span | None]) -> tuple[bool, int]:
    """What to make small: whether two spans share characters, and the gap between them."""
    ordered = sorted(span for span in spans if span)
    gaps = [second[0] - first[1] for first, second in pairwise(ordered)]
    return any(gap < 0 for gap in gaps), sum(map(abs, gaps))


def _places(
    value: Any, text: str, name: str, offsets: str | None, occurrence: str
) -> Iterator[Span]:
    if isinstance(value, dict):
        if unknown := value.keys() - {"start", "end", "text"}:
            raise InputError(f"{name}: unknown key {shown(sorted(unknown)[0])}")
        words = value.get("text")
        if not (words is None or isinstance(words, str)):
            raise InputError(f"{name}: text must be a string")
        if words is None or value.keys() & {"start", "end"}:
            ends = [value.get("start"), value.get("end")]
            yield place_span(ends, text, name, offsets, words)
            return
        value = words
    if not isinstance(value, str):
        yield place_span(value, text, name, offsets)
        return
    if not (words := value.strip()):
        raise InputError(f"{name} is blank")
    places = mentions(words, text)
    if not places:
        span = re.fullmatch(r"(\d+):(\d+)", words)
        hint = f"; positions are written [{span[1]}, {span[2]}]" if span else ""
        raise InputError(f"{name} {shown(value)} does not occur in the text{hint}")
    if len(places) > 1 and occurrence == "error":
        raise InputError(
            f"{name} {shown(value)} occurs {len(places)} times in the text; give its characters, "
            "[start, end]"
        )
    yield from places[:100]  # `locate` tries all pairs: of two such words 10,000
