"""MNRE: relation of two marked entities in a post with a picture.

Files: `txt/ours_{train,val,test}.txt` (one Python literal a line), `ours_rel2id.json`,
`img_org/{split}/`. Published crop files are keyed by the number of the line, not by picture.
"""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from finetune.tasks import metrics, side_files
from finetune.tasks.base import Column, Row, SideInput, Task, TaskInfo
from finetune.tasks.spans import check_text, read_span
from finetune.tasks.splits import FILE_NAMES, only_file
from shards.files import InputError
from shards.records import parse_records, python_literal, read_records

LOG = logging.getLogger(__name__)

HEAD_OPEN, HEAD_CLOSE, TAIL_OPEN, TAIL_CLOSE = MARKERS = ("[E1]", "[/E1]", "[E2]", "[/E2]")
Span = tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class RelationRow(Row):
    """One line: a post, two entities in it, their relation."""

    tokens: tuple[str, ...]
    head: Span
    """[start, end) in tokens"""
    tail: Span
    """[start, end) in tokens"""
    relation: str


class Mnre(Task):
    """The folder that holds `ours_rel2id.json`, `txt/` and `img_org/`."""

    SIDE_FILES: ClassVar[tuple[str, ...]] = ("ours_rel2id.json",)

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.relation2id = read_relations(folder / "ours_rel2id.json")
        self.info = TaskInfo("mnre", "relation", tuple(self.relation2id), MARKERS)

    def split_file(self, split: str) -> Path | None:
        """`txt/ours_{split}.txt`; "dev" and "valid" are accepted for "val"."""
        paths = (self.folder / "txt" / f"ours_{name}.txt" for name in FILE_NAMES[split])
        return only_file(paths, split)

    def image_folder(self, split: str) -> Path:
        """`img_org/{split}`."""
        return self.folder / "img_org" / split

    def community_crops(self, kind: str, split: str) -> tuple[SideInput, Path]:
        """Grounded crops, keyed by row: they tell the label; detected ones, keyed by picture."""
        if kind == "vg":
            path = side_files.find(self.folder, "txt/mre_{split}_dict.pth", split)
            return side_files.read_crop_names(path), self.folder / "img_vg" / split / "crops"
        path = side_files.find(self.folder / "img_detect" / split, "{split}_img2crop.pth", split)
        return side_files.read_image_crops(path), self.folder

    def read(self, split: str) -> list[RelationRow]:
        """All rows in file order; an entity name that differs from its span is counted aloud."""
        path = self.split_file(split)
        if path is None:
            raise InputError(
                f"{self.folder}/txt/ours_{split}.txt: missing; give a folder with MNRE's layout"
            )
        renamed: list[int] = []

        def parse(row: int, fields: Any) -> RelationRow:
            relation_row, same_names = parse_row(row, fields, self.relation2id)
            if not same_names:
                renamed.append(row + 1)
            return relation_row

        # An empty line further up would shift the numbers that community files count by.
        rows = parse_records(path, read_records(path, python_literal, gaps=False), parse)
        if not rows:
            raise InputError(f"{path}: empty; expected one row a line")
        if renamed:
            LOG.warning(
                "%s: the entity name differs from its tokens in %d rows (first: line %d)",
                path, len(renamed), renamed[0],
            )  # fmt: skip
        return rows

    def encode(
        self, rows: Sequence[RelationRow], tokenizer: Any, max_length: int
    ) -> dict[str, Column]:
        """`input_ids`, `head_start`, `tail_start`, `labels`; `unread` counts word pieces."""
        marked = [mark_entities(row.tokens, row.head, row.tail) for row in rows]
        encoded = tokenizer(
            marked, is_split_into_words=True, return_attention_mask=False, verbose=False
        )["input_ids"]
        marker_ids = np.array(tokenizer.convert_tokens_to_ids(list(MARKERS)))
        ids = [shorten(np.array(pieces), marker_ids, max_length) for pieces in encoded]
        for row, pieces in zip(rows, ids, strict=True):
            if sum(np.count_nonzero(pieces == marker) for marker in marker_ids) != len(MARKERS):
                raise InputError(f"row {row.row}: its text itself holds one of {MARKERS}")
        head_id, tail_id = marker_ids[0], marker_ids[2]
        return {
            "input_ids": ids,
            "head_start": np.array([int(np.argmax(pieces == head_id)) for pieces in ids]),
            "tail_start": np.array([int(np.argmax(pieces == tail_id)) for pieces in ids]),
            "labels": np.array([self.relation2id[row.relation] for row in rows]),
            "unread": np.array([*map(len, encoded)]) - [*map(len, ids)],
        }

    def gold(self, rows: Sequence[RelationRow]) -> list[str]:
        """The relations."""
        return [row.relation for row in rows]

    def to_answer(self, prediction: int) -> str:
        """Id -> relation."""
        return self.info.labels[prediction]

    def score(self, gold: Sequence[str], predicted: Sequence[str]) -> Mapping[str, float]:
        """Micro precision, recall, F1 without the no-relation label, accuracy over all."""
        return metrics.relation_scores(gold, predicted, self.info.negative)


