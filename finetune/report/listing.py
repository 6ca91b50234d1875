"""`python -m finetune list`: what there is, with the figures to expect."""

import inspect
import textwrap
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from finetune import registry
from finetune.data.views import TOOLS, default_scope
from finetune.protocols import PROTOCOLS
from finetune.report.study import STUDIES
from shards.files import InputError
from shards.options import first_line, parse_config

CONFIGS = Path(__file__).parents[1] / "configs"


def methods() -> Iterator[tuple[str, str]]:
    """Name -> what it is, and which kinds of task it can do."""
    for name in sorted(registry.known("methods")):
        if entry := registry.METHODS.get(name):
            yield name, f"{entry.text} [{', '.join(entry.kinds)}]"
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


@dataclass(frozen=True, kw_only=True)
class ListConfig:
    """Methods, tasks, views, studies, and configurations with expected figures."""

    POSITIONAL: ClassVar = ("what",)
    what: tuple[str, ...] = ()
    """Some of methods, tasks, views, protocols, studies, configs; none: all."""

    def __post_init__(self) -> None:
        if unknown := set(self.what) - SECTIONS.keys():
            raise ValueError(f"{min(unknown)}: there are {', '.join(SECTIONS)}")


def run(config: ListConfig) -> None:
    """Print each section."""
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
