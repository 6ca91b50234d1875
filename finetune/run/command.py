"""`python -m finetune train` and `evaluate`. torch is imported once the options are in order."""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from finetune.config import EvaluateConfig, TrainConfig, local_out, parse_train
from finetune.protocols import METRICS, mean_and_sd
from shards.options import parse_config


def train(argv: Sequence[str]) -> None:
    """python -m finetune train"""
    run_training(parse_train(argv))


def run_training(config: TrainConfig) -> None:
    """Train, sweep where that is asked for, upload where `out` is a URL, and print the figures."""
    from finetune.run.directory import run
    from finetune.run.sweep import sweep
    from pretrain import distributed
    from pretrain.checkpoint.remote import store

    local = replace(config, out=local_out(config.out))
    # A run holds its own directory; the points of a sweep lie below this one.
    with distributed.held(Path(local.out)) if config.sweep else nullcontext():
        result = sweep(local, run) if config.sweep else run(local)
    if not distributed.is_main():
        return
    if local.out != config.out:
        store(Path(local.out), config.out)
    for split in ("dev", "test"):
        print(f"{split:>5}: {figures(result[split])}")
    print(repetitions(result["per_seed"], "test"), end="")
    print(f"{config.out}/{'sweep' if config.sweep else 'result'}.json")


def evaluate(argv: Sequence[str]) -> None:
    """python -m finetune evaluate RUN"""
    prog = "python -m finetune evaluate"
    config = parse_config(
        EvaluateConfig, argv, prog=prog, example=f"{prog} RUN --data DIR --split test"
    )
    from finetune.run.evaluate import evaluate as run

    result = run(config)
    print(f"{result['split']:>5}: {figures(result)}")
    print(repetitions(result["per_seed"], result["split"]), end="")


def repetitions(per_seed: Sequence[Mapping[str, Any]], split: str) -> str:
    """A line on the rows that training had seen; nothing where no count is known."""
    from finetune.run.results import also_in_train

    rows, _, f1 = also_in_train(per_seed, split).partition(": ")
    without = f"; f1 {f1} without them" if f1 else ""
    return "" if rows == "–" else f"{split} rows also in train: {rows}{without}\n"


def figures(scores: Mapping[str, Any] | None) -> str:
    """One line: F1, precision, recall, accuracy as mean ± sd."""
    if scores is None:
        return "no such split"
    return ", ".join(f"{name} {mean_and_sd(scores[name])}" for name in METRICS)
