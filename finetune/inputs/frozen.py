"""Features of a frozen vision tower: every decoded picture is seen once, before the first step.

They lie beside the decoded pixels, one file a tower, and go stale with them. An interrupted pass
goes on where it stopped.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from finetune.inputs.picture_store import new_array
from finetune.inputs.pictures import ImageStore
from finetune.inputs.spec import FrozenVision, See, Wanted
from finetune.inputs.split import LoadedSplit
from pretrain import distributed
from shards.files import atomic_path
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

    def pixels_at(self, index: np.ndarray) -> np.ndarray:
        """(B, …, F) float16 of positions `index` (B, …); zeros where it is -1."""
        values = np.array(self.features[index.clip(0)])
        values[index < 0] = 0
        return values


def add_visual_features(loaded: LoadedSplit, wanted: Wanted) -> LoadedSplit:
    """`image_features` and `region_features` in the place of the pixels loaded before them, as
    `Method.frozen_vision` sees those."""
    pictures, tower = dict(loaded.dataset.pictures), wanted.spec.frozen_vision
    for pixels, features in FIELDS.items():
        decoded = pictures.pop(pixels, None)
        if decoded is not None and isinstance(decoded.store, ImageStore) and tower is not None:
            seen = FeatureStore(see_once(decoded.store, tower))
            pictures[features] = replace(decoded, store=seen)
    return replace(loaded, dataset=replace(loaded.dataset, pictures=pictures))


def see_once(store: ImageStore, tower: FrozenVision) -> np.ndarray:
    """(pictures, F) float16 of a whole store; of several processes one computes them."""
    place = getattr(store.pixels, "filename", None)
    if place is None:  # blank pictures, and those of posts: nothing on disk
        see, starts = tower(), range(0, len(store.pixels), CHUNK)
        return np.concatenate([see(store.pixels[start : start + CHUNK]) for start in starts])
    target = Path(place).with_name(f"features-{tower.identity}.npy")
    if not distributed.is_main():
        distributed.barrier()
    elif not target.is_file():
        _see_all(store.pixels, tower(), target)
    if distributed.is_main():
        distributed.barrier()
    return np.load(target, mmap_mode="r")


def _see_all(pixels: np.ndarray, see: See, target: Path) -> None:
    shape = (len(pixels), see(pixels[:1]).shape[1])
    part, log = target.with_suffix(".part"), target.with_suffix(".done")
    with lock_file(target, wait=True):
        if target.is_file():  # another run was faster
            return
        done = int(log.read_text() or 0) if log.is_file() and part.is_file() else 0
        features = (
            np.lib.format.open_memmap(part, mode="r+") if done else new_array(part, shape, "f2")
        )
        starts = range(done, len(pixels), CHUNK)
        for start in Progress(starts, unit="chunk", samples=CHUNK, desc="features"):
            features[start : start + CHUNK] = see(pixels[start : start + CHUNK])
            features.flush()
            with atomic_path(log) as temporary:
                temporary.write_text(str(start + CHUNK))
        part.rename(target)
        log.unlink(missing_ok=True)
