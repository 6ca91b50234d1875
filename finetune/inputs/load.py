"""Data folder + options -> an encoded split that a method can read.

A method says in `needs` which inputs it wants beyond the text. How each is made say `SHARED` and,
of inputs that one method alone reads, what it brings (`Method.providers`).
"""

import logging
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from finetune.inputs.batch import MULTIPLE, Dataset, Padding, Pictures
from finetune.inputs.captions import add_caption_tokens, append_captions
from finetune.inputs.frozen import add_visual_features
from finetune.inputs.pictures import RESIZERS
from finetune.inputs.regions import add_region_boxes, add_region_pixels
from finetune.inputs.spec import InputSpec, Provider, ReadsInputs, Wanted
from finetune.inputs.split import InputOptions, LoadedSplit
from finetune.inputs.types import add_entity_types
from finetune.inputs.view import View, read_view
from finetune.tasks.base import SideInput, Task
from finetune.tasks.leakage import audit_features
from pretrain import distributed
from shards.files import InputError

LOG = logging.getLogger(__name__)


def load_split(
    task: Task,
    split: str,
    tokenizer: Any,
    method: ReadsInputs,
    options: InputOptions,
    given: Mapping[str, SideInput] | None = None,
) -> LoadedSplit:
    """Read, apply the views, tokenise once, and add what the method needs.

    Args:
        given: of new posts, the side inputs that were made for them; None: the rows are a data
            set's, and files accompany them.

    Raises:
        InputError: a damaged row, more absent pictures than `options.max_missing`, or a need that
            nobody can meet.
    """
    spec = method.spec
    providers = providers_of(spec, options.images)
    original = rows = task.read(split)
    for view in options.views.get(split, ()):
        sources = view.header.get("sources") or {}
        task.require_version(split, *sources.values(), name=f"view {view.header.get('tool')}")
        rows = view.apply(rows, split)
    columns = task.encode(rows, tokenizer, options.max_length)
    unread = np.flatnonzero(columns.pop("unread", []))
    if len(unread) and not spec.whole_posts and distributed.is_main():
        LOG.warning(
            "%s: %d of %d rows are longer than --max_length %d and not read whole (first: row %d)",
            task.split_file(split), len(unread), len(rows), options.max_length,
            rows[unread[0]].row,
        )  # fmt: skip
    dataset = Dataset(
        rows=np.array([row.row for row in rows], dtype=np.int64),
        columns=columns,
        padding={"input_ids": Padding("attention_mask", tokenizer.pad_token_id)},
        reader=f"method {spec.method}",
    )
    loaded = LoadedSplit(rows, task.gold(rows), dataset)
    wanted = Wanted(
        task=task, split=split, original=original, tokenizer=tokenizer, spec=spec,
        options=options, given=given or {},
    )  # fmt: skip
    if options.captions and "caption" not in spec.needs:
        loaded = append_captions(loaded, wanted)
    check_length(loaded, wanted)  # a caption behind the post counts
    for provider in providers.values():
        add = provider.add if given is None else provider.live
        if isinstance(add, str):
            raise InputError(f"method {spec.method} reads what new posts do not have: {add}")
        loaded = add(loaded, wanted)
    return loaded


def providers_of(spec: InputSpec, images: str = "required") -> dict[str, Provider]:
    """What makes each input of the method that `--images` leaves on, in the order of making.

    Raises:
        InputError: nothing makes it, or the method does not say what that takes.
    """
    known = {**SHARED, **spec.providers}
    chosen = {}
    # Features take the place of pictures that other needs load: last.
    for need in sorted(spec.needs, key=lambda need: (need == "visual_features", need)):
        if need not in known:
            raise InputError(
                f"method {spec.method} needs {need!r}, an input that nothing makes; there are "
                f"{', '.join(sorted(known))}, and what the method itself brings in `providers`"
            )
        provider = known[need]
        if images == "none" and provider.visual:
            continue
        if lacking := [name for name in provider.asks if not getattr(spec, name)]:
            raise InputError(
                f"method {spec.method} needs {need!r}, but does not say its {lacking[0]}: set that "
                "attribute of the method"
            )
        chosen[need] = provider
    if spec.image_resize not in RESIZERS:
        raise InputError(
            f"method {spec.method}: image_resize {spec.image_resize!r} is unknown; there are "
            f"{', '.join(RESIZERS)}"
        )
    return chosen


