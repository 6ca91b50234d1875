"""Data folder + options -> an encoded split that a method can read.

A method says in `needs` which inputs it wants beyond the text; `PROVIDERS` says how each is made.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from finetune.inputs.batch import MULTIPLE, Dataset, Pictures
from finetune.inputs.captions import add_caption_tokens, append_captions
from finetune.inputs.frozen import add_visual_features
from finetune.inputs.pictures import blank_store, open_images
from finetune.inputs.regions import add_region_boxes, add_region_pixels
from finetune.inputs.split import InputOptions, LoadedSplit, Wanted
from finetune.inputs.types import add_entity_types
from finetune.inputs.view import View, read_view
from finetune.methods.base import Method
from finetune.methods.hvpnet.inputs import add_released_markers
from finetune.methods.tmr.inputs import add_generated, add_image_ids, add_phrases, add_scores
from finetune.methods.tmr.masked_entities import add_masked_entities
from finetune.tasks import side_files
from finetune.tasks.base import Task
from finetune.tasks.leakage import audit_features
from pretrain import distributed
from shards.files import InputError

LOG = logging.getLogger(__name__)


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
    wanted = Wanted(
        task=task,
        split=split,
        original=original,
        tokenizer=tokenizer,
        method=method,
        options=options,
    )
    if options.captions and "caption" not in method.needs:
        loaded = append_captions(loaded, wanted)
    check_length(loaded, task, split, method)
    for need in sorted(method.needs):
        if options.images != "none" or need not in VISUAL:
            loaded = PROVIDERS[need](loaded, wanted)
    return loaded


def check_length(loaded: LoadedSplit, task: Task, split: str, method: Method) -> None:
    """Refuse texts, padding included, for which the model has no position."""
    limit = getattr(method.encoder.config, "max_position_embeddings", None)
    longest = max(loaded.dataset.lengths, default=0)
    if method.longest_text is not None and longest > method.longest_text:
        raise InputError(
            f"{task.split_file(split)}: a text of {longest} word pieces, but the model takes "
            f"{method.longest_text}; lower --max_length to that"
        )
    if limit is not None and -(-longest // MULTIPLE) * MULTIPLE > limit:
        raise InputError(
            f"{task.split_file(split)}: a text of {longest} word pieces, but the model has "
            f"{limit} positions; lower --max_length or --max_caption_length"
        )


def add_images(loaded: LoadedSplit, wanted: Wanted) -> LoadedSplit:
    """The picture of each row, from a store of the whole split, so that all views share it."""
    method, options = wanted.method, wanted.options
    names = {row.image_id for row in [*wanted.original, *loaded.rows]} - {None}
    folder = wanted.task.image_folder(wanted.split)
    if options.images == "blank":
        store = blank_store(folder, names, size=method.image_size)
    else:
        store = open_images(
            folder, names, size=method.image_size, resize=method.image_resize, cache=options.cache
        )
        store.require(options.max_missing)
    index = store.index_of(row.image_id for row in loaded.rows)
    if distributed.is_main():
        LOG.info(
            "%s: %d pictures found, %d missing, %d undecodable; %d of %d rows without picture",
            store.folder, len(store.position), len(store.missing), len(store.undecodable),
            (index < 0).sum(), len(index),
        )  # fmt: skip
    loaded = replace(
        loaded,
        images={
            "found": 0 if options.images == "blank" else len(store.position),
            "missing": len(store.missing),
            "undecodable": len(store.undecodable),
        },
        traces={**loaded.traces, "picture: present": (index >= 0).tolist()},
    )
    return loaded.with_pictures("pixel_values", Pictures(store, index, "image_mask"))


def add_crop_count(loaded: LoadedSplit, wanted: Wanted) -> LoadedSplit:
    """Of MNRE's community region files: how many crops a row has. Tells the label."""
    path = side_files.find(wanted.task.folder, "txt/mre_{split}_dict.pth", wanted.split)
    source = side_files.read_crop_names(path)
    counts = [len(names) for names in source.of(loaded.rows)]
    loaded = loaded.with_column("crop_count", np.array(counts))
    return loaded.with_source(source, **{"crops: number": counts})


PROVIDERS: dict[str, Callable[[LoadedSplit, Wanted], LoadedSplit]] = {
    "caption": add_caption_tokens,
    "crop_count": add_crop_count,
    "entity_types": add_entity_types,
    "generated": add_generated,
    "image": add_images,
    "image_ids": add_image_ids,
    "masked_entities": add_masked_entities,
    "phrases": add_phrases,
    "region_boxes": add_region_boxes,
    "region_pixels": add_region_pixels,
    "released_markers": add_released_markers,
    "scores": add_scores,
    "visual_features": add_visual_features,
}
"""Need -> how a split gets that input."""
VISUAL = frozenset({"image", "region_boxes", "region_pixels", "generated", "scores"})
"""What `--images none` switches off."""


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
