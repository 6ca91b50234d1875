"""`python -m finetune list`: what there is, with the figures to expect."""

import inspect
import textwrap
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from finetune import registry
from finetune.data.views import TOOLS
from finetune.protocols import PROTOCOLS
from finetune.report.study import STUDIES
from shards.command import CommandParser
from shards.files import InputError

CONFIGS = Path(__file__).parents[1] / "configs"


def methods() -> Iterator[tuple[str, str]]:
    """Name -> what it is, and which kinds of task it can do."""
    for name in sorted(registry.known("methods")):
        method = registry.load("methods", name)
        yield name, f"{first_line(inspect.getmodule(method))} [{', '.join(sorted(method.kinds))}]"


def tasks() -> Iterator[tuple[str, str]]:
    """Name -> what it is."""
    for name in registry.known("tasks"):
        task = registry.load("tasks", name)
        yield name, f"{first_line(task)} {first_line(inspect.getmodule(task))}"


def views() -> Iterator[tuple[str, str]]:
    """Name -> what it changes, and in which splits."""
    for name, (text, scope, _) in TOOLS.items():
        yield name, f"{text} (default: {scope})"


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
    """File -> what it is, and the published figures that its header names."""
    for path in sorted(CONFIGS.glob("*/*.yaml")):
        if path.parent != STUDIES:
            paragraphs = header(path)
            expected = [p for p in paragraphs if p.startswith(("Published", "Expected"))]
            yield str(path.relative_to(CONFIGS.parents[1])), " ".join(paragraphs[:1] + expected)


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


def first_line(thing: object) -> str:
    """Of its docstring."""
    return (inspect.getdoc(thing) or "").partition("\n")[0]


def main(argv: Sequence[str] | None = None) -> None:
    """`python -m finetune list`"""
    parser = CommandParser(
        prog="python -m finetune list",
        description="Methods, tasks, views, studies, and configurations with expected figures.",
        epilog="example: python -m finetune list methods",
    )
    parser.add_argument(
        "what", nargs="*", metavar="WHAT", help=f"some of {', '.join(SECTIONS)}; default all"
    )
    args = parser.parse_args(argv)
    if unknown := set(args.what) - SECTIONS.keys():
        raise InputError(f"list {sorted(unknown)[0]}: there are {', '.join(SECTIONS)}")
    for section in args.what or SECTIONS:
        print(section)
        for name, text in SECTIONS[section]():
            indent = " " * 14
            first = f"  {name:<12}" if len(name) < 12 else f"  {name}\n{indent}"
            wrapped = textwrap.wrap(text, 80 - len(indent)) or [""]
            print(first + f"\n{indent}".join(wrapped))
        print()
