"""Posts from anywhere as rows of a task: text or tokens, two entities or none, a picture or none.

One JSON object, the schema of your own data (`tasks/relations.py`, `tasks/twitter.py`) or plain
text; what is not needed is left out, `relation` and `tags` are allowed and not read::

    {"text": "Bob in Oslo", "head": "Bob", "tail": [7, 11], "image": "17.jpg", "id": "a1"}
    {"tokens": ["Bob", "in", "Oslo"], "head": [0, 1], "tail": [2, 3], "image": null}

With `text`, an entity is its characters [start, end), or its words where they occur once; with
`tokens`, tokens [start, end). `image` is a path, relative to the file that names it; `caption` is
for runs that read one.
"""

import json
import re
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from shards.files import InputError
from shards.images import POST_PIXELS, RejectedImage, picture_size

Span = tuple[int, int]
"""[start, end)"""
KEYS = {"id", "text", "tokens", "head", "tail", "image", "caption", "relation", "tags"}
MOST_CHARACTERS = 20_000

HALF = re.compile("[\ud800-\udfff]")
"""A surrogate: in a Python string always one without its other half."""
WHOLE_TAGS = re.compile(r"https?://\S+|[@#]\w+|\w+(?:[-/&.]\w+)*|\.{2,}|[^\w\s]")
APART = re.compile(r"https?://\S+|\d+(?:[.,:]\d+)+|\w+|[:;]-?[()]|\.{2,}|[^\w\s]")
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


def parse_line(line: bytes | str, base: Path, task: str) -> Post:
    """One line of a `.jsonl` file.

    Args:
        base: folder that pictures are relative to. task: decides what a word of a text is.

    Raises:
        InputError: one line without a place, which the caller knows.
    """
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):  # also what is not UTF-8
        raise InputError("not JSON") from None
    return parse_post(record, base, task)


def parse_post(record: Any, base: Path, task: str) -> Post:
    """The same from an object; see the head of this file."""
    if not isinstance(record, dict):
        raise InputError("not a JSON object")
    if unknown := record.keys() - KEYS:
        raise InputError(f"unknown key {sorted(unknown)[0]!r}; there are {', '.join(sorted(KEYS))}")
    if ("text" in record) == ("tokens" in record):
        raise InputError("give either text or tokens")
    caption = record.get("caption")
    if not (caption is None or isinstance(caption, str)):
        raise InputError("caption must be a string")
    check_whole(record)
    entities = [record.get(name) for name in ("head", "tail")]
    if (entities[0] is None) != (entities[1] is None):
        raise InputError("head and tail: give both or neither")
    if "text" in record:
        text, tokens, places, spans = _from_text(record["text"], entities, WORDS.get(task))
    else:
        text, tokens, places, spans = _from_tokens(record["tokens"], entities)
    image = _picture(record.get("image"), base)
    return Post(text, tokens, places, *spans, image, caption, record.get("id"))


def check_whole(record: dict[str, Any]) -> None:
    """Refuse strings that hold half a character, which JSON can write and UTF-8 cannot."""
    for name, value in record.items():
        for text in value if isinstance(value, list) else [value]:
            if isinstance(text, str) and (half := HALF.search(text)):
                raise InputError(
                    f"{name} holds half a character (the surrogate U+{ord(half[0]):04X} alone, "
                    f"after {half.start()} characters)"
                )


Parsed = tuple[str, tuple[str, ...], tuple[Span, ...], list[Span | None]]


def _from_text(text: Any, entities: list[Any], words: re.Pattern | None) -> Parsed:
    if not isinstance(text, str) or not text.strip():
        raise InputError("text must be a string that is not blank")
    if len(text) > MOST_CHARACTERS:
        raise InputError(f"text of {len(text)} characters; at most {MOST_CHARACTERS} are read")
    spans = [
        None if value is None else _characters(value, text, name)
        for value, name in zip(entities, ("head", "tail"), strict=True)
    ]
    # An entity may begin or end inside what would be a word: the text is cut there too.
    cuts = sorted({0, len(text), *(end for span in spans if span for end in span)})
    places = [
        (start + found.start(), start + found.end())
        for start, end in pairwise(cuts)
        for found in (words or WHOLE_TAGS).finditer(text[start:end])
    ]
    if not places:
        raise InputError("text without a word")
    inside = []
    for span, name in zip(spans, ("head", "tail"), strict=True):
        if span is None:
            inside.append(None)
            continue
        within = [i for i, (start, end) in enumerate(places) if span[0] <= start and end <= span[1]]
        if not within:
            raise InputError(f"{name} {list(span)} holds no word")
        inside.append((within[0], within[-1] + 1))
    return text, tuple(text[start:end] for start, end in places), tuple(places), inside


def _from_tokens(tokens: Any, entities: list[Any]) -> Parsed:
    if not isinstance(tokens, list) or not all(isinstance(t, str) and t.strip() for t in tokens):
        raise InputError("tokens must be a list of strings that are not blank")
    if not tokens:
        raise InputError("tokens must not be empty")
    places, end = [], -1
    for token in tokens:
        start = end + 1
        end = start + len(token)
        places.append((start, end))
    if end > MOST_CHARACTERS:
        raise InputError(f"tokens of {end} characters; at most {MOST_CHARACTERS} are read")
    spans = [
        None if value is None else _span(value, len(tokens), name, "tokens")
        for value, name in zip(entities, ("head", "tail"), strict=True)
    ]
    return " ".join(tokens), tuple(tokens), tuple(places), spans


def _characters(value: Any, text: str, name: str) -> Span:
    """[start, end), or words that occur once, with nothing of a word around them."""
    if not isinstance(value, str):
        return _span(value, len(text), name, "characters")
    if found := re.fullmatch(r"(\d+):(\d+)", value):
        return _span([int(found[1]), int(found[2])], len(text), name, "characters")
    if not value.strip():
        raise InputError(f"{name} is blank")
    places = [
        place.span() for place in re.finditer(rf"(?<!\w){re.escape(value.strip())}(?!\w)", text)
    ]
    if len(places) != 1:
        times = f"occurs {len(places)} times in" if places else "does not occur in"
        raise InputError(f"{name} {value!r} {times} the text; give its characters, START:END")
    return places[0]


def _span(value: Any, length: int, name: str, unit: str) -> Span:
    if not isinstance(value, list | tuple) or [type(place) for place in value] != [int, int]:
        raise InputError(f"{name} must be [start, end) in {unit}, not {value!r}")
    start, end = value
    if not 0 <= start < end <= length:
        raise InputError(f"{name} [{start}, {end}) is empty or outside {length} {unit}")
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
