"""Your own relation data: `{train,val,test}.jsonl` and a folder `images`.

One JSON object a line; spans start included and end excluded; `image` a file name or null::

    {"tokens": ["Bob", "in", "Oslo"], "head": [0, 1], "tail": [2, 3], "image": "17.jpg",
     "relation": "/per/loc/place_of_residence"}

The relations are those that `train.jsonl` names, sorted, with `None` (or another name of
`metrics.NO_RELATION`) first, if it occurs.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from finetune import metrics
from finetune.tasks.base import TaskInfo
from finetune.tasks.mnre import MARKERS, Mnre, RelationRow, Span
from pretrain.cli import InputError

KEYS = {"tokens", "head", "tail", "image", "relation"}


class OwnRelations(Mnre):
    """MNRE's task on files of your own."""

    SIDE_FILES = ()

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        found = {row.relation for row in self._rows("train")}
        none = next((name for name in metrics.NO_RELATION if name in found), None)
        names = sorted(found, key=lambda name: (name != none, name))
        self.relation2id = {name: number for number, name in enumerate(names)}
        self.none_id = None if none is None else 0
        self.info = TaskInfo("relations", "relation", tuple(names), MARKERS)

    def split_file(self, split: str) -> Path | None:
        """`{split}.jsonl`."""
        path = self.folder / f"{split}.jsonl"
        return path if path.is_file() else None

    def image_folder(self, split: str) -> Path:
        """`images`, for all splits."""
        return self.folder / "images"

    def read(self, split: str) -> list[RelationRow]:
        """All rows in file order."""
        rows = list(self._rows(split))
        for row in rows:
            if row.relation not in self.relation2id:
                raise InputError(
                    f"{self.folder}/{split}.jsonl: row {row.row}: relation {row.relation!r} does "
                    "not occur in train.jsonl; correct it or add rows that have it"
                )
        return rows

    def _rows(self, split: str) -> Iterator[RelationRow]:
        path = self.folder / f"{split}.jsonl"
        try:
            lines = path.read_text(encoding="utf-8").split("\n")
        except OSError:
            raise InputError(f"{path}: missing; --data is the folder that holds it") from None
        except UnicodeDecodeError:
            raise InputError(f"{path}: not UTF-8; convert the file") from None
        filled = [(number, line) for number, line in enumerate(lines, start=1) if line.strip()]
        if not filled:
            raise InputError(f"{path}: empty; expected one JSON object a line")
        for row, (number, line) in enumerate(filled):
            yield parse_row(line, row, f"{path}:{number}")


def parse_row(line: str, row: int, where: str) -> RelationRow:
    """One line. Raises: InputError naming `where`, for whatever would make a row ambiguous."""

    def fail(what: str) -> InputError:
        return InputError(f"{where}: {what}; correct or remove this line")

    try:
        fields = json.loads(line)
    except (ValueError, RecursionError):
        raise fail("not JSON") from None
    if not isinstance(fields, dict) or fields.keys() != KEYS:
        raise fail(f"expected an object with the keys {', '.join(sorted(KEYS))}")
    tokens, image, relation = fields["tokens"], fields["image"], fields["relation"]
    if not isinstance(tokens, list) or not all(isinstance(t, str) and t.strip() for t in tokens):
        raise fail("tokens is not a list of non-empty strings")
    if image is not None and (not isinstance(image, str) or not image or "/" in image):
        raise fail("image is neither a file name nor null")
    if not isinstance(relation, str) or not relation:
        raise fail("relation is not a name")
    head, tail = (_span(fields[key], len(tokens)) for key in ("head", "tail"))
    if head is None or tail is None:
        raise fail(f"head or tail is not [start, end] inside {len(tokens)} tokens")
    return RelationRow(
        row=row, image_id=image, tokens=tuple(tokens), head=head, tail=tail, relation=relation
    )


def _span(value: Any, tokens: int) -> Span | None:
    if not isinstance(value, list) or [type(end) for end in value] != [int, int]:
        return None
    start, end = value
    return (start, end) if 0 <= start < end <= tokens else None
