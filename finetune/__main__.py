"""`python -m finetune COMMAND`: every method on every task, judged one way."""

import difflib
import importlib
import logging
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from pretrain.cli import exit_on_input_error, parse_config
from shards.files import InputError

USAGE = """usage: python -m finetune COMMAND …

  train     train a method on a task: select on dev, test once
  evaluate  scores and predictions of a finished run
  predict   relation or entities of new posts
  serve     a web page to try a run on a post and a picture
  data      check a task's files, or make them of your own posts
  view      write a view manifest: what an experiment changes in a split
  regions   build, recover or import region caches
  generate  TMR's side inputs: generated pictures, correlation scores
  types     write the types of the entities: NER, learned, gold (leaky)
  audit     test whether an input leaks the label
  study     one question, many runs, one table
  list      methods, tasks, views, studies, configurations with expected figures
  report    tables and plots of any number of runs
  figures   plots for a paper: states by t-SNE, where runs look, relations, studies
  rows      what runs make of single rows: posts they differ on, DGF-PT's gates

`python -m finetune COMMAND --help` explains each, with an example.
"""


def train(argv: Sequence[str]) -> None:
    """python -m finetune train"""
    from finetune.config import parse_train

    config = parse_train(argv)
    from finetune.config import local_out
    from finetune.run.directory import run
    from finetune.run.sweep import sweep
    from pretrain import distributed
    from pretrain.checkpoint.remote import store

    local = replace(config, out=local_out(config.out))
    result = sweep(local, run) if config.sweep else run(local)
    if not distributed.is_main():
        return
    if local.out != config.out:
        store(Path(local.out), config.out)
    for split in ("dev", "test"):
        print(f"{split:>5}: {figures(result[split])}")
    print(f"{config.out}/{'sweep' if config.sweep else 'result'}.json")


def evaluate(argv: Sequence[str]) -> None:
    """python -m finetune evaluate RUN"""
    from finetune.config import EvaluateConfig

    config = parse_config(
        EvaluateConfig,
        with_positional(argv, "run"),
        prog="python -m finetune evaluate",
        description="Scores and predictions of a finished run.",
        example="python -m finetune evaluate RUN --data DIR --split test",
    )
    from finetune.run.evaluate import evaluate as run

    result = run(config)
    print(f"{result['split']:>5}: {figures(result)}")


def predict(argv: Sequence[str]) -> None:
    """python -m finetune predict RUN"""
    from finetune.predict.command import PredictConfig, run

    config = parse_config(
        PredictConfig,
        with_positional(argv, "run"),
        prog="python -m finetune predict",
        description="Relation or entities of new posts, as JSON lines.",
        example='python -m finetune predict RUN --text "Bob in Oslo" --head Bob --tail Oslo '
        "--image 17.jpg",
    )
    run(config)


def serve(argv: Sequence[str]) -> None:
    """python -m finetune serve RUN"""
    from finetune.predict.serve import ServeConfig, start

    config = parse_config(
        ServeConfig,
        with_positional(argv, "run"),
        prog="python -m finetune serve",
        description="A web page to try a run on a post and a picture.",
        example="python -m finetune serve runs/promu --examples SAMPLE/mnre",
    )
    start(config)


COMMANDS: Mapping[str, Callable[[Sequence[str]], None]] = {
    "train": train,
    "evaluate": evaluate,
    "predict": predict,
    "serve": serve,
}
MODULES = {
    "data": "finetune.data.own_data",
    "view": "finetune.data.views",
    "regions": "finetune.data.regions",
    "types": "finetune.data.entity_types",
    "generate": "finetune.data.generate",
    "audit": "finetune.data.audit",
    "report": "finetune.report.command",
    "study": "finetune.report.study",
    "list": "finetune.report.listing",
    "figures": "finetune.report.figures_command",
    "rows": "finetune.report.rows_command",
}
"""Commands that are a module's `main`."""


def figures(scores: Mapping | None) -> str:
    """One line: F1, precision, recall, accuracy as mean ± sd."""
    from finetune.protocols import METRICS

    if scores is None:
        return "no such split"
    parts = []
    for name in METRICS:
        mean, sd = scores[name]["mean"], scores[name]["sd"]
        parts.append(f"{name} {mean:.2f}" + ("" if sd is None else f" ± {sd:.2f}"))
    return ", ".join(parts)


def with_positional(argv: Sequence[str], name: str) -> list[str]:
    """A leading positional argument as `--name VALUE`."""
    if argv and not argv[0].startswith("-"):
        return [f"--{name}", *argv]
    return list(argv)


@exit_on_input_error
def main(argv: Sequence[str] | None = None) -> None:
    """Dispatch on the first word."""
    argv = sys.argv[1:] if argv is None else list(argv)
    # DeepSpeed's launcher puts this first; the rank comes from the environment.
    argv = [word for word in argv if not re.fullmatch(r"--local[-_]rank=-?\d+", word)]
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    logging.getLogger("httpx").setLevel(logging.WARNING)
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    if not sys.stderr.isatty():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    if not argv or argv[0] in ("-h", "--help"):
        print(USAGE, end="")
        sys.exit(0 if argv else 2)
    command, *rest = argv
    if command in COMMANDS:
        COMMANDS[command](rest)
    elif command in MODULES:
        importlib.import_module(MODULES[command]).main(rest)
    else:
        names = [*COMMANDS, *MODULES]
        close = difflib.get_close_matches(command, names, n=1)
        meant = f" (did you mean {close[0]}?)" if close else ""
        raise InputError(f"unknown command {command!r}{meant}; there are {', '.join(names)}")


if __name__ == "__main__":
    main()