def read_relations(path: Path) -> dict[str, int]:
    """`ours_rel2id.json` -> relation names in order of their ids, which are 0…n-1."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path}: missing; --data is the folder that holds it") from None
    except (ValueError, OSError) as error:
        raise InputError(f"{path}: not readable as JSON ({error})") from None
    valid = isinstance(content, dict) and all(
        type(value) is int and name.strip() for name, value in content.items()
    )
    if not valid or sorted(content.values()) != list(range(len(content))) or not content:
        raise InputError(
            f"{path}: expected an object that maps each relation to an id 0…n-1, none of them blank"
        )
    return dict(sorted(content.items(), key=lambda item: item[1]))


def parse_row(row: int, fields: Any, relation2id: Mapping[str, int]) -> tuple[RelationRow, bool]:
    """The row of a line, and whether both names equal their tokens.

    Raises:
        InputError: whatever would make a row ambiguous; without a place, which the caller knows.
    """
    if not isinstance(fields, dict):
        raise InputError("not a dict")
    if absent := [key for key in ("token", "h", "t", "img_id", "relation") if key not in fields]:
        raise InputError(f"key {absent[0]!r} is missing")
    tokens, image, relation = fields["token"], fields["img_id"], fields["relation"]
    if not isinstance(tokens, list) or not all(isinstance(token, str) for token in tokens):
        raise InputError("'token' is not a list of str")
    check_text(tokens, "'token'")
    if not isinstance(image, str) or not image or "/" in image or "\x00" in image:
        raise InputError("'img_id' is not a file name")
    if not isinstance(relation, str) or relation not in relation2id:
        raise InputError(f"relation {relation!r} is not in ours_rel2id.json")
    spans, same_names = [], True
    for key in ("h", "t"):
        entity = fields[key]
        span = entity.get("pos") if isinstance(entity, dict) else None
        start, end = read_span(span, len(tokens), f"{key!r} pos", "tokens")
        spans.append((start, end))
        same_names &= entity.get("name") == " ".join(tokens[start:end])
    relation_row = RelationRow(
        row=row, image_id=image, tokens=tuple(tokens), head=spans[0], tail=spans[1],
        relation=relation,
    )  # fmt: skip
    return relation_row, same_names


def mark_entities(tokens: Sequence[str], head: Span, tail: Span) -> list[str]:
    """The tokens with `[E1] … [/E1]` around the head and `[E2] … [/E2]` around the tail.

    At one position closing markers come before opening ones, and the longer span opens first and
    closes last; so sentence-final, adjacent, nested and overlapping entities all keep four markers
    (HVPNeT's loop loses the closing marker at the end of a sentence).
    """
    insertions = []
    for (start, end), opening, closing in (
        (head, HEAD_OPEN, HEAD_CLOSE),
        (tail, TAIL_OPEN, TAIL_CLOSE),
    ):
        insertions.append((start, 1, -end, opening))
        insertions.append((end, 0, -start, closing))
    marked: list[str] = []
    done = 0
    for position, _, _, marker in sorted(insertions, key=lambda item: item[:3]):
        marked += [*tokens[done:position], marker]
        done = position
    return marked + list(tokens[done:])


def shorten(ids: np.ndarray, marker_ids: np.ndarray, max_length: int) -> np.ndarray:
    """At most `max_length` word pieces between [CLS] and [SEP]: the markers, what they enclose,
    then the pieces nearest to a marker.

    Cutting from the right, as tokenizers do, would lose entities at the end of a post; this is
    symmetric around the markers and never loses one.

    Args:
        marker_ids: (4,) ids of `MARKERS`.
    """
    if len(ids) <= max_length:
        return ids
    positions = np.arange(1, len(ids) - 1)
    markers = np.flatnonzero(np.isin(ids, marker_ids))
    distance = np.abs(positions[:, None] - markers).min(axis=1).astype(float)
    for opening, closing in marker_ids.reshape(2, 2):
        first, last = (np.argmax(ids == marker) for marker in (opening, closing))
        enclosed = (positions > first) & (positions < last)
        distance[enclosed] = np.minimum(distance[enclosed], 0.5)
    nearest = positions[np.argsort(distance, kind="stable")[: max_length - 2]]
    return ids[np.concatenate([[0], np.sort(nearest), [len(ids) - 1]])]
