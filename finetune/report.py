"""Any number of runs -> one report: Markdown and a self-contained HTML page, tables and plots."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from finetune import cases, figures, pages, tables
from finetune.tables import Results
from pretrain.cli import CommandParser, InputError, write_json
from pretrain.tracking import read_metrics


def main(argv: Sequence[str]) -> None:
    """python -m finetune report RUN… --out report.md"""
    parser = CommandParser(
        prog="python -m finetune report",
        description="Tables and plots of finished runs.",
        epilog="example: python -m finetune report runs/mtb runs/promu --out report.md",
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", type=Path, help="run directories")
    parser.add_argument(
        "--out", default="report.md", type=Path, help="Markdown; HTML and PNGs lie beside it"
    )
    parser.add_argument(
        "--pretraining", metavar="DIR", type=Path, help="pre-training run: adds its curves"
    )
    parser.add_argument(
        "--summary", metavar="FILE", type=Path, help="JSON: {run}_f1 on test, in percent"
    )
    parser.add_argument("--seconds", type=float, help="duration to note in the summary")
    args = parser.parse_args(argv)
    runs = dict(zip(run_names(args.runs), args.runs, strict=True))
    results = {name: read_result(run) for name, run in runs.items()}
    pretraining = read_pretraining(args.pretraining) if args.pretraining else []
    args.out.parent.mkdir(parents=True, exist_ok=True)
    pages.write(args.out, "Results", build(runs, results, pretraining, args.out))
    print(f"{args.out}\n{args.out.with_suffix('.html')}")
    if args.summary:
        write_json(args.summary, summary(results, pretraining, args.seconds))
        print(args.summary)


def build(
    runs: Mapping[str, Path],
    results: Results,
    pretraining: Sequence[Mapping[str, float]],
    out: Path,
) -> list[pages.Section]:
    """The sections of the report; plots are written beside `out`."""
    bars, curves, losses = (
        out.with_name(f"{out.stem}_{kind}.png") for kind in ("f1", "curves", "pretraining")
    )
    figures.bars(results, bars)
    figures.curves(training_curves(runs), curves)
    answers = {name: tables.read_predictions(run) for name, run in runs.items()}
    sections = [
        pages.Section(
            "Runs",
            "Percent; mean ± standard deviation over seeds; in brackets the 95 % bootstrap "
            "interval of test F1 over rows. The epoch is chosen on dev, test is read once. Rows "
            "marked *leaky* use an input that tells the label: comparable with nothing else.",
            [tables.main_table(results, answers)],
            [("F1 of every run", bars), ("training loss and dev F1", curves)],
        )
    ]
    if table := tables.fraction_table(results):
        sections.append(pages.Section("Few labels", "Test F1 over shares of train.", [table]))
    if table := tables.audit_table(results):
        note = (
            "A look-up table of which inputs a row has, fitted on train and scored on dev, without "
            "text or pixels, against always giving the commonest relation."
        )
        sections.append(pages.Section("Leak audit", note, [table]))
    if table := tables.view_table(results):
        sections.append(pages.Section("Views", "What each changed run was shown.", [table]))
    for task, kind in dict.fromkeys((r["task"], r["provenance"]["kind"]) for r in results.values()):
        chosen = {name: answers[name] for name in answers if results[name]["task"] == task}
        if kind == "relation" and any(chosen.values()):
            sections.append(tables.relation_section(task, results, chosen))
            sections += closer_look(task, {name: runs[name] for name in chosen}, results, out)
        if table := tables.published_table(task, results):
            note = "Their protocols and inputs differ, as the last column says."
            sections.append(pages.Section(f"Published on {task}", note, [table]))
    if pretraining:
        figures.pretraining(pretraining, losses)
        note = "Losses and validation figures (percent) over steps."
        sections.append(pages.Section("Pre-training", note, [], [("pre-training", losses)]))
    return sections


def closer_look(
    task: str, runs: Mapping[str, Path], results: Results, out: Path
) -> list[pages.Section]:
    """What the best run by dev confuses, and where it was surest and wrong."""
    best = max(runs, key=lambda name: results[name]["dev"]["f1"]["mean"])
    answers = tables.read_predictions(runs[best])
    if not answers:
        return []
    matrix, wrong = (
        out.with_name(f"{out.stem}_{task}_{kind}.png") for kind in ("confusion", "cases")
    )
    gold, predicted = (
        [label for seed in answers for label in getattr(seed, side)]
        for side in ("gold", "predicted")
    )
    figures.confusion(gold, predicted, matrix)
    pictures = [(f"{best}: rows of each relation (all seeds), by what was predicted", matrix)]
    if found := cases.hardest(runs[best], results[best]):
        figures.cases(found, wrong)
        pictures.append((f"{best}: test rows where it was surest and wrong", wrong))
    note = f"The run with the best dev F1, {best}. Entities: [head], (tail)."
    return [pages.Section(f"A closer look at {task}", note, [], pictures)]


# ---- Reading -------------------------------------------------------------------------------------


def read_result(run: Path) -> dict[str, Any]:
    """`result.json` of a run directory."""
    path = run / "result.json"
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{run}: no result.json; not a finished run") from None
    except ValueError as error:
        raise InputError(f"{path}: damaged ({error})") from None


def read_pretraining(run: Path) -> list[dict[str, float]]:
    """The metrics of a pre-training run."""
    if not (run / "metrics.jsonl").is_file():
        raise InputError(f"--pretraining {run}: no metrics.jsonl in it")
    return read_metrics(run / "metrics.jsonl")


def training_curves(runs: Mapping[str, Path]) -> dict[str, list[dict[str, float]]]:
    """Label -> metrics of each seed of each run."""
    found = {}
    for name, run in runs.items():
        paths = sorted(run.glob("seed-*/metrics.jsonl"))
        for path in paths:
            label = name if len(paths) == 1 else f"{name} {path.parent.name}"
            found[label] = read_metrics(path)
    return found


def run_names(runs: Sequence[Path]) -> list[str]:
    """Folder names, with as many parents as it takes to tell them apart."""
    paths = [run.resolve().parts for run in runs]
    if len(set(paths)) < len(paths):
        raise InputError("the same run is named twice")
    depth = 1
    while len({parts[-depth:] for parts in paths}) < len(paths):
        depth += 1
    return ["/".join(parts[-depth:]) for parts in paths]


def summary(
    results: Results, pretraining: Sequence[Mapping[str, float]], seconds: float | None
) -> dict[str, float | None]:
    """`{run}_f1` on test (a share stays last: `promu_10pct` -> `promu_f1_10pct`), the last
    validation of pre-training, and the duration."""
    found: dict[str, float | None] = {}
    for name, result in results.items():
        stem, share = re.fullmatch(r"(.*?)((?:_\d+pct)?)", name).groups()
        found[f"{stem}_f1{share}"] = result["test"]["f1"]["mean"] if result["test"] else None
    for key, value in (("itm_accuracy", "val_itm_accuracy"), ("recall_at_1", "val_recall@1")):
        if values := [line[value] for line in pretraining if value in line]:
            found[key] = round(values[-1], 4)
    if seconds is not None:
        found["seconds"] = seconds
    return found
