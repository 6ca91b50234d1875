r"""Named entities in tweets: the files of Twitter-2015 and Twitter-2017, and your own.

**Published files.** `train.txt`, `valid.txt` (or `val.txt`, `dev.txt`), `test.txt`, UTF-8. A tweet
is a block: a line `IMGID:<id>` (its picture is `<id>.jpg`), lines `word<TAB>tag`, an empty line.
Tags are BIO over PER, LOC, ORG and OTHER (2015) or MISC (2017); OTHER is read as MISC, and the
orphan `I-` tags of 2015 stay.

**Your own data**, one JSON object a line in `{train,val,test}.jsonl`::

    {"tokens": ["Bob", "in", "Oslo"], "tags": ["B-PER", "O", "B-LOC"], "image": "17.jpg"}

`tags` are BIO over any types; `image` is a file name in the picture folder, or null. The task is
called `entities`. For relations in your own posts see `relations.py`.

Every damage is named with its line, all of a file at once; no row is skipped or repaired.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from finetune.tasks import metrics, side_files
from finetune.tasks.base import Column, Row, SideInput, Task, TaskInfo
from finetune.tasks.spans import check_record, check_text
from finetune.tasks.splits import FILE_NAMES, only_file
from shards.files import InputError
from shards.records import Parsed, Refused, accepted, parse_records, read_records

TYPES = ("MISC", "PER", "ORG", "LOC")
Types = frozenset[str] | None
"""What tags may name; None: anything."""
TAG_PATTERN = re.compile(r"O|[BI]-[^\s-]\S*")


def bio_labels(types: Iterable[str] = TYPES) -> tuple[str, ...]:
    """The tags of a word: `O` first, then B- and I- of each type; their order is the label id."""
    return ("O", *(f"{prefix}-{name}" for name in types for prefix in "BI"))


@dataclass(frozen=True, kw_only=True)
class NERRow(Row):
    """One tweet. Every word is kept, also those a tokenizer turns into no word piece."""

    tokens: tuple[str, ...]
    tags: tuple[str, ...]
    """BIO, one a token."""


class Twitter(Task):
    """A folder of split files and a picture folder; entities are BIO tags over `TYPES`."""

    NAME: ClassVar[str]

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.types: tuple[str, ...] | None = TYPES
        self.info = TaskInfo(self.NAME, "entities", bio_labels(TYPES))

    def split_file(self, split: str) -> Path | None:
        """`train`, `valid` (or `val`, `dev`) or `test`, `.txt` or `.jsonl`."""
        names = [f"{name}{end}" for name in FILE_NAMES[split] for end in (".txt", ".jsonl")]
        return only_file((self.folder / name for name in names), split)

    def image_folder(self, split: str) -> Path:
        """One folder for all splits: `<task>_images`, inside the data folder or beside it."""
        name = f"{self.NAME}_images"
        beside = self.folder.parent / name
        return beside if beside.is_dir() else self.folder / name

    def community_crops(self, kind: str, split: str) -> tuple[SideInput, Path]:
        """HVPNeT's grounded crops, the same for every reader of a picture."""
        if kind != "vg":
            return super().community_crops(kind, split)
        path = side_files.find(self.folder, f"{self.NAME}_{{split}}_dict.pth", split)
        folder = self.image_folder(split).parent / f"{self.NAME}_aux_images" / split / "crops"
        return side_files.read_image_crops(path), folder

    def read(self, split: str) -> list[NERRow]:
        """All tweets in file order."""
        path = self.split_file(split)
        if path is None:
            names = ", ".join(f"{name}.txt" for name in FILE_NAMES[split])
            raise InputError(f"{self.folder}: no {split} split ({names}, or .jsonl)")
        return read_rows(path, self.types)

    def encode(self, rows: Sequence[NERRow], tokenizer: Any, max_length: int) -> dict[str, Column]:
        """`input_ids`, and per word `word_starts`, `word_mask`, `labels`.

        `word_starts` is 0, the place of [CLS], for a word without pieces. Words that lie wholly
        beyond `max_length` are left out here, `unread` counts them, and `score` takes them as
        predicted `O`.
        """
        encoded = tokenizer(
            [list(row.tokens) for row in rows],
            is_split_into_words=True,
            truncation=True,
            max_length=max_length,
            return_attention_mask=False,
        )
        label_ids = {label: number for number, label in enumerate(self.info.labels)}
        columns: dict[str, Any] = {
            name: [] for name in ("input_ids", "word_starts", "word_mask", "labels")
        }
        for index, row in enumerate(rows):
            starts = first_pieces(encoded.word_ids(index), len(row.tokens), max_length)
            columns["input_ids"].append(np.array(encoded["input_ids"][index]))
            columns["word_starts"].append(starts)
            columns["word_mask"].append(np.ones(len(starts), dtype=bool))
            columns["labels"].append(np.array([label_ids[tag] for tag in row.tags[: len(starts)]]))
        columns["unread"] = np.array(
            [len(row.tokens) - len(s) for row, s in zip(rows, columns["word_starts"], strict=True)]
        )
        return columns

    def gold(self, rows: Sequence[NERRow]) -> list[list[str]]:
        """The tags of the words."""
        return [list(row.tags) for row in rows]

    def to_answer(self, prediction: Sequence[int]) -> list[str]:
        """Label ids -> tags, and beyond these the stray ones."""
        names = (*self.info.labels, *metrics.STRAY_TAGS)
        return [names[label] for label in prediction]

    def score(
        self, gold: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]]
    ) -> Mapping[str, float]:
        """Exact span and type; a word beyond a prediction's end counts as `O`."""
        return metrics.entity_scores(gold, metrics.padded(gold, predicted))


