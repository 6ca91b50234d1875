"""`python -m finetune data check | convert`: your own data as the tasks want it.

    check      reads every split of a task's folder (`check.py`)
    convert    text with characters marked -> the files of the tasks `relations`, `entities`

A post to convert is a line of JSON, or a row of a CSV file with these columns::

    {"text": "Bob in Oslo", "head": "Bob", "tail": [7, 11], "relation": "in", "image": "1.jpg"}
    {"text": "Bob in Oslo", "entities": [[0, 3, "PER"], [7, 11, "LOC"]], "image": null}

Positions are characters [start, end), code points unless `--offsets` says otherwise. Of relations,
an entity may be words that occur once, or positions and words, as {"start", "end", "text"} or in
columns `head_start`, `head_end` beside `head`: they are compared. So is the fourth item of an
entity [start, end, type, text]. Labelling tools such as doccano export the second form, their
`label` or `labels` for `entities`.
"""

import json
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar, Literal

from finetune.data.check import CheckConfig, run_check
from finetune.tasks.posts import ENDS, TABLES, WHOLE_TAGS, parse_post, record_of
from finetune.tasks.reading import shown
from finetune.tasks.spans import Occurrence, Offsets, check_record, offsets_of, place_span
from finetune.tasks.twitter import TAG_PATTERN
from shards.command import Group, Tool
from shards.files import InputError, atomic_path, refuse_foreign
from shards.records import Parsed, Refused, parse_records, read_records
from shards.tables import read_table

ENTITY_LISTS = ("entities", "label", "labels")
"""What a post calls its entities; the first that is there counts."""
READ = {
    "relations": {"text", "tokens", "head", "tail", "offsets", "relation", "image", *ENDS},
    "entities": {"text", "offsets", "image", *ENTITY_LISTS},
}
"""Task -> the columns or keys of a post that `convert` reads."""


def convert(
    source: Path,
    kind: str,
    offsets: str | None = None,
    occurrence: str = "error",
    delimiter: str | None = None,
    encoding: str | None = None,
) -> list[dict[str, Any]]:
    """Rows of the task `kind`, one a post of `source`.

    Args:
        offsets, occurrence: as `spans.locate` takes them.
        delimiter, encoding: of a table, as `shards.tables.read_table` takes them.

    Raises:
        InputError: lists the posts that cannot be read, with file, line and reason.
    """

    def row(_: int, fields: dict[str, Any]) -> dict[str, Any]:
        check_record(fields)
        if kind == "relations":
            return relation_row(fields, offsets, occurrence)
        return entities_row(fields, offsets)

    posts = records(source, kind, delimiter, encoding)
    fields = [post.fields for post in posts if isinstance(post, Parsed)]
    unread = Counter(name for record in fields for name in record if name not in READ[kind])
    if unread:
        counts = ", ".join(f"{name} of {count} posts" for name, count in unread.most_common())
        print(f"warning: {source}: not read: {counts}", file=sys.stderr)
    return parse_records(source, posts, row)


def records(
    source: Path, kind: str, delimiter: str | None = None, encoding: str | None = None
) -> Sequence[Parsed | Refused]:
    """Each post of a JSON-lines file, or of a table whose header names what `kind` needs; an empty
    cell is a field left out."""
    if source.suffix.lower() not in TABLES:
        return read_records(source)
    columns = ("relation", "text") if kind == "relations" else ("text",)
    table = read_table(source, columns, delimiter=delimiter, encoding=encoding)
    needed = ("head", "head_start") if kind == "relations" else ENTITY_LISTS
    if not set(needed) & set(table.columns):
        raise InputError(
            f"{source}: the header names none of {', '.join(needed)}; it names "
            f"{', '.join(table.columns)}"
        )
    return [
        row if isinstance(row, Refused) else Parsed(row.line, record_of(row.fields))
        for row in table.rows
    ]


def relation_row(
    record: dict[str, Any], offsets: str | None = None, occurrence: str = "error"
) -> dict[str, Any]:
    """A line of `tasks/relations.py`."""
    relation, image = record.get("relation"), _image(record)
    if not isinstance(relation, str) or not (relation := relation.strip()):
        raise InputError("relation is missing; where there is none, say None")
    known = {key: record[key] for key in READ["relations"] - {"relation", "image"} if key in record}
    post = parse_post(known, Path(), "relations", offsets, occurrence)
    if post.head is None or post.tail is None:
        raise InputError("head and tail are missing")
    return {
        "tokens": list(post.tokens),
        "head": list(post.head),
        "tail": list(post.tail),
        "image": image,
        "relation": relation,
    }


