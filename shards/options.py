"""A command's options: configuration dataclasses <- YAML files <- `--section.field value`.

The one dialect of all three packages, and the one file with jsonargparse. A dataclass holds the
options of a command, its docstrings their help, its `__post_init__` their check; the command itself
is a function of the dataclass. How its words are read: `argv.py`.
"""

import dataclasses
import difflib
import functools
import inspect
import os
import re
import sys
import textwrap
from collections.abc import Sequence
from fractions import Fraction
from numbers import Integral
from pathlib import Path
from typing import Any, TypeVar

from shards.argv import fields_of, meant, split_files, underscored, values_of, with_rest
from shards.files import CommonError, InputError

Config = TypeVar("Config")

LARGEST, DEEPEST = 1 << 20, 20
"""Bytes of a configuration file, and levels that it nests."""


def parse_config(
    config_class: type[Config],
    argv: Sequence[str],
    *,
    prog: str,
    example: str,
    description: str | None = None,
) -> Config:
    """An instance of `config_class` from defaults <- `--config` files <- the command line.

    Args:
        config_class: frozen, keyword-only dataclass; its field docstrings become the help text.
            The fields that its `POSITIONAL` names are given as plain words; the last one takes all
            that are left where it holds several. What follows a lone `--` fills, word by word, the
            field that its `REST` names. `ALIASES`: further names of options -> fields.
        argv: arguments without the program name. Options win over files wherever they stand; of
            several files the later one wins. A file is found by path, else by name among the
            `configs` folder of the dataclass's package.
        description: default: the docstring of the dataclass.

    Raises:
        CommonError: unknown key (with the nearest valid one), wrong type, impossible combination.
    """
    try:
        files, words = split_files(with_rest(list(argv), config_class), config_class)
        for name in files:
            check_bounds(Path(shipped(config_class, name)))
        read = getattr(config_class, "read_file", str)  # its content, where an old file needs it
        words = [f"--config={read(shipped(config_class, name))}" for name in files] + words
    except InputError as error:
        raise CommonError(f"{prog}: {error}") from None
    from jsonargparse import ArgumentError

    kind: type = config_class
    parser = _parser(kind, prog, description or inspect.getdoc(kind) or "", example)
    try:
        namespace = parser.parse_args(words)
        del namespace.config
        config = config_class(**parser.instantiate_classes(namespace).as_dict())
        refuse_negative(config)
        return config
    except ArgumentError as error:
        message = f"{prog}: {_one_line(str(error))}{_nearest(str(error), config_class)}"
        if "arguments are required" in message:
            message += f"; see `{prog} --help`"
        raise CommonError(message) from None
    except (ValueError, TypeError) as error:
        raise CommonError(f"{prog}: {_one_line(str(error))}") from error


def positive(prefix: str = "--", /, **counts: int | None) -> None:
    """Raises: InputError: one of these is neither None nor a whole number above 0."""
    for name, count in counts.items():
        if count is not None and (not isinstance(count, Integral) or count < 1):
            raise InputError(f"{prefix}{name} {count}: must be a positive whole number")


def refuse_negative(config: Any, section: str = "") -> None:
    """Raises: InputError: a number is; of no option of ours it would mean anything. A section of
    another package, a method's, knows what its own mean."""
    for field in dataclasses.fields(config):
        value, name = getattr(config, field.name), f"{section}{field.name}"
        if dataclasses.is_dataclass(value):
            if _package(type(value)) == _package(type(config)):
                refuse_negative(value, f"{name}.")
        elif isinstance(value, int | float) and value < 0:
            raise InputError(f"--{name} {value}: must not be negative")


def _package(of: type) -> str:
    return of.__module__.partition(".")[0]


def check_bounds(path: Path) -> None:
    """Refuse, before anything is built of it, a YAML file that no person wrote as settings.

    Raises:
        InputError: more than 1 MiB, or nested deeper than 20 levels.
    """
    import yaml

    if (size := path.stat().st_size) > LARGEST:
        raise InputError(f"{path}: {size:,} bytes are no settings (at most {LARGEST:,})")
    depth = 0
    try:
        for event in yaml.parse(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader):
            depth += isinstance(event, yaml.CollectionStartEvent)
            depth -= isinstance(event, yaml.CollectionEndEvent)
            if depth > DEEPEST:
                mark = event.start_mark
                line = f"line {mark.line + 1}: " if mark else ""
                raise InputError(f"{path}: {line}nested deeper than {DEEPEST} levels")
    except (yaml.YAMLError, UnicodeDecodeError):
        return  # the parser says what is wrong with it


def look_ahead(name: str, argv: Sequence[str], config_class: type) -> str | None:
    """The value of `--name` on the command line, else in the last `--config` file that has it."""
    words = [underscored(word) for word in argv]
    given = values_of(words, name)
    if given:
        return given[-1]
    import yaml

    for path in (shipped(config_class, file) for file in reversed(values_of(words, "config"))):
        check_bounds(Path(path))
        try:
            content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        except (OSError, ValueError, yaml.YAMLError) as error:
            raise InputError(f"{path}: {' '.join(str(error).split())}") from None
        if isinstance(content, dict) and name in content:
            return str(content[name])
    return None