class Twitter2015(Twitter):
    """4,000 / 1,000 / 3,257 tweets."""

    NAME = "twitter2015"


class Twitter2017(Twitter):
    """3,373 / 723 / 723 tweets."""

    NAME = "twitter2017"


class OwnEntities(Twitter):
    """Your own `.jsonl` (or CoNLL) files; the types are those that the training split names."""

    NAME = "entities"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.types = None
        self.types = entity_types(self.read("train"))
        self.info = TaskInfo(self.NAME, "entities", bio_labels(self.types))


def first_pieces(word_ids: Sequence[int | None], num_words: int, max_length: int) -> np.ndarray:
    """(words kept,) position of each word's first piece; 0 for a word without any.

    Args:
        word_ids: of each piece, the word it belongs to (None: special token).
    """
    starts = np.zeros(num_words, dtype=np.int64)
    last = -1
    for position, word in enumerate(word_ids):
        if word is not None and word != last:
            starts[word], last = position, word
    cut = len(word_ids) == max_length
    return starts[: last + 1] if cut else starts


def read_rows(path: str | Path, types: Iterable[str] | None = TYPES) -> list[NERRow]:
    """All rows of one file, `.txt` (published format) or `.jsonl` (your own).

    Args:
        types: the entity types that tags may name; None accepts any.

    Raises:
        InputError: lists every tweet or line that is no row.
    """
    path = Path(path)
    allowed = None if types is None else frozenset(types)
    if path.suffix == ".jsonl":
        rows = parse_records(path, read_records(path), partial(_json_row, types=allowed))
    else:
        tweets = enumerate(_tweets(path))
        rows = accepted(path, [_tweet(row, lines, allowed) for row, lines in tweets])
    if not rows:
        raise InputError(f"{path}: no tweet in it")
    return rows


def entity_types(rows: Iterable[NERRow]) -> tuple[str, ...]:
    """The types that the tags name, sorted: the label set of your own data comes from `train`."""
    return tuple(sorted({tag[2:] for row in rows for tag in row.tags if tag != "O"}))


def _tweets(path: Path) -> Iterator[list[Parsed | Refused]]:
    """The lines between empty ones."""
    lines = read_records(path, str, gaps=False)
    for empty, tweet in groupby(lines, lambda line: isinstance(line, Parsed) and not line.fields):
        if not empty:
            yield list(tweet)


def _tweet(row: int, lines: Sequence[Parsed | Refused], types: Types) -> NERRow | Refused:
    image_id: str | None = None
    tokens: list[str] = []
    tags: list[str] = []
    number = 0
    try:
        for line in lines:
            if isinstance(line, Refused):
                return line
            number, text = line
            if text.startswith("IMGID:"):
                if image_id is not None:
                    raise InputError("IMGID inside a tweet: the empty line before it is lost")
                if not re.fullmatch(r"[\w.-]+", text[6:]):  # it becomes a file's name
                    raise InputError(f"IMGID:{text[6:]!r} is not a picture's id")
                image_id = f"{text[6:]}.jpg"
                continue
            if image_id is None:
                raise InputError(f"a word before the tweet's IMGID line: {text[:40]!r}")
            token, tab, tag = text.partition("\t")
            if not tab or not token.strip() or not tag:
                raise InputError(f"expected word<TAB>tag, found {text[:40]!r}")
            check_text(text, "the line")
            tags.append(_checked_tag(f"{tag[:2]}MISC" if tag[2:] == "OTHER" else tag, types))
            tokens.append(token)
        if not tokens:
            raise InputError("a tweet without words: an empty line too early, or the file is cut")
    except InputError as error:
        return Refused(number, str(error))
    return NERRow(row=row, image_id=image_id, tokens=tuple(tokens), tags=tuple(tags))


def _json_row(row: int, fields: dict[str, Any], types: Types) -> NERRow:
    if not {"tokens", "tags"} <= fields.keys():
        raise InputError("expected an object with tokens, tags and image")
    if unknown := fields.keys() - {"tokens", "tags", "image"}:
        raise InputError(f"unknown key {sorted(unknown)[0]!r}")
    check_record(fields)
    tokens, tags, image = fields["tokens"], fields["tags"], fields.get("image")
    for name, words in (("tokens", tokens), ("tags", tags)):
        if not isinstance(words, list) or not all(isinstance(w, str) and w for w in words):
            raise InputError(f"{name} must be a list of non-empty strings")
    if not tokens or len(tokens) != len(tags):
        raise InputError(f"{len(tokens)} tokens but {len(tags)} tags")
    if not (image is None or (isinstance(image, str) and image)):
        raise InputError("image must be a file name or null")
    checked_tags = tuple(_checked_tag(tag, types) for tag in tags)
    return NERRow(row=row, image_id=image, tokens=tuple(tokens), tags=checked_tags)


def _checked_tag(tag: str, types: Types) -> str:
    if not TAG_PATTERN.fullmatch(tag):
        raise InputError(f"tag {tag!r} is not O, B-<type> or I-<type>")
    if types is not None and tag != "O" and tag[2:] not in types:
        raise InputError(f"unknown type in {tag!r}; expected {', '.join(sorted(types))}")
    return tag
