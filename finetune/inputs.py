"""Data folder + options -> an encoded split that a method can read."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from finetune.batch import Dataset
from finetune.methods.base import Method
from finetune.tasks.base import Row, Task
from finetune.tasks.images import open_store


@dataclass(frozen=True, kw_only=True)
class InputOptions:
    """How rows become inputs; `images` and `max_length` travel with the trained weights."""

    images: Literal["required", "none"]
    max_length: int
    cache: Path
    max_missing: int = 0


@dataclass(frozen=True)
class LoadedSplit:
    """One split: rows, right answers, and the encoded form."""

    rows: Sequence[Row]
    gold: list[Any]
    dataset: Dataset
    images: dict[str, int] | None
    """Counts of distinct pictures: found, missing, undecodable; None: vision is off."""

    def __len__(self) -> int:
        return len(self.rows)

    def subset(self, keep: np.ndarray) -> "LoadedSplit":
        """The rows at positions `keep`."""
        return LoadedSplit(
            [self.rows[i] for i in keep],
            [self.gold[i] for i in keep],
            self.dataset.subset(keep),
            self.images,
        )


def load_split(
    task: Task, split: str, tokenizer: Any, method: Method, options: InputOptions
) -> LoadedSplit:
    """Read, tokenise once, and find the pictures where the method wants them.

    Raises:
        InputError: a damaged row, or more absent pictures than `options.max_missing`.
    """
    rows = task.read(split)
    store = index = counts = None
    if "image" in method.needs and options.images == "required":
        store = open_store(
            task.image_folder(split),
            [row.image_id for row in rows if row.image_id is not None],
            size=method.image_size,
            resize=method.image_resize,
            cache=options.cache,
        )
        store.require(options.max_missing)
        index = store.index_of(row.image_id for row in rows)
        counts = {
            "found": len(store.position),
            "missing": len(store.missing),
            "undecodable": len(store.undecodable),
        }
    dataset = Dataset(
        rows=np.array([row.row for row in rows]),
        columns=task.encode(rows, tokenizer, options.max_length),
        pad_id=tokenizer.pad_token_id,
        images=store,
        image_index=index,
    )
    return LoadedSplit(rows, task.gold(rows), dataset, counts)
