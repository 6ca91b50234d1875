"""Any number of runs -> one report: Markdown and a self-contained HTML page, tables and plots."""

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

from finetune.protocols import seed_files
from finetune.report import entity_sections, pages, sections
from finetune.report.pages import Section
from finetune.report.sections import Report
from finetune.run.results import Results, of_seeds, read_result
from shards.command import require_extra
from shards.files import InputError, refuse_foreign
from shards.json_files import is_number, read_json, write_json
from shards.locks import lock_file
from shards.options import parse_config

LOG = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class ReportConfig:
    """Tables and plots of finished runs."""

    POSITIONAL: ClassVar = ("runs",)
    runs: tuple[Path, ...]
    """Run directories."""
    out: Path = Path("report.md")
    """Markdown; HTML and PNGs lie beside it."""
    pretraining: Path | None = None
    """Pre-training run: adds its curves."""
    summary: Path | None = None
    """JSON: {run}_f1 on test, in percent."""
    seconds: float | None = None
    """Duration to note in the summary."""
    study: tuple[Path, ...] = ()
    """study.json of studies: adds their curves (noise, few labels, regions)."""
    looks: int = 0
    """Adds where the runs look, on so many test rows; needs the runs' data."""
    states: int = 0
    """Adds t-SNE of the states of so many test rows, of a run of promu (the paper: 50)."""
    seed: int = 0
    """Draws the rows of --looks and --states, and the bootstrap intervals."""

    def __post_init__(self) -> None:
        if self.out.suffix not in ("", ".md"):
            raise ValueError(f"--out {self.out}: name a .md; HTML and PNGs are named after it")
        if self.states in (1, 2):
            raise ValueError("--states N: 3 or more")


def main(argv: Sequence[str]) -> None:
    """python -m finetune report RUN… --out report.md"""
    prog = "python -m finetune report"
    example = f"{prog} runs/mtb runs/promu --out report.md"
    run(parse_config(ReportConfig, argv, prog=prog, example=example))


def run(config: ReportConfig) -> None:
    """Write the report, and the summary where one is asked for."""
    from finetune.report import changed  # torch, which parsing does without

    refuse_foreign(config.out, "# Results\n")
    refuse_foreign(config.out.with_suffix(".html"), "<!doctype html>")
    if config.summary:
        require_summary(config.summary)
    if config.states:
        require_extra("sklearn", "figures", "--states draws t-SNE")
    runs = dict(zip(run_names(config.runs), config.runs, strict=True))
    results = {name: read_result(path) for name, path in runs.items()}
    pretraining = read_pretraining(config.pretraining) if config.pretraining else []
    answers = {name: of_seeds(path, "test") for name, path in runs.items()}
    every_run = dict(runs)
    for path in config.study:
        every_run |= changed.of_study(path)
    inputs = changed.changed_inputs(every_run)
    report = Report(runs, results, answers, config.out, config.seed, inputs)
    with lock_file(config.out):
        page = changed.section(inputs) + build(report, config, pretraining)
        pages.write(config.out, "Results", page)
        print(f"{config.out}\n{config.out.with_suffix('.html')}")
        if config.summary:
            write_json(config.summary, summary(results, pretraining, config.seconds))
            print(config.summary)


def build(report: Report, config: ReportConfig, pretraining: sections.Lines) -> list[Section]:
    """What the options ask for, in the order of a reader's questions; runs whose inputs tell the
    label come after the others, in tables and figures of their own.

    Raises:
        InputError: none of the runs has what `--looks` or `--states` is to show.
    """
    page: list[Section] = []
    parts = report.parts()
    asked = [ask(part, config) for part in parts]
    for option in asked[0]:
        if not any(answers[option][0] for answers in asked):
            raise InputError(f"--{option}: {asked[0][option][1][0]}")
    for number, (part, answers) in enumerate(zip(parts, asked, strict=True)):
        leaky = any(result["leaky"] for result in part.results.values())
        insides = [section for own, _ in answers.values() for section in own]
        for section in of_runs(part) + insides:
            title = f"{section.title}: *leaky* runs" if leaky else section.title
            page.append(replace(section, title=title))
        for option, (own, reasons) in answers.items():
            if not own:
                runs = "leaky runs" if leaky else "runs that are not leaky"
                LOG.warning("--%s: nothing of the %s (%s)", option, runs, reasons[0])
        if number == 0:
            page += sections.audit(report) + sections.studies(report, config.study)
    return page + sections.pretraining(report, pretraining)


