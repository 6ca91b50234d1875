"""`python -m finetune data check | convert`: your own data as the tasks want it.

    check      reads every split of a task's folder: rows, labels, pictures, lengths, repetitions
    convert    text with characters marked -> the files of the tasks `relations`, `entities`

A post to convert is a line of JSON, or a row of a CSV file with these columns::

    {"text": "Bob in Oslo", "head": "Bob", "tail": [7, 11], "relation": "in", "image": "1.jpg"}
    {"text": "Bob in Oslo", "entities": [[0, 3, "PER"], [7, 11, "LOC"]], "image": null}

Entities are characters [start, end), or (relations) words that occur once. Labelling tools such as
doccano export the second form, their `label` or `labels` for `entities`.
"""

import csv
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar, Literal

from finetune.config import TaskOptions
from finetune.data.overlap import overlap
from finetune.tasks import metrics
from finetune.tasks.base import Task
from finetune.tasks.posts import WHOLE_TAGS, parse_post
from finetune.tasks.reading import parse_record, read_lines
from finetune.tasks.splits import SPLITS
from shards.command import Tool, dispatch
from shards.files import InputError, atomic_path


def check(task: Task) -> list[str]:
    """What there is to say about a task's folder.

    Raises:
        InputError: naming file and line of the first damage.
    """
    rows = {split: task.read(split) for split in SPLITS if task.split_file(split)}
    if not rows:
        raise InputError(f"{task.folder}: no split of the task {task.info.name} in it")
    lines = []
    for split, some in rows.items():
        labels = Counter(label for gold in task.gold(some) for label in _labels(gold))
        folder = task.image_folder(split)
        names = {row.image_id for row in some} - {None}
        missing = sorted(name for name in names if not (folder / name).is_file())
        lines += [
            f"{split}: {task.split_file(split)}",
            f"  {len(some)} rows, longest {max(len(row.tokens) for row in some)} tokens",
            "  " + ", ".join(f"{label} {count}" for label, count in labels.most_common()),
            f"  pictures in {folder}: {len(names) - len(missing)} there, {len(missing)} missing"
            + (f", for example {missing[0]}" if missing else ""),
        ]
    lines += [f"no {split} split" for split in SPLITS if split not in rows]
    return lines + overlap(task, rows)


def _labels(gold: Any) -> list[str]:
    """The label of a relation row, or the types of a sentence's entities."""
    return [gold] if isinstance(gold, str) else [kind for kind, _, _ in metrics.entities(gold)]


def convert(source: Path, kind: str) -> Iterator[dict[str, Any]]:
    """Rows of the task `kind`, one a post of `source`.

    Raises:
        InputError: naming file and line of the first damage.
    """
    one = relation_row if kind == "relations" else entities_row
    for where, record in records(source):
        try:
            yield one(record)
        except InputError as error:
            raise InputError(f"{where}: {error}") from None


