"""Relations in your own posts: one JSON object a line in `{train,val,test}.jsonl`.

    {"tokens": ["Bob", "in", "Oslo"], "head": [0, 1], "tail": [2, 3], "image": "17.jpg",
     "relation": "/per/loc/place_of_residence"}

`head` and `tail` are spans of tokens, start included and end excluded; they may overlap. `image` is
a file in the folder `images`, or null. The relations are those that `train.jsonl` names; one called
`None` (or N/A, No relation, …: `metrics.NO_RELATION`) means that there is none. Name them like
`/per/loc/…` where a method should know the types of the entities that a relation connects.
"""

from pathlib import Path
from typing import Any

from finetune.tasks.base import TaskInfo
from finetune.tasks.mnre import MARKERS, Mnre, RelationRow
from finetune.tasks.spans import check_record, read_span
from finetune.tasks.splits import FILE_NAMES, only_file
from shards.files import InputError
from shards.records import parse_records, read_records

KEYS = {"tokens", "head", "tail", "image", "relation"}
FIRST = ("None", "none", "NA", "na", "no_relation", "Other", "Others")
"""Of these the first that there is has id 0; all others, other spellings of the negative class too,
stand in the alphabet: the weights of finished runs are in this order."""


class OwnRelations(Mnre):
    """MNRE's task on a folder of `.jsonl` files and a folder `images`."""

    SIDE_FILES = ()

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.relation2id: dict[str, int] = {}
        names = {row.relation for row in self.read("train")}
        first = next((name for name in FIRST if name in names), None)
        ordered = sorted(names, key=lambda name: (name != first, name))
        self.relation2id = {name: number for number, name in enumerate(ordered)}
        self.info = TaskInfo("relations", "relation", tuple(ordered), MARKERS)

    def split_file(self, split: str) -> Path | None:
        """`{split}.jsonl`; "dev" and "valid" are accepted for "val"."""
        return only_file((self.folder / f"{name}.jsonl" for name in FILE_NAMES[split]), split)

    def image_folder(self, split: str) -> Path:
        """`images`, for all splits."""
        return self.folder / "images"

    def read(self, split: str) -> list[RelationRow]:
        """All rows in file order.

        Raises:
            InputError: lists every line that is no row.
        """
        path = self.split_file(split)
        if path is None:
            raise InputError(
                f"{self.folder}: no {split}.jsonl in it; `python -m finetune data convert` "
                "makes one of your posts"
            )
        rows = parse_records(path, read_records(path), self._row)
        if not rows:
            raise InputError(f"{path}: empty; expected one row a line")
        return rows

    def _row(self, row: int, fields: Any) -> RelationRow:
        if not KEYS - {"image"} <= fields.keys() <= KEYS:
            raise InputError(f"expected an object with {', '.join(sorted(KEYS))}")
        tokens, relation, image = fields["tokens"], fields["relation"], fields.get("image")
        if not isinstance(tokens, list) or not all(isinstance(t, str) and t for t in tokens):
            raise InputError("tokens must be a list of non-empty strings")
        check_record(fields)
        if not isinstance(relation, str) or not relation.strip():
            raise InputError("relation must be a name; where there is none, say None")
        if self.relation2id and relation not in self.relation2id:  # empty: train is being read
            raise InputError(f"relation {relation!r} does not occur in train")
        if not (image is None or (isinstance(image, str) and image and "/" not in image)):
            raise InputError("image must be a file name or null")
        return RelationRow(
            row=row,
            image_id=image,
            tokens=tuple(tokens),
            head=read_span(fields["head"], len(tokens), "head", "tokens"),
            tail=read_span(fields["tail"], len(tokens), "tail", "tokens"),
            relation=relation,
        )
