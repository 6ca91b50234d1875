"""The splits of a task, and what files and options call them."""

SPLITS = ("train", "val", "test")
FILE_NAMES = {"train": ("train",), "val": ("val", "dev", "valid"), "test": ("test",)}
"""Split -> what publishers call its files; the first that is there counts."""
BY_OPTION = {"train": "train", "dev": "val", "val": "val", "test": "test"}
"""What `--split` takes -> the split."""


def shown_name(split: str) -> str:
    """`dev` for `val`: as options, results and prediction files call it."""
    return "dev" if split == "val" else split
