"""F1 over something that changes: columns of a study, shares of labels, strengths of a view.

A series is what `figures.study` draws: `title`; `columns`; `axis`, the numbers that the columns
are, or None; `runs`, run -> column -> (mean, deviation or None) in percent.
"""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from finetune.report.lines import Line, identity, lines, percent, shares_of_train
from finetune.report.tables import Results
from shards.files import InputError

Series = Mapping[str, Any]
NUMBERS = {"none": 0.0, "clean": 0.0, "all": 100.0}
"""Columns of a study that are words and stand at an end of the axis."""
SHARES = ("ratio", "keep")
"""Options of views in [0, 1]."""
NOISE = ("align-noise", "aug-noise")
"""Tools whose views spoil a share; the others keep one."""


def read_study(path: Path) -> list[Series]:
    """`study.json` as `figures.study` draws it: a table each, test F1 or dev's without test; leaky
    cells are a table of their own, as in the study's own pages."""
    try:
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        found: dict[tuple[str, bool], dict[str, Any]] = {}
        for cell in cells:
            name, leaky = cell["table"], bool(cell.get("leaky"))
            title = f"{name}: leaky inputs" if leaky else name
            table = found.setdefault((name, leaky), {"title": title, "columns": [], "runs": {}})
            if cell["column"] not in table["columns"]:
                table["columns"].append(cell["column"])
            f1 = (cell["test"] or cell["dev"])["f1"]
            table["runs"].setdefault(cell["run"], {})[cell["column"]] = f1["mean"], f1["sd"]
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; `python -m finetune study` writes it") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: not the study.json of a study ({error!r})") from None
    if not found:
        raise InputError(f"{path}: a study without cells")
    for table in found.values():
        table["axis"] = numbers(table["columns"])
    return list(found.values())


def name_of_study(path: Path) -> tuple[str, str]:
    """What a `study.json` that can be read is called, and its seeds."""
    content = json.loads(path.read_text(encoding="utf-8"))
    return str(content.get("study", path.parent.name)), str(content.get("seeds", "unknown"))


def numbers(columns: Sequence[str]) -> list[float] | None:
    """The numbers that columns such as `none`, `10 %`, `8 each` are; None if one is no number, or
    they are not of one unit."""
    values, units = [], set()
    for column in columns:
        if column in NUMBERS:
            values.append(NUMBERS[column])
        elif found := re.fullmatch(r"(\d+(?:\.\d+)?)\s*(\S*)", column):
            values.append(float(found[1]))
            units.add(found[2])
        else:
            return None
    if "all" in columns and units != {"%"}:
        return None
    return values if len(units) == 1 and len(set(values)) == len(values) > 1 else None


def few_labels(results: Results) -> list[Series]:
    """Test F1 over shares of train, of runs that differ in nothing else, or in how long they train;
    none of a single share."""
    found, shares = shares_of_train(results)
    columns = [percent(share) for share in shares]
    runs = {
        name: {percent(share): point for share, point in line.items()}
        for name, line in named(found).items()
    }
    axis = [100 * share for share in shares]
    return (
        [{"title": "Share of the training rows", "columns": columns, "axis": axis, "runs": runs}]
        if runs
        else []
    )


def strengths(results: Results) -> list[Series]:
    """F1 over the one number in which views of a tool differ, untouched runs of the same settings
    at their end.

    Runs under several views at a time, and tools whose views differ in more, are left out.
    """
    tools: dict[str, dict[str, Mapping[str, Any]]] = {}
    for name, result in results.items():
        if len({view.get("tool") for view in result["views"]}) == 1:
            tools.setdefault(result["views"][0].get("tool"), {})[name] = result
    return [found for tool, runs in tools.items() if (found := strength(tool, runs, results))]


def strength(tool: str, runs: Results, results: Results) -> Series | None:
    """The series of one tool."""
    params = {name: result["views"][0].get("params", {}) for name, result in runs.items()}
    values = {key: {found.get(key) for found in params.values()} for key in first(params)}
    varying = [key for key, some in values.items() if len(some) > 1]
    if len(varying) != 1 or not all(isinstance(v, int | float) for v in values[varying[0]]):
        return None
    name_of = percent if varying[0] in SHARES else "{:g}".format
    untouched = "none" if tool in NOISE else "all"
    placed = [(name, run, name_of(params[name][varying[0]])) for name, run in runs.items()]
    changed = {identity(run, "view") for run in runs.values()}
    placed += [
        (name, result, untouched)
        for name, result in results.items()
        if not result["views"] and identity(result, "view") in changed
    ]
    shown = named(lines(placed, "view"))
    columns = [name_of(value) for value in sorted(values[varying[0]])]
    if any(untouched in line for line in shown.values()):
        columns = ["none", *columns] if tool in NOISE else [*columns, "all"]
    return {
        "title": f"{tool}, {varying[0].replace('_', ' ')}",
        "columns": columns,
        "axis": numbers(columns),
        "runs": shown,
    }


def named(found: Mapping[tuple[str, ...], Line]) -> dict[str, dict[Any, tuple]]:
    """Lines, as a series has them, by what tells them apart; the task is not said where it is
    one."""
    one_task = len({key[0] for key in found}) == 1
    return {
        ", ".join(key[1:] if one_task else key): {
            column: (f1["mean"], f1["sd"]) for column, f1 in line.items()
        }
        for key, line in found.items()
    }


def first(params: Mapping[str, Any]) -> Any:
    """Of a dictionary's values."""
    return next(iter(params.values()))
