"""Plots of runs as PNG (matplotlib, without a display)."""

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from shards.files import atomic_path, refuse_foreign

LINES = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#000000", "#f0e442")
"""Okabe and Ito's colours, told apart with any colour vision."""
MARKS = "os^Dv*Pp"
PAPER, SMALL = 3.3, 6
"""Inches of a column of a paper, and points of what is smallest in it."""
PLAIN = {"fontsize": "small", "frameon": False}
"""A legend."""


def bars(results: Mapping[str, Mapping[str, Any]], path: Path) -> None:
    """F1 of each run, mean and deviation over seeds, dev beside test.

    Args:
        results: run name -> content of its `result.json`.
    """
    figure = canvas(7, 0.6 + 0.5 * len(results))
    axes = figure.subplots()
    for offset, (split, color) in enumerate((("dev", "#b8c7e0"), ("test", "#3b5f9a"))):
        scores = [(i, r[split]["f1"]) for i, r in enumerate(results.values()) if r[split]]
        if scores:
            axes.barh(
                [i + 0.2 - 0.4 * (1 - offset) for i, _ in scores],
                [f1["mean"] for _, f1 in scores],
                height=0.38,
                xerr=[f1["sd"] or 0 for _, f1 in scores],
                color=color,
                label=split,
            )
    axes.set_yticks(range(len(results)), list(results))
    axes.invert_yaxis()
    axes.set_xlim(0, 100)
    axes.set_xlabel("F1 (%)")
    axes.legend(loc="lower right", frameon=False)
    save(figure, path)


def curves(metrics: Mapping[str, Sequence[Mapping[str, float]]], path: Path) -> None:
    """Training loss and dev F1 over epochs.

    Args:
        metrics: label of a line -> the lines of a `metrics.jsonl`.
    """
    panels = {
        title: {
            label: [(line["epoch"], line[key]) for line in lines if key in line]
            for label, lines in metrics.items()
        }
        for key, title in (("train_loss", "training loss"), ("dev_f1", "dev F1 (%)"))
    }
    _progress(panels, "epoch", path)


VALIDATION = ("itm_accuracy", "recall@1", "recall@5", "object_agreement", "relation_agreement")
"""Percentages that are shown; the others are parts of these, or of other units."""


def pretraining(lines: Sequence[Mapping[str, float]], path: Path) -> None:
    """Losses and validation figures over steps.

    Args:
        lines: a pre-training run's `metrics.jsonl`.
    """
    names = dict.fromkeys(name for line in lines for name in line)
    labels = {
        "loss": {name: name.replace("val_", "validation ") for name in names if "loss" in name},
        "validation (%)": {f"val_{name}": name for name in VALIDATION if f"val_{name}" in names},
    }
    panels = {
        title: {
            label: [(line["step"], line[name]) for line in lines if name in line]
            for name, label in label_of.items()
        }
        for title, label_of in labels.items()
    }
    _progress(panels, "step", path)


def _progress(panels: Mapping[str, Mapping[str, Sequence[tuple]]], unit: str, path: Path) -> None:
    """Panels beside each other, (x, y) points of each line, what the lines are below."""
    legends = [dict.fromkeys(label for label in lines) for lines in panels.values()]
    # Panels with the same lines share one legend below; otherwise each has its own.
    same = all(legend == legends[0] for legend in legends)
    most = max(map(len, legends), default=0)
    rows = -(-most // 3) if same else -(-most // 2)
    figure = canvas(9, 3.2 + 0.22 * rows)
    for axes, (title, lines) in zip(figure.subplots(1, 2), panels.items(), strict=True):
        for number, (label, points) in enumerate(lines.items()):
            x, y = zip(*points, strict=True) if points else ((), ())
            axes.plot(
                x, y, color=LINES[number % len(LINES)], label=in_legend(label), markersize=3.5,
                marker=MARKS[number % len(MARKS)] if len(x) <= 40 else None,
            )  # fmt: skip
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.set_xlabel(unit)
        axes.set_title(title)
        axes.grid(color="0.92")
        if lines and not same:
            axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=2, **PLAIN)
    if same and legends[0]:
        handles, labels = figure.axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=3, **PLAIN)
    save(figure, path)


def confusion(gold: Sequence[str], predicted: Sequence[str], path: Path) -> None:
    """What became of the rows of each relation: counts, shaded by their share of the line."""
    labels = sorted({*gold, *predicted}, key=lambda label: (label == "None", label))
    place = {label: number for number, label in enumerate(labels)}
    counts = np.zeros((len(labels), len(labels)), dtype=np.int64)
    # Not `counts[g, p] += 1`, which adds one for all equal pairs together.
    np.add.at(counts, ([place[g] for g in gold], [place[p] for p in predicted]), 1)
    shares = counts / counts.sum(axis=1, keepdims=True).clip(1)
    side = 2.2 + 0.36 * len(labels)
    figure = canvas(side + 0.1, side)
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
    save(figure, path)


