"""The words of a command line as one `--name=value` each, by the fields of a dataclass.

`--max-missing` and `--max_missing` are the same option; an option of several values takes `a b`,
`a,b`, `[a, b]`, or is given again; a switch needs no value.
"""

import dataclasses
import difflib
import itertools
import json
import re
import types
import typing
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from shards.files import InputError
from shards.synonyms import SYNONYMS

OWN = {"help", "config", "print_config"}
"""Options that every command has."""
SWITCH = {"true": "true", "yes": "true", "on": "true", "false": "false", "no": "false"}


def fields_of(config_class: type, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted name, type) of every setting; a section itself has the type of its dataclass."""
    hints = typing.get_type_hints(config_class)
    for field in dataclasses.fields(config_class):
        kind = hints[field.name]
        yield prefix + field.name, kind
        if dataclasses.is_dataclass(kind):
            yield from fields_of(typing.cast(type, kind), f"{prefix}{field.name}.")


def _not_empty(config_class: type, prefix: str = "") -> Iterator[str]:
    """Settings of paths, and of text for which nothing stands by default: an empty one is none."""
    hints = typing.get_type_hints(config_class)
    for field in dataclasses.fields(config_class):
        kind = hints[field.name]
        types_of = {kind, _item(kind), *typing.get_args(kind)}
        if dataclasses.is_dataclass(kind):
            yield from _not_empty(typing.cast(type, kind), f"{prefix}{field.name}.")
        elif Path in types_of or (
            str in types_of and field.default in (dataclasses.MISSING, None)
            and field.default_factory is dataclasses.MISSING
        ):  # fmt: skip
            yield prefix + field.name


def with_rest(argv: list[str], config_class: type) -> list[str]:
    """The words behind a lone `--` as one option."""
    rest: str | None = getattr(config_class, "REST", None)
    if rest is None or "--" not in argv:
        return argv
    place = argv.index("--")
    return [*argv[:place], f"--{rest}={json.dumps(argv[place + 1 :])}"]


def split_files(argv: list[str], config_class: type) -> tuple[list[str], list[str]]:
    """(values of `--config`, the other words as one `--name=value` each)."""
    kinds = dict(fields_of(config_class))
    places = list(getattr(config_class, "POSITIONAL", ()))
    values: dict[str, list[str]] = {}
    rest: list[str] = []
    plain: list[str] = []
    words = [underscored(word) for word in argv]
    while words:
        word = words.pop(0)
        if not _is_option(word):
            plain.append(word)
            continue
        name, equals, value = word.removeprefix("--").partition("=")
        name = getattr(config_class, "ALIASES", {}).get(name, name)
        kind = kinds.get(name)
        if word == "-h" or name in OWN - {"config"}:
            rest.append(word)
        elif name.startswith("no_") and kinds.get(name[3:]) is bool:
            values[name[3:]] = ["false"]
        elif kind is None and name != "config":
            raise InputError(f"unrecognized arguments: --{name}{meant(name, kinds)}")
        elif kind is bool:
            if not equals:  # a plain word behind it is its value, unless it may be a positional one
                own = (
                    words
                    and not _is_option(words[0])
                    and (words[0].lower() in SWITCH or not places)
                )
                value = words.pop(0) if own else "true"
            values[name] = [SWITCH.get(value.lower(), value)]
        elif equals or not words or _is_option(words[0]):
            if not equals:
                raise InputError(f"--{name}: expected a value")
            values.setdefault(name, []).append(value)
        else:
            values.setdefault(name, []).append(words.pop(0))
            while _item(kind) is not None and words and not _is_option(words[0]):
                values[name].append(words.pop(0))
    files = values.pop("config", [])
    for word in plain:
        if not places:
            raise InputError(f"unrecognized arguments: {word}")
        values.setdefault(places[0], []).append(word)
        if _item(kinds[places[0]]) is None:
            places.pop(0)
    must = set(_not_empty(config_class))
    for name, several in values.items():
        if name in must and not all(word.strip() for word in several):
            raise InputError(f"--{name}: is empty (a shell variable that is not set?)")
        item = _item(kinds[name])
        # Said again, a list goes on; of anything else the last word holds.
        value = several[-1] if item is None or several == ["null"] else _listed(several, item)
        rest.append(f"--{name}={value}")
    return files, rest


def values_of(words: Sequence[str], name: str) -> list[str]:
    """What stands behind each `--name`, in order."""
    pairs = itertools.pairwise([*words, ""])
    return [
        value if word == f"--{name}" else word.partition("=")[2]
        for word, value in pairs
        if word.partition("=")[0] == f"--{name}"
    ]


def _is_option(word: str) -> bool:
    return word == "-h" or re.match(r"--[A-Za-z][\w.]*(=|$)", word) is not None


def underscored(word: str) -> str:
    """`--top-k=3` -> `--top_k=3`: the fields of a dataclass have no dashes."""
    match = re.match(r"--[A-Za-z][\w.-]*(?==|$)", word)
    return "--" + match[0][2:].replace("-", "_") + word[match.end() :] if match else word


def _item(kind: Any) -> Any:
    """The type of the items of a type that holds several, else None."""
    origin = typing.get_origin(kind)
    if origin in (tuple, list):
        return typing.get_args(kind)[0]
    if origin in (typing.Union, types.UnionType):
        return next((item for part in typing.get_args(kind) if (item := _item(part))), None)
    return None


def _listed(words: Sequence[str], item: Any) -> str:
    """`a b`, `a,b` or `[a, b]` as the YAML list of such items; free text and paths keep commas."""
    import yaml

    several: list[Any] = []
    for word in words:
        if word.startswith("[") and isinstance(content := yaml.safe_load(word), list):
            several += content
        else:
            several += [word] if item in (str, Path) else word.split(",")
    if item in (int, float):
        return "[" + ", ".join(str(part).strip() for part in several) + "]"
    texts = [str(part) if item in (str, Path) else str(part).strip() for part in several]
    return yaml.safe_dump(texts, default_flow_style=True, width=float("inf")).strip()


def meant(key: str, kinds: dict[str, Any]) -> str:
    """` (did you mean --optim.lr?)`"""
    names = [name for name, kind in kinds.items() if not dataclasses.is_dataclass(kind)]
    last = key.rpartition(".")[2]
    tails = [f".{tail}" for tail in (last, *SYNONYMS.get(last, ()))]
    close = [name for tail in tails for name in names if f".{name}".endswith(tail)]
    close += [name for name in names if name.startswith(key)]
    close += difflib.get_close_matches(key, names, n=1, cutoff=0.55)
    return f" (did you mean --{close[0]}?)" if close else ""
