"""Features of a frozen vision tower: every decoded picture is seen once, before the first step.

They lie beside the decoded pixels, one file a tower, and go stale with them. An interrupted pass
goes on where it stopped.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from finetune.inputs.picture_store import load_array, new_array
from finetune.inputs.pictures import ImageStore, check_rows, sums_of
from finetune.inputs.spec import FrozenVision, See, Wanted
from finetune.inputs.split import LoadedSplit
from pretrain import distributed
from shards.files import InputError
from shards.json_files import read_json, write_json
from shards.locks import lock_file
from shards.progress import Progress

FIELDS = {
    "pixel_values": "image_features",
    "region_pixels": "region_features",
    "generated_pixels": "generated_features",
    "generated_region_pixels": "generated_region_features",
}
"""Field of `Batch` with pixels -> the one with their features."""
CHUNK = 64
"""Pictures at a time."""


@dataclass(frozen=True)
class FeatureStore:
    """In the place of an `ImageStore`: the same positions, features instead of pixels."""

    features: np.ndarray
    """(pictures, F) float16, memory-mapped"""
    sums: np.ndarray | None = None
    unseen: np.ndarray | None = None
    """Both (pictures,), as of an `ImageStore`; None of older stores and of blank pictures."""

    @classmethod
    def open(cls, path: Path) -> "FeatureStore":
        """What `see_once` wrote.

        Raises:
            InputError: damaged.
        """
        features, record = load_array(path), path.with_suffix(".json")
        if not record.is_file():
            return cls(features)
        content = read_json(record, f"remove {path.parent}: it is made again")
        sums = np.array(content["sums"], dtype=np.uint64)
        if features.ndim != 2 or features.dtype != np.float16 or len(features) != len(sums):
            raise InputError(
                f"{path}: not the features of {record.name}; remove {path.parent}: it is made again"
            )
        return cls(features, sums, np.ones(len(sums), dtype=bool))

    def pixels_at(self, index: np.ndarray) -> np.ndarray:
        """(B, …, F) float16 of positions `index` (B, …); zeros where it is -1."""
        values = np.array(self.features[index.clip(0)])
        if self.sums is not None and self.unseen is not None:
            check_rows(values, index, self.sums, self.unseen, self.features)
        values[index < 0] = 0
        return values


def add_visual_features(loaded: LoadedSplit, wanted: Wanted) -> LoadedSplit:
    """`image_features` and `region_features` in the place of the pixels loaded before them, as
    `Method.frozen_vision` sees those."""
    pictures, tower = dict(loaded.dataset.pictures), wanted.spec.frozen_vision
    for pixels, features in FIELDS.items():
        decoded = pictures.pop(pixels, None)
        if decoded is not None and isinstance(decoded.store, ImageStore) and tower is not None:
            pictures[features] = replace(decoded, store=see_once(decoded.store, tower))
    return replace(loaded, dataset=replace(loaded.dataset, pictures=pictures))


def see_once(store: ImageStore, tower: FrozenVision) -> FeatureStore:
    """Of a whole store; of several processes one computes them."""
    place = getattr(store.pixels, "filename", None)
    if place is None:  # blank pictures, and those of posts: nothing on disk
        see, starts = tower(), range(0, len(store.pixels), CHUNK)
        seen = [see(store.pixels[start : start + CHUNK]) for start in starts]
        return FeatureStore(np.concatenate(seen))
    target = Path(place).with_name(f"features-{tower.identity}.npy")
    if not distributed.is_main():
        distributed.barrier()
    elif not target.is_file():
        _see_all(store, tower(), target)
    if distributed.is_main():
        distributed.barrier()
    return FeatureStore.open(target)


def _see_all(store: ImageStore, see: See, target: Path) -> None:
    total = len(store.pixels)
    part, record = target.with_suffix(".part"), target.with_suffix(".json")
    with lock_file(target, wait=True):
        if target.is_file():  # another run was faster
            return
        sums = _seen_so_far(part, record)
        if not sums:
            new_array(part, (total, see(store.pixels[:1]).shape[1]), "f2")
        features = np.lib.format.open_memmap(part, mode="r+")
        starts = range(len(sums), total, CHUNK)
        for start in Progress(starts, unit="chunk", samples=CHUNK, desc="features"):
            rows = np.arange(start, min(start + CHUNK, total))
            features[rows] = seen = see(store.pixels_at(rows))
            features.flush()
            sums += sums_of(np.asarray(seen, dtype=features.dtype)).tolist()
            write_json(record, {"sums": sums}, checksum=True)
        part.rename(target)


def _seen_so_far(part: Path, record: Path) -> list[int]:
    """Sums of the rows that an interrupted pass has left, none where one is damaged."""
    try:
        sums = list(read_json(record)["sums"]) if part.is_file() else []
        whole = sums_of(load_array(part)[: len(sums)]).tolist() == sums if sums else True
    except (InputError, KeyError):
        return []
    return sums if whole else []
