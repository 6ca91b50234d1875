"""Regions of pictures as inputs: boxes, and the pixels inside them.

Where they come from (`--regions`): a folder of region caches, leak-safe or recovered; `community`,
the published crop files, whose number tells the label; `none`, every slot empty. A view's own
regions go first. Slots are filled in the order of `Method.region_slots`, first regions first.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from finetune.inputs.batch import Pictures
from finetune.inputs.pictures import Name, Part
from finetune.inputs.spec import Wanted
from finetune.inputs.split import LoadedSplit
from finetune.inputs.view import View, merged
from finetune.tasks import side_files
from finetune.tasks.base import Row
from finetune.tasks.region_cache import Region, Regions, read_regions
from shards.files import InputError
from shards.images import RejectedImage, picture_size


@dataclass(frozen=True)
class Slot:
    """One region of one row."""

    name: Name
    """A crop file, or a part of the row's picture."""
    box: tuple[float, float, float, float] | None = None
    """As shares of the picture's width and height; None: a crop file, its place unknown."""


RowSlots = Callable[[Row], Sequence[Slot | None]]


def add_region_boxes(loaded: LoadedSplit, wanted: Wanted) -> LoadedSplit:
    """`region_boxes` and `region_mask`.

    Raises:
        InputError: no cache, or crop files without places.
    """
    loaded, slots = filled(loaded, wanted)
    boxes = np.zeros((len(slots), len(slots[0]) if slots else 0, 4), dtype=np.float32)
    for row, places in enumerate(slots):
        for place, slot in enumerate(places):
            if slot and slot.box is None:
                raise InputError(
                    "--regions community: crop files have no boxes; find them again with "
                    "`python -m finetune regions recover` and give --regions DIR"
                )
            if slot:
                boxes[row, place] = slot.box
    mask = np.array([[slot is not None for slot in places] for places in slots], dtype=bool)
    loaded = loaded.with_column("region_boxes", boxes).with_column("region_mask", mask)
    return with_trace(loaded, mask)


def add_region_pixels(loaded: LoadedSplit, wanted: Wanted) -> LoadedSplit:
    """`region_pixels` and `region_mask`, decoded once into a store."""
    loaded, slots = filled(loaded, wanted)
    names = {slot.name for places in slots for slot in places if slot}
    store = wanted.pictures(wanted.task.folder.resolve(), names, wanted.spec.region_size)
    index = np.array(
        [store.index_of(slot.name if slot else None for slot in places) for places in slots]
    )
    loaded = loaded.with_pictures("region_pixels", Pictures(store, index, "region_mask"))
    return with_trace(loaded, index >= 0)


def filled(loaded: LoadedSplit, wanted: Wanted) -> tuple[LoadedSplit, list[list[Slot | None]]]:
    """What each slot of each row holds (None: nothing), and the files on the record."""
    if wanted.options.regions is None:
        raise InputError(
            "this method reads regions: --regions DIR (a folder with regions_vg_{split}.jsonl and "
            "regions_od.jsonl; `python -m finetune regions build` makes them), --regions community "
            "(the published crops: leaks the label), or --regions none"
        )
    view = view_of(wanted)
    table: list[list[Slot | None]] = [[] for _ in loaded.rows]
    for kind, number in wanted.spec.region_slots.items():
        loaded, slots_of = source_of(kind, loaded, wanted, view)
        for places, row in zip(table, loaded.rows, strict=True):
            filled_slots: list[Slot | None] = []
            if row.image_id is not None:
                filled_slots += slots_of(row)[:number]
            places += filled_slots + [None] * (number - len(filled_slots))
    return replace(loaded, leaky=loaded.leaky or view.leaky), table


def view_of(wanted: Wanted) -> View:
    """All views of this split as one."""
    views = wanted.options.views.get(wanted.split, ())
    return merged(views) if views else View(wanted.split, {})


