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
MARKS = "os^Dv*Pp"
PAPER, SMALL = 3.3, 6
"""Inches of a column of a paper, and points of what is smallest in it."""


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


def relations(by_run: Mapping[str, Mapping[str, Mapping[str, float]]], path: Path) -> None:
    """F1 of each relation, the runs beside each other, the most frequent relation on top.

    Args:
        by_run: run -> relation -> `f1` in percent and `support`, as of
            `metrics.relation_scores_by_label`; the same relations for every run.
    """
    from matplotlib.figure import Figure

    labels = list(next(iter(by_run.values())))
    height = 0.8 / len(by_run)
    figure = Figure(figsize=(PAPER, 0.7 + len(labels) * max(0.17, 0.11 * len(by_run))))
    figure.set_layout_engine("constrained")
    axes = figure.subplots()
    for number, (name, scores) in enumerate(by_run.items()):
        places = [i - 0.4 + height * (number + 0.5) for i in range(len(labels))]
        values = [scores[label]["f1"] for label in labels]
        axes.barh(places, values, height * 0.92, color=LINES[number % len(LINES)], label=name)
    support = next(iter(by_run.values()))
    names = [f"{label} ({int(support[label]['support'])})" for label in labels]
    axes.set_yticks(range(len(labels)), names, fontsize=SMALL)
    axes.tick_params(axis="x", labelsize=SMALL)
    axes.invert_yaxis()
    axes.set_xlim(0, 100)
    axes.set_xlabel("F1 (%), test rows in brackets", fontsize=SMALL + 1)
    if len(by_run) > 1:
        figure.legend(loc="outside upper right", fontsize=SMALL, frameon=False, ncols=2)
    _save(figure, path, dpi=300)


def study(tables: Sequence[Mapping[str, Any]], path: Path) -> None:
    """A panel for each table of a study, mean and deviation of F1 over seeds.

    Lines over the columns where they are numbers (noise, few labels), otherwise bars.

    Args:
        tables: `title`; `columns`; `axis`, the numbers that they are, or None; `runs`, run ->
            column -> (mean, deviation or None) in percent.
    """
    from matplotlib.figure import Figure

    def bars_high(table: Mapping[str, Any]) -> float:
        """Inches of a panel."""
        lines = len(table["columns"]) * len(table["runs"])
        return 2.2 if table["axis"] else 0.8 + 0.14 * lines + 0.1 * len(table["columns"])

    heights = [bars_high(table) for table in tables]
    figure = Figure(figsize=(PAPER, sum(heights) + 0.4), layout="constrained")
    panels = figure.subplots(len(tables), squeeze=False, height_ratios=heights).flatten()
    for axes, table in zip(panels, tables, strict=True):
        draw = _lines if table["axis"] else _groups
        draw(axes, table)
        axes.set_title(table["title"], fontsize=SMALL + 2, loc="left")
        axes.tick_params(labelsize=SMALL)
    styles = {}
    for axes in panels:
        handles, names = axes.get_legend_handles_labels()
        styles = dict(zip(names, handles, strict=True)) | styles
    figure.legend(
        styles.values(), styles, loc="outside upper right", fontsize=SMALL, frameon=False,
        ncols=min(len(styles), 2),
    )  # fmt: skip
    _save(figure, path, dpi=300)


def _lines(axes: Any, table: Mapping[str, Any]) -> None:
    """One line a run, told apart by mark as well as by colour; columns evenly spaced, in order."""
    order = sorted(range(len(table["columns"])), key=lambda i: table["axis"][i])
    columns = [table["columns"][i] for i in order]
    for number, (name, found) in enumerate(table["runs"].items()):
        shown = [(x, *found[column]) for x, column in enumerate(columns) if column in found]
        x, mean, deviation = zip(*shown, strict=True)
        axes.errorbar(
            x, mean, yerr=[sd or 0 for sd in deviation], color=LINES[number % len(LINES)],
            marker=MARKS[number % len(MARKS)], markersize=4, linewidth=1.2, capsize=2, label=name,
        )  # fmt: skip
    axes.set_xticks(range(len(columns)), columns)
    axes.set_ylim(bottom=0)
    axes.set_ylabel("F1 (%)", fontsize=SMALL + 1)


def _groups(axes: Any, table: Mapping[str, Any]) -> None:
    """One group of bars a column, one bar a run."""
    columns, height = table["columns"], 0.8 / len(table["runs"])
    for number, (name, found) in enumerate(table["runs"].items()):
        shown = [(i, *found[column]) for i, column in enumerate(columns) if column in found]
        places, mean, deviation = zip(*shown, strict=True)
        axes.barh(
            [place - 0.4 + height * (number + 0.5) for place in places], mean, height * 0.92,
            xerr=[sd or 0 for sd in deviation], color=LINES[number % len(LINES)], label=name,
            error_kw={"linewidth": 0.8},
        )  # fmt: skip
    axes.set_yticks(range(len(columns)), columns)
    axes.invert_yaxis()
    axes.set_xlim(left=0)
    axes.set_xlabel("F1 (%)", fontsize=SMALL + 1)


def states(panels: Sequence[Mapping[str, Any]], path: Path) -> None:
    """What text and picture became in the fusion layers, flattened to a plane (PROMU, Figure 3).

    Args:
        panels: `names`, such as ("entity", "object"); `points`, two arrays (N, 2), pair by pair;
            `note`, a line below.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(PAPER, 2.1 if len(panels) > 1 else 2.8), layout="constrained")
    for axes, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        first, second = panel["points"]
        for a, b in zip(first, second, strict=True):
            axes.plot(*zip(a, b, strict=True), color="0.85", linewidth=0.5, zorder=1)
        styles = ((LINES[0], "o"), (LINES[5], "^"))
        for name, points, style in zip(panel["names"], (first, second), styles, strict=True):
            color, marker = style
            axes.scatter(*points.T, s=9, c=color, marker=marker, linewidths=0, label=name)
        axes.set_xticks([])
        axes.set_yticks([])
        axes.set_xlabel(panel["note"], fontsize=SMALL)
        axes.legend(
            loc="lower center", bbox_to_anchor=(0.5, 1), ncols=2, fontsize=SMALL, frameon=False,
            columnspacing=1, handletextpad=0.2,
        )  # fmt: skip
    _save(figure, path, dpi=300)


def looks(panels: Sequence[tuple[str, Image.Image]], text: str, path: Path) -> None:
    """Pictures with a line or two above each, below the post's text."""
    from matplotlib.figure import Figure

    columns = 2 if len(panels) in (1, 2, 4) else 3
    lines, width = -(-len(panels) // columns), PAPER / columns
    tallest = max(picture.height / picture.width for _, picture in panels)
    heading = textwrap.fill(text.replace("$", r"\$"), 66)
    height = lines * (width * min(tallest, 1.6) + 0.42) + 0.14 * (heading.count("\n") + 1)
    figure = Figure(figsize=(PAPER, height), layout="constrained")
    grid = figure.subplots(lines, columns, squeeze=False).flatten()
    for axes in grid:
        axes.axis("off")
    for axes, (title, picture) in zip(grid, panels, strict=False):
        axes.imshow(picture)
        axes.set_title(title.replace("$", r"\$"), fontsize=SMALL)
    figure.suptitle(heading, fontsize=SMALL + 1, x=0.02, ha="left")
    _save(figure, path, dpi=300)


def _save(figure: Any, path: Path, dpi: int = 130) -> None:
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=dpi)
