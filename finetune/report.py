"""Any number of runs -> one Markdown report with a table and plots."""

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from finetune import figures
from finetune.protocols import METRICS
from pretrain.cli import InputError
from pretrain.tracking import read_metrics
from shards.schema import atomic_path


def main(argv: Sequence[str]) -> None:
    """python -m finetune report RUN… --out report.md"""
    parser = argparse.ArgumentParser(
        prog="python -m finetune report",
        description="Tables and plots of finished runs.",
        epilog="example: python -m finetune report runs/mtb runs/promu --out report.md",
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run directories")
    parser.add_argument("--out", default="report.md", help="Markdown; its PNGs lie beside it")
    arguments = parser.parse_args(argv)
    write_report([Path(run) for run in arguments.runs], Path(arguments.out))
    print(arguments.out)


def write_report(runs: Sequence[Path], out: Path) -> None:
    """The report on `runs` in their order; plots are `{out stem}_f1.png` and `…_curves.png`."""
    names = run_names(runs)
    results = {name: read_result(run) for name, run in zip(names, runs, strict=True)}
    bars, curves = (out.with_name(f"{out.stem}_{kind}.png") for kind in ("f1", "curves"))
    figures.bars(results, bars)
    lines = {
        f"{name} {seed.name}" if len(results[name]["per_seed"]) > 1 else name: read_metrics(
            seed / "metrics.jsonl"
        )
        for name, run in zip(names, runs, strict=True)
        for seed in sorted(run.glob("seed-*"))
        if (seed / "metrics.jsonl").is_file()
    }
    figures.curves(lines, curves)
    text = "\n".join(
        [
            "# Results",
            "",
            *table(results),
            "",
            "Percent; mean ± standard deviation over seeds. The epoch is chosen on dev, test is "
            "read once. Rows marked *leaky* use inputs that tell the label and are not comparable.",
            "",
            f"![F1 of every run]({bars.name})",
            "",
            f"![training loss and dev F1]({curves.name})",
            "",
        ]
    )
    with atomic_path(out) as temporary:
        temporary.write_text(text, encoding="utf-8")


def read_result(run: Path) -> dict[str, Any]:
    """`result.json` of a run directory."""
    path = run / "result.json"
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{run}: no result.json; not a finished run") from None
    except ValueError as error:
        raise InputError(f"{path}: damaged ({error})") from None


def run_names(runs: Sequence[Path]) -> list[str]:
    """Folder names, with as many parents as it takes to tell them apart."""
    depth = 1
    paths = [run.resolve().parts for run in runs]
    if len(set(paths)) < len(paths):
        raise InputError("the same run is named twice")
    while len({parts[-depth:] for parts in paths}) < len(paths):
        depth += 1
    return ["/".join(parts[-depth:]) for parts in paths]


def table(results: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Markdown rows: one run each, test figures, and dev F1."""
    head = ["run", "task", "method", "images", "labels", "seeds", "dev F1"]
    head += [f"test {name}" for name in ("F1", "P", "R", "accuracy")]
    rows = ["| " + " | ".join(head) + " |", "|" + "---|" * 6 + "---:|" * 5]
    for name, result in results.items():
        config = result["provenance"]["config"]
        cells = [
            name + (" *leaky*" if result["leaky"] else ""),
            result["task"],
            result["method"],
            result["images"],
            f"{100 * config['fraction']:g} %",
            str(len(result["per_seed"])),
            figure(result["dev"]["f1"]),
        ]
        test = result["test"]
        cells += ["–" if test is None else figure(test[metric]) for metric in METRICS]
        rows.append("| " + " | ".join(cells) + " |")
    return rows


def figure(value: Mapping[str, float | None]) -> str:
    """mean ± sd with two decimals."""
    deviation = "" if value["sd"] is None else f" ± {value['sd']:.2f}"
    return f"{value['mean']:.2f}{deviation}"
