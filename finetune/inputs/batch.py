"""What every task produces and every method receives.

N: rows of a split, B: rows of a batch, L: word pieces, W: words, R: regions, S: side of a picture.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from finetune.inputs.pictures import PixelStore
from finetune.tasks.base import Column
from shards.files import InputError

MULTIPLE = 8 if torch.cuda.is_available() else 1
"""Ragged columns are padded to a multiple of this: few distinct shapes and full tensor cores on a
GPU; a CPU gains nothing from it."""


@dataclass(frozen=True, kw_only=True)
class Batch:
    """One batch. Fields from `labels` on are None where task and inputs do not give them; what a
    method cannot do without, it takes by `require`."""

    rows: Tensor
    """(B,) int64: row numbers in the data file."""
    input_ids: Tensor
    """(B, L) int64"""
    attention_mask: Tensor
    """(B, L) bool: True = a word piece, False = padding"""
    labels: Tensor | None = None
    """(B,) int64 relations, or (B, W) int64 word labels, 0 where `word_mask` is False"""
    head_start: Tensor | None = None
    """(B,) int64: position of the head's opening marker"""
    tail_start: Tensor | None = None
    """(B,) int64: position of the tail's opening marker"""
    word_starts: Tensor | None = None
    """(B, W) int64: position of each word's first piece"""
    word_mask: Tensor | None = None
    """(B, W) bool"""
    pixel_values: Tensor | None = None
    """(B, 3, S, S) uint8; None: vision is off"""
    image_mask: Tensor | None = None
    """(B,) bool: False = this row has no picture (its pixels are zero)"""
    region_pixels: Tensor | None = None
    """(B, R, 3, S, S) uint8: each region cut out of the row's picture; zeros where masked"""
    image_features: Tensor | None = None
    """(B, …) float16: what a frozen tower saw in the picture; given instead of `pixel_values`"""
    region_features: Tensor | None = None
    """(B, R, …) float16: the same of the regions, instead of `region_pixels`"""
    region_boxes: Tensor | None = None
    """(B, R, 4) float32: x1, y1, x2, y2 as shares of the picture's width and height"""
    region_mask: Tensor | None = None
    """(B, R) bool: True = this slot holds a region; slots as `Method.region_slots` orders them"""
    caption_ids: Tensor | None = None
    """(B, Lc) int64: the picture's caption as a text of its own"""
    caption_mask: Tensor | None = None
    """(B, Lc) bool"""
    phrase_ids: Tensor | None = None
    """(B, Lp) int64: what the regions of a row were found by, in words"""
    phrase_mask: Tensor | None = None
    """(B, Lp) bool"""
    generated_pixels: Tensor | None = None
    """(B, 3, S, S) uint8: a picture generated from the sentence"""
    generated_mask: Tensor | None = None
    """(B,) bool"""
    generated_region_pixels: Tensor | None = None
    """(B, R, 3, S, S) uint8: its regions; None: it has none"""
    generated_region_mask: Tensor | None = None
    """(B, R) bool"""
    generated_features: Tensor | None = None
    """(B, …) float16: what a frozen tower saw in the generated picture, instead of its pixels"""
    generated_region_features: Tensor | None = None
    """(B, R, …) float16"""
    scores: Tensor | None = None
    """(B, 2, 2) float32: original and generated picture; how it matches the sentence by its
    regions, and as a whole"""
    image_ids: Tensor | None = None
    """(B,) int64: equal where rows show the same picture"""
    entity_types: Tensor | None = None
    """(B, 2) int64: types of head and tail, ids in `tasks.types.TYPES`"""
    crop_count: Tensor | None = None
    """(B,) int64: crops a row has in the community's files; leaks the label, to show that"""
    extras: Mapping[str, Tensor] = field(default_factory=dict)
    """What providers of a method's own give under names that are no fields here, (B, …)."""
    reader: str = "this method"
    """The method that it was made for."""
    weight: float = 1.0
    """What the mean loss of this piece of a batch counts, so that the pieces' mean is the batch's:
    its rows, relative to an equal share."""

    def to(self, device: torch.device, non_blocking: bool = False) -> "Batch":
        """The same batch on another device."""
        if device == self.rows.device:  # to make it anew is seen in a single post
            return self

        def move(values: Mapping[str, Any]) -> dict[str, Any]:
            tensors = {name: value for name, value in values.items() if isinstance(value, Tensor)}
            return {name: t.to(device, non_blocking=non_blocking) for name, t in tensors.items()}

        return replace(self, **move(vars(self)), extras=move(self.extras))

    def require(self, name: str) -> Tensor:
        """The field, or the one of `extras`, called `name`.

        Raises:
            InputError: the batch has none.
        """
        value = self.extras.get(name, getattr(self, name, None))
        if not isinstance(value, Tensor):
            raise InputError(
                f"{self.reader} reads {name!r} of a batch, which neither this task nor the "
                "method's `needs` give under these settings"
            )
        return value

    def __len__(self) -> int:
        return len(self.rows)


FIELDS = {entry.name for entry in fields(Batch)} - {"extras", "reader", "weight"}
"""Its tensors."""


