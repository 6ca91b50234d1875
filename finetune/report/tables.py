"""Tables of a report, from `result.json` and `pred_test.jsonl` of runs."""

import hashlib
import json
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from finetune.protocols import METRICS, mean_and_sd
from finetune.report import pages, published
from finetune.report.series import best_f1, percent, shares_of_train, start_of
from finetune.run.results import Predictions, Results, also_in_train
from finetune.tasks import metrics
from shards.files import InputError

FIELDS = {
    "regions": {"region_boxes", "region_pixels", "region_features"},
    "captions": None,
    "types": {"entity_types"},
}
"""Option -> fields of a batch of which one was loaded where it was used; None: every method does,
some by more text."""


ALSO_IN_TRAIN = "test rows also in train: F1 without"
"""Head of a column of `also_in_train`."""


def main_table(
    results: Results,
    answers: Mapping[str, Sequence[Predictions]],
    seed: int,
    changed: Collection[str] = (),
) -> pages.Table:
    """One run a row; `seed` draws the bootstrap; `changed` runs are marked."""
    head = ["run", "task", "method", "start", "images", "labels", "seeds", "dev F1"]
    head += ["test F1", "P", "R", "accuracy", ALSO_IN_TRAIN]
    rows = []
    for name, result in results.items():
        config, test = result["provenance"]["config"], result["test"]
        cells = ["–"] * len(METRICS)
        if test is not None:
            cells = [mean_and_sd(test[metric]) for metric in METRICS]
            if answers[name]:
                cells[0] += interval(result, answers[name], seed)
        rows.append(
            [
                name + " *leaky*" * result["leaky"] + " *inputs changed*" * (name in changed),
                result["task"],
                result["method"],
                start_of(result),
                result["images"],
                percent(config["fraction"]) + (" bootstrap" if config.get("bootstrap") else ""),
                str(len(result["per_seed"])),
                mean_and_sd(result["dev"]["f1"]),
                *cells,
                also_in_train(result["per_seed"]),
            ]
        )
    return pages.Table(head, rows, numeric=7)


def interval(result: Mapping[str, Any], answers: Sequence[Predictions], seed: int) -> str:
    """` [low, high]`: bootstrap over rows, all seeds together."""
    count: Any = metrics.entity_counts
    if result["provenance"]["kind"] == "relation":
        none = metrics.negative_class(train_counts([result]))
        count = partial(metrics.relation_counts, none=none)
    counts = np.sum([count(a.gold, a.answers) for a in answers], axis=0)
    low, high = metrics.bootstrap_interval(counts, seed=seed)
    return f" [{low:.1f}, {high:.1f}]"


def fraction_table(results: Results) -> pages.Table | None:
    """Runs that differ in the share of labels, and at most in how long they train, side by side."""
    lines, shares = shares_of_train(results)
    rows = [
        [", ".join(key), *(mean_and_sd(f1[s]) if s in f1 else "–" for s in shares)]
        for key, f1 in lines.items()
    ]
    return pages.Table(["runs", *map(percent, shares)], rows, numeric=1) if rows else None


def audit_table(results: Results) -> pages.Table:
    """What each run's inputs tell about the label by their mere presence and number."""
    rows = []
    for name, result in results.items():
        for audit in result["provenance"]["audit"]:
            figures = [audit["majority_accuracy"], *map(audit["look_up"].get, ("accuracy", "f1"))]
            tells = "*tells the label*" if audit["verdict"] == "flagged" else "nothing"
            rows.append([name, audit["feature"], *(f"{value:.1f}" for value in figures), tells])
        if not result["provenance"]["audit"]:
            seen = reads(result).replace("text only", "none beside the text")
            unasked = seen != "none beside the text"
            rows.append([name, seen, "–", "–", "–", "not audited" if unasked else "–"])
    head = ["run", "input", "majority acc.", "look-up acc.", "look-up F1", "it tells"]
    return pages.Table(head, rows, numeric=2)


def view_table(results: Results) -> pages.Table | None:
    """The views of runs that had any."""
    rows = [
        [
            name,
            view["split"],
            view.get("tool", "?"),
            ", ".join(f"{k} {v}" for k, v in view.get("params", {}).items() if v is not None),
            mean_and_sd(best_f1(result)),
        ]
        for name, result in results.items()
        for view in result["views"]
    ]
    head = ["run", "split", "view", "parameters", "F1"]
    return pages.Table(head, rows, numeric=4) if rows else None


def relation_f1(
    answers: Mapping[str, Sequence[Predictions]], train: Mapping[str, int]
) -> dict[str, dict[str, dict[str, float]]]:
    """Run -> relation -> `f1` (percent, mean over seeds) and `support`; `train`: `train_counts`.

    Raises:
        InputError: the runs were tested on different rows.
    """
    by_run: dict[str, dict[str, dict[str, float]]] = {}
    none = metrics.negative_class(train)
    for name, of_seeds in answers.items():
        seeds = [metrics.relation_scores_by_label(a.gold, a.answers, none) for a in of_seeds]
        by_run[name] = {
            label: {"f1": mean([seed[label]["f1"] for seed in seeds]), "support": scores["support"]}
            for label, scores in seeds[0].items()
        }
    supports = {name: {k: v["support"] for k, v in run.items()} for name, run in by_run.items()}
    for name, support in supports.items():
        if support != next(iter(supports.values())):
            raise InputError(f"{name}: was tested on other rows than {next(iter(supports))}")
    return by_run


