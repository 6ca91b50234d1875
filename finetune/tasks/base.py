"""The contract of a task. A new task is one file and one line in `finetune/registry.py`."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from finetune.tasks.metrics import negative_class
from shards.files import InputError, file_sha256

Box = tuple[float, float, float, float]
"""(x1, y1, x2, y2) in pixels"""
Key = int | str
"""Row number, or a picture's file name."""
Column = np.ndarray | list[np.ndarray]
"""One value a row (N, …), or one 1-D array a row, of varying length: padded when batched."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of a data file. Tasks add fields; a view replaces `image_id`."""

    row: int
    """0-based line (relations) or sentence (entities) in the file: the key of everything else."""
    image_id: str | None
    """File name inside the image folder (of a post, a whole path); None: a view took it away."""


@dataclass(frozen=True, kw_only=True)
class SideInput:
    """Values of one file, keyed."""

    path: Path
    keyed_by: Literal["row", "image", "stem"]
    """Row number; file name of the picture; that name up to its first dot."""
    values: Mapping[Any, Any]
    """By `Key`."""
    leaky: bool = False
    header: Mapping[str, Any] = field(default_factory=dict)
    """Provenance, where the file has such a line."""
    notes: tuple[str, ...] = ()
    """What a report should say about the file, with counts."""

    def of(self, rows: Sequence[Row], max_missing: int = 0) -> list[Any]:
        """The value of each row; None for the absent ones that `max_missing` allows.

        Raises:
            InputError: more absent than allowed, with their number and an example.
        """
        keys = [self._key(row) for row in rows]
        absent = [key for key in keys if key not in self.values]
        if len(absent) > max_missing:
            raise InputError(
                f"{self.path}: {len(absent)} of {len(rows)} rows have no entry (first: "
                f"{self.keyed_by} {absent[0]}); complete the file, or allow that many missing"
            )
        return [self.values.get(key) for key in keys]

    def _key(self, row: Row) -> Key | None:
        if self.keyed_by == "row":
            return row.row
        name = row.image_id
        return name if name is None or self.keyed_by == "image" else name.split(".")[0]

    def require_rows(self, count: int) -> None:
        """InputError unless a row-keyed file holds rows 0 … count - 1, no more and no fewer."""
        if self.keyed_by != "row" or self.values.keys() == set(range(count)):
            return
        surplus = sorted(key for key in self.values if not 0 <= key < count)
        missing = next((row for row in range(count) if row not in self.values), None)
        problem = f"row {surplus[0]} is too many" if surplus else f"row {missing} is missing"
        raise InputError(
            f"{self.path}: {len(self.values)} rows for a split of {count} ({problem}); "
            "it belongs to another split or another version of the data"
        )


@dataclass(frozen=True)
class TaskInfo:
    """What a method must know of a task; stored beside its weights in `method.json`."""

    name: str
    kind: str
    """"relation" (one label a row) or "entities" (one BIO label a word)."""
    labels: tuple[str, ...]
    """Position = id."""
    extra_tokens: tuple[str, ...] = ()
    """Special tokens the encoding puts into the text."""

    @property
    def negative(self) -> str | None:
        """The label that says there is no relation; None: every one is a relation, or a tag."""
        return negative_class(self.labels) if self.kind == "relation" else None


class Task(ABC):
    """Reads one data folder. Splits are called `train`, `val`, `test`.

    The constructor takes the folder and reads what all splits share (the label list).
    """

    folder: Path
    info: TaskInfo
    SIDE_FILES: ClassVar[tuple[str, ...]] = ()
    """File names inside the folder, beyond the splits, that decide labels (for provenance)."""

    @abstractmethod
    def __init__(self, folder: Path) -> None: ...

    @abstractmethod
    def split_file(self, split: str) -> Path | None:
        """The file of a split, or None where the folder lacks it."""

    @abstractmethod
    def read(self, split: str) -> list[Any]:
        """All rows of a split in file order (subclasses of `Row`).

        Raises:
            InputError: lists every line that is no row, with what is wrong.
        """

    @abstractmethod
    def image_folder(self, split: str) -> Path:
        """Where the pictures of a split lie."""

    def require_version(self, split: str, *sha256: str | None, name: str) -> None:
        """Refuse what belongs to rows by their number, where it was made of another file.

        Args:
            sha256: of the files that it was made of, if that is known. name: what it is.

        Raises:
            InputError: none of them is the split's.
        """
        path, known = self.split_file(split), set(filter(None, sha256))
        if known and path is not None and path.is_file() and file_sha256(path) not in known:
            raise InputError(
                f"{name}: made of another version of {path}, whose rows it counts; make it again"
            )

    def community_crops(self, kind: str, split: str) -> tuple[SideInput, Path]:
        """Names of the published crop files of one kind (`vg`, `od`), and the folder they lie in.

        Raises:
            InputError: nobody has published any for this task.
        """
        raise InputError(f"--regions community: there are no published {kind} crops of this task")

    @abstractmethod
    def encode(self, rows: Sequence[Any], tokenizer: Any, max_length: int) -> dict[str, Column]:
        """Columns of a `Dataset`, named like the fields of `Batch`; always with `input_ids`. Beside
        them (N,) `unread`, of each row the word pieces or words beyond `max_length`.

        `labels` is (N,) for relations, one array of word labels a row for entities.
        """

    @abstractmethod
    def gold(self, rows: Sequence[Any]) -> list[Any]:
        """The right answers as `pred_*.jsonl` holds them: a relation, or a list of BIO labels."""

    @abstractmethod
    def to_answer(self, prediction: Any) -> Any:
        """A method's prediction (label id, or label ids of the words) in the form of `gold`."""

    @abstractmethod
    def score(self, gold: Sequence[Any], predicted: Sequence[Any]) -> Mapping[str, float]:
        """At least `f1`, `precision`, `recall`, `accuracy`, in percent."""
