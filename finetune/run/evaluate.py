"""Weights + split -> predictions and scores; `python -m finetune evaluate` repeats a run's."""

import itertools
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from finetune import protocols, registry
from finetune.config import EvaluateConfig, cache_directory, split_paths
from finetune.inputs.load import InputOptions, LoadedSplit, load_split, read_views
from finetune.methods.base import Method
from finetune.run import checkpoint
from finetune.tasks.base import Task
from finetune.tasks.metrics import entities
from pretrain import distributed
from pretrain.engine import autocast
from shards.files import InputError, atomic_path, write_json

SPLITS = {"train": "train", "dev": "val", "val": "val", "test": "test"}
"""Names on the command line -> names of splits."""


@dataclass(frozen=True)
class Predictions:
    """Answers of one split in file order."""

    rows: list[int]
    gold: list[Any]
    answers: list[Any]
    probabilities: list[list[Any]] | None
    """Relations: one a label, in order of the labels. Entities: None, or where they were asked for
    one an entity, in order of `metrics.entities`, which is None if the method knows none."""

    def write(self, path: Path) -> None:
        """`pred_{split}.jsonl`."""
        with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8") as lines:
            for i, row in enumerate(self.rows):
                record = {"row": row, "gold": self.gold[i], "pred": self.answers[i]}
                if self.probabilities is not None:
                    record["scores"] = self.probabilities[i]
                lines.write(json.dumps(record, ensure_ascii=False) + "\n")

    def score(self, task: Task) -> dict[str, float]:
        """The task's metric, in percent."""
        return dict(task.score(self.gold, self.answers))


@torch.inference_mode()
def predict(
    method: Method,
    task: Task,
    split: LoadedSplit,
    precision: str,
    micro_batch_size: int = 64,
    entity_scores: bool = False,
) -> Predictions:
    """Answers for every row, each process its share, on the method's device; in file order.

    Args:
        entity_scores: also the probability of each entity; training and evaluation need none.
    """
    method.eval()
    device = next(method.parameters()).device
    relation = task.info.kind == "relation"
    rows = split.dataset.rows.tolist()
    mine = split.dataset.subset(np.arange(distributed.rank(), len(rows), distributed.world_size()))
    found: dict[int, tuple[Any, list[Any] | None]] = {}
    with autocast(device, precision), method.one_pass():
        for batch in mine.batches(micro_batch_size):
            batch = batch.to(device)
            output = method(batch)
            answers = list(map(task.to_answer, method.decode(output, batch)))
            shares: Iterable[list[Any] | None] = itertools.repeat(None, len(batch))
            if relation:
                shares = output.logits.softmax(dim=-1).double().cpu().numpy().round(5).tolist()
            elif entity_scores:
                shares = method.entity_scores(output, batch, list(map(entities, answers)))
            pairs = zip(answers, shares, strict=True)
            found |= zip(batch.rows.tolist(), pairs, strict=True)
    found = merge(found)
    return Predictions(
        rows,
        split.gold,
        [found[row][0] for row in rows],
        [found[row][1] for row in rows] if relation or entity_scores else None,
    )


def merge(found: dict[Any, Any]) -> dict[Any, Any]:
    """The items of all processes."""
    if distributed.world_size() == 1:
        return found
    parts: list[Any] = [None] * distributed.world_size()
    torch.distributed.all_gather_object(parts, found)
    return {key: value for part in parts for key, value in part.items()}


def pick_precision(name: str) -> str:
    """`auto` is bf16 on CUDA and fp32 on the CPU."""
    if name != "auto":
        return name
    return "bf16" if distributed.device().type == "cuda" else "fp32"


def evaluate(config: EvaluateConfig) -> dict[str, Any]:
    """Score every seed of a run again.

    Writes `pred_{split}.jsonl` of each seed and `evaluate_{split}.json`; the names of views, and
    of captions other than the run's, are part of these.
    """
    run, split = Path(config.run), SPLITS[config.split]
    name = "dev" if split == "val" else split
    paths = split_paths(config.view)
    views = read_views(paths)
    if paths and split not in views:
        raise InputError(f"--view {config.view}: made for {', '.join(views)}, not for {split}")
    others = ["captions-" + re.sub(r"[^\w.-]+", "-", config.captions)] if config.captions else []
    stem = "_".join([name, *(path.stem for path in paths), *others])
    per_seed, leaky = [], False
    for directory in seed_directories(run):
        method, tokenizer, description = checkpoint.load_method(directory / "model")
        task = registry.load("tasks", description["task"]["name"])(Path(config.data))
        check_labels(task, description["task"]["labels"], config.data)
        inputs = with_captions(description["inputs"], config.captions)
        options = InputOptions(
            **inputs,
            cache=cache_directory(config.cache, run),
            max_missing=config.max_missing,
            views=views,
        )
        loaded = load_split(task, split, tokenizer, method, options)
        method.to(distributed.device())
        predictions = predict(method, task, loaded, pick_precision(config.precision))
        predictions.write(directory / f"pred_{stem}.jsonl")
        per_seed.append({"seed": directory.name, **predictions.score(task)})
        leaky |= loaded.leaky or trained_leaky(directory)
    result = {
        "split": name,
        "leaky": leaky,
        "captions": inputs.get("captions"),
        "views": [dict(view.header) for view in views.get(split, ())],
        **protocols.aggregate(per_seed),
        "per_seed": per_seed,
    }
    write_json(run / f"evaluate_{stem}.json", result)
    return result


def with_captions(inputs: dict[str, Any], captions: str | None) -> dict[str, Any]:
    """What a run reads, its captions by another captioner where one is named."""
    if captions is None:
        return inputs
    if inputs.get("captions") is None:
        raise InputError(f"--captions {captions}: this run was trained without captions")
    return inputs | {"captions": captions}


def trained_leaky(directory: Path) -> bool:
    """The stamp of a seed's training; a converted checkpoint has none."""
    path = directory / "result.json"
    return path.is_file() and bool(json.loads(path.read_text(encoding="utf-8"))["leaky"])


def seed_directories(run: Path) -> list[Path]:
    """The finished seeds of a run directory, or the directory itself where it is one seed's, or a
    converted checkpoint's."""
    found = [path.parent for path in protocols.seed_files(run, "result.json")]
    if not found and (run / "model").is_dir():
        return [run]
    if not found:
        raise InputError(f"{run}: no finished seed in it (expected seed-*/result.json)")
    return found


def check_labels(task: Task, trained: Sequence[str], data: str) -> None:
    """Refuse a data folder whose labels are not those that the weights were trained on."""
    if tuple(trained) != task.info.labels:
        raise InputError(
            f"{data}: its {len(task.info.labels)} labels are not the {len(trained)} that this run "
            "was trained on, or in another order; evaluate with the same label file"
        )
