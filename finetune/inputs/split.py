"""A split on its way to a method: how it is wanted, and what has been loaded of it so far."""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from finetune.inputs.batch import Dataset, Pictures
from finetune.inputs.view import View
from finetune.methods.base import Method
from finetune.tasks import side_files
from finetune.tasks.base import Row, Task


@dataclass(frozen=True, kw_only=True)
class InputOptions:
    """How rows become inputs; the first six travel with the trained weights."""

    images: Literal["required", "blank", "none"]
    max_length: int
    regions: str | None = None
    """Folder of region caches, "community" (the published crop files), or "none"."""
    captions: str | None = None
    """A captioner's name or a pattern with {split}; its text follows the post's after [SEP]."""
    max_caption_length: int = 0
    types: str | None = None
    """Folder of `types_{split}.jsonl`; None: every entity's type is unknown."""
    cache: Path
    """Where decoded pictures lie."""
    max_missing: int = 0
    """So many pictures of a split may be absent."""
    views: Mapping[str, Sequence[View]] = field(default_factory=dict)
    """Split -> what an experiment changes in it, applied in this order."""

    def remembered(self) -> dict[str, Any]:
        """What `method.json` keeps, for the same inputs at evaluation."""
        names = ("images", "max_length", "regions", "captions", "max_caption_length", "types")
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True)
class LoadedSplit:
    """One split: rows, right answers, and the encoded form."""

    rows: Sequence[Row]
    gold: list[Any]
    dataset: Dataset
    images: dict[str, int] | None = None
    """Counts of distinct pictures: found, missing, undecodable; None: vision is off."""
    traces: dict[str, list[Hashable]] = field(default_factory=dict)
    """What a model could read off an input without looking at it, one value a row: the audit's."""
    files: tuple[Path, ...] = ()
    """Side inputs that were read."""
    leaky: bool = False
    """Whether one of them is known to tell the label."""

    def __len__(self) -> int:
        return len(self.rows)

    def subset(self, keep: np.ndarray) -> "LoadedSplit":
        """The rows at positions `keep`."""
        return replace(
            self,
            rows=[self.rows[i] for i in keep],
            gold=[self.gold[i] for i in keep],
            dataset=self.dataset.subset(keep),
            traces={name: [values[i] for i in keep] for name, values in self.traces.items()},
        )

    def with_column(self, name: str, values: np.ndarray | list[np.ndarray]) -> "LoadedSplit":
        """With one more column, called like a field of `Batch`."""
        columns = {**self.dataset.columns, name: values}
        return replace(self, dataset=replace(self.dataset, columns=columns))

    def with_pictures(self, name: str, pictures: Pictures) -> "LoadedSplit":
        """With pixels under a field of `Batch`."""
        found = {**self.dataset.pictures, name: pictures}
        return replace(self, dataset=replace(self.dataset, pictures=found))

    def with_source(self, source: side_files.SideInput, **traces: list) -> "LoadedSplit":
        """With a side input on the record."""
        return replace(
            self,
            traces={**self.traces, **traces},
            files=(*self.files, source.path),
            leaky=self.leaky or source.leaky,
        )


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What an input is made for."""

    task: Task
    split: str
    original: Sequence[Row]
    """The rows before any view."""
    tokenizer: Any
    method: Method
    options: InputOptions
