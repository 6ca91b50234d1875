"""Pictures decoded once into a memory-mapped uint8 store; every epoch reads from there.

One store holds the named files of one folder at one size: `pixels.npy` (F, 3, S, S) uint8 and
`index.json` (names, what was missing or undecodable, how the store was made). It is rebuilt when
a file, the names, the size or the way of resizing changes. No picture ever stands in for another.
"""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from pretrain.cli import InputError

FORMAT_VERSION = 1


def squash(image: Image.Image, size: int) -> Image.Image:
    """Resize to a square, ignoring the aspect ratio: nothing at the border is lost."""
    return image.resize((size, size), Image.Resampling.BICUBIC)


def center_crop(image: Image.Image, size: int) -> Image.Image:
    """Shorter side to 256/224 of `size`, then cut the middle (HVPNeT's code)."""
    scale = round(size * 256 / 224) / min(image.size)
    width, height = (max(size, round(side * scale)) for side in image.size)
    image = image.resize((width, height), Image.Resampling.BILINEAR)
    left, top = (width - size) // 2, (height - size) // 2
    return image.crop((left, top, left + size, top + size))


RESIZERS: dict[str, Callable[[Image.Image, int], Image.Image]] = {
    "squash": squash,
    "center_crop": center_crop,
}


@dataclass(frozen=True)
class ImageStore:
    """The decoded pictures of one folder."""

    folder: Path
    pixels: np.ndarray
    """(F, 3, S, S) uint8, memory-mapped"""
    position: dict[str, int]
    """file name -> index into `pixels`"""
    missing: tuple[str, ...]
    """Names asked for that the folder lacks."""
    undecodable: tuple[str, ...]
    """Names that exist but are no readable picture."""

    @property
    def size(self) -> int:
        """S: side of a picture in pixels."""
        return self.pixels.shape[-1]

    def index_of(self, names: Iterable[str | None]) -> np.ndarray:
        """Positions in `pixels`; -1 for None and for what is missing or undecodable."""
        return np.array([self.position.get(name, -1) for name in names], dtype=np.int64)

    def pixels_at(self, index: np.ndarray) -> np.ndarray:
        """(B, 3, S, S) uint8 of positions `index`; zeros where it is -1."""
        present = index >= 0
        if present.all():
            return np.asarray(self.pixels[index])
        values = np.zeros((len(index), *self.pixels.shape[1:]), dtype=np.uint8)
        values[present] = self.pixels[index[present]]
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
                f"missing and {len(self.undecodable)} undecodable, for example {example} ({why}); "
                f"supply them, allow that many with --max_missing {absent} (they are then masked), "
                "or switch vision off with --images none"
            )


def open_store(
    folder: Path, names: Iterable[str], *, size: int, resize: str, cache: Path
) -> ImageStore:
    """The store of these files, built first where `cache` does not hold it yet.

    Args:
        folder: where the files lie.
        names: file names inside `folder`; repeated ones count once.
        size: side of the squares in pixels.
        resize: a key of `RESIZERS`.
        cache: directory for stores; safe to delete, safe to share between runs.
    """
    wanted = sorted(set(names))
    signature = _signature(folder, wanted, size, resize)
    directory = cache / f"{signature[:20]}-{size}"
    if not (directory / "index.json").is_file():
        _build(directory, folder, wanted, size, resize)
    index = json.loads((directory / "index.json").read_text(encoding="utf-8"))
    return ImageStore(
        folder=folder,
        pixels=np.load(directory / "pixels.npy", mmap_mode="r"),
        position={name: i for i, name in enumerate(index["names"])},
        missing=tuple(index["missing"]),
        undecodable=tuple(index["undecodable"]),
    )


def _signature(folder: Path, names: Sequence[str], size: int, resize: str) -> str:
    """Changes with whatever changes the pixels: a file's size or time, the names, the resizing."""
    digest = hashlib.sha256(f"{FORMAT_VERSION} {folder.resolve()} {size} {resize}".encode())
    try:
        present = {entry.name: entry.stat() for entry in os.scandir(folder) if entry.is_file()}
    except (FileNotFoundError, NotADirectoryError):
        present = {}
    for name in names:
        stat = present.get(name)
        state = (stat.st_size, stat.st_mtime_ns) if stat else "missing"
        digest.update(f"\n{name}\t{state}".encode())
    return digest.hexdigest()


def _build(directory: Path, folder: Path, names: Sequence[str], size: int, resize: str) -> None:
    from tqdm import tqdm

    directory.parent.mkdir(parents=True, exist_ok=True)
    missing = [name for name in names if not (folder / name).is_file()]
    absent = set(missing)
    present = [name for name in names if name not in absent]
    building = Path(tempfile.mkdtemp(dir=directory.parent, prefix=".building-"))
    try:
        shape = (len(present), 3, size, size)
        # An empty array cannot be memory-mapped; no picture at all is one unused row.
        pixels = np.lib.format.open_memmap(
            building / "pixels.npy", mode="w+", dtype=np.uint8, shape=(max(1, shape[0]), *shape[1:])
        )
        decoded, undecodable = [], []
        with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:  # Pillow releases the GIL
            arrays = pool.map(lambda name: _decode(folder / name, size, resize), present)
            bar = tqdm(arrays, total=len(present), desc=f"decode {folder.name}", disable=None)
            for name, array in zip(present, bar, strict=True):
                if array is None:
                    undecodable.append(name)
                else:
                    pixels[len(decoded)] = array
                    decoded.append(name)
        pixels.flush()
        index = {
            "format": FORMAT_VERSION,
            "folder": str(folder),
            "size": size,
            "resize": resize,
            "names": decoded,
            "missing": missing,
            "undecodable": undecodable,
        }
        (building / "index.json").write_text(json.dumps(index, indent=1), encoding="utf-8")
        try:
            building.rename(directory)
        except OSError:  # another run was faster with the same store
            if not (directory / "index.json").is_file():
                raise
    finally:
        shutil.rmtree(building, ignore_errors=True)


def _decode(path: Path, size: int, resize: str) -> np.ndarray | None:
    """(3, S, S) uint8, or None for what is no readable picture."""
    try:
        with Image.open(path) as image:
            image.load()
            square = RESIZERS[resize](image.convert("RGB"), size)
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError):  # Pillow's ways to say so
        return None
    return np.asarray(square).transpose(2, 0, 1)
