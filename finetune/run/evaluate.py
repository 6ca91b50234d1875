"""Weights + split -> predictions and scores; `python -m finetune evaluate` repeats a run's."""

import contextlib
import hashlib
import itertools
import logging
import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from finetune import protocols
from finetune.config import EvaluateConfig, cache_directory, split_paths
from finetune.data.overlap import also_in
from finetune.inputs.load import read_views
from finetune.inputs.split import LoadedSplit
from finetune.inputs.view import View
from finetune.methods.base import Method
from finetune.protocols import fraction_rows
from finetune.run import provenance
from finetune.run.open_run import open_seed, seed_directories, with_captions
from finetune.run.results import Predictions, read_result, read_seed
from finetune.tasks.base import Task
from finetune.tasks.metrics import entities, hvpnet_entity_scores, without_strays
from finetune.tasks.splits import BY_OPTION, shown_name
from pretrain import distributed
from pretrain.engine import autocast
from shards.files import InputError, digest
from shards.json_files import write_json
from shards.locks import lock

LOG = logging.getLogger(__name__)


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
    if method.training:  # of a few rows, walking through all modules takes longer than the rest
        method.eval()
    device = next(method.parameters()).device
    relation = task.info.kind == "relation"
    rows = split.dataset.rows.tolist()
    mine, world = split.dataset, distributed.world_size()
    if world > 1:
        mine = mine.subset(np.arange(distributed.rank(), len(rows), world))
    by_row: dict[int, tuple[Any, list[Any], dict[int, str]]] = {}
    # A single row has nothing to share; to find that out would be 2 % of its time.
    once = method.one_pass() if len(mine) > 1 else contextlib.nullcontext()
    with autocast(device, precision), once:
        for batch in mine.batches(micro_batch_size):
            batch = batch.to(device)
            output = method(batch)
            answers = list(map(task.to_answer, method.decode(output, batch)))
            strays: list[dict[int, str]] = [{}] * len(batch)
            if not relation:
                answers, strays = map(list, zip(*map(without_strays, answers), strict=True))
            shares: Iterable[list[Any]] = itertools.repeat([], len(batch))
            if relation:
                shares = output.logits.softmax(dim=-1).double().cpu().numpy().round(5).tolist()
            elif entity_scores:
                shares = method.entity_scores(output, batch, list(map(entities, answers)))
            records = zip(answers, shares, strays, strict=True)
            by_row |= zip(batch.rows.tolist(), records, strict=True)
    by_row = merge(by_row)
    return Predictions(
        rows,
        split.gold,
        [by_row[row][0] for row in rows],
        [by_row[row][1] for row in rows] if relation or entity_scores else None,
        [by_row[row][2] for row in rows],
    )


def repeated(
    task: Task, train: Sequence[Any], rows: Sequence[Any], predictions: Predictions
) -> dict[str, Any]:
    """How many of the rows ask what one of `train` asks, and the F1 of the others."""
    left_out = also_in(train, rows)
    others = predictions.without(left_out)
    f1 = others.score(task)["f1"] if len(others) else None
    return {"rows": sum(left_out), "f1_without": f1}


def trained_rows(directory: Path, task: Task) -> list[Any] | None:
    """The rows that a seed was trained on; None where its record, or the file, is gone or another
    by now; a damaged one is told of."""
    before = provenance.kept_inputs(directory)
    records = directory / "result.json", directory.parent / "result.json"
    if before is None or not all(record.is_file() for record in records):
        return None
    try:
        return _trained_rows(read_seed(records[0])["seed"], directory.parent, before, task)
    except InputError as error:  # the scores do not need them
        LOG.warning("rows also in train are not counted: %s", error)
        return None


def _trained_rows(seed: int, run: Path, before: provenance.Inputs, task: Task) -> list[Any] | None:
    config = read_result(run)["provenance"]["config"]
    trained = type(task)(Path(before.data))
    path = trained.split_file("train")
    views = split_paths(config.get("view"))
    if path is None or not all(view.exists() for view in views):
        return None
    if before.files.get(str(path), digest(path)) != digest(path):
        return None
    rows = trained.read("train")
    for view in read_views(views).get("train", ()):
        rows = view.apply(rows, "train")
    chosen = fraction_rows(len(rows), config["fraction"], seed, config.get("bootstrap", False))
    return [rows[place] for place in chosen]


def merge(by_row: dict[Any, Any]) -> dict[Any, Any]:
    """The items of all processes."""
    if distributed.world_size() == 1:
        return by_row
    parts: list[Any] = [None] * distributed.world_size()
    torch.distributed.all_gather_object(parts, by_row)
    return {key: value for part in parts for key, value in part.items()}


def pick_precision(name: str) -> str:
    """`auto` is bf16 on CUDA and fp32 on the CPU."""
    if name != "auto":
        return name
    return "bf16" if distributed.device().type == "cuda" else "fp32"


