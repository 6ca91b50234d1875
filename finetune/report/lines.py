"""Runs that make a line of a curve: the same in all but what its columns stand for."""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from finetune.config import EngineConfig, OptimConfig, TrainConfig

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
    found: dict[Any, tuple[str, dict[Any, Any]]] = {}
    for name, result, column in runs:
        line = (*identity(result, varies), "")
        if line in found and column in found[line][1]:
            line = (*line[:2], name)
        found.setdefault(line, (name, {}))[1][column] = best_f1(result)
    named = {}
    for (key, settings, again), (first, columns) in found.items():
        alone = all(other == settings for same, other, _ in found if same == key)
        more = again or ("" if alone else first)
        named[(*key, more) if more else key] = columns
    return named


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