def entities_row(record: dict[str, Any], offsets: str | None = None) -> dict[str, Any]:
    """A line of `tasks/twitter.py`; a word is cut where an entity begins or ends inside it."""
    text, image = record.get("text"), _image(record)
    if not isinstance(text, str) or not text.strip():
        raise InputError("text must be a string that is not blank")
    marked = next((record[key] for key in ENTITY_LISTS if key in record), None)
    if not isinstance(marked, list):
        raise InputError("entities must be a list of [start, end, type]")
    offsets = offsets_of(record, offsets)
    spans = sorted(_marked(value, text, offsets) for value in marked)
    for (_, end, _), (start, _, _) in pairwise(spans):
        if start < end:
            raise InputError(f"entities overlap at character {start}; BIO tags cannot say that")
    cuts = sorted({0, len(text), *(edge for start, end, _ in spans for edge in (start, end))})
    tokens: list[str] = []
    tags: list[str] = []
    for start, end in pairwise(cuts):
        words = WHOLE_TAGS.findall(text[start:end])
        # The text is cut at every edge: a stretch is one whole entity, or none.
        kind = next((kind for first, _, kind in spans if first == start), None)
        if kind and not words:
            raise InputError(f"entity [{start}, {end}) holds no word")
        tokens += words
        tags += [f"{'I' if n else 'B'}-{kind}" if kind else "O" for n in range(len(words))]
    return {"tokens": tokens, "tags": tags, "image": image}


def _marked(value: Any, text: str, offsets: str | None) -> tuple[int, int, str]:
    if isinstance(value, dict):  # as newer exports of doccano and spaCy write it
        starts, ends = ("start", "start_offset"), ("end", "end_offset")
        names = (starts, ends, ("type", "label"), ("text",))
        value = [next((value[n] for n in spellings if n in value), None) for spellings in names]
        value = value if value[3] is not None else value[:3]
    types = [type(part) for part in value] if isinstance(value, list) else []
    if types not in ([int, int, str], [int, int, str, str]):
        raise InputError(f"an entity is [start, end, type] or with its text, not {shown(value)}")
    start, end, kind, *words = value
    if not TAG_PATTERN.fullmatch(f"B-{kind}"):
        raise InputError(f"entity {shown(value)}: its type is empty, has a blank, or begins with -")
    return *place_span([start, end], text, "entity", offsets, words[0] if words else None), kind


def _image(record: dict[str, Any]) -> str | None:
    image = record.get("image")
    if not (image is None or (isinstance(image, str) and image and "/" not in image)):
        raise InputError(f"image must be a file name (in the folder `images`) or null: {image!r}")
    return image


# ---- command -------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class ConvertConfig:
    """One file of posts, their characters marked, to a split's file of a task."""

    POSITIONAL: ClassVar = ("posts",)
    posts: Path
    """.jsonl, .csv or .tsv."""
    to: Literal["relations", "entities"]
    """Which task."""
    out: Path
    """{split}.jsonl: train.jsonl, val.jsonl, test.jsonl."""
    offsets: Offsets | None = None
    """What positions count; characters are code points."""
    occurrence: Occurrence = "error"
    """Of an entity's words that occur more than once. first: the first place. nearest: head and
    tail nearest to each other. error: the post is refused."""
    delimiter: str | None = None
    """Of a table: comma, tab, semicolon, pipe; default: what its header shows."""
    encoding: str | None = None
    """Of a table; default: UTF-8, or as its byte order mark says."""


def run_convert(config: ConvertConfig) -> None:
    """Write the split's file."""
    if config.out.exists() and config.out.samefile(config.posts):
        raise InputError(f"--out {config.out}: is the file of the posts; choose another")
    refuse_foreign(config.out, '{"tokens": ')
    rows = convert(
        config.posts, config.to, config.offsets, config.occurrence, config.delimiter,
        config.encoding,
    )  # fmt: skip
    if not rows:
        raise InputError(f"{config.posts}: no post in it")
    config.out.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(config.out) as temporary, temporary.open("w", encoding="utf-8") as lines:
        lines.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    print(f"{config.out}: {len(rows)} rows")


TOOLS = {
    "check": Tool(CheckConfig, run_check, "--task relations --data mine"),
    "convert": Tool(
        ConvertConfig, run_convert, "posts.csv --to relations --out mine/train.jsonl", True
    ),
}
main = Group(
    "python -m finetune data", TOOLS,
    "Check a task's files, or make them of your own posts.", "convert",
)  # fmt: skip
