"""The contract of a task. A new task is one file and one line in `finetune/registry.py`."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from shards.files import InputError

if TYPE_CHECKING:
    from finetune.tasks.side_files import SideInput

Column = np.ndarray | list[np.ndarray]
"""One value a row (N, …), or one 1-D array a row, of varying length: padded when batched."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of a data file. Tasks add fields; a view replaces `image_id`."""

    row: int
    """0-based line (relations) or sentence (entities) in the file: the key of everything else."""
    image_id: str | None
    """File name inside the image folder; None: a view took the picture away."""


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
            InputError: one line naming file and line for the first thing that is wrong.
        """

    @abstractmethod
    def image_folder(self, split: str) -> Path:
        """Where the pictures of a split lie."""

    def community_crops(self, kind: str, split: str) -> "tuple[SideInput, Path]":
        """Names of the published crop files of one kind (`vg`, `od`), and the folder they lie in.

        Raises:
            InputError: nobody has published any for this task.
        """
        raise InputError(f"--regions community: there are no published {kind} crops of this task")

    @abstractmethod
    def encode(self, rows: Sequence[Any], tokenizer: Any, max_length: int) -> dict[str, Column]:
        """Columns of a `Dataset`, named like the fields of `Batch`; always with `input_ids`.

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
