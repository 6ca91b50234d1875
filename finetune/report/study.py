"""`python -m finetune study NAME`: one question, many runs, one table.

A study is a YAML file in `finetune/configs/studies/` (or of your own)::

    settings: {task: mnre, optim.lr: 5.0e-4}     # of every run
    runs:                                        # the rows of the tables
      text only: {method: mtb}
      no gate: {method: focalmre, model.gate: none}
    tables:                                      # title -> the columns
      Wrong pictures:
        none: {}                                 # as it is
        "10 %": {tool: align-noise, ratio: 0.1}  # a view; `only: [run, …]` limits it
        "8 shots": {tool: kshot, k: 8, settings: {optim.epochs: 20}}
    small: {optim.epochs: 2}                     # over `settings`, with --small; a run may have one
    pretrain: {no_coe: {loss.coe: 0}}            # models trained first; runs say `init: $no_coe`

A view whose scope is the test split is shown to the run that was trained without it; every other
one means a training of its own. A setting that is null is left out. `$model` and `$data` stand for
the options, `$configs` for mnre or, with --small, sample. Runs are ordinary run directories: give
the same command again and only what is missing is computed.
"""

import logging
import multiprocessing
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import yaml

from finetune.protocols import seed_list
from finetune.report import study_models
from finetune.report.study_cells import Cell, cells, read_study
from finetune.report.study_models import as_words
from finetune.report.study_tables import in_order, of_other_columns, write_report
from shards import threads
from shards.files import InputError, replace_folder
from shards.locks import lock
from shards.options import parse_config, positive
from shards.processes import end_with

OF_THE_STUDY = {
    "data": "it is --data",
    "out": "runs lie in --out",
    "seeds": "they are --seeds",
    "view": "a column of its file names one",
}
"""Settings of a run that `--set` cannot change -> what can."""

# ---- The runs ------------------------------------------------------------------------------------


def train(cell: Cell, data: str, seeds: str, out: Path) -> dict[str, Any]:
    """The training that a cell needs; its `result.json`."""
    from finetune.config import parse_train
    from finetune.run.directory import run

    options = {"seeds": seeds, "out": str(out / "runs" / cell.name)}
    if cell.view and cell.own_training:
        options["view"] = str(make_view(cell, data, out))
    settings = {"cache": str(out / "cache"), "data": data} | dict(cell.settings) | options
    return run(parse_train(as_words(settings)))


def evaluate(cell: Cell, data: str, out: Path) -> dict[str, Any]:
    """The figures of a finished training under a view of its test rows."""
    from finetune.config import EvaluateConfig
    from finetune.run.evaluate import evaluate as run

    folder = str(out / "runs" / cell.name)
    view = make_view(cell, data, out)
    config = EvaluateConfig(run=folder, data=data, view=str(view), cache=str(out / "cache"))
    result = run(config)
    task = cell.settings.get("task", "mnre")
    return {"task": task, "test": result, "leaky": result["leaky"]}


def make_view(cell: Cell, data: str, out: Path) -> Path:
    """The view's folder of manifests, or the one of the test rows; written if it is not there."""
    from finetune.data.views import TOOLS, write

    place = out / "views" / (cell.view_name + ("" if cell.own_training else ".jsonl"))
    if not place.exists():
        options = {k: v for k, v in cell.view.items() if k != "tool"} | {"data": data}
        options |= {"task": cell.settings.get("task", "mnre")}
        tool = TOOLS[cell.view["tool"]]
        prog = f"study: view {cell.view['tool']}"
        with replace_folder(place) if cell.own_training else nullcontext(place) as partial:
            words = as_words(options | {"out": partial})  # all of its splits, or nothing
            written = write(parse_config(tool.config, words, prog=prog, example=""))
        for path, text in written.items():
            print(f"{place if path == place else place / path.name}: {text}")
    return place


def start_worker(parent: int, jobs: int) -> None:
    """What every process does first: its share of the threads, so that they do not fight for the
    cores; and an eye on the process that started it, whose run directories it would else keep."""
    import torch

    end_with(parent)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    if threads.by_user() is None:
        torch.set_num_threads(threads.share(jobs))


