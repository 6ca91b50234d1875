"""F1 over something that changes: columns of a study, shares of labels, strengths of a view; and
which runs make a line of such a curve: the same in all but what its columns stand for.

A series is what `figures.study` draws: `title`; `columns`; `axis`, the numbers that the columns
are, or None; `runs`, run -> column -> (mean, deviation or None) in percent.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from finetune.config import EngineConfig, OptimConfig, TrainConfig
from finetune.run.results import Results
from finetune.tasks.reading import checked, damaged, read_object
from shards.files import InputError

Series = Mapping[str, Any]
NUMBERS = {"none": 0.0, "clean": 0.0, "all": 100.0}
"""Columns of a study that are words and stand at an end of the axis."""
SHARES = ("ratio", "keep")
"""Options of views in [0, 1]."""
NOISE = ("align-noise", "aug-noise")
"""Tools whose views spoil a share; the others keep one."""


Line = Mapping[Any, Mapping[str, float | None]]
"""Column -> F1."""
FREE = {"seeds", "out", "cache", "sweep"}
"""Settings that are no difference between runs."""
LENGTH = {f"optim.{name}" for name in ("epochs", "min_steps", "evaluate_every", "patience")}
"""How long a run trains, and how often it looks at dev: with few rows an epoch is a few steps, and
nobody gives all shares the same number of them."""
DEFAULTS = {
    section + option.name: option.default
    for section, options in (("", TrainConfig), ("optim.", OptimConfig), ("engine.", EngineConfig))
    for option in fields(options)
}
"""What an option was in runs that are older than it."""


@dataclass(frozen=True)
class Study:
    """A `study.json`."""

    name: str
    seeds: str
    tables: Sequence[Series]


def read_study(path: Path) -> Study:
    """`study.json` as `figures.study` draws it: a table each, test F1 or dev's without test; leaky
    cells are a table of their own, as in the study's own pages.

    Raises:
        InputError: no such file, or damaged; names file and key.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file; `python -m finetune study` writes it")
    remedy = "give the command of the study again: it writes it of the finished runs"
    content = read_object(path, {"cells": list[dict]}, remedy)
    tables: dict[tuple[str, bool], dict[str, Any]] = {}
    for cell in content["cells"]:
        try:
            checked(cell, {"table": str, "run": str, "column": str}, f"{path}: cells")
            score = cell.get("test") or cell.get("dev")
            f1 = checked(score, {"f1": {"mean": float, "sd": float | None}}, f"{path}: cells")["f1"]
        except InputError as error:
            raise damaged(path, error, remedy) from None
        name, leaky = cell["table"], bool(cell.get("leaky"))
        title = f"{name}: leaky inputs" if leaky else name
        table = tables.setdefault((name, leaky), {"title": title, "columns": [], "runs": {}})
        if cell["column"] not in table["columns"]:
            table["columns"].append(cell["column"])
        table["runs"].setdefault(cell["run"], {})[cell["column"]] = f1["mean"], f1["sd"]
    if not tables:
        raise InputError(f"{path}: a study without cells")
    for table in tables.values():
        table["axis"] = numbers(table["columns"])
    name = str(content.get("study", path.parent.name))
    return Study(name, str(content.get("seeds", "unknown")), list(tables.values()))


def numbers(columns: Sequence[str]) -> list[float] | None:
    """The numbers that columns such as `none`, `10 %`, `8 each` are; None if one is no number, or
    they are not of one unit."""
    values, units = [], set()
    for column in columns:
        if column in NUMBERS:
            values.append(NUMBERS[column])
        elif number := re.fullmatch(r"(\d+(?:\.\d+)?)\s*(\S*)", column):
            values.append(float(number[1]))
            units.add(number[2])
        else:
            return None
    if "all" in columns and units != {"%"}:
        return None
    return values if len(units) == 1 and len(set(values)) == len(values) > 1 else None


