"""Posts from anywhere as rows of a task: text or tokens, two entities or none, a picture or none.

One JSON object, the schema of your own data (`tasks/relations.py`, `tasks/twitter.py`) or plain
text; what is not needed is left out, `relation` and `tags` are allowed and not read::

    {"text": "Bob in Oslo", "head": "Bob", "tail": [7, 11], "image": "17.jpg", "id": "a1"}
    {"tokens": ["Bob", "in", "Oslo"], "head": [0, 1], "tail": [2, 3], "image": null}

With `text`, an entity is its characters [start, end), or its words where they occur once, or both
as {"start", "end", "text"} or `head_start`, `head_end` beside `head`; with `tokens`, tokens
[start, end). `offsets` says what positions count (`spans.py`). `image` is a path, relative to the
file that names it; `caption` is for runs that read one.
"""

import json
import math
import re
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from finetune.tasks.reading import shown
from finetune.tasks.spans import (
    MARK,
    MOST_CHARACTERS,
    Span,
    check_record,
    check_text,
    locate,
    offsets_of,
    read_span,
)
from shards.files import InputError
from shards.images import POST_PIXELS, RejectedImage, picture_size

ENDS = ("head_start", "head_end", "tail_start", "tail_end")
KEYS = {"id", "text", "tokens", "head", "tail", "image", "caption", "relation", "tags", "offsets"}
KEYS |= set(ENDS)
WORD = rf"(?:\w{MARK}*)+"
WHOLE_TAGS = re.compile(rf"https?://\S+|[@#]{WORD}|{WORD}(?:[-/&.]{WORD})*|\.{{2,}}|[^\w\s]{MARK}*")
APART = re.compile(rf"https?://\S+|\d+(?:[.,:]\d+)+|{WORD}|[:;]-?[()]|\.{{2,}}|[^\w\s]{MARK}*")
WORDS = {"twitter2017": APART}
"""Task -> what its published tokens look like, where not `WHOLE_TAGS`: Twitter-2017 writes `# tag`,
`@ name` and `a - b` apart. Relations do not depend on it: BERT cuts at punctuation anyway."""


@dataclass(frozen=True)
class Post:
    """A post as a task's rows have it, and where its tokens stand in the text."""

    text: str
    """As given; of tokens, these joined by blanks."""
    tokens: tuple[str, ...]
    places: tuple[Span, ...]
    """Characters of each token."""
    head: Span | None = None
    """In tokens."""
    tail: Span | None = None
    image: Path | None = None
    caption: str | None = None
    id: Any = None

    def characters(self, span: Span) -> Span:
        """Tokens [start, end) -> characters [start, end)."""
        return self.places[span[0]][0], self.places[span[1] - 1][1]

    def mention(self, span: Span) -> dict[str, Any]:
        """A span of tokens as predictions write it."""
        start, end = self.characters(span)
        return {"text": self.text[start:end], "start": start, "end": end}


def positions(value: str | None) -> Any:
    """A field that a person fills in: [START, END] are characters, all else is words."""
    ends = re.fullmatch(r"\[ *([0-9]{1,6}) *, *([0-9]{1,6}) *\]", value or "")
    return [int(ends[1]), int(ends[2])] if ends else value


TABLES = (".csv", ".tsv")
LISTS = ("head", "tail", "tokens", "entities", "label", "labels")
"""Columns whose cells may be JSON lists."""
COLUMNS = {*KEYS, *LISTS}
"""What a post may have in a table."""


def record_of(cells: dict[str, str]) -> dict[str, Any]:
    """A row of a table as the object of a JSON line: an empty cell is a field left out."""
    record: dict[str, Any] = {}
    for name, cell in cells.items():
        if cell:
            record[name] = cell
            if name in LISTS and cell.startswith("["):
                with suppress(ValueError, RecursionError):
                    record[name] = json.loads(cell)
    return record


@dataclass(frozen=True)
class BadPost:
    """In the place of a post: what is wrong with it, and its `id` where it has one."""

    error: str
    id: Any = None


def parse_line(line: bytes | str, base: Path, task: str, offsets: str | None = None) -> Any:
    """One line of a `.jsonl` file: a `Post`, or a `BadPost`.

    Args:
        base: folder that pictures are relative to. task: decides what a word of a text is.
    """
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):  # also what is not UTF-8
        return BadPost("not JSON")
    return read_post(record, base, task, offsets)


def read_post(record: Any, base: Path, task: str, offsets: str | None = None) -> Any:
    """The same from an object."""
    try:
        return parse_post(record, base, task, offsets)
    except InputError as error:
        name = record.get("id") if isinstance(record, dict) else None
        try:
            check_id(name)
        except InputError:
            name = None
        return BadPost(str(error), name)


def check_id(value: Any) -> None:
    """Refuse what cannot be given back in JSON."""
    check_text(value, "id")
    number = isinstance(value, int | float) and math.isfinite(value)
    if not (value is None or isinstance(value, str) or number):
        raise InputError("id must be a string or a number")