def trained(
    trainings: Mapping[str, Cell], data: str, seeds: str, out: Path, jobs: int
) -> Iterator[tuple[str, dict[str, Any]]]:
    """(folder, result) of each training; several at a time have a process each."""
    if jobs == 1:
        yield from ((name, train(cell, data, seeds, out)) for name, cell in trainings.items())
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, context, start_worker, (os.getpid(), jobs)) as pool:
        futures = {
            name: pool.submit(train, cell, data, seeds, out) for name, cell in trainings.items()
        }
        try:
            yield from ((name, future.result()) for name, future in futures.items())
        except BrokenProcessPool as error:
            raise InputError(
                "a training process was killed (out of memory?); give the same command again, "
                "with fewer --jobs: what is finished is kept, the rest goes on"
            ) from error
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def compute(
    todo: Sequence[Cell], data: str, seeds: str, out: Path, jobs: int
) -> dict[tuple[str, str, str], dict[str, Any]]:
    """(table, run, column) -> result; each training once, `jobs` at a time."""
    from tqdm import tqdm

    trainings = {cell.name: cell for cell in todo}
    for cell in todo:  # now, so that two processes never write the same manifest
        if cell.view:
            make_view(cell, data, out)
    results = {}
    bar = tqdm(total=len(trainings), desc="runs", disable=None)
    for name, result in trained(trainings, data, seeds, out, jobs):
        results[name] = result
        bar.update()
    bar.close()
    return {
        (cell.table, cell.run, cell.column): evaluate(cell, data, out)
        if cell.view and not cell.own_training
        else results[cell.name]
        for cell in todo
    }


@dataclass(frozen=True, kw_only=True)
class StudyConfig:
    """Train and score all runs of a study, and write its tables."""

    POSITIONAL: ClassVar = ("study",)
    study: str
    """A shipped study's name (`finetune list studies`), or a .yaml file."""
    data: str
    """Folder of the task's files."""
    model: str | None = None
    """Model directory: $model in the study."""
    out: Path
    """Folder of runs and tables."""
    seeds: int | str = "1,2,3"
    """Comma-separated seeds of every run."""
    jobs: int = 1
    """Runs at a time."""
    small: bool = False
    """The study's reduced form."""
    columns: tuple[str, ...] = ()
    """These columns of the tables alone, such as datasets that are at hand; none: all. What an
    earlier call has found for others stays in the tables."""
    pretraining: Path | None = None
    """Settings of `python -m pretrain`, such as `config.yaml` of a run directory, for a study that
    trains models first: one run each in --out/pretrain."""
    launcher: str = ""
    """What starts these runs, such as "deepspeed launch/pretrain.sh"; none: one process."""
    set: tuple[str, ...] = ()
    """KEY=VALUE …: settings of every run, over those of the study."""

    def __post_init__(self) -> None:
        positive(jobs=self.jobs)
        seed_list(self.seeds)
        for one in self.set:
            if not one.partition("=")[0] or "=" not in one:
                raise ValueError(f"--set {one}: expected KEY=VALUE")
            if (key := one.partition("=")[0]) in OF_THE_STUDY:
                raise ValueError(f"--set {one}: {key} is the study's own; {OF_THE_STUDY[key]}")

            try:
                yaml.safe_load(one.partition("=")[2])
            except yaml.YAMLError:
                raise ValueError(f"--set {one}: its value is no YAML") from None

    @property
    def settings(self) -> dict[str, Any]:
        """Of `set`, the values read as YAML."""
        pairs = (one.partition("=") for one in self.set)
        return {key: yaml.safe_load(value) for key, _, value in pairs}


def run_study(config: StudyConfig) -> None:
    """Compute what is missing, write `study.md` and `study.json`, and print the tables."""
    from finetune.run.directory import existing_folder

    content = read_study(config.study)
    models = study_models.places(content.get("pretrain", {}), config.pretraining, config.out)
    places = {"data": config.data, **models} | ({"model": config.model} if config.model else {})
    todo = [
        replace(cell, settings={**cell.settings, **config.settings})
        for cell in cells(content, config.small, places, config.columns)
    ]
    for cell in todo:  # now, not after the hours of those before it
        existing_folder(str(cell.settings.get("data", config.data)))
    seeds = str(config.seeds)
    with lock(config.out):
        if config.pretraining:
            study_models.train(content["pretrain"], config.pretraining, config.launcher, config.out)
        results = compute(todo, config.data, seeds, config.out, config.jobs)
        if config.columns:
            results |= of_other_columns(config.out, config.columns, seeds, config.settings)
            results = in_order(results, content)
        write_report(Path(config.study).stem, results, seeds, config.out, config.settings)
    print((config.out / "study.md").read_text(encoding="utf-8"))


def main(argv: Sequence[str]) -> None:
    """python -m finetune study NAME --data DIR --out DIR"""
    prog = "python -m finetune study"
    example = (
        f"{prog} protocols --data SAMPLE/mnre --model MODEL_DIR --out studies/protocols "
        "--seeds 1,2 --jobs 2"
    )
    run_study(parse_config(StudyConfig, argv, prog=prog, example=example))
