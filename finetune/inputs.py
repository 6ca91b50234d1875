"""Data folder + options -> an encoded split that a method can read."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from finetune.batch import Dataset
from finetune.manifest import View, read_view
from finetune.methods.base import Method
from finetune.tasks.base import Row, Task
from finetune.tasks.images import ImageStore, open_store
from pretrain import distributed
from pretrain.cli import InputError


@dataclass(frozen=True, kw_only=True)
class InputOptions:
    """How rows become inputs; `images` and `max_length` travel with the trained weights."""

    images: Literal["required", "none"]
    max_length: int
    cache: Path
    """Where decoded pictures lie."""
    max_missing: int = 0
    """So many pictures of a split may be absent."""
    views: Mapping[str, Sequence[View]] = field(default_factory=dict)
    """Split -> what an experiment changes in it, applied in this order."""


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
    """Read, apply the views, tokenise once, find the pictures where the method wants them.

    Raises:
        InputError: a damaged row, or more absent pictures than `options.max_missing`.
    """
    original = rows = task.read(split)
    for view in options.views.get(split, ()):
        rows = view.apply(rows, split)
    store = index = counts = None
    if "image" in method.needs and options.images == "required":
        store = open_images(task, split, [*original, *rows], method, options)
        index = store.index_of(row.image_id for row in rows)
        counts = {
            "found": len(store.position),
            "missing": len(store.missing),
            "undecodable": len(store.undecodable),
        }
    dataset = Dataset(
        rows=np.array([row.row for row in rows], dtype=np.int64),
        columns=task.encode(rows, tokenizer, options.max_length),
        pad_id=tokenizer.pad_token_id,
        images=store,
        image_index=index,
    )
    return LoadedSplit(rows, task.gold(rows), dataset, counts)


def open_images(
    task: Task, split: str, rows: Sequence[Row], method: Method, options: InputOptions
) -> ImageStore:
    """The pictures of a split, enough of them present.

    Those of the whole split, whatever a view shows, so that all views share one store.
    """
    if not distributed.is_main():
        distributed.barrier()  # one process decodes, the others find its store
    store = open_store(
        task.image_folder(split),
        [row.image_id for row in rows if row.image_id is not None],
        size=method.image_size,
        resize=method.image_resize,
        cache=options.cache,
    )
    if distributed.is_main():
        distributed.barrier()
    store.require(options.max_missing)
    return store


def read_views(paths: Sequence[Path]) -> dict[str, list[View]]:
    """Manifests, and all `*.jsonl` of folders, by the split they were made for."""
    views: dict[str, list[View]] = {}
    for path in paths:
        files = sorted(path.glob("*.jsonl")) if path.is_dir() else [path]
        if not files or not files[0].is_file():
            raise InputError(f"--view {path}: no such manifest, or a folder without any")
        for view in map(read_view, files):
            views.setdefault(view.split, []).append(view)
    return views
