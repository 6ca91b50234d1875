"""Plots of runs as PNG (matplotlib, without a display)."""

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from finetune.cases import Case
from pretrain.cli import atomic_path

LINES = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#000000", "#f0e442")
"""Okabe and Ito's colours, told apart with any colour vision."""


def bars(results: Mapping[str, Mapping[str, Any]], path: Path) -> None:
    """F1 of each run, mean and deviation over seeds, dev beside test.

    Args:
        results: run name -> content of its `result.json`.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 0.6 + 0.5 * len(results)), layout="constrained")
    axes = figure.subplots()
    for offset, (split, color) in enumerate((("dev", "#b8c7e0"), ("test", "#3b5f9a"))):
        shown = [(i, r[split]["f1"]) for i, r in enumerate(results.values()) if r[split]]
        if shown:
            axes.barh(
                [i + 0.2 - 0.4 * (1 - offset) for i, _ in shown],
                [f1["mean"] for _, f1 in shown],
                height=0.38,
                xerr=[f1["sd"] or 0 for _, f1 in shown],
                color=color,
                label=split,
            )
    axes.set_yticks(range(len(results)), list(results))
    axes.invert_yaxis()
    axes.set_xlim(0, 100)
    axes.set_xlabel("F1 (%)")
    axes.legend(loc="lower right", frameon=False)
    _save(figure, path)


def curves(metrics: Mapping[str, Sequence[Mapping[str, float]]], path: Path) -> None:
    """Training loss and dev F1 over epochs.

    Args:
        metrics: label of a line -> the lines of a `metrics.jsonl`.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.5), layout="constrained")
    panels = zip(
        figure.subplots(1, 2),
        ("train_loss", "dev_f1"),
        ("training loss", "dev F1 (%)"),
        strict=True,
    )
    for axes, key, title in panels:
        axes.set_prop_cycle(color=LINES)
        for label, lines in metrics.items():
            shown = [line for line in lines if key in line]
            axes.plot([line["epoch"] for line in shown], [line[key] for line in shown], label=label)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.set_xlabel("epoch")
        axes.set_title(title)
    axes.legend(fontsize="small", frameon=False)
    _save(figure, path)


def pretraining(lines: Sequence[Mapping[str, float]], path: Path) -> None:
    """Losses and validation figures over steps.

    Args:
        lines: a pre-training run's `metrics.jsonl`.
    """
    from matplotlib.figure import Figure

    names = list(dict.fromkeys(name for line in lines for name in line))
    panels = (
        ("loss", [name for name in names if "loss" in name]),
        ("validation (%)", [name for name in names if name.startswith("val_")]),
    )
    figure = Figure(figsize=(9, 3.5), layout="constrained")
    for axes, (title, shown) in zip(figure.subplots(1, 2), panels, strict=True):
        axes.set_prop_cycle(color=LINES)
        for name in shown:
            points = [(line["step"], line[name]) for line in lines if name in line]
            axes.plot(*zip(*points, strict=True), label=name.removeprefix("val_"))
        axes.set_xlabel("step")
        axes.set_title(title)
        if shown:
            axes.legend(fontsize="small", frameon=False)
    _save(figure, path)


def confusion(gold: Sequence[str], predicted: Sequence[str], path: Path) -> None:
    """What became of the rows of each relation: counts, shaded by their share of the line."""
    from matplotlib.figure import Figure

    labels = sorted({*gold, *predicted}, key=lambda label: (label == "None", label))
    place = {label: number for number, label in enumerate(labels)}
    counts = np.zeros((len(labels), len(labels)), dtype=np.int64)
    np.add.at(counts, ([place[g] for g in gold], [place[p] for p in predicted]), 1)
    shares = counts / counts.sum(axis=1, keepdims=True).clip(1)
    side = 2.5 + 0.36 * len(labels)
    figure = Figure(figsize=(side + 1, side), layout="constrained")
    axes = figure.subplots()
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for row, column in zip(*counts.nonzero(), strict=True):
        color = "white" if shares[row, column] > 0.6 else "black"
        text = str(counts[row, column])
        axes.text(column, row, text, ha="center", va="center", fontsize=7, color=color)
    axes.set_xticks(range(len(labels)), labels, rotation=90, fontsize=8)
    axes.set_yticks(range(len(labels)), labels, fontsize=8)
    axes.set_xlabel("predicted")
    axes.set_ylabel("gold")
    _save(figure, path)


def cases(found: Sequence[Case], path: Path, columns: int = 4) -> None:
    """Wrong answers, each with its picture, what it was and what was said."""
    from matplotlib.figure import Figure

    lines = -(-len(found) // columns)
    figure = Figure(figsize=(3 * columns, 4.1 * lines), layout="constrained")
    grid = figure.subplots(lines, columns, squeeze=False).flatten()
    for axes in grid:
        axes.axis("off")
    for axes, case in zip(grid, found, strict=False):
        if case.picture:
            with Image.open(case.picture) as picture:
                picture = picture.convert("RGB")
            picture.thumbnail((320, 320))
            axes.imshow(picture)
        verdict = f"said {case.predicted} ({100 * case.probability:.0f} %)\nis {case.gold}"
        text = textwrap.shorten(case.text.replace("$", r"\$"), 130, placeholder=" …")
        axes.set_title(
            f"row {case.row}\n{verdict}\n{textwrap.fill(text, 40)}", fontsize=8, loc="left"
        )
    _save(figure, path)


def _save(figure: Any, path: Path) -> None:
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=130)
