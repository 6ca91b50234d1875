"""`--sweep optim.lr=1e-5,3e-5`: the same run under several settings; dev chooses."""

import dataclasses
import itertools
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from finetune.config import TrainConfig
from pretrain import distributed
from shards.files import InputError
from shards.json_files import write_json

LOG = logging.getLogger(__name__)
WHOLE = ("task", "method", "out", "sweep", "cache")
"""Settings that other ones, or the places of all points, hang on."""


def sweep(config: TrainConfig, run: Callable[[TrainConfig], dict[str, Any]]) -> dict[str, Any]:
    """Run every point below `out`; writes `sweep.json` and returns the best point's result.

    The best point is that of the highest mean dev F1, the earlier of equal ones; the test figures
    of the others are not reported. Points whose inputs tell the label are marked, and named.
    """
    results = {name: run(point) for name, point in points(config).items()}
    best = max(results, key=lambda name: results[name]["dev"]["f1"]["mean"])
    content = {
        "sweep": config.sweep,
        "dev": {name: result["dev"]["f1"] for name, result in results.items()},
        "leaky": {name: result["leaky"] for name, result in results.items()},
        "best": best,
        "test": results[best]["test"],
    }
    write_json(Path(config.out) / "sweep.json", content)
    leaky = [name for name, result in results.items() if result["leaky"]]
    if leaky and distributed.is_main():
        LOG.warning(
            "leaky points, whose inputs tell the label: %s; the best on dev, %s, is%s one of them",
            *("; ".join(leaky), best, "" if best in leaky else " not"),
        )
    return results[best]


def points(config: TrainConfig) -> dict[str, TrainConfig]:
    """Name of each combination -> its configuration, in order; each has a folder of its own.

    Raises:
        InputError: not KEY=VALUE,VALUE, an unknown key, or a value that the key does not take.
    """
    axes: list[list[tuple[str, str]]] = []
    for axis in (config.sweep or "").split(";"):
        key, _, values = axis.strip().partition("=")
        if not key or not values:
            raise InputError(f"--sweep {axis.strip()!r}: expected KEY=VALUE,VALUE;KEY=…")
        if key.partition(".")[0] in WHOLE:
            raise InputError(f"--sweep {key}: another {key} is another run; start it by itself")
        axes.append([(key, value.strip()) for value in values.split(",")])
    by_name: dict[str, TrainConfig] = {}
    for settings in itertools.product(*axes):
        name = ",".join(f"{key}={value}" for key, value in settings)
        point = dataclasses.replace(config, sweep=None, out=str(Path(config.out) / name))
        for key, value in settings:
            point = with_setting(point, key, value)
        twin = (n for n, p in by_name.items() if dataclasses.replace(p, out=point.out) == point)
        if same := next(twin, None):
            raise InputError(f"--sweep: {name} is the same point as {same}")
        by_name[name] = point
    return by_name


def with_setting(config: Any, key: str, value: str) -> Any:
    """A copy of a configuration with the dotted `key` set to `value`, in the key's own type."""
    first, _, rest = key.partition(".")
    names = {field.name for field in dataclasses.fields(config)}
    if first not in names:
        raise InputError(f"--sweep: unknown key {first!r}; there are {', '.join(sorted(names))}")
    now = getattr(config, first)
    if rest and not dataclasses.is_dataclass(now):
        raise InputError(f"--sweep: {first!r} has no part {rest!r}")
    try:
        new = with_setting(now, rest, value) if rest else converted(now, value)
        return dataclasses.replace(config, **{first: new})
    except ValueError as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"--sweep {key}={value}: {error}") from None


def converted(now: Any, value: str) -> Any:
    """`value` in the type of what it replaces."""
    if isinstance(now, bool):
        if value not in ("true", "false"):
            raise ValueError("expected true or false")
        return value == "true"
    if dataclasses.is_dataclass(now):
        raise ValueError("a section, not a setting")
    return type(now)(value) if isinstance(now, int | float) else value
