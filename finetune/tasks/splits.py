"""The splits of a task, and what files and options call them."""

from collections.abc import Iterable
from pathlib import Path

from shards.files import InputError

SPLITS = ("train", "val", "test")
FILE_NAMES = {"train": ("train",), "val": ("val", "dev", "valid"), "test": ("test",)}
"""Split -> what publishers call its files."""
BY_OPTION = {"train": "train", "dev": "val", "val": "val", "test": "test"}
"""What `--split` takes -> the split."""


def shown_name(split: str) -> str:
    """`dev` for `val`: as options, results and prediction files call it."""
    return "dev" if split == "val" else split


def only_file(paths: Iterable[Path], split: str) -> Path | None:
    """The first of the files that a split may be, or None.

    Raises:
        InputError: there are two, and they differ.
    """
    files = [path for path in paths if path.is_file()]
    if len(files) > 1 and len({path.read_bytes() for path in files}) > 1:
        raise InputError(
            f"{files[0].parent}: {' and '.join(path.name for path in files)} differ and both could "
            f"be the {split} split; keep one"
        )
    return files[0] if files else None
