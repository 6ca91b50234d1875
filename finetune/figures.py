"""Plots of runs as PNG (matplotlib, without a display)."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pretrain.cli import atomic_path


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
        for label, lines in metrics.items():
            shown = [line for line in lines if key in line]
            axes.plot([line["epoch"] for line in shown], [line[key] for line in shown], label=label)
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
        for name in shown:
            points = [(line["step"], line[name]) for line in lines if name in line]
            axes.plot(*zip(*points, strict=True), label=name.removeprefix("val_"))
        axes.set_xlabel("step")
        axes.set_title(title)
        if shown:
            axes.legend(fontsize="small", frameon=False)
    _save(figure, path)


def _save(figure: Any, path: Path) -> None:
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=130)
