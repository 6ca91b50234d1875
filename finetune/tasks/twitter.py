r"""Named entities in tweets: the files of Twitter-2015 and Twitter-2017, and your own.

**Published files.** `train.txt`, `valid.txt` (or `val.txt`, `dev.txt`), `test.txt`, UTF-8. A tweet
is a block: a line `IMGID:<id>` (its picture is `<id>.jpg`), lines `word<TAB>tag`, an empty line.
Tags are BIO over PER, LOC, ORG and OTHER (2015) or MISC (2017); OTHER is read as MISC, and the
orphan `I-` tags of 2015 stay.

**Your own data**, one JSON object a line in `{train,val,test}.jsonl`::

    {"tokens": ["Bob", "in", "Oslo"], "tags": ["B-PER", "O", "B-LOC"], "image": "17.jpg"}

`tags` are BIO over any types; `image` is a file name in the picture folder, or null. The task is
called `entities`. For relations in your own posts see `relations.py`.

Every damage is an `InputError` naming file and line; no row is skipped or repaired in silence.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from finetune.tasks import metrics, side_files
from finetune.tasks.base import Column, Row, SideInput, Task, TaskInfo
from finetune.tasks.spans import check_text
from finetune.tasks.splits import FILE_NAMES
from shards.files import InputError

TYPES = ("MISC", "PER", "ORG", "LOC")
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
        return split_file(self.folder, split)

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
        beyond `max_length` are left out here; `score` counts them as predicted `O`.
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
        return columns

    def gold(self, rows: Sequence[NERRow]) -> list[list[str]]:
        """The tags of the words."""
        return [list(row.tags) for row in rows]

    def to_answer(self, prediction: Sequence[int]) -> list[str]:
        """Label ids -> tags."""
        return [self.info.labels[label] for label in prediction]

    def score(
        self, gold: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]]
    ) -> Mapping[str, float]:
        """Exact span and type; a word beyond a prediction's end counts as `O`."""
        whole = [
            [*tags, *["O"] * (len(truth) - len(tags))]
            for truth, tags in zip(gold, predicted, strict=True)
        ]
        return metrics.entity_scores(gold, whole)


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


def split_file(folder: Path, split: str) -> Path | None:
    """The file of a split, or None.

    Raises:
        InputError: two files could be it, and they differ.
    """
    names = [f"{name}{end}" for name in FILE_NAMES[split] for end in (".txt", ".jsonl")]
    found = [folder / name for name in names if (folder / name).is_file()]
    if not found:
        return None
    if len({path.read_bytes() for path in found}) > 1:
        raise InputError(
            f"{folder}: {' and '.join(path.name for path in found)} differ and both could be the "
            f"{split} split; keep one"
        )
    return found[0]


def read_rows(path: str | Path, types: Iterable[str] | None = TYPES) -> list[NERRow]:
    """All rows of one file, `.txt` (published format) or `.jsonl` (your own).

    Args:
        types: the entity types that tags may name; None accepts any.

    Raises:
        InputError: naming the file and line of the first damage.
    """
    path = Path(path)
    allowed = None if types is None else frozenset(types)
    blocks = _json_blocks(path) if path.suffix == ".jsonl" else _conll_blocks(path)
    rows = []
    for row, (line, tokens, tags, image_id) in enumerate(blocks):
        for offset, tag in enumerate(tags):
            _check_tag(tag, allowed, f"{path}:{line + offset * (path.suffix == '.txt')}")
        check_text([image_id, tokens, tags], f"{path}:{line}")
        rows.append(NERRow(row=row, image_id=image_id, tokens=tuple(tokens), tags=tuple(tags)))
    if not rows:
        raise InputError(f"{path}: no tweet in it")
    return rows


def entity_types(rows: Iterable[NERRow]) -> tuple[str, ...]:
    """The types that the tags name, sorted: the label set of your own data comes from `train`."""
    return tuple(sorted({tag[2:] for row in rows for tag in row.tags if tag != "O"}))


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """(number from 1, text without its end). Only \\n ends a line: U+2028 and others are words."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    for number, line in enumerate(content.removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1):
        try:
            yield number, line.decode("utf-8").removesuffix("\r")
        except UnicodeDecodeError:
            raise InputError(f"{path}:{number}: not UTF-8; convert the file") from None


Block = tuple[int, list[str], list[str], str | None]
"""Line of the first word, tokens, tags, image file name."""


def _conll_blocks(path: Path) -> Iterator[Block]:
    first, image_id = 0, None
    tokens: list[str] = []
    tags: list[str] = []
    for number, line in _lines(path):
        where = f"{path}:{number}"
        if not line:
            if tokens:
                yield first, tokens, tags, image_id
            elif image_id is not None:
                raise InputError(f"{where}: a tweet without words (IMGID, then an empty line)")
            first, tokens, tags, image_id = 0, [], [], None
        elif line.startswith("IMGID:"):
            if image_id is not None:
                raise InputError(f"{where}: IMGID inside a tweet: the empty line before it is lost")
            if not re.fullmatch(r"[\w.-]+", line[6:]):
                raise InputError(f"{where}: IMGID:{line[6:]!r} is not a picture's id")
            image_id = f"{line[6:]}.jpg"
        elif image_id is None:
            raise InputError(f"{where}: a word before the tweet's IMGID line: {line[:40]!r}")
        else:
            token, tab, tag = line.partition("\t")
            if not tab or not token.strip() or not tag:
                raise InputError(f"{where}: expected word<TAB>tag, found {line[:40]!r}")
            first = first or number
            tokens.append(token)
            tags.append(f"{tag[:2]}MISC" if tag[2:] == "OTHER" else tag)
    if tokens:
        yield first, tokens, tags, image_id
    elif image_id is not None:
        raise InputError(f"{path}: ends after an IMGID line: the file is cut")


def _json_blocks(path: Path) -> Iterator[Block]:
    for number, line in _lines(path):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        try:
            fields = json.loads(line)
        except ValueError as error:
            raise InputError(f"{where}: not JSON ({error})") from None
        if not isinstance(fields, dict) or not {"tokens", "tags"} <= fields.keys():
            raise InputError(f"{where}: expected an object with tokens, tags and image")
        if unknown := fields.keys() - {"tokens", "tags", "image"}:
            raise InputError(f"{where}: unknown key {sorted(unknown)[0]!r}")
        tokens, tags, image = fields["tokens"], fields["tags"], fields.get("image")
        for name, words in (("tokens", tokens), ("tags", tags)):
            if not isinstance(words, list) or not all(isinstance(w, str) and w for w in words):
                raise InputError(f"{where}: {name} must be a list of non-empty strings")
        if not tokens or len(tokens) != len(tags):
            raise InputError(f"{where}: {len(tokens)} tokens but {len(tags)} tags")
        if not (image is None or (isinstance(image, str) and image)):
            raise InputError(f"{where}: image must be a file name or null")
        yield number, tokens, tags, image


def _check_tag(tag: str, types: frozenset[str] | None, where: str) -> None:
    if not TAG_PATTERN.fullmatch(tag):
        raise InputError(f"{where}: tag {tag!r} is not O, B-<type> or I-<type>")
    if types is not None and tag != "O" and tag[2:] not in types:
        raise InputError(f"{where}: unknown type in {tag!r}; expected {', '.join(sorted(types))}")