def shipped(config_class: type, name: str) -> str:
    """The path of a configuration: a file as it is, else one that the package ships.

    `tiny`, `mnre/promu`, `mnre/promu.yaml` and `finetune/configs/mnre/promu.yaml` name one from any
    folder.

    Raises:
        InputError: neither; names those that come close.
    """
    if Path(name).is_file():
        return name
    package = config_class.__module__.partition(".")[0]
    folder = Path(str(sys.modules[package].__file__)).parent / "configs"
    paths = {str(path.relative_to(folder).with_suffix("")): path for path in folder.rglob("*.yaml")}
    key = name.removeprefix(f"{package}/configs/").removesuffix(".yaml")
    if key in paths:
        return str(paths[key])
    hint = near(key, paths) if paths else ""
    raise InputError(f"--config {name}: no such file{hint}")


def near(name: str, names: Sequence[str] | dict[str, Any]) -> str:
    """`, and none is shipped under that name (did you mean …?)`, for a name among shipped ones."""
    tails = [known for known in names if known.rpartition("/")[2] == name.rpartition("/")[2]]
    close = tails or difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    hints = [f"did you mean {' or '.join(close)}?"] if close else []
    if len(names) <= 20 or not close:
        hints.append(f"there are {', '.join(names)}")
    return f", and none is shipped under that name ({' '.join(hints)})"


def first_line(thing: object) -> str:
    """Of its docstring, without the full stop."""
    return (inspect.getdoc(thing) or "").partition("\n")[0].removesuffix(".")


# ---- jsonargparse --------------------------------------------------------------------------------


@functools.cache  # a study and a sweep parse for each of their runs
def _parser(config_class: type, prog: str, description: str, example: str) -> Any:
    from jsonargparse import ActionConfigFile, ArgumentParser, set_parsing_settings
    from jsonargparse.typing import register_type

    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    # Exactly as it was typed: 0.29 of 100 is 29.
    register_type(Fraction, str, _fraction, fail_already_registered=False)
    words = "".join(f"{name.upper()} " for name in getattr(config_class, "POSITIONAL", ()))
    usage = f"{prog} {words}[--config FILE] [--name VALUE …]"  # all are explained below
    parser = ArgumentParser(
        prog=prog,
        usage=textwrap.fill(usage, 72, subsequent_indent="    "),
        description=f"{description}\n\nexample: {example}",
        exit_on_error=False,
        formatter_class=_formatter(),
        allow_abbrev=False,  # `--seed` would be taken for `--seeds`
    )
    parser.add_argument(
        "--config", action=ActionConfigFile, metavar="FILE",
        help="YAML, by path or by name of a shipped one; repeatable, later wins",
    )  # fmt: skip
    parser.add_class_arguments(config_class, as_group=False)
    return parser


def _fraction(text: str) -> Fraction:
    try:
        return Fraction(str(text))
    except ZeroDivisionError:
        raise ValueError(f"{text} is no number") from None


def _formatter() -> type:
    from jsonargparse import DefaultHelpFormatter

    class Formatter(DefaultHelpFormatter):
        """Keeps the line breaks of the description, so that the example stays on its own line, and
        breaks what long lists of choices make of an option."""

        def format_help(self) -> str:
            shown = super().format_help()  # a line may end inside
            return re.sub(r"<class ?(\s*)'(\w+)'>", r"\1\2", shown)

        def _fill_text(self, text: str, width: int, indent: str) -> str:
            return "\n".join(
                super(Formatter, self)._fill_text(
                    line, width, line[: len(line) - len(line.lstrip(" "))]
                )
                for line in text.split("\n")
            )

        def _format_action_invocation(self, action: Any) -> str:
            text = super()._format_action_invocation(action)
            if len(text) <= self._width - 2:
                return text
            indent = " " * 6
            return textwrap.fill(
                text.replace(",", ", "), self._width - 2, subsequent_indent=indent,
                break_long_words=False, break_on_hyphens=False,
            )  # fmt: skip

    return Formatter


def _one_line(message: str) -> str:
    lines = [line.strip().removeprefix("- ") for line in message.splitlines()]
    line = " ".join(line for line in lines if line)
    # Of an optional setting jsonargparse tells all that each part of its type has against a value.
    line = re.sub(
        r"Does not validate against any .*? Errors: (.*?)(?:\. Got value: .*?)? "
        r"Expected a <class 'NoneType'> Given value type: .*? Given value: ",
        r"\1 or null. Got value: ",
        line,
    )
    line = re.sub(r"Expected a typing\.Literal\[([^]]*)\]", r"Expected one of \1", line)
    return re.sub(r"Expected a <class '(\w+)'>", r"Expected a value of type \1", line)


def _nearest(message: str, config_class: type) -> str:
    """` (did you mean …?)` for the unknown key of a file that a parser message names."""
    named = re.findall(r"[Uu]nrecognized arguments: --([\w.]+)", message)
    named += [
        f"{group}.{key}"
        for group, key in re.findall(r"Group '([\w.]+)' does not accept option '([\w.]+)'", message)
    ]
    named += re.findall(r"Key '([\w.]+)' is not expected", message)
    return next((meant(key, dict(fields_of(config_class))) for key in named), "")


def same_setting(one: Any, other: Any) -> bool:
    """Whether two values of a setting are equal, or spell the same path: `mine/` and `mine`."""
    if one == other or not (isinstance(one, str) and isinstance(other, str)):
        return bool(one == other)
    return "://" not in one + other and os.path.realpath(one) == os.path.realpath(other)


def dump_config(config: Any) -> str:
    """The fully resolved configuration as YAML."""
    import yaml

    return yaml.safe_dump(_plain(dataclasses.asdict(config)), sort_keys=False)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value if isinstance(value, int | float | bool | str | None) else str(value)
