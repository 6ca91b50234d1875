"""The tables of a study: `study.md`, `study.html`, `study.json`."""

import logging
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from finetune.protocols import mean_and_sd
from finetune.report import pages
from finetune.report.series import best_f1
from finetune.report.tables import ALSO_IN_TRAIN
from finetune.run.results import also_in_train
from shards.json_files import read_json, write_json

LOG = logging.getLogger(__name__)

PRINTED = {"precision": "P", "recall": "R", "f1": "F1", "accuracy": "accuracy"}
"""Scores, and what papers call them."""


def table_of(cells: Mapping[tuple[str, str], Mapping[str, Any]]) -> pages.Table:
    """(run, column) -> result: runs down, columns across; trainings in a single column also say
    what they cost."""
    runs, columns = axes(cells)
    costly = len(columns) == 1 and all("per_seed" in result for result in cells.values())
    rows = []
    for run in runs:
        line = [run]
        for column in columns:
            result = cells.get((run, column))
            line += [mean_and_sd(best_f1(result), 1) if result else "–"]
            line += costs(result) if result and costly else []  # then it is the only column
        rows.append(line)
    head = ["run", *columns] + (["s/epoch", "parameters"] if costly else [])
    return pages.Table(head, rows, numeric=1)


def figures_table(cells: Mapping[tuple[str, str], Mapping[str, Any]]) -> pages.Table:
    """Precision, recall, F1 and accuracy of each cell as papers print them, and what its F1 has
    more than the first column of its run has, or where its task has one column than the first run
    there."""
    _, columns = axes(cells)
    tasks = {column: result.get("task") for (_, column), result in cells.items()}
    rows = []
    for run, column in cells:
        scores = cells[run, column]["test"] or cells[run, column]["dev"]
        alike = [other for other in columns if tasks[other] == tasks[column]]
        down = [cell for cell in cells if cell[1] == column]
        first = cells.get((run, alike[0]) if len(alike) > 1 else down[0])
        gain = "–"
        if first and first is not cells[run, column]:
            gain = f"{mean_f1(cells[run, column]) - mean_f1(first):+.2f}"
        named = [run] + [column] * (len(columns) > 1)
        rows.append(
            named
            + [mean_and_sd(scores[name]) if name in scores else "–" for name in PRINTED]
            + [gain, repetitions(cells[run, column])]
        )
    named = ["run"] + ["column"] * (len(columns) > 1)
    head = [*named, *PRINTED.values(), "Δ F1", ALSO_IN_TRAIN]
    return pages.Table(head, rows, numeric=len(named))


def repetitions(result: Mapping[str, Any]) -> str:
    """`also_in_train` of a training, of an evaluation of its test rows, or as a cell keeps it."""
    if "also_in_train" in result:
        return result["also_in_train"]
    return also_in_train(result.get("per_seed") or (result["test"] or {}).get("per_seed", []))


def mean_f1(result: Mapping[str, Any]) -> float:
    """On test, or dev where there is no test."""
    return float(best_f1(result)["mean"] or 0.0)


def axes(cells: Mapping[tuple[str, str], Any]) -> tuple[list[str], list[str]]:
    """Runs and columns, each in order."""
    runs, columns = (list(dict.fromkeys(key)) for key in zip(*cells, strict=True))
    return runs, columns


def costs(result: Mapping[str, Any]) -> list[str]:
    """Seconds an epoch and parameters."""
    per_seed = result["per_seed"]
    seconds = statistics.mean(seed["seconds"] / seed["epochs"] for seed in per_seed)
    return [f"{seconds:.1f}", f"{per_seed[0]['parameters']:,}"]


def of_other_columns(
    out: Path, columns: Sequence[str], seeds: str, settings: Mapping[str, Any]
) -> dict[tuple[str, str, str], Any]:
    """(table, run, column) -> what an earlier call found for columns that are not computed now.

    Those of other seeds or settings do not belong in one table with these: they are named.

    Raises:
        InputError: the earlier `study.json` is damaged.
    """
    path = out / "study.json"
    if not path.is_file():
        return {}
    before = read_json(path, f"remove {path} and give the same command again: the runs stay")
    others = [cell for cell in before["cells"] if cell["column"] not in columns]
    if others and (before["seeds"], before.get("set", {})) != (seeds, dict(settings)):
        names = ", ".join(dict.fromkeys(cell["column"] for cell in others))
        LOG.warning("%s: of other seeds or settings, and left out of it now: %s", path, names)
        return {}
    return {(cell["table"], cell["run"], cell["column"]): cell for cell in others}


def in_order(
    results: Mapping[tuple[str, str, str], Any], content: Mapping[str, Any]
) -> dict[tuple[str, str, str], Any]:
    """Results as the study's file has its tables, columns and runs; what it no longer has goes."""
    places = [
        (str(table), str(run), str(column))
        for table, described in content["tables"].items()
        for column in described
        for run in content["runs"]
    ]
    return {place: results[place] for place in places if place in results}


def write_report(
    name: str,
    results: Mapping[tuple, Mapping],
    seeds: str,
    out: Path,
    changed: Mapping[str, Any] = MappingProxyType({}),
) -> None:
    """`study.md`, `study.html`, `study.json`.

    Args:
        changed: settings of all runs that are others than the study's.
    """
    split = "dev" if any(r["test"] is None for r in results.values()) else "test"
    note = f"{split} F1 in percent, seeds {seeds}; the epoch is chosen on dev."
    if changed:
        settings = ", ".join(f"{key} = {value}" for key, value in changed.items())
        note += f" Not as the study has it: {settings}."
    tables: dict[tuple[str, bool], dict[tuple[str, str], Any]] = {}
    for (title, run, column), result in results.items():  # leaky figures: tables of their own
        tables.setdefault((title, bool(result["leaky"])), {})[run, column] = result
    sections = [
        pages.Section(
            f"{title}: *leaky* inputs" if leaky else title,
            note,
            [table_of(cells), figures_table(cells)],
        )
        for (title, leaky), cells in tables.items()
    ]
    pages.write(out / "study.md", name, sections)
    rows = [
        {"table": t, "run": r, "column": c}
        | {key: result.get(key) for key in ("task", "leaky", "dev", "test")}
        | {"also_in_train": repetitions(result)}
        for (t, r, c), result in results.items()
    ]
    content = {"study": name, "seeds": seeds, "set": dict(changed), "cells": rows}
    write_json(out / "study.json", content, checksum=True)
