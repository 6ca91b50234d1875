"""Pictures as squares of pixels: the named files of one folder, decoded once.

A name may be a `Part` of a picture; its file is decoded once for all parts. No picture ever stands
in for another. Those of a data set lie on the disk (`picture_store.py`), those of posts in memory.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import Image

from finetune.tasks.base import Box
from shards.files import InputError
from shards.images import RejectedImage, cut, decoded_pixels, squash
from shards.threads import cores

BLANK = 127
"""Every channel of a blank picture."""


def center_crop(picture: np.ndarray, size: int) -> np.ndarray:
    """Shorter side to 256/224 of `size`, then cut the middle, rounded as torchvision rounds
    (HVPNeT's code)."""
    image = Image.fromarray(picture)
    shorter = round(size * 256 / 224)
    width, height = (shorter * side // min(image.size) for side in image.size)
    image = image.resize((width, height), Image.Resampling.BILINEAR)
    left, top = round((width - size) / 2), round((height - size) / 2)
    return np.asarray(image.crop((left, top, left + size, top + size))).transpose(2, 0, 1)


RESIZERS: dict[str, Callable[[np.ndarray, int], np.ndarray]] = {
    "squash": squash,
    "center_crop": center_crop,
}
"""(H, W, 3) uint8 and a side -> (3, S, S) uint8."""


@dataclass(frozen=True)
class Part:
    """The part of a picture inside a box, of which a hundredth of a pixel counts."""

    file: str
    box: Box
    """(x1, y1, x2, y2) in pixels"""

    def __post_init__(self) -> None:
        x1, y1, x2, y2 = (round(float(side), 2) for side in self.box)
        object.__setattr__(self, "box", (x1, y1, x2, y2))


Name = str | Part
"""A file inside the store's folder, or a part of one."""


class PixelStore(Protocol):
    """Where a batch takes its pixels, or what stands for them."""

    def pixels_at(self, index: np.ndarray) -> np.ndarray:
        """(B, …, *) of positions `index` (B, …); zeros where it is -1."""


@dataclass(frozen=True)
class ImageStore:
    """The decoded pictures of one folder."""

    folder: Path
    pixels: np.ndarray
    """(F, 3, S, S) uint8, of a store on disk memory-mapped; one unused row where F would be 0"""
    position: Mapping[Name, int]
    """Index into `pixels`"""
    missing: tuple[Name, ...]
    """Names asked for that the folder lacks."""
    undecodable: tuple[Name, ...]
    """Names that exist but are no readable picture."""
    sums: np.ndarray | None = None
    """(F,) of `sums_of`, as when they were decoded: of a store on disk, checked at the first look
    at a picture."""
    unseen: np.ndarray | None = None
    """(F,) whether that is to come."""

    @property
    def size(self) -> int:
        """S: side of a picture in pixels."""
        return self.pixels.shape[-1]

    def index_of(self, names: Iterable[Name | None]) -> np.ndarray:
        """Positions in `pixels`; -1 for None and for what is missing or undecodable."""
        places = [-1 if name is None else self.position.get(name, -1) for name in names]
        return np.array(places, dtype=np.int64)

    def pixels_at(self, index: np.ndarray) -> np.ndarray:
        """(B, …, 3, S, S) uint8 of positions `index` (B, …); zeros where it is -1."""
        present = index >= 0
        if present.all():
            values = np.asarray(self.pixels[index])
        else:
            values = np.zeros((*index.shape, *self.pixels.shape[1:]), dtype=np.uint8)
            values[present] = self.pixels[index[present]]
        if self.sums is not None and self.unseen is not None:
            check_rows(values, index, self.sums, self.unseen, self.pixels)
        return values

    def require(self, allowed: int = 0) -> None:
        """Refuse more than `allowed` absent pictures.

        Raises:
            InputError: with counts, one example, and the two ways out.
        """
        absent = len(self.missing) + len(self.undecodable)
        if absent > allowed:
            example, why = (
                (self.missing[0], "missing")
                if self.missing
                else (self.undecodable[0], "undecodable")
            )
            raise InputError(
                f"{self.folder}: of {len(self.position) + absent} pictures {len(self.missing)} are "
                f"missing and {len(self.undecodable)} undecodable, for example "
                f"{file_of(example)} ({why}); "
                f"supply them, allow that many with --max_missing {absent} (they are then masked), "
                "or switch vision off with --images none"
            )


def sums_of(pixels: np.ndarray) -> np.ndarray:
    """(N, …) -> (N,) sums modulo 2^64 of each one's words of up to 8 bytes: a flipped bit or
    a lost block changes it, at the speed of memory."""
    flat = np.ascontiguousarray(pixels).reshape(len(pixels), -1)
    words = flat.view(f"u{math.gcd(8, flat.shape[1] * flat.itemsize)}")
    return np.add.reduce(words, axis=1, dtype=np.uint64)


def check_rows(
    values: np.ndarray, index: np.ndarray, sums: np.ndarray, unseen: np.ndarray, array: np.ndarray
) -> None:
    """Hold what was read at positions `index`, -1 for none, to `sums`, where it was `unseen`.

    Raises:
        InputError: a row of the memory-mapped `array` is not what was written.
    """
    fresh = (index >= 0) & (index < len(sums))  # a store of no picture has one unused row
    fresh[fresh] = unseen[index[fresh]]
    if not fresh.any():
        return
    wrong = sums_of(values[fresh]) != sums[index[fresh]]
    if wrong.any():
        place = Path(getattr(array, "filename", ""))
        raise InputError(
            f"{place}: picture {index[fresh][wrong][0]} is not what was written; remove "
            f"{place.parent}: it is made again"
        )
    unseen[index[fresh]] = False


def file_of(name: Name) -> str:
    """The file that holds it."""
    return name.file if isinstance(name, Part) else name


def blank_store(folder: Path, names: Iterable[Name], *, size: int) -> ImageStore:
    """The same grey square under every name; no file is read."""
    return ImageStore(
        folder=folder,
        pixels=np.full((1, 3, size, size), BLANK, dtype=np.uint8),
        position=dict.fromkeys(names, 0),
        missing=(),
        undecodable=(),
    )


def decode_images(folder: Path, names: Iterable[Name], *, size: int, resize: str) -> ImageStore:
    """These files in memory; arguments as `picture_store.open_store` takes them."""
    parts, missing = by_file(folder, names)
    pixels: list[np.ndarray] = []
    present: list[Name] = []
    undecodable: list[Name] = []
    for cuts, squares in decode_files(folder, parts, size, resize):
        if squares is None:
            undecodable += cuts
        else:
            present += cuts
            pixels.append(squares)
    return ImageStore(
        folder=folder,
        pixels=np.concatenate(pixels or [np.zeros((1, 3, size, size), dtype=np.uint8)]),
        position={name: i for i, name in enumerate(present)},
        missing=tuple(missing),
        undecodable=tuple(undecodable),
    )


def by_file(folder: Path, names: Iterable[Name]) -> tuple[dict[str, list[Name]], list[Name]]:
    """File -> what is wanted of it, each name once, in order; and names whose file is absent."""
    parts: dict[str, list[Name]] = {}
    for name in sorted(set(names), key=sort_key):
        parts.setdefault(file_of(name), []).append(name)
    absent = [file for file in parts if not (folder / file).is_file()]
    return parts, [name for file in absent for name in parts.pop(file)]


def decode_files(
    folder: Path, parts: Mapping[str, list[Name]], size: int, resize: str
) -> Iterator[tuple[list[Name], np.ndarray | None]]:
    """The names of each file, and their squares (names, 3, S, S) uint8; None: no readable
    picture."""
    if len(parts) == 1:  # a single post: threads would cost more than they bring
        for file, names in parts.items():
            yield names, _decode(folder / file, names, size, resize)
        return
    with ThreadPoolExecutor(max_workers=cores()) as pool:  # decoders release the GIL
        arrays = pool.map(lambda file: _decode(folder / file, parts[file], size, resize), parts)
        yield from zip(parts.values(), arrays, strict=True)


def sort_key(name: Name) -> tuple[str, tuple[float, ...]]:
    """The order of a store: by file, then by box."""
    return file_of(name), name.box if isinstance(name, Part) else ()


def _decode(path: Path, parts: Sequence[Name], size: int, resize: str) -> np.ndarray | None:
    """(len(parts), 3, S, S) uint8, or None for what is no readable picture."""
    try:
        picture = decoded_pixels(path)
    except RejectedImage:
        return None
    cuts = [cut(picture, part.box) if isinstance(part, Part) else picture for part in parts]
    return np.stack([RESIZERS[resize](cut, size) for cut in cuts])
