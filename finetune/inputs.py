"""Data folder + options -> an encoded split that a method can read.

A method says in `needs` which inputs it wants beyond the text; `PROVIDERS` says how each is made.
"""

import logging
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from finetune.batch import MULTIPLE, Dataset
from finetune.leakage import audit_features
from finetune.manifest import View, read_view
from finetune.methods.base import Method
from finetune.tasks import side_inputs
from finetune.tasks.base import Row, Task
from finetune.tasks.images import ImageStore, open_store
from pretrain import distributed
from pretrain.cli import InputError

LOG = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class InputOptions:
    """How rows become inputs; the first four travel with the trained weights."""

    images: Literal["required", "none"]
    max_length: int
    captions: str | None = None
    """A captioner's name or a pattern with {split}; its text follows the post's after [SEP]."""
    max_caption_length: int = 0
    cache: Path
    """Where decoded pictures lie."""
    max_missing: int = 0
    """So many pictures of a split may be absent."""
    views: Mapping[str, Sequence[View]] = field(default_factory=dict)
    """Split -> what an experiment changes in it, applied in this order."""

    def remembered(self) -> dict[str, Any]:
        """What `method.json` keeps, for the same inputs at evaluation."""
        names = ("images", "max_length", "captions", "max_caption_length")
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

    def with_source(self, source: side_inputs.SideInput, **traces: list) -> "LoadedSplit":
        """With a side input on the record."""
        return replace(
            self,
            traces={**self.traces, **traces},
            files=(*self.files, source.path),
            leaky=self.leaky or source.leaky,
        )


def load_split(
    task: Task, split: str, tokenizer: Any, method: Method, options: InputOptions
) -> LoadedSplit:
    """Read, apply the views, tokenise once, and add what the method needs.

    Raises:
        InputError: a damaged row, or more absent pictures than `options.max_missing`.
    """
    original = rows = task.read(split)
    for view in options.views.get(split, ()):
        rows = view.apply(rows, split)
    dataset = Dataset(
        rows=np.array([row.row for row in rows], dtype=np.int64),
        columns=task.encode(rows, tokenizer, options.max_length),
        pad_id=tokenizer.pad_token_id,
    )
    loaded = LoadedSplit(rows, task.gold(rows), dataset)
    if options.captions:
        loaded = add_captions(loaded, task, split, tokenizer, options)
    check_length(loaded, task, split, method)
    if "image" in method.needs and options.images == "required":
        loaded = add_images(loaded, task, split, original, method, options)
    for need in sorted(method.needs - {"image"}):
        loaded = PROVIDERS[need](loaded, task, split)
    return loaded


def check_length(loaded: LoadedSplit, task: Task, split: str, method: Method) -> None:
    """Refuse texts, padding included, for which the encoder has no position."""
    limit = getattr(method.encoder.config, "max_position_embeddings", None)
    longest = max(loaded.dataset.lengths, default=0)
    if limit is not None and -(-longest // MULTIPLE) * MULTIPLE > limit:
        raise InputError(
            f"{task.split_file(split)}: a text of {longest} word pieces, but the model has "
            f"{limit} positions; lower --max_length or --max_caption_length"
        )


def add_images(
    loaded: LoadedSplit,
    task: Task,
    split: str,
    original: Sequence[Row],
    method: Method,
    options: InputOptions,
) -> LoadedSplit:
    """The picture of each row, from a store of the whole split, so that all views share it."""
    names = {row.image_id for row in [*original, *loaded.rows]} - {None}
    store = open_images(task.image_folder(split), names, method, options.cache)
    store.require(options.max_missing)
    index = store.index_of(row.image_id for row in loaded.rows)
    if distributed.is_main():
        LOG.info(
            "%s: %d pictures found, %d missing, %d undecodable; %d of %d rows without picture",
            store.folder, len(store.position), len(store.missing), len(store.undecodable),
            (index < 0).sum(), len(index),
        )  # fmt: skip
    return replace(
        loaded,
        dataset=replace(loaded.dataset, images=store, image_index=index),
        images={
            "found": len(store.position),
            "missing": len(store.missing),
            "undecodable": len(store.undecodable),
        },
        traces={**loaded.traces, "picture: present": (index >= 0).tolist()},
    )


def open_images(folder: Path, names: set[str], method: Method, cache: Path) -> ImageStore:
    """The store of these pictures; of several processes one decodes, the others find its work."""
    if not distributed.is_main():
        distributed.barrier()
    store = open_store(
        folder, names, size=method.image_size, resize=method.image_resize, cache=cache
    )
    if distributed.is_main():
        distributed.barrier()
    return store


def add_captions(
    loaded: LoadedSplit, task: Task, split: str, tokenizer: Any, options: InputOptions
) -> LoadedSplit:
    """`[CLS] post [SEP] caption [SEP]`: the picture in words, for whatever reads text."""
    name = options.captions
    by_name = "{split}" not in name
    pattern, folder = (f"caption/{name}_{{split}}.txt", task.folder) if by_name else (name, ".")
    source = side_inputs.read_captions(side_inputs.find(folder, pattern, split))
    texts = source.of(loaded.rows)
    captions = tokenizer(
        texts, add_special_tokens=False, truncation=True, max_length=options.max_caption_length
    )["input_ids"]
    end = [tokenizer.sep_token_id]
    ids = [
        np.concatenate([post, np.array(caption + end)])
        for post, caption in zip(loaded.dataset.columns["input_ids"], captions, strict=True)
    ]
    traces = {"caption: present": [bool(text) for text in texts]}
    return loaded.with_column("input_ids", ids).with_source(source, **traces)


def add_crop_count(loaded: LoadedSplit, task: Task, split: str) -> LoadedSplit:
    """Of MNRE's community region files: how many crops a row has. Tells the label."""
    path = side_inputs.find(task.folder, "txt/mre_{split}_dict.pth", split)
    source = side_inputs.read_crop_names(path)
    counts = [len(names) for names in source.of(loaded.rows)]
    loaded = loaded.with_column("crop_count", np.array(counts))
    return loaded.with_source(source, **{"crops: number": counts})


PROVIDERS: dict[str, Callable[[LoadedSplit, Task, str], LoadedSplit]] = {
    "crop_count": add_crop_count,
}
"""Need -> how a split gets that input, pictures aside."""


def audit_inputs(task: Task, train: LoadedSplit, dev: LoadedSplit) -> list[dict[str, Any]]:
    """What the mere presence and number of inputs tell about the label (relations only)."""
    if task.info.kind != "relation":
        return []
    results = [
        audit_features(values, train.gold, dev.traces[name], dev.gold, name=name)
        for name, values in train.traces.items()
    ]
    for result in results:
        if result.flagged and distributed.is_main():
            LOG.warning("this input tells the label: %s", result)
    return [result.to_dict() for result in results]


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
