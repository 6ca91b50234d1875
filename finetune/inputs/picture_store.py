"""Pictures decoded once into a memory-mapped uint8 store; every epoch reads from there.

One store holds the named files of one folder at one size: `pixels.npy` (F, 3, S, S) uint8 and
`index.json` (names, what was missing or undecodable, how the store was made). It is rebuilt when
a file, the names, the size or the way of resizing changes.
"""

import hashlib
import os
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from tokenize import TokenError
from typing import Any

import numpy as np

from finetune.inputs.pictures import (
    ImageStore,
    Name,
    Part,
    by_file,
    decode_files,
    file_of,
    sort_key,
    sums_of,
)
from pretrain import distributed
from shards.files import InputError, replace_folder
from shards.json_files import read_json, write_json
from shards.locks import lock_file
from shards.progress import Progress

FORMAT_VERSION = 6


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
    distinct = sorted(set(names), key=sort_key)
    directory = cache / f"{_signature(folder, distinct, size, resize)[:20]}-{size}"
    built = directory / "index.json"
    if not built.is_file():
        with lock_file(directory, wait=True):
            if not built.is_file():  # another run may have built it meanwhile
                _build(directory, folder, distinct, size, resize)
    index = read_json(directory / "index.json", f"remove {directory}: it is made again")
    pixels = load_array(directory / "pixels.npy")
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
    parts, missing = by_file(folder, names)
    present = sum(map(len, parts.values()))
    with replace_folder(directory) as building:
        # An empty array cannot be memory-mapped; no picture at all is one unused row.
        pixels = new_array(building / "pixels.npy", (max(1, present), 3, size, size), "u1")
        decoded: list[Name] = []
        undecodable: list[Name] = []
        squares_of = decode_files(folder, parts, size, resize)
        bar = Progress(squares_of, total=len(parts), unit="picture", desc=f"decode {folder.name}")
        for cuts, squares in bar:
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


def load_array(path: Path) -> np.ndarray:
    """A `.npy` file, memory-mapped.

    Raises:
        InputError: cut, or no such file.
    """
    try:
        return np.load(path, mmap_mode="r")
    except (ValueError, OSError, EOFError, SyntaxError, TokenError) as error:
        raise InputError(
            f"{path}: damaged ({error}); remove {path.parent}: it is made again"
        ) from None


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
