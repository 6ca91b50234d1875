"""Two speeds of fine-tuning, on one thread:

    python tests/bench/bench_finetune.py MODEL_DIR MNRE_DIR

1. Training steps of `mtb` on bucketed, dynamically padded batches against the same model on rows
   padded to 80 and collated one by one.
2. Pictures from the memory-mapped store against decoding each row's file.
"""

import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from finetune.config import OptimConfig
from finetune.inputs.batch import Batch, Dataset
from finetune.inputs.load import load_split
from finetune.inputs.picture_store import open_store
from finetune.inputs.pictures import RESIZERS
from finetune.inputs.split import InputOptions
from finetune.methods.base import Source
from finetune.methods.mtb import MTB, MTBConfig
from finetune.tasks.mnre import Mnre
from pretrain.optim import adamw

SIZE, LENGTH = 32, 80


def row_by_row(data: Dataset, generator: np.random.Generator) -> Iterator[Batch]:
    """Batches as the field's code makes them: Python lists, every row padded to `LENGTH`."""
    order = generator.permutation(len(data))
    for start in range(0, len(order), SIZE):
        rows = []
        for i in order[start : start + SIZE]:
            ids = [int(piece) for piece in data.columns["input_ids"][i]]
            rest = LENGTH - len(ids)
            numbers = (int(data.columns[n][i]) for n in ("labels", "head_start", "tail_start"))
            mask = [True] * len(ids) + [False] * rest
            rows.append([torch.tensor(v) for v in (ids + [0] * rest, mask, *numbers)])
        ids, mask, labels, head, tail = (torch.stack(column) for column in zip(*rows, strict=True))
        yield Batch(
            rows=torch.zeros(len(rows)), input_ids=ids, attention_mask=mask, labels=labels,
            head_start=head, tail_start=tail,
        )  # fmt: skip


def training(model: str, folder: Path, steps: int = 15) -> None:
    """Print rows a second of both ways, alternating so that other load hits both."""
    task = Mnre(folder)
    method, tokenizer = MTB.build(MTBConfig(), task.info, Source(model))
    options = InputOptions(images="none", max_length=LENGTH, cache=Path())
    data = load_split(task, "train", tokenizer, method, options).dataset
    optimizer = adamw(method.parameter_groups(OptimConfig()))
    seconds: dict[str, list[float]] = {"ours": [], "row by row": []}
    sources = (
        data.batches(SIZE, np.random.default_rng(0)),
        row_by_row(data, np.random.default_rng(0)),
    )
    for name, source in list(zip(seconds, sources, strict=True)) * 3:
        started = time.perf_counter()
        for batch in islice(source, steps):
            method(batch).loss.backward()
            torch.nn.utils.clip_grad_norm_(method.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
        seconds[name].append((time.perf_counter() - started) / steps)
    report(seconds, SIZE, "rows")


def pictures(count: int = 400) -> None:
    """Print pictures a second of both ways; the files are of the size MNRE's have, 800 × 600."""
    generator = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work) / "pictures"
        folder.mkdir()
        names = [f"{i}.jpg" for i in range(count)]
        for name in names:
            small = generator.integers(0, 256, (30, 40, 3), dtype=np.uint8)
            Image.fromarray(small).resize((800, 600)).save(folder / name, quality=90)
        store = open_store(folder, names, size=224, resize="squash", cache=Path(work) / "cache")
        index = store.index_of(generator.permutation(names))
        seconds: dict[str, list[float]] = {"ours": [], "decoding": []}
        for _ in range(3):
            started = time.perf_counter()
            for start in range(0, count, 16):
                store.pixels_at(index[start : start + 16])
            seconds["ours"].append(time.perf_counter() - started)
            started = time.perf_counter()
            for name in names:
                RESIZERS["squash"](np.array(Image.open(folder / name).convert("RGB")), 224)
            seconds["decoding"].append(time.perf_counter() - started)
    report(seconds, count, "pictures")


def report(seconds: dict[str, list[float]], count: int, what: str) -> None:
    """One line a way, and the ratio of medians."""
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    for name, value in medians.items():
        print(f"{name:>12}: {count / value:10.1f} {what} a second")
    ours, other = medians.values()
    print(f"{'ratio':>12}: {other / ours:10.2f}")


if __name__ == "__main__":
    torch.set_num_threads(1)
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    pictures()
    training(sys.argv[1], Path(sys.argv[2]))
