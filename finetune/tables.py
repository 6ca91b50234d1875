"""Tables of a report, from `result.json` and `pred_test.jsonl` of runs."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from finetune import metrics, pages, published
from finetune.protocols import METRICS

Results = Mapping[str, Mapping[str, Any]]
"""Run name -> content of its `result.json`."""


@dataclass(frozen=True)
class Answers:
    """A prediction file."""

    gold: list[Any]
    predicted: list[Any]


def read_predictions(run: Path) -> list[Answers]:
    """`pred_test.jsonl` of each seed that has one."""
    found = []
    for path in sorted(run.glob("seed-*/pred_test.jsonl")):
        records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        found.append(Answers([r["gold"] for r in records], [r["pred"] for r in records]))
    return found


def main_table(results: Results, answers: Mapping[str, Sequence[Answers]]) -> pages.Table:
    """One run a row."""
    head = ["run", "task", "method", "start", "images", "labels", "seeds", "dev F1"]
    head += [f"test {name}" for name in ("F1", "P", "R", "accuracy")]
    rows = []
    for name, result in results.items():
        config, test = result["provenance"]["config"], result["test"]
        cells = ["–"] * len(METRICS)
        if test is not None:
            cells = [figure(test[metric]) for metric in METRICS]
            if answers[name]:
                cells[0] += interval(result["provenance"]["kind"], answers[name])
        rows.append(
            [
                name + (" *leaky*" if result["leaky"] else ""),
                result["task"],
                result["method"],
                "random" if config["architecture"] else Path(config["init"]).name,
                result["images"],
                f"{100 * config['fraction']:g} %",
                str(len(result["per_seed"])),
                figure(result["dev"]["f1"]),
                *cells,
            ]
        )
    return pages.Table(head, rows, numeric=7)


def interval(kind: str, answers: Sequence[Answers]) -> str:
    """` [low, high]`: bootstrap over rows, all seeds together."""
    count = metrics.relation_counts if kind == "relation" else metrics.entity_counts
    counts = np.sum([count(a.gold, a.predicted) for a in answers], axis=0)
    low, high = metrics.bootstrap_interval(counts)
    return f" [{low:.1f}, {high:.1f}]"


def fraction_table(results: Results) -> pages.Table | None:
    """Runs that differ in nothing but the share of labels, side by side."""
    shares = sorted({r["provenance"]["config"]["fraction"] for r in results.values()})
    if len(shares) < 2:
        return None
    lines: dict[tuple[str, ...], dict[float, str]] = {}
    for result in results.values():
        config = result["provenance"]["config"]
        start = "random" if config["architecture"] else Path(config["init"]).name
        key = (result["task"], result["method"], start, result["images"])
        best = result["test"] or result["dev"]
        lines.setdefault(key, {})[config["fraction"]] = figure(best["f1"])
    rows = [[*key, *(cells.get(share, "–") for share in shares)] for key, cells in lines.items()]
    head = ["task", "method", "start", "images", *(f"{100 * share:g} %" for share in shares)]
    return pages.Table(head, rows, numeric=4)


def audit_table(results: Results) -> pages.Table | None:
    """What each run's inputs tell about the label by their mere presence and number."""
    rows = [
        [name, found["feature"], f"{found['majority_accuracy']:.1f}"]
        + [f"{found['look_up'][key]:.1f}" for key in ("accuracy", "f1")]
        + ["*tells the label*" if found["verdict"] == "flagged" else "nothing"]
        for name, result in results.items()
        for found in result["provenance"]["audit"]
    ]
    head = ["run", "input", "majority acc.", "look-up acc.", "look-up F1", "it tells"]
    return pages.Table(head, rows, numeric=2) if rows else None


def view_table(results: Results) -> pages.Table | None:
    """The views of runs that had any."""
    rows = [
        [
            name,
            view["split"],
            view.get("tool", "?"),
            ", ".join(f"{k} {v}" for k, v in view.get("params", {}).items() if v is not None),
            figure((result["test"] or result["dev"])["f1"]),
        ]
        for name, result in results.items()
        for view in result["views"]
    ]
    head = ["run", "split", "view", "parameters", "F1"]
    return pages.Table(head, rows, numeric=4) if rows else None


def relation_section(
    task: str, results: Results, answers: Mapping[str, Sequence[Answers]]
) -> pages.Section:
    """F1 of each relation, macro F1, and F1 by how often train has the relation."""
    shown = {name: found for name, found in answers.items() if found}
    by_label = {
        name: [metrics.relation_scores_by_label(a.gold, a.predicted) for a in found]
        for name, found in shown.items()
    }
    train = next(results[name]["per_seed"][0]["train_counts"] for name in shown)
    support = next(iter(by_label.values()))[0]

    def mean(values: Sequence[float]) -> str:
        return f"{np.mean(values):.2f}"

    rows = [
        [relation, str(train.get(relation, 0)), str(int(support[relation]["support"]))]
        + [mean([seed[relation]["f1"] for seed in seeds]) for seeds in by_label.values()]
        for relation in support
    ]
    macro = [mean([metrics.macro_f1(seed) for seed in seeds]) for seeds in by_label.values()]
    rows.append(["macro F1", "", "", *macro])
    weighted = [mean([metrics.weighted_f1(seed) for seed in s]) for s in by_label.values()]
    rows.append(["weighted F1", "", "", *weighted])
    binned = {
        name: [metrics.scores_by_frequency(a.gold, a.predicted, train) for a in found]
        for name, found in shown.items()
    }
    bins = [
        [label, str(int(scores["support"]))]
        + [mean([seed[label]["f1"] for seed in seeds]) for seeds in binned.values()]
        for label, scores in next(iter(binned.values()))[0].items()
    ]
    return pages.Section(
        f"Relations of {task}",
        "Test F1, one against the rest, and by the number of training rows; mean over seeds.",
        [
            pages.Table(["relation", "train", "test", *shown], rows, numeric=1),
            pages.Table(["training rows", "test", *shown], bins, numeric=1),
        ],
    )


def published_table(task: str, results: Results) -> pages.Table | None:
    """What papers report on this task, if a run was trained on the data that they used."""
    rows = published.TRAIN_ROWS.get(task)
    if not any(
        seed["train_rows"] == int(result["provenance"]["config"]["fraction"] * rows + 1e-9)
        for result in results.values()
        if result["task"] == task and rows
        for seed in result["per_seed"]
    ):
        return None
    rows = [
        [entry.method, *entry.figures, entry.source, entry.protocol]
        for entry in published.FIGURES
        if entry.task == task
    ]
    head = ["method", "P", "R", "F1", "source", "protocol"]
    return pages.Table(head, rows, numeric=1) if rows else None


def figure(value: Mapping[str, float | None]) -> str:
    """mean ± sd with two decimals."""
    deviation = "" if value["sd"] is None else f" ± {value['sd']:.2f}"
    return f"{value['mean']:.2f}{deviation}"
