"""A split on its way to a method: the options, and what has been loaded of it so far."""

import logging
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from finetune.inputs.batch import Dataset, Padding, Pictures
from finetune.inputs.view import View
from finetune.tasks.base import Column, SideInput
from pretrain import distributed

LOG = logging.getLogger(__name__)


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
    cache: Path | None
    """Where decoded pictures lie; None: in memory, as those of posts do."""
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

    rows: Sequence[Any]
    """Of the task's kind of `Row`."""
    gold: list[Any]
    dataset: Dataset
    images: dict[str, int] | None = None
    """Counts of distinct pictures: found, missing, undecodable; None: vision is off."""
    traces: Mapping[str, Sequence[Hashable]] = field(default_factory=dict)
    """What a model could read off an input without looking at it, one value a row: the audit's."""
    files: tuple[Path, ...] = ()
    """Side inputs that were read."""
    leaky: bool = False
    """Whether one of them is known to tell the label."""
    cut_captions: int = 0
    """Rows whose caption lost its end."""

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

    def with_column(
        self, name: str, values: Column, *, mask: str | None = None, fill: int = 0
    ) -> "LoadedSplit":
        """With one more column, which batches carry under this name.

        Args:
            mask: of a ragged column, the name under which batches carry what is no padding.
            fill: its padding.
        """
        padding = dict(self.dataset.padding)
        if mask is not None:
            padding[name] = Padding(mask, fill)
        columns = {**self.dataset.columns, name: values}
        return replace(self, dataset=replace(self.dataset, columns=columns, padding=padding))

    def with_pictures(self, name: str, pictures: Pictures) -> "LoadedSplit":
        """With pictures, whose pixels batches carry under this name."""
        by_name = {**self.dataset.pictures, name: pictures}
        return replace(self, dataset=replace(self.dataset, pictures=by_name))

    def with_traces(self, traces: Mapping[str, Sequence[Hashable]]) -> "LoadedSplit":
        """With more on the audit's record, one value a row."""
        return replace(self, traces={**self.traces, **traces})

    def with_source(self, source: SideInput, **traces: Sequence[Hashable]) -> "LoadedSplit":
        """With a side input on the record; what is odd in its file is said, once."""
        if source.path not in self.files and distributed.is_main():
            for note in source.notes:
                LOG.warning("%s: %s", source.path, note)
        return replace(
            self.with_traces(traces),
            files=(*self.files, source.path),
            leaky=self.leaky or source.leaky,
        )