@dataclass(frozen=True)
class Pictures:
    """Which pictures of a store belong to which row."""

    store: PixelStore
    index: np.ndarray
    """(N,) or (N, R) positions in `store`; -1 = none there"""
    mask: str
    """The name under which batches carry where there is one."""


@dataclass(frozen=True)
class Padding:
    """How rows of a ragged column are made equally long."""

    mask: str
    """The name under which batches carry what is none."""
    fill: int = 0


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """An encoded split, encoded once: columns by the names that batches carry them under."""

    rows: np.ndarray
    """(N,) row numbers in the data file; pictures and side inputs are keyed by them."""
    columns: Mapping[str, Column]
    padding: Mapping[str, Padding] = field(
        default_factory=lambda: {"input_ids": Padding("attention_mask")}
    )
    """Of ragged columns; one that is not here is filled with zeros, and has no mask."""
    pictures: Mapping[str, Pictures] = field(default_factory=dict)
    """Name in batches -> where the pixels come from; empty: vision is off."""
    reader: str = "this method"
    """The method that it is made for."""

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def lengths(self) -> np.ndarray:
        """(N,) word pieces of each row."""
        return np.fromiter(map(len, self.columns["input_ids"]), np.int64, len(self))

    def subset(self, keep: Sequence[int] | np.ndarray) -> "Dataset":
        """The rows at positions `keep`, in that order."""
        keep = np.asarray(keep, dtype=np.int64)
        columns = {name: _take(column, keep) for name, column in self.columns.items()}
        pictures = {
            name: replace(of_rows, index=of_rows.index[keep])
            for name, of_rows in self.pictures.items()
        }
        return replace(self, rows=self.rows[keep], columns=columns, pictures=pictures)

    def collate(self, chosen: np.ndarray) -> Batch:
        """The rows at positions `chosen` as one batch."""
        arrays = {"rows": self.rows[chosen]}
        for name, column in self.columns.items():
            values = _take(column, chosen)
            if isinstance(values, list):
                padding = self.padding.get(name, Padding(""))
                values, mask = pad(values, padding.fill)
                if padding.mask:
                    arrays[padding.mask] = mask
            arrays[name] = values
        for name, pictures in self.pictures.items():
            index = pictures.index[chosen]
            arrays[name], arrays[pictures.mask] = pictures.store.pixels_at(index), index >= 0
        tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
        extras = {name: tensors.pop(name) for name in tensors.keys() - FIELDS}
        return Batch(**tensors, extras=extras, reader=self.reader)  # type: ignore[arg-type]

    def batches(
        self,
        size: int,
        generator: np.random.Generator | None = None,
        *,
        parts: int = 1,
        rank: int = 0,
        world: int = 1,
    ) -> Iterator[Batch]:
        """Every row once, in batches of rows of similar length.

        Args:
            size: rows of a whole batch; the last one of an epoch may be smaller.
            generator: shuffles; the order is a function of its state. None: shortest first.
            parts: each batch comes in so many pieces (accumulation × processes); a last batch with
                fewer rows than pieces is left out of this epoch.
            rank: of `world` processes, this one takes the pieces rank, rank + world, …
        """
        for chosen in bucketed(self.lengths, size, generator):
            if len(chosen) >= parts:
                for part in np.array_split(chosen, parts)[rank::world]:
                    yield replace(self.collate(part), weight=len(part) * parts / len(chosen))


def num_batches(rows: int, size: int, parts: int = 1) -> int:
    """How many whole batches `Dataset.batches` makes of so many rows."""
    return rows // size + (rows % size >= max(parts, 1))


def bucketed(
    lengths: np.ndarray, size: int, generator: np.random.Generator | None, pool: int = 50
) -> list[np.ndarray]:
    """Positions 0…N-1 cut into batches of similar length, ceil(N / size) of them.

    With a generator: shuffle, sort by length only within pools of `pool` batches (so that batches
    stay random samples of the split), shuffle the batches.
    """
    if generator is None:
        order = np.argsort(lengths, kind="stable")
        return [order[start : start + size] for start in range(0, len(order), size)]
    order = generator.permutation(len(lengths))
    batches = []
    for start in range(0, len(order), pool * size):
        part = order[start : start + pool * size]
        part = part[np.argsort(lengths[part], kind="stable")]
        batches += [part[first : first + size] for first in range(0, len(part), size)]
    return [batches[i] for i in generator.permutation(len(batches))]


def pad(arrays: Sequence[np.ndarray], fill: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Ragged arrays as one (B, longest rounded up to `MULTIPLE`), and its bool mask."""
    lengths = np.fromiter(map(len, arrays), np.int64, len(arrays))
    width = -(-max(int(lengths.max()), 1) // MULTIPLE) * MULTIPLE
    mask = np.arange(width) < lengths[:, None]
    flat = np.concatenate(arrays)
    padded = np.full(mask.shape, fill, dtype=flat.dtype)
    padded[mask] = flat
    return padded, mask


def _take(column: Column, chosen: np.ndarray) -> Column:
    if isinstance(column, np.ndarray):
        return column[chosen]
    return [column[i] for i in chosen]
