"""`python -m finetune list`: what there is, with the figures to expect; `--settings METHOD`: its
settings beside what its paper states."""

import csv
import inspect
import itertools
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

import yaml

from finetune import registry
from finetune.config import OptimConfig, TrainConfig
from finetune.data.views import TOOLS, default_scope
from finetune.methods.profiles import Profiled
from finetune.protocols import PROTOCOLS
from finetune.report.study_cells import STUDIES
from shards.files import InputError
from shards.options import first_line, parse_config

CONFIGS = Path(__file__).parents[1] / "configs"
PAPERS = Path(__file__).parent / "papers" / "settings.tsv"
"""method, setting, what the paper (or its released code) has, where it says so."""
TRAINING = ("max_length", "max_caption_length", "captions", "seeds", "bootstrap", "protocol")
"""Of `finetune train`, beside `optim` and `model`."""


def methods() -> Iterator[tuple[str, str]]:
    """Name -> what it is, and which kinds of task it can do."""
    for name in sorted(registry.known("methods")):
        if entry := registry.METHODS.get(name):
            yield name, f"{entry.text} [{', '.join(entry.kinds)}] takes of --init: {entry.takes}"
        else:
            yield name, described("methods", name)


def described(kind: str, name: str) -> str:
    """What another package's class says of itself, or why it cannot be used."""
    try:
        cls = registry.load(kind, name)
    except InputError as error:
        return f"BROKEN: {error}"
    kinds = f" [{', '.join(sorted(cls.kinds))}]" if kind == "methods" else ""
    return f"{first_line(inspect.getmodule(cls)) or first_line(cls)}{kinds}"


def tasks() -> Iterator[tuple[str, str]]:
    """Name -> what it is."""
    for name in registry.known("tasks"):
        if name in registry.TASKS:
            task = registry.load("tasks", name)
            yield name, f"{first_line(task)}. {first_line(inspect.getmodule(task))}"
        else:
            yield name, described("tasks", name)


def views() -> Iterator[tuple[str, str]]:
    """Name -> what it changes, and in which splits."""
    for name, tool in TOOLS.items():
        yield name, f"{tool.text} (default: {default_scope(name)})"


def protocols() -> Iterator[tuple[str, str]]:
    """Name -> how dev chooses."""
    for name, protocol in PROTOCOLS.items():
        first, ties = protocol.first_epoch, protocol.ties
        yield name, f"{protocol.source}: epochs from {first} on, the {ties} of equal ones"


def studies() -> Iterator[tuple[str, str]]:
    """Name -> its question."""
    for path in sorted(STUDIES.glob("*.yaml")):
        yield path.stem, header(path)[0]


def configs() -> Iterator[tuple[str, str]]:
    """Name for `--config` -> what it is, and the published figures that its header names."""
    for path in sorted(CONFIGS.glob("*/*.yaml")):
        if path.parent != STUDIES:
            paragraphs = header(path)
            expected = [p for p in paragraphs if p.startswith(("Published", "Expected"))]
            yield (
                str(path.relative_to(CONFIGS).with_suffix("")),
                " ".join(paragraphs[:1] + expected),
            )


SECTIONS: dict[str, Callable[[], Iterator[tuple[str, str]]]] = {
    "methods": methods,
    "tasks": tasks,
    "views": views,
    "protocols": protocols,
    "studies": studies,
    "configs": configs,
}


def header(path: Path) -> list[str]:
    """The paragraphs of the comment that a YAML file begins with."""
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        lines.append(line[1:].strip())
    return [" ".join(p.split()) for p in "\n".join(lines).split("\n\n")]


def settings_of(method: str) -> Iterator[tuple[str, str, str, str]]:
    """(setting, default, the paper's value, source) of what shapes its training.

    The default is that of `--config mnre/METHOD` (entities alone: `twitter2015/METHOD`) where one
    is shipped, else of `finetune train`.

    Raises:
        InputError: no such method.
    """
    registry.place_of("methods", method)
    values = {name: getattr(TrainConfig, name) for name in TRAINING}
    own = registry.load_config(method)()
    own = own.settled() if isinstance(own, Profiled) else own
    values |= flat({"model": asdict(own), "optim": asdict(OptimConfig())})
    paths = (CONFIGS / task / f"{method}.yaml" for task in ("mnre", "twitter2015"))
    if path := next((path for path in paths if path.is_file()), None):
        values |= flat(yaml.safe_load(path.read_text(encoding="utf-8")))
    with PAPERS.open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file, delimiter="\t") if row["method"] == method]
    stated = {row["setting"]: (row["paper"], row["source"]) for row in rows}
    names = [name for name in values if "." in name or name in TRAINING]
    for name in [*names, *(name for name in stated if name not in names)]:
        yield name, str(values.get(name, "–")), *stated.get(name, ("not stated", ""))


def settings_table(method: str) -> str:
    """`settings_of`, in columns of at most 80 characters together."""
    rows = [("setting", "default", "paper", "source"), *settings_of(method)]
    widths = (27, 14, 16, 20)
    lines = []
    for row in rows:
        cells = [
            textwrap.wrap(text, width) or [""] for text, width in zip(row, widths, strict=True)
        ]
        for parts in itertools.zip_longest(*cells, fillvalue=""):
            line = " ".join(part.ljust(width) for part, width in zip(parts, widths, strict=True))
            lines.append(line.rstrip())
    return "\n".join(lines)


def flat(values: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    """A nested mapping with dotted keys."""
    result: dict[str, Any] = {}
    for key, value in values.items():
        named = before + key
        result |= flat(value, f"{named}.") if isinstance(value, Mapping) else {named: value}
    return result


@dataclass(frozen=True, kw_only=True)
class ListConfig:
    """Methods, tasks, views, studies, and configurations with expected figures."""

    POSITIONAL: ClassVar = ("what",)
    what: tuple[str, ...] = ()
    """Some of methods, tasks, views, protocols, studies, configs; none: all."""
    settings: str | None = None
    """Instead: every setting of this method, its default, the paper's value and where that is
    stated."""

    def __post_init__(self) -> None:
        if unknown := set(self.what) - SECTIONS.keys():
            raise ValueError(f"{min(unknown)}: there are {', '.join(SECTIONS)}")


def run(config: ListConfig) -> None:
    """Print each section, or the settings of a method."""
    if config.settings is not None:
        print(settings_table(config.settings))
        return
    for section in config.what or SECTIONS:
        print(section)
        for name, text in SECTIONS[section]():
            indent = " " * 14
            first = f"  {name:<12}" if len(name) < 12 else f"  {name}\n{indent}"
            wrapped = textwrap.wrap(text, 80 - len(indent)) or [""]
            print(first + f"\n{indent}".join(wrapped))
        print()


def main(argv: Sequence[str]) -> None:
    """python -m finetune list"""
    prog = "python -m finetune list"
    run(parse_config(ListConfig, argv, prog=prog, example=f"{prog} methods"))