def mean(values: Sequence[float]) -> float:
    """Plain."""
    return sum(values) / len(values)


def train_counts(results: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """Each relation of the task -> training rows, of the run that had the most."""
    first = max((result["per_seed"][0] for result in results), key=lambda s: s["train_rows"])
    return first["train_counts"]


def relation_tables(results: Results, answers: Mapping[str, Sequence[Predictions]]) -> list[Any]:
    """F1 of each relation, macro F1, and F1 by how often train has the relation."""
    train = train_counts([results[name] for name in answers])
    by_label = relation_f1(answers, train)
    none = metrics.negative_class(train)

    def averages(name: str, average: Callable[..., float]) -> list[str]:
        """A row: an average over the relations, of each seed's answers, then over seeds."""
        scores = metrics.relation_scores_by_label
        values = (
            mean([average(scores(a.gold, a.answers, none)) for a in seeds])
            for seeds in answers.values()
        )
        return [name, "", "", *(f"{value:.2f}" for value in values)]

    # The runs were tested on the same rows (`relation_f1`): the first one's supports are of all.
    rows = [
        [label, str(train.get(label, 0)), str(int(scores["support"]))]
        + [f"{run[label]['f1']:.2f}" for run in by_label.values()]
        for label, scores in next(iter(by_label.values())).items()
    ]
    rows += [averages("macro F1", metrics.macro_f1), averages("weighted F1", metrics.weighted_f1)]

    most = max((count for label, count in train.items() if label != none), default=0)

    def binned(a: Predictions) -> Any:
        edges = (0, 20, 100, 200, 500, 1000, max(1000, most) + 1)
        return metrics.scores_by_frequency(a.gold, a.answers, train, edges)

    bins = [
        [label, str(int(scores["support"]))]
        + [f"{mean([binned(a)[label]['f1'] for a in seeds]):.2f}" for seeds in answers.values()]
        for label, scores in binned(next(iter(answers.values()))[0]).items()
        if scores["support"]
    ]
    return [
        pages.Table(["relation", "train", "test", *answers], rows, numeric=1),
        pages.Table(["training rows", "test", *answers], bins, numeric=1),
    ]


def published_table(task: str, results: Results) -> pages.Table | None:
    """What papers report on this task below our runs, if one was trained on the data they used."""
    ours = {name: result for name, result in results.items() if result["task"] == task}
    if not any(on_published_rows(task, result) for result in ours.values()):
        return None
    rows = []
    for name, result in ours.items():
        if on_published_rows(task, result) and result["test"] is not None:
            test = [mean_and_sd(result["test"][metric]) for metric in ("precision", "recall", "f1")]
            tells = "inputs that tell the label: *leaky*" if result["leaky"] else reads(result)
            rows.append([result["method"], *test, f"this report, {name}", tells])
    rows += [
        [entry.method, *entry.figures, entry.source, entry.protocol]
        for entry in published.FIGURES
        if entry.task == task
    ]
    return pages.Table(["method", "P", "R", "F1", "source", "protocol"], rows, numeric=1)


def on_published_rows(task: str, result: Mapping[str, Any]) -> bool:
    """Whether the run's training rows are as many as the published ones."""
    rows, share = published.TRAIN_ROWS.get(task), result["provenance"]["config"]["fraction"]
    expected = rows and int(share * rows + 1e-9)
    return any(
        seed.get("train_draws", seed["train_rows"]) == expected for seed in result["per_seed"]
    )


def reads(result: Mapping[str, Any]) -> str:
    """What a run's method saw beside the text, in words."""
    config, fields = result["provenance"]["config"], fields_read(result["per_seed"][0])
    seen = {"required": ["picture"], "blank": ["blank pictures"], "none": []}[result["images"]]
    for name in ("regions", "captions", "types"):
        those = FIELDS[name]
        loaded = fields is None or those is None or bool(fields & those)
        if loaded and (value := config.get(name)) not in (None, "none"):
            seen.append(f"{name} ({Path(value).name})")
    return ", ".join(seen) or "text only"


def fields_read(seed: Mapping[str, Any]) -> set[str] | None:
    """The fields of a batch that a seed's rows came with; None: older runs did not record them."""
    reads = seed.get("reads")
    return {*reads["columns"], *reads["pictures"]} if reads else None


def protocol_table(results: Results) -> pages.Table:
    """How each figure came about."""
    rows = []
    for name, result in results.items():
        seeds, provenance = result["per_seed"], result["provenance"]
        hashes = json.dumps(sorted(provenance["data"].values())).encode()
        epochs = ", ".join(f"{seed['best_epoch']} of {seed['epochs']}" for seed in seeds)
        first = seeds[0]
        rows.append(
            [
                name,
                result["protocol"],
                Path(provenance["config"]["data"]).name,
                hashlib.sha256(hashes).hexdigest()[:8],
                reads(result),
                ", ".join(str(seed["seed"]) for seed in seeds),
                epochs,
                f"{first['train_rows']:,}",
                f"{first['steps']:,}",
                f"{first['parameters']:,}",
                f"{provenance['seconds']:.0f}",
                f"{first['processes']} x {first['device']}, {first['precision']}",
            ]
        )
    head = ["run", "protocol", "data", "inputs' hash", "reads beside the text", "seeds"]
    head += ["chosen epoch", "rows", "steps", "parameters", "seconds", "on"]
    return pages.Table(head, rows, numeric=7)
