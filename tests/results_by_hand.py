"""The least that `result.json` of a run and of a seed hold, for tests that write them by hand."""

SCORES = {"f1": 50.0, "precision": 50, "recall": 50.0, "accuracy": 60.0}
SEED = {
    "seed": 1, "dev": SCORES, "test": SCORES, "leaky": False, "best_epoch": 1, "epochs": 2,
    "steps": 4, "train_rows": 9, "train_counts": {"None": 9}, "parameters": 10, "seconds": 1.5,
    "device": "cpu", "processes": 1, "precision": "fp32", "images": {"train": None}, "audit": [],
    "side_inputs": [],
}  # fmt: skip
MEANS = {name: {"mean": value, "sd": None} for name, value in SCORES.items()}
CONFIG = {"data": "d", "images": "required", "fraction": 1.0, "architecture": None, "init": "m"}
RESULT = {
    "task": "mnre", "method": "mtb", "protocol": "standard", "leaky": False, "images": "none",
    "views": [], "dev": MEANS, "test": MEANS, "per_seed": [SEED],
    "provenance": {
        "config": CONFIG, "kind": "relation", "data": {}, "versions": {}, "seconds": 1.5,
        "audit": [],
    },
}  # fmt: skip


def result_of(seed=(), **changes):
    """`RESULT` with these changes, and its one seed with those."""
    return RESULT | {"per_seed": [SEED | dict(seed)]} | changes
