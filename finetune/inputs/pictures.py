"""Pictures decoded once into a memory-mapped uint8 store; every epoch reads from there.

One store holds the named files of one folder at one size: `pixels.npy` (F, 3, S, S) uint8 and
`index.json` (names, what was missing or undecodable, how the store was made). It is rebuilt when
a file, the names, the size or the way of resizing changes. No picture ever stands in for another.

A name may be a `Part` of a picture; its file is decoded once for all parts.
"""

import hashlib
import math
import os
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

from finetune.tasks.base import Box
from pretrain import distributed
from shards.files import InputError, read_json, replace_folder, write_json
from shards.images import RejectedImage, decoded
from shards.locks import lock_file
from shards.progress import Progress

FORMAT_VERSION = 5
BLANK = 127
"""Every channel of a blank picture."""


def squash(image: Image.Image, size: int) -> Image.Image:
    """Resize to a square, ignoring the aspect ratio: nothing at the border is lost."""
    return image.resize((size, size), Image.Resampling.BICUBIC)


def center_crop(image: Image.Image, size: int) -> Image.Image:
    """Shorter side to 256/224 of `size`, then cut the middle, rounded as torchvision rounds
    (HVPNeT's code)."""
    shorter = round(size * 256 / 224)
    width, height = (shorter * side // min(image.size) for side in image.size)
    image = image.resize((width, height), Image.Resampling.BILINEAR)
    left, top = round((width - size) / 2), round((height - size) / 2)
    return image.crop((left, top, left + size, top + size))


RESIZERS: dict[str, Callable[[Image.Image, int], Image.Image]] = {
    "squash": squash,
    "center_crop": center_crop,
}


@dataclass(frozen=True)
class Part:
    """The part of a picture inside a box, of which a hundredth of a pixel counts."""

    file: str
    box: Box
    """(x1, y1, x2, y2) in pixels"""

    def __post_init__(self) -> None:
        x1, y1, x2, y2 = (round(float(side), 2) for side in self.box)
        object.__setattr__(self, "box", (x1, y1, x2, y2))

    def cut(self, picture: Image.Image) -> Image.Image:
        """The part, at least one pixel of it."""
        x1, y1, x2, y2 = self.box
        left, top = min(round(x1), picture.width - 1), min(round(y1), picture.height - 1)
        right, bottom = max(round(x2), left + 1), max(round(y2), top + 1)
        inside = max(left, 0), max(top, 0), min(right, picture.width), min(bottom, picture.height)
        return picture.crop(inside)


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
    """(F, 3, S, S) uint8, memory-mapped"""
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
        if self.sums is not None and self.unseen is not None and present.any():
            fresh = present & self.unseen[index]
            if fresh.any():
                self._check(values[fresh], index[fresh])
        return values

    def _check(self, pixels: np.ndarray, index: np.ndarray) -> None:
        assert self.sums is not None and self.unseen is not None
        wrong = sums_of(pixels) != self.sums[index]
        if wrong.any():
            place = Path(getattr(self.pixels, "filename", self.folder))
            raise InputError(
                f"{place}: picture {index[wrong][0]} is not what was decoded; remove "
                f"{place.parent}: it is made again"
            )
        self.unseen[index] = False

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
    """(N, …) uint8 -> (N,) sums modulo 2^64 of each one's words of up to 8 bytes: a flipped bit or
    a lost block changes it, at the speed of memory."""
    flat = np.ascontiguousarray(pixels).reshape(len(pixels), -1)
    words = flat.view(f"u{math.gcd(8, flat.shape[1])}")
    return np.add.reduce(words, axis=1, dtype=np.uint64)


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


def open_store(
    folder: Path, names: Iterable[Name], *, size: int, resize: str, cache: Path
) -> ImageStore:
    """The store of these files, built first where `cache` does not hold it yet.

    Args:
        folder: where the files lie.
        names: files inside `folder`, or parts of them; repeated ones count once.
        size: side of the squares in pixels.
        resize: a key of `RESIZERS`.
        cache: directory for stores; safe to delete, safe to share between runs.
    """
    distinct = sorted(set(names), key=_sort_key)
    signature = _signature(folder, distinct, size, resize)
    directory = cache / f"{signature[:20]}-{size}"
    built = directory / "index.json"
    if not built.is_file():
        with lock_file(directory, wait=True):
            if not built.is_file():  # another run may have built it meanwhile
                _build(directory, folder, distinct, size, resize)
    index = read_json(directory / "index.json", f"remove {directory}: it is made again")
    try:
        pixels = np.load(directory / "pixels.npy", mmap_mode="r")
    except (ValueError, OSError, EOFError) as error:
        raise InputError(
            f"{directory / 'pixels.npy'}: damaged ({error}); remove {directory}: it is made again"
        ) from None
    sums = np.array(index["sums"], dtype=np.uint64)
    if (pixels.dtype, *pixels.shape[1:]) != (np.uint8, 3, size, size) or len(pixels) < len(sums):
        raise InputError(f"{directory}: not the pictures of its index; remove it: it is made again")
    return ImageStore(
        folder=folder,
        pixels=pixels,
        sums=sums,
        unseen=np.ones(len(sums), dtype=bool),
        position={name: i for i, name in enumerate(map(_from_json, index["names"]))},
        missing=tuple(map(_from_json, index["missing"])),
        undecodable=tuple(map(_from_json, index["undecodable"])),
    )


def open_images(
    folder: Path, names: Iterable[Name], *, size: int, resize: str, cache: Path
) -> ImageStore:
    """`open_store`; of several processes one decodes, the others find its work."""
    if not distributed.is_main():
        distributed.barrier()
    store = open_store(folder, names, size=size, resize=resize, cache=cache)
    if distributed.is_main():
        distributed.barrier()
    return store


def _sort_key(name: Name) -> tuple[str, tuple[float, ...]]:
    return file_of(name), name.box if isinstance(name, Part) else ()


def _to_json(names: Collection[Name]) -> list[Any]:
    return [[name.file, *name.box] if isinstance(name, Part) else name for name in names]


def _from_json(record: Any) -> Name:
    return record if isinstance(record, str) else Part(record[0], tuple(record[1:]))


def _signature(folder: Path, names: Sequence[Name], size: int, resize: str) -> str:
    """Changes with whatever changes the pixels: a file's size or time, the names, the resizing."""
    digest = hashlib.sha256(f"{FORMAT_VERSION} {folder.resolve()} {size} {resize}".encode())
    try:
        present = {entry.name: entry.stat() for entry in os.scandir(folder) if entry.is_file()}
    except (FileNotFoundError, NotADirectoryError):
        present = {}
    for name in names:
        file = file_of(name)
        stat = present.get(file) if "/" not in file else _stat(folder / file)
        state = (stat.st_size, stat.st_mtime_ns) if stat else "missing"
        digest.update(f"\n{name}\t{state}".encode())
    return digest.hexdigest()


def _stat(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None


def _build(directory: Path, folder: Path, names: Sequence[Name], size: int, resize: str) -> None:
    directory.parent.mkdir(parents=True, exist_ok=True)
    parts: dict[str, list[Name]] = {}
    for name in names:
        parts.setdefault(file_of(name), []).append(name)
    absent = [file for file in parts if not (folder / file).is_file()]
    missing = [name for file in absent for name in parts.pop(file)]
    present = sum(map(len, parts.values()))
    with replace_folder(directory) as building:
        # An empty array cannot be memory-mapped; no picture at all is one unused row.
        pixels = new_array(building / "pixels.npy", (max(1, present), 3, size, size), "u1")
        decoded: list[Name] = []
        undecodable: list[Name] = []
        with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:  # Pillow releases the GIL
            arrays = pool.map(lambda file: _decode(folder / file, parts[file], size, resize), parts)
            bar = Progress(arrays, total=len(parts), unit="picture", desc=f"decode {folder.name}")
            for cuts, squares in zip(parts.values(), bar, strict=True):
                if squares is None:
                    undecodable += cuts
                else:
                    pixels[len(decoded) : len(decoded) + len(cuts)] = squares
                    decoded += cuts
        pixels.flush()
        index = {
            "format": FORMAT_VERSION,
            "folder": str(folder),
            "size": size,
            "resize": resize,
            "names": _to_json(decoded),
            "missing": _to_json(missing),
            "undecodable": _to_json(undecodable),
            "sums": sums_of(pixels[: len(decoded)]).tolist() if decoded else [],
        }
        write_json(building / "index.json", index, checksum=True)


def new_array(path: Path, shape: tuple[int, ...], kind: str) -> np.memmap:
    """A memory-mapped `.npy` file of zeros, its place on the disk taken at once: of a sparse file
    on a full disk, the process would learn by SIGBUS.

    Raises:
        OSError: it does not fit.
    """
    array = np.lib.format.open_memmap(path, mode="w+", dtype=np.dtype(kind), shape=shape)
    with path.open("r+b") as file:
        os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    return array


def _decode(path: Path, parts: Sequence[Name], size: int, resize: str) -> np.ndarray | None:
    """(len(parts), 3, S, S) uint8, or None for what is no readable picture."""
    try:
        picture = decoded(path)
    except RejectedImage:
        return None
    cuts = [part.cut(picture) if isinstance(part, Part) else picture for part in parts]
    squares = [RESIZERS[resize](cut, size) for cut in cuts]
    return np.stack([np.asarray(square) for square in squares]).transpose(0, 3, 1, 2)