def ask(report: Report, config: ReportConfig) -> dict[str, tuple[list[Section], list[str]]]:
    """Option -> what the runs themselves show, and why some of them show nothing."""
    if not (config.looks or config.states):
        return {}
    from finetune.report import (
        model_sections as insides,  # torch: a report of files alone does not need it
    )

    answers = {}
    if config.looks:
        answers["looks"] = insides.looks(report, config.looks)
    if config.states:
        answers["states"] = insides.fused_states(report, config.states)
    return answers


def of_runs(report: Report) -> list[Section]:
    """What the files say of runs that may stand beside each other."""
    page = sections.runs(report, training_curves(report.runs))
    page += sections.few_labels(report) + sections.views(report)
    for task in report.tasks:
        page += sections.relations(report, task) + entity_sections.entities(report, task)
        page += sections.published(report, task)
    return page + sections.calibrated(report)


# ---- Reading -------------------------------------------------------------------------------------


def read_pretraining(run: Path) -> list[dict[str, float]]:
    """The metrics of a pre-training run."""
    from pretrain.tracking import read_metrics  # torch, which parsing does without

    if not (run / "metrics.jsonl").is_file():
        raise InputError(f"--pretraining {run}: no metrics.jsonl in it")
    return read_metrics(run / "metrics.jsonl")


def training_curves(runs: Mapping[str, Path]) -> dict[str, list[dict[str, float]]]:
    """Label -> metrics of each seed of each run."""
    from pretrain.tracking import read_metrics  # torch, which parsing does without

    curves = {}
    for name, run in runs.items():
        paths = seed_files(run, "metrics.jsonl")
        for path in paths:
            label = name if len(paths) == 1 else f"{name} {path.parent.name}"
            curves[label] = read_metrics(path)
    return curves


def run_names(runs: Sequence[Path]) -> list[str]:
    """Folder names, with as many parents as it takes to tell them apart."""
    paths = [run.resolve().parts for run in runs]
    if len(set(paths)) < len(paths):
        raise InputError("the same run is named twice")
    depth = 1
    while len({parts[-depth:] for parts in paths}) < len(paths):
        depth += 1
    return ["/".join(parts[-depth:]) for parts in paths]


def require_summary(path: Path) -> None:
    """Raises: InputError: a file with other content than `summary` gives."""
    if path.is_file() and path.stat().st_size:
        figures = read_json(path, "choose another --summary, or remove it")
        numbers = all(figure is None or is_number(figure) for figure in figures.values())
        if not numbers or not any(re.search(r"_f1(_\d+pct)?$", name) for name in figures):
            raise InputError(f"{path}: no summary of runs; choose another place, or remove it")


def summary(
    results: Results, pretraining: Sequence[Mapping[str, float]], seconds: float | None
) -> dict[str, float | None]:
    """`{run}_f1` on test (a share stays last: `promu_10pct` -> `promu_f1_10pct`), the last
    validation of pre-training, and the duration."""
    figures: dict[str, float | None] = {}
    for name, result in results.items():
        stem = re.sub(r"_\d+pct$", "", name)
        figures[f"{stem}_f1{name.removeprefix(stem)}"] = (
            result["test"]["f1"]["mean"] if result["test"] else None
        )
    for key, value in (("itm_accuracy", "val_itm_accuracy"), ("recall_at_1", "val_recall@1")):
        if values := [line[value] for line in pretraining if value in line]:
            figures[key] = round(values[-1], 4)
    if seconds is not None:
        figures["seconds"] = seconds
    return figures