def parse_post(
    record: Any,
    base: Path,
    task: str,
    offsets: str | None = None,
    occurrence: str = "error",
) -> Post:
    """A post from an object; see the head of this file.

    Args:
        offsets, occurrence: as `spans.locate` takes them; the record's own `offsets` go first.

    Raises:
        InputError: one line without a place, which the caller knows.
    """
    if not isinstance(record, dict):
        raise InputError("not a JSON object")
    if unknown := record.keys() - KEYS:
        raise InputError(f"unknown key {sorted(unknown)[0]!r}; there are {', '.join(sorted(KEYS))}")
    if ("text" in record) == ("tokens" in record):
        raise InputError("give either text or tokens")
    caption = record.get("caption")
    if not (caption is None or isinstance(caption, str)):
        raise InputError("caption must be a string")
    check_id(record.get("id"))
    check_record(record)
    entities = [with_ends(record, name) for name in ("head", "tail")]
    offsets = offsets_of(record, offsets)
    if (entities[0] is None) != (entities[1] is None):
        raise InputError("head and tail: give both or neither")
    if "text" in record:
        text, tokens, places, spans = _from_text(
            record["text"], entities, WORDS.get(task), offsets, occurrence
        )
    else:
        text, tokens, places, spans = _from_tokens(record["tokens"], entities)
    image = _picture(record.get("image"), base)
    head, tail = spans
    return Post(text, tokens, places, head, tail, image, caption, record.get("id"))


def with_ends(record: dict[str, Any], name: str) -> Any:
    """An entity's value, with `head_start` and `head_end` beside it where the record has these."""
    value, ends = record.get(name), [record.get(f"{name}_{end}") for end in ("start", "end")]
    if ends == [None, None]:
        return value
    if isinstance(value, list | dict):
        raise InputError(f"{name} has two pairs of positions: {name}, and {name}_start")
    places = [int(e) if isinstance(e, str) and re.fullmatch("[0-9]{1,9}", e) else e for e in ends]
    return {"start": places[0], "end": places[1]} | ({} if value is None else {"text": value})


Parsed = tuple[str, tuple[str, ...], tuple[Span, ...], list[Span | None]]


def _from_text(
    text: Any,
    entities: list[Any],
    words: re.Pattern[str] | None,
    offsets: str | None,
    occurrence: str,
) -> Parsed:
    if not isinstance(text, str) or not text.strip():
        raise InputError("text must be a string that is not blank")
    if len(text) > MOST_CHARACTERS:
        raise InputError(f"text of {len(text)} characters; at most {MOST_CHARACTERS} are read")
    spans = locate(entities, text, ("head", "tail"), offsets, occurrence)
    # An entity may begin or end inside what would be a word: the text is cut there too.
    cuts = sorted({0, len(text), *(end for span in spans if span for end in span)})
    places = [
        (start + word.start(), start + word.end())
        for start, end in pairwise(cuts)
        for word in (words or WHOLE_TAGS).finditer(text[start:end])
    ]
    if not places:
        raise InputError("text without a word")
    token_spans: list[Span | None] = []
    for span, name in zip(spans, ("head", "tail"), strict=True):
        if span is None:
            token_spans.append(None)
            continue
        within = [i for i, (start, end) in enumerate(places) if span[0] <= start and end <= span[1]]
        if not within:
            raise InputError(f"{name} {list(span)} holds no word")
        token_spans.append((within[0], within[-1] + 1))
    return text, tuple(text[start:end] for start, end in places), tuple(places), token_spans


def _from_tokens(tokens: Any, entities: list[Any]) -> Parsed:
    if not isinstance(tokens, list) or not all(isinstance(t, str) and t.strip() for t in tokens):
        raise InputError("tokens must be a list of strings that are not blank")
    if not tokens:
        raise InputError("tokens must not be empty")
    places: list[Span] = []
    end = -1
    for token in tokens:
        start = end + 1
        end = start + len(token)
        places.append((start, end))
    if end > MOST_CHARACTERS:
        raise InputError(f"tokens of {end} characters; at most {MOST_CHARACTERS} are read")
    spans = [
        None if value is None else _of_tokens(value, tokens, name)
        for value, name in zip(entities, ("head", "tail"), strict=True)
    ]
    return " ".join(tokens), tuple(tokens), tuple(places), spans


def _of_tokens(value: Any, tokens: list[str], name: str) -> Span:
    words = None
    if isinstance(value, dict):
        value, words = [value.get("start"), value.get("end")], value.get("text")
    start, end = read_span(value, len(tokens), name, "tokens")
    if words not in (None, reading := " ".join(tokens[start:end])):
        raise InputError(
            f"{name} [{start}, {end}) reads {shown(reading)}, but its text is {shown(words)}"
        )
    return start, end


def _picture(value: Any, base: Path) -> Path | None:
    """The path, once the file's head says that a picture of sane size is in it."""
    if value is None:
        return None
    if not isinstance(value, str | Path) or not str(value) or "\x00" in str(value):
        raise InputError("image must be a path or null")
    path = base / value
    try:
        picture_size(path, POST_PIXELS)
    except RejectedImage as error:
        raise InputError(f"image {path}: {error.reason}") from None
    return path.resolve()