def few_labels(results: Results) -> list[Series]:
    """Test F1 over shares of train, of runs that differ in nothing else, or in how long they train;
    none of a single share."""
    curves, shares = shares_of_train(results)
    columns = [percent(share) for share in shares]
    runs = {
        name: {percent(share): point for share, point in line.items()}
        for name, line in named(curves).items()
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
    return [curves for tool, runs in tools.items() if (curves := strength(tool, runs, results))]


def strength(tool: str, runs: Results, results: Results) -> Series | None:
    """The series of one tool."""
    params = {name: result["views"][0].get("params", {}) for name, result in runs.items()}
    keys = next(iter(params.values()))
    values = {key: {settings.get(key) for settings in params.values()} for key in keys}
    varying = [key for key, distinct in values.items() if len(distinct) > 1]
    # Two options that vary have no one axis.
    if len(varying) != 1 or not all(isinstance(v, int | float) for v in values[varying[0]]):
        return None
    name_of = percent if varying[0] in SHARES else "{:g}".format
    untouched = "none" if tool in NOISE else "all"
    placed = [(name, run, name_of(params[name][varying[0]])) for name, run in runs.items()]
    # Plain runs of the same settings are the end of the axis where the view does nothing.
    changed = {identity(run, "view") for run in runs.values()}
    placed += [
        (name, result, untouched)
        for name, result in results.items()
        if not result["views"] and identity(result, "view") in changed
    ]
    curves = named(lines(placed, "view"))
    columns = [name_of(value) for value in sorted(values[varying[0]])]
    if any(untouched in line for line in curves.values()):
        columns = ["none", *columns] if tool in NOISE else [*columns, "all"]
    return {
        "title": f"{tool}, {varying[0].replace('_', ' ')}",
        "columns": columns,
        "axis": numbers(columns),
        "runs": curves,
    }


def named(curves: Mapping[tuple[str, ...], Line]) -> dict[str, dict[Any, tuple]]:
    """Lines, as a series has them, by what tells them apart; the task is not said where it is
    one."""
    one_task = len({key[0] for key in curves}) == 1
    return {
        ", ".join(key[1:] if one_task else key): {
            column: (f1["mean"], f1["sd"]) for column, f1 in line.items()
        }
        for key, line in curves.items()
    }


# ---- Runs that make a line -----------------------------------------------------------------------


def lines(
    runs: Iterable[tuple[str, Mapping[str, Any], Any]], varies: str
) -> dict[tuple[str, ...], Line]:
    """Name of each line -> its columns.

    Runs of other settings never share a line, and a second run of one line and column begins one of
    its own; where that gives several of one name, each is also called after its first run.

    Args:
        runs: name, `result.json` and column of each.
        varies: the setting that the columns stand for, in which the runs of a line differ.
    """
    columns_of: dict[Any, tuple[str, dict[Any, Any]]] = {}
    for name, result, column in runs:
        line = (*identity(result, varies), "")
        if line in columns_of and column in columns_of[line][1]:
            line = (*line[:2], name)
        columns_of.setdefault(line, (name, {}))[1][column] = best_f1(result)
    by_key: dict[tuple[str, ...], Line] = {}
    for (key, settings, again), (first, columns) in columns_of.items():
        alone = all(other == settings for same, other, _ in columns_of if same == key)
        more = again or ("" if alone else first)
        by_key[(*key, more) if more else key] = columns
    return by_key


def identity(result: Mapping[str, Any], varies: str) -> tuple[tuple[str, ...], str]:
    """What a line is called after, and all settings in which its runs agree."""
    config = result["provenance"]["config"]
    key = [result["task"], result["method"], f"from {start_of(result)}"]
    key += [f"images {result['images']}"] * (result["images"] != "required")
    if varies != "fraction" and config["fraction"] != 1:
        key.append(f"{percent(config['fraction'])} of train")
    free = FREE | LENGTH | {varies}
    agreed = {n: value for n, value in flat(config) if n not in free and value != DEFAULTS.get(n)}
    return tuple(key), json.dumps(agreed, sort_keys=True)


def flat(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Settings with their sections before a dot, as on the command line."""
    for name, value in config.items():
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def shares_of_train(
    results: Mapping[str, Mapping[str, Any]],
) -> tuple[dict[tuple[str, ...], Line], list[float]]:
    """Line -> share of train -> F1, and the shares; nothing where there is but one share.

    Runs under views are left out: they differ in more.
    """
    plain = [
        (name, result, result["provenance"]["config"]["fraction"])
        for name, result in results.items()
        if not result["views"]
    ]
    shares = sorted({share for _, _, share in plain})
    return (lines(plain, "fraction"), shares) if len(shares) > 1 else ({}, [])


def start_of(result: Mapping[str, Any]) -> str:
    """The weights that a run began with, by their folder (`model` is every run's: then its
    parent's too)."""
    config = result["provenance"]["config"]
    if config["architecture"]:
        return "random weights"
    path = Path(config["init"])
    return f"{path.parent.name}/model" if path.name == "model" else path.name


def best_f1(result: Mapping[str, Any]) -> Mapping[str, float | None]:
    """Of test, or of dev where there is none."""
    return (result["test"] or result["dev"])["f1"]


def percent(share: float) -> str:
    """0.1 -> 10 %"""
    return f"{100 * share:g} %"