def source_of(
    kind: str, loaded: LoadedSplit, wanted: Wanted, view: View
) -> tuple[LoadedSplit, RowSlots]:
    """The regions of one kind, `vg` (grounded) or `od` (detected), as slots of a row."""
    if wanted.options.regions == "none":
        return loaded, lambda row: ()
    cache = wanted.given.get(kind)
    if cache is None and wanted.options.regions == "community":
        return community_crops(kind, loaded, wanted, view)
    if cache is None:
        pattern = "regions_vg_{split}.jsonl" if kind == "vg" else "regions_od.jsonl"
        cache = read_regions(side_files.find(str(wanted.options.regions), pattern, wanted.split))
    if kind == "vg":
        cache.require_rows(len(wanted.original))
        for row in wanted.original:  # a view exchanges pictures on purpose
            if row.image_id not in (None, cached := cache.values[row.row].image_id):
                raise InputError(
                    f"{cache.path}: row {row.row} shows {cached}, but {row.image_id} in the data: "
                    "made from another order or version of the file; make the regions again"
                )
    sizes = picture_sizes(cache.values)
    require_upright(sizes, wanted.task.image_folder(wanted.split), cache.path)
    find = view.grounded if kind == "vg" else view.detected

    def slots_of(row: Row) -> list[Slot | None]:
        try:
            regions = find(row, cache.values)
        except KeyError:
            raise InputError(
                f"{cache.path}: no line for {row.image_id} (row {row.row}); complete the cache"
            ) from None
        return cut_out(row, regions, sizes, wanted, cache.path)

    return loaded.with_source(cache), slots_of


def cut_out(
    row: Row,
    regions: Sequence[Region | None],
    sizes: dict[str, tuple[int, int]],
    wanted: Wanted,
    path: Path,
) -> list[Slot | None]:
    """Regions as parts of the picture that the row shows; None: a place that a view emptied."""
    name = str(row.image_id)
    if any(regions) and name not in sizes:
        raise InputError(f"{path}: says no size of {name}; complete the cache")
    picture = str((wanted.task.image_folder(wanted.split) / name).resolve())
    slots: list[Slot | None] = []
    for region in regions:
        if region is None:
            slots.append(None)
            continue
        share = np.divide(region.box, sizes[name] * 2).clip(0, 1)
        slots.append(Slot(Part(picture, region.box), tuple(share.tolist())))
    return slots


def picture_sizes(cached: Mapping[Any, Regions]) -> dict[str, tuple[int, int]]:
    """Picture -> (width, height)."""
    return {entry.image_id: entry.size for entry in cached.values()}


def require_upright(sizes: Mapping[str, tuple[int, int]], folder: Path, cache: Path) -> None:
    """Refuse boxes of pictures that lie on their side in the cache and stand upright when decoded.

    Raises:
        InputError: the cache was made without regard to EXIF orientation, as old ones were.
    """
    for name, (width, height) in sizes.items():
        if width != height and (folder / name).is_file():
            with suppress(RejectedImage):  # counted where pictures are decoded
                if picture_size(folder / name) == (height, width):
                    raise InputError(
                        f"{cache}: {name} is {width}x{height} there, {height}x{width} once turned "
                        "as its EXIF orientation says: make the regions again"
                    )


def community_crops(
    kind: str, loaded: LoadedSplit, wanted: Wanted, view: View
) -> tuple[LoadedSplit, RowSlots]:
    """The crop files that the field passes around. Where a view exchanged a picture, the new one
    brings the crops of the first row that shows it."""
    source, folder = wanted.task.community_crops(kind, wanted.split)
    first_row: dict[str | None, Row] = {}
    for row in wanted.original:
        first_row.setdefault(row.image_id, row)

    def slots_of(row: Row) -> list[Slot | None]:
        change = view.changes.get(row.row)
        if change is not None and getattr(change, kind) is not None:
            raise InputError(
                "--regions community: this view brings boxes; give it the recovered boxes instead "
                "(`python -m finetune regions recover`, then --regions DIR)"
            )
        exchanged = change is not None and change.image_id is not None
        owner = first_row.get(row.image_id, row) if exchanged else row
        (names,) = source.of([owner], max_missing=1)
        return [Slot(str((folder / name).resolve())) for name in names or ()]

    return loaded.with_source(source), slots_of


def with_trace(loaded: LoadedSplit, mask: np.ndarray) -> LoadedSplit:
    """With the filled slots on the audit's record: which, not how many, as a model sees them."""
    patterns = ["".join("01"[int(filled_slot)] for filled_slot in row) for row in mask]
    return loaded.with_traces({"regions: slots": patterns})