def relations(by_run: Mapping[str, Mapping[str, Mapping[str, float]]], path: Path) -> None:
    """F1 of each relation, the runs beside each other, the most frequent relation on top.

    Args:
        by_run: run -> relation -> `f1` in percent and `support`, as of
            `metrics.relation_scores_by_label`; the same relations for every run.
    """
    labels = list(next(iter(by_run.values())))
    height = 0.8 / len(by_run)
    figure = canvas(PAPER, 0.7 + len(labels) * max(0.17, 0.11 * len(by_run)))
    axes = figure.subplots()
    for number, (name, scores) in enumerate(by_run.items()):
        places = [i - 0.4 + height * (number + 0.5) for i in range(len(labels))]
        values = [scores[label]["f1"] for label in labels]
        color = LINES[number % len(LINES)]
        axes.barh(places, values, height * 0.92, color=color, label=in_legend(name))
    support = next(iter(by_run.values()))
    names = [f"{label} ({int(support[label]['support'])})" for label in labels]
    axes.set_yticks(range(len(labels)), names, fontsize=SMALL)
    axes.tick_params(axis="x", labelsize=SMALL)
    axes.set_ylim(len(labels) - 0.5, -0.5)
    axes.set_xlim(0, 100)
    axes.set_xlabel("F1 (%), test rows in brackets", fontsize=SMALL + 1)
    if len(by_run) > 1:
        columns = 2 if max(map(len, by_run)) <= 24 else 1
        figure.legend(loc="outside upper right", fontsize=SMALL, frameon=False, ncols=columns)
    save(figure, path, dpi=300)


def study(tables: Sequence[Mapping[str, Any]], path: Path) -> None:
    """A panel for each table of a study, mean and deviation of F1 over seeds.

    Lines over the columns where they are numbers (noise, few labels), otherwise bars.

    Args:
        tables: `title`; `columns`; `axis`, the numbers that they are, or None; `runs`, run ->
            column -> (mean, deviation or None) in percent.
    """

    def bars_high(table: Mapping[str, Any]) -> float:
        """Inches of a panel."""
        lines = len(table["columns"]) * len(table["runs"])
        return 2.2 if table["axis"] else 0.8 + 0.14 * lines + 0.1 * len(table["columns"])

    heights = [bars_high(table) for table in tables]
    figure = canvas(PAPER, sum(heights) + 0.4)
    panels = figure.subplots(len(tables), squeeze=False, height_ratios=heights).flatten()
    for axes, table in zip(panels, tables, strict=True):
        draw = _lines if table["axis"] else _groups
        draw(axes, table)
        axes.set_title(textwrap.fill(table["title"], 46), fontsize=SMALL + 2, loc="left")
        axes.tick_params(labelsize=SMALL)
    styles: dict[str, Any] = {}  # of a name that several panels have, the first one's
    for axes in panels:
        handles, names = axes.get_legend_handles_labels()
        styles = dict(zip(names, handles, strict=True)) | styles
    narrow = max(map(len, styles)) <= 20
    figure.legend(
        styles.values(), styles, loc="outside upper right" if narrow else "outside upper left",
        fontsize=SMALL, frameon=False, ncols=2 if narrow and len(styles) > 1 else 1,
    )  # fmt: skip
    save(figure, path, dpi=300)


def _lines(axes: Any, table: Mapping[str, Any]) -> None:
    """One line a run, told apart by mark as well as by colour; columns evenly spaced, in order."""
    order = sorted(range(len(table["columns"])), key=lambda i: table["axis"][i])
    columns = [table["columns"][i] for i in order]
    for number, (name, scores) in enumerate(table["runs"].items()):
        points = [(x, *scores[column]) for x, column in enumerate(columns) if column in scores]
        x, mean, deviation = zip(*points, strict=True)
        axes.errorbar(
            x, mean, yerr=[sd or 0 for sd in deviation], color=LINES[number % len(LINES)],
            marker=MARKS[number % len(MARKS)], markersize=4, linewidth=1.2, capsize=2,
            label=in_legend(name),
        )  # fmt: skip
    axes.set_xticks(range(len(columns)), columns)
    axes.set_ylim(bottom=0)
    axes.set_ylabel("F1 (%)", fontsize=SMALL + 1)


def _groups(axes: Any, table: Mapping[str, Any]) -> None:
    """One group of bars a column, one bar a run."""
    columns, height = table["columns"], 0.8 / len(table["runs"])
    for number, (name, scores) in enumerate(table["runs"].items()):
        points = [(i, *scores[column]) for i, column in enumerate(columns) if column in scores]
        places, mean, deviation = zip(*points, strict=True)
        axes.barh(
            [place - 0.4 + height * (number + 0.5) for place in places], mean, height * 0.92,
            xerr=[sd or 0 for sd in deviation], color=LINES[number % len(LINES)],
            label=in_legend(name), error_kw={"linewidth": 0.8},
        )  # fmt: skip
    axes.set_yticks(range(len(columns)), columns)
    axes.set_ylim(len(columns) - 0.5, -0.5)
    axes.set_xlim(left=0)
    axes.set_xlabel("F1 (%)", fontsize=SMALL + 1)


def states(panels: Sequence[Mapping[str, Any]], path: Path) -> None:
    """What text and picture became in the fusion layers, flattened to a plane (PROMU, Figure 3).

    Args:
        panels: `names`, such as ("entity", "object"); `points`, two arrays (N, 2), pair by pair;
            `note`, a line below.
    """
    figure = canvas(PAPER, 2.1 if len(panels) > 1 else 2.8)
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
    save(figure, path, dpi=300)


def in_legend(name: str) -> str:
    """A label, of which matplotlib shows none that begins with an underscore."""
    return f" {name}" if name.startswith("_") else name


def canvas(width: float, height: float) -> Any:
    """An empty figure, of inches; made without pyplot, it asks for no display. A $ is a $."""
    from matplotlib import rcParams
    from matplotlib.figure import Figure

    rcParams["text.parse_math"] = False
    return Figure(figsize=(width, height), layout="constrained")


def save(figure: Any, path: Path, dpi: int = 130) -> None:
    """Write the PNG, signed."""
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=dpi, metadata={"Software": "Fusion-MRE"})


def require_own(path: Path) -> None:
    """Raises: InputError: a file without the signature of `save`, whose chunk is a PNG's second."""
    refuse_foreign(path, "tEXtSoftware\0Fusion-MRE", at=37)
