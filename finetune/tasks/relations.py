"""Relations in your own posts: one JSON object a line in `{train,val,test}.jsonl`.

    {"tokens": ["Bob", "in", "Oslo"], "head": [0, 1], "tail": [2, 3], "image": "17.jpg",
     "relation": "/per/loc/place_of_residence"}

`head` and `tail` are spans of tokens, start included and end excluded; they may overlap. `image` is
a file in the folder `images`, or null. The relations are those that `train.jsonl` names; one called
`None` (or NA, no_relation, …: `metrics.NO_RELATION`) means that there is none. Name them like
`/per/loc/…` where a method should know the types of the entities that a relation connects.
"""

import json
from pathlib import Path
from typing import Any

from finetune.tasks.base import TaskInfo
from finetune.tasks.metrics import NO_RELATION
from finetune.tasks.mnre import MARKERS, Mnre, RelationRow, Span
from finetune.tasks.reading import parse_record, read_lines
from finetune.tasks.spans import check_text
from finetune.tasks.splits import FILE_NAMES
from shards.files import InputError

KEYS = {"tokens", "head", "tail", "image", "relation"}


class OwnRelations(Mnre):
    """MNRE's task on a folder of `.jsonl` files and a folder `images`."""

    SIDE_FILES = ()

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.relation2id: dict[str, int] = {}
        names = {row.relation for row in self.read("train")}
        none = next((name for name in NO_RELATION if name in names), None)
        ordered = sorted(names, key=lambda name: (name != none, name))
        self.relation2id = {name: number for number, name in enumerate(ordered)}
        self.none_id = None if none is None else 0
        self.info = TaskInfo("relations", "relation", tuple(ordered), MARKERS)

    def split_file(self, split: str) -> Path | None:
        """`{split}.jsonl`; "dev" and "valid" are accepted for "val"."""
        paths = (self.folder / f"{name}.jsonl" for name in FILE_NAMES[split])
        return next((path for path in paths if path.is_file()), None)

    def image_folder(self, split: str) -> Path:
        """`images`, for all splits."""
        return self.folder / "images"

    def read(self, split: str) -> list[RelationRow]:
        """All rows in file order.

        Raises:
            InputError: naming file and line of the first damage.
        """
        path = self.split_file(split)
        if path is None:
            raise InputError(
                f"{self.folder}: no {split}.jsonl in it; `python -m finetune data convert` "
                "makes one of your posts"
            )
        rows = [self._row(row, *place) for row, place in enumerate(read_lines(path))]
        if not rows:
            raise InputError(f"{path}: empty; expected one row a line")
        return rows

    def _row(self, row: int, where: str, line: str) -> RelationRow:
        fields = parse_record(json.loads, line, where)
        if not isinstance(fields, dict) or not KEYS - {"image"} <= fields.keys() <= KEYS:
            raise InputError(f"{where}: expected an object with {', '.join(sorted(KEYS))}")
        tokens, relation, image = fields["tokens"], fields["relation"], fields.get("image")
        if not isinstance(tokens, list) or not all(isinstance(t, str) and t for t in tokens):
            raise InputError(f"{where}: tokens must be a list of non-empty strings")
        check_text(fields, where)
        if not isinstance(relation, str) or not relation:
            raise InputError(f"{where}: relation must be a name")
        if self.relation2id and relation not in self.relation2id:
            raise InputError(f"{where}: relation {relation!r} does not occur in train")
        if not (image is None or (isinstance(image, str) and image and "/" not in image)):
            raise InputError(f"{where}: image must be a file name or null")
        return RelationRow(
            row=row,
            image_id=image,
            tokens=tuple(tokens),
            head=_span(fields["head"], len(tokens), f"{where}: head"),
            tail=_span(fields["tail"], len(tokens), f"{where}: tail"),
            relation=relation,
        )


def _span(value: Any, length: int, where: str) -> Span:
    if not isinstance(value, list) or [type(place) for place in value] != [int, int]:
        raise InputError(f"{where} must be [start, end) in tokens, not {value!r}")
    start, end = value
    if not 0 <= start < end <= length:
        raise InputError(f"{where} [{start}, {end}) is empty or outside {length} tokens")
    return start, end