def check_length(loaded: LoadedSplit, wanted: Wanted) -> None:
    """Refuse texts, padding included, for which the model has no position."""
    spec, source = wanted.spec, wanted.task.split_file(wanted.split)
    longest = max(loaded.dataset.lengths, default=0)
    if spec.longest_text is not None and longest > spec.longest_text:
        raise InputError(
            f"{source}: a text of {longest} word pieces, but the model takes {spec.longest_text}; "
            "lower --max_length to that"
        )
    if spec.positions is not None and -(-longest // MULTIPLE) * MULTIPLE > spec.positions:
        raise InputError(
            f"{source}: a text of {longest} word pieces, but the model has {spec.positions} "
            "positions; lower --max_length or --max_caption_length"
        )


def add_images(loaded: LoadedSplit, wanted: Wanted) -> LoadedSplit:
    """The picture of each row, from a store of the whole split, so that all views share it."""
    names = {row.image_id for row in [*wanted.original, *loaded.rows] if row.image_id is not None}
    store = wanted.pictures(wanted.task.image_folder(wanted.split), names, wanted.spec.image_size)
    index = store.index_of(row.image_id for row in loaded.rows)
    present = index >= 0
    if distributed.is_main():
        LOG.info(
            "%s: %d pictures found, %d missing, %d undecodable; %d of %d rows without picture",
            store.folder, len(store.position), len(store.missing), len(store.undecodable),
            (~present).sum(), len(index),
        )  # fmt: skip
    images = {
        "found": 0 if wanted.options.images == "blank" else len(store.position),
        "missing": len(store.missing),
        "undecodable": len(store.undecodable),
    }
    loaded = replace(loaded, images=images).with_traces({"picture: present": present.tolist()})
    return loaded.with_pictures("pixel_values", Pictures(store, index, "image_mask"))


def add_image_ids(loaded: LoadedSplit, wanted: Wanted) -> LoadedSplit:
    """`image_ids`: rows that show the same picture have the same number; without one, its own."""
    numbers: dict[Hashable, int] = {}
    keys = [row.row if row.image_id is None else row.image_id for row in loaded.rows]
    ids = np.array([numbers.setdefault(key, len(numbers)) for key in keys], dtype=np.int64)
    return loaded.with_column("image_ids", ids)


def shared(
    add: Callable[[LoadedSplit, Wanted], LoadedSplit], *asks: str, visual: bool = False
) -> Provider:
    """A provider that makes its input of new posts in the same way, given what accompanies them."""
    return Provider(add, live=add, visual=visual, asks=asks)


SHARED: Mapping[str, Provider] = {
    "caption": shared(add_caption_tokens),
    "entity_types": shared(add_entity_types),
    "image": shared(add_images, "image_size", visual=True),
    "image_ids": shared(add_image_ids),
    "region_boxes": shared(add_region_boxes, "region_slots", visual=True),
    "region_pixels": shared(add_region_pixels, "region_slots", "region_size", visual=True),
    "visual_features": shared(add_visual_features, "frozen_vision"),
}
"""Need -> how any method gets that input."""


def audit_inputs(task: Task, train: LoadedSplit, dev: LoadedSplit) -> list[dict[str, Any]]:
    """What the mere presence and number of inputs tell about the label (relations only)."""
    if task.info.kind != "relation":
        return []
    none = task.info.negative
    results = [
        audit_features(values, train.gold, dev.traces[name], dev.gold, name=name, none=none)
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