def evaluate(config: EvaluateConfig) -> dict[str, Any]:
    """Score every seed of a run again.

    Writes `pred_{split}.jsonl` of each seed and `evaluate_{split}.json`. What differs from the run
    itself is part of these names: views, other captions, data other than those it was trained on.
    So a run's own predictions are replaced by its own alone.
    """
    run, asked = Path(config.run), (str(Path(config.data).resolve()), config.split, config.view)
    seeds = seed_directories(run)
    digest_of_options = hashlib.sha256(repr((*asked, config.captions)).encode()).hexdigest()[:8]
    # A second process that writes the same files waits; others are none of its business.
    with lock(run, f".evaluate-{digest_of_options}.lock", wait=True):
        return _evaluate(config, run, seeds)


def _evaluate(config: EvaluateConfig, run: Path, seeds: Iterable[Path]) -> dict[str, Any]:
    split = BY_OPTION[config.split]
    paths = split_paths(config.view)
    views = views_of(config.view, split)
    per_seed: list[dict[str, Any]] = []
    leaky, stem = False, ""
    for directory in seeds:
        seed = open_seed(directory)
        if config.scorer == "hvpnet" and seed.description.task.kind != "entities":
            raise InputError("--scorer hvpnet: of entities; relations are counted alike by both")
        task, loaded = seed.load(
            Path(config.data),
            split,
            views=views,
            captions=config.captions,
            max_missing=config.max_missing,
            cache=cache_directory(config.cache, run),
        )
        other = other_data(directory, task, split, cache_directory(config.cache, run))
        captions = re.sub(r"[^\w.-]+", "-", config.captions or "")
        parts = [shown_name(split), *map(view_name, paths), other]
        parts += [f"captions-{captions}"] * bool(captions)
        stem = "_".join(part for part in parts if part)
        predictions = predict(seed.method, task, loaded, pick_precision(config.precision))
        if other:
            LOG.info(
                "%s: not what this run was trained on; answers: pred_%s.jsonl", config.data, stem
            )
        predictions.write(directory / f"pred_{stem}.jsonl")
        scores: dict[str, Any] = {"seed": directory.name, **predictions.score(task)}
        if config.scorer == "hvpnet":
            judged = predictions.gold, predictions.answers, predictions.strays
            scores |= hvpnet_entity_scores(*judged)
        # Of train itself every row would count as seen before.
        train = None if split == "train" else trained_rows(directory, task)
        if train is not None:
            overlap = repeated(task, train, loaded.rows, predictions)
            scores["also_in_train"] = {shown_name(split): overlap}
        per_seed.append(scores)
        # Weights that learnt from a leak stay leaky where these rows are read without one.
        leaky |= loaded.leaky or trained_leaky(directory)
    result = {
        "split": shown_name(split),
        "data": config.data,
        "scorer": config.scorer,
        "leaky": leaky,
        "captions": with_captions(seed.description.inputs, config.captions).get("captions"),
        "views": [dict(view.header) for view in views.get(split, ())],
        **protocols.aggregate(per_seed),
        "per_seed": per_seed,
    }
    # A scorer changes no answer: `pred_*.jsonl` is the same file for both.
    stem += "_scorer-hvpnet" * (config.scorer == "hvpnet")
    write_json(run / f"evaluate_{stem}.json", result, checksum=True)
    return result


def view_name(path: Path) -> str:
    """A manifest, or a folder of them, in the name of a file: what it is called, whole, and a
    digest of what it holds, for many are called `test.jsonl`."""
    content = hashlib.sha256()
    for file in sorted(path.glob("*.jsonl")) if path.is_dir() else [path]:
        content.update(f"{file.name} {digest(file)}\n".encode())
    name = re.sub(r"[^\w.-]+", "-", path.resolve().name.removesuffix(".jsonl"))
    return f"{name}-{content.hexdigest()[:8]}"


def views_of(option: str | None, split: str) -> dict[str, list[View]]:
    """The manifests that `--view` names, of which one must be for the split."""
    views = read_views(split_paths(option))
    if option and split not in views:
        raise InputError(f"--view {option}: made for {', '.join(views)}, not for {split}")
    return views


def other_data(directory: Path, task: Task, split: str, cache: Path) -> str | None:
    """What tells a data folder, or its present state, from what a seed was trained on: the end of
    its path, and a digest of path and rows; None for the seed's own, or where nobody knows (a
    converted checkpoint)."""
    before, rows = provenance.kept_inputs(directory), task.split_file(split)
    if before is None or rows is None:
        return None
    place = str(task.folder.resolve())
    # Initial weights may be gone or others: the seed has its own.
    files = {k: v for k, v in before.files.items() if not provenance.of_model(Path(k))}
    if place == before.data and not provenance.changes(replace(before, files=files), task, cache):
        return None
    name = re.sub(r"[^\w.-]+", "-", task.folder.resolve().name)[-40:]
    return f"data-{name}-{hashlib.sha256(f'{place} {digest(rows)}'.encode()).hexdigest()[:8]}"


def trained_leaky(directory: Path) -> bool:
    """The stamp of a seed's training; a converted checkpoint has none."""
    path = directory / "result.json"
    return path.is_file() and bool(read_seed(path)["leaky"])