def records(source: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """("file:line", fields) of each post; an empty cell of a CSV file is a field left out."""
    if source.suffix == ".csv":
        try:
            with source.open(encoding="utf-8-sig", newline="") as lines:
                reader = csv.DictReader(lines, strict=True)
                for record in reader:
                    if None in record or None in record.values():
                        raise InputError(
                            f"{source}:{reader.line_num}: not as many cells as columns"
                        )
                    cells = {key: _cell(value) for key, value in record.items() if value != ""}
                    yield f"{source}:{reader.line_num}", cells
        except OSError as error:
            raise InputError(f"{source}: cannot be read ({error.strerror})") from None
        except (UnicodeDecodeError, csv.Error) as error:
            raise InputError(f"{source}: damaged CSV ({error})") from None
        return
    for where, line in read_lines(source):
        record = parse_record(json.loads, line, where)
        if not isinstance(record, dict):
            raise InputError(f"{where}: expected an object")
        yield where, record


def _cell(value: str) -> Any:
    """A cell: a list where it reads like one, else its text."""
    if value.startswith("["):
        try:
            return json.loads(value)
        except ValueError:
            return value
    return value


def relation_row(record: dict[str, Any]) -> dict[str, Any]:
    """A line of `tasks/relations.py`."""
    relation, image = record.get("relation"), _image(record)
    if not isinstance(relation, str) or not relation:
        raise InputError("relation is missing; where there is none, say None")
    known = {key: record[key] for key in ("text", "tokens", "head", "tail") if key in record}
    post = parse_post(known, Path(), "relations")
    if post.head is None:
        raise InputError("head and tail are missing")
    return {
        "tokens": list(post.tokens),
        "head": list(post.head),
        "tail": list(post.tail),
        "image": image,
        "relation": relation,
    }


def entities_row(record: dict[str, Any]) -> dict[str, Any]:
    """A line of `tasks/twitter.py`; a word is cut where an entity begins or ends inside it."""
    text, image = record.get("text"), _image(record)
    if not isinstance(text, str) or not text.strip():
        raise InputError("text must be a string that is not blank")
    marked = next((record[key] for key in ("entities", "label", "labels") if key in record), None)
    if not isinstance(marked, list):
        raise InputError("entities must be a list of [start, end, type]")
    spans = sorted(_marked(value, len(text)) for value in marked)
    for (_, end, _), (start, _, _) in pairwise(spans):
        if start < end:
            raise InputError(f"entities overlap at character {start}; BIO tags cannot say that")
    cuts = sorted({0, len(text), *(edge for start, end, _ in spans for edge in (start, end))})
    tokens, tags = [], []
    for start, end in pairwise(cuts):
        words = WHOLE_TAGS.findall(text[start:end])
        kind = next((kind for first, _, kind in spans if first == start), None)
        if kind and not words:
            raise InputError(f"entity [{start}, {end}) holds no word")
        tokens += words
        tags += [f"{'I' if n else 'B'}-{kind}" if kind else "O" for n in range(len(words))]
    return {"tokens": tokens, "tags": tags, "image": image}


def _marked(value: Any, length: int) -> tuple[int, int, str]:
    if not isinstance(value, list) or [type(part) for part in value] != [int, int, str]:
        raise InputError(f"an entity is [start, end, type], not {value!r}")
    start, end, kind = value
    if not 0 <= start < end <= length or not kind or any(c.isspace() for c in kind):
        raise InputError(f"entity {value!r} is empty, outside {length} characters, or has no type")
    return start, end, kind


def _image(record: dict[str, Any]) -> str | None:
    image = record.get("image")
    if not (image is None or (isinstance(image, str) and image and "/" not in image)):
        raise InputError(f"image must be a file name (in the folder `images`) or null: {image!r}")
    return image


# ---- command -------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class CheckConfig(TaskOptions):
    """Read every split and say what is in it: rows, labels, pictures, repeats."""

    task: str
    """mnre, twitter2015, relations, entities, …"""


@dataclass(frozen=True, kw_only=True)
class ConvertConfig:
    """One file of posts, their characters marked, to a split's file of a task."""

    POSITIONAL: ClassVar = ("posts",)
    posts: Path
    """.jsonl or .csv."""
    to: Literal["relations", "entities"]
    """Which task."""
    out: Path
    """{split}.jsonl: train.jsonl, val.jsonl, test.jsonl."""


def run_check(config: CheckConfig) -> None:
    """Print what there is to say."""
    print("\n".join(check(config.open())))


def run_convert(config: ConvertConfig) -> None:
    """Write the split's file."""
    rows = list(convert(config.posts, config.to))
    if not rows:
        raise InputError(f"{config.posts}: no post in it")
    config.out.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(config.out) as temporary, temporary.open("w", encoding="utf-8") as lines:
        lines.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    print(f"{config.out}: {len(rows)} rows")


TOOLS = {
    "check": Tool(CheckConfig, run_check, "--task relations --data mine"),
    "convert": Tool(ConvertConfig, run_convert, "posts.csv --to relations --out mine/train.jsonl"),
}


def main(argv: Sequence[str]) -> None:
    """`python -m finetune data`"""
    dispatch(
        "python -m finetune data",
        TOOLS,
        argv,
        "Check a task's files, or make them of your own posts.",
        f"convert {TOOLS['convert'].example}",
    )
