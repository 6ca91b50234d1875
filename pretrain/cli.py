"""Configuration dataclasses <- YAML and `--section.field value`; the one file with jsonargparse."""

import difflib
import errno
import functools
import os
import re
import sys
import textwrap
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from shards.files import InputError

Config = TypeVar("Config")
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG)
_WRONG_PATH = (
    *(errno.ENOENT, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EISDIR, errno.EEXIST),
    *(errno.ENOTEMPTY, errno.ENAMETOOLONG, errno.ELOOP),
)


class CommonError(InputError):
    """An InputError that every process of a job raises alike: the main one tells it."""


def exit_on_input_error(main: Callable[..., Any]) -> Callable[..., Any]:
    """Decorate a command: `InputError` becomes one line on standard error and exit status 2."""

    @functools.wraps(main)
    def run(*args: Any, **kwargs: Any) -> Any:
        try:
            return main(*args, **kwargs)
        except InputError as error:
            if not isinstance(error, CommonError) or os.environ.get("RANK", "0") == "0":
                sys.stderr.write(f"error: {error}\n")
            sys.exit(2)
        except BrokenPipeError:  # `… | head` closed our output: not a failure of ours
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(141)
        except OSError as error:  # others, such as a file server's hiccup, are no wrong input
            if error.errno not in _FULL and (not error.filename or error.errno not in _WRONG_PATH):
                raise
            sys.stderr.write(f"error: {error.filename or 'disk'}: {error.strerror}\n")
            sys.exit(2)
        except KeyboardInterrupt:
            sys.exit(130)

    return run


def _parser(config_class: type, prog: str | None, description: str, example: str, **kwargs: Any):
    from jsonargparse import ActionConfigFile, ArgumentParser, set_parsing_settings

    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = ArgumentParser(
        prog=prog,
        usage="%(prog)s [--config FILE] [--name VALUE …]",  # all names are explained below
        description=f"{description}\n\nexample: {example}",
        exit_on_error=False,
        formatter_class=_formatter(),
        allow_abbrev=False,  # `--seed` would be taken for `--seeds`
        **kwargs,
    )
    parser.add_argument(
        "--config", action=ActionConfigFile, metavar="FILE", help="YAML; repeatable, later wins"
    )
    parser.add_class_arguments(config_class, as_group=False)
    return parser


def _formatter() -> type:
    from jsonargparse import DefaultHelpFormatter

    class Formatter(DefaultHelpFormatter):
        """Keeps the line breaks of the description, so that the example stays on its own line, and
        breaks what long lists of choices make of an option."""

        def _fill_text(self, text: str, width: int, indent: str) -> str:
            return "\n".join(
                super(Formatter, self)._fill_text(line, width, indent) for line in text.split("\n")
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


def parse_config(
    config_class: type[Config],
    argv: Sequence[str],
    *,
    prog: str,
    description: str,
    example: str,
    skip_validation: bool = False,
) -> Config:
    """An instance of `config_class` from defaults <- `--config` files <- `--section.field value`.

    Args:
        config_class: frozen, keyword-only dataclass; its field docstrings become the help text.
        argv: arguments without the program name. `--local_rank=N` (DeepSpeed's launcher adds it)
            is ignored: the rank comes from the environment.
        skip_validation: leave required fields unset instead of failing (used to look ahead).

    Raises:
        CommonError: unknown key (with the nearest valid one), wrong type, impossible combination.
    """
    from jsonargparse import ArgumentError

    argv = [a for a in argv if not re.fullmatch(r"--local[-_]rank=-?\d+", a)]
    argv = [_with_underscores(a) for a in argv]
    parser = _parser(config_class, prog, description, example)
    try:
        namespace = parser.parse_args(argv, _skip_validation=skip_validation)
        del namespace.config
        return config_class(**parser.instantiate_classes(namespace).as_dict())
    except ArgumentError as error:
        message = f"{prog}: {_one_line(str(error))}{_nearest(str(error), parser)}"
        if "arguments are required" in message:
            message += f"; see `{prog} --help`"
        raise CommonError(message) from None
    except (ValueError, TypeError) as error:
        raise CommonError(f"{prog}: {_one_line(str(error))}") from error


def _with_underscores(word: str) -> str:
    """`--top-k=3` -> `--top_k=3`: the fields of a dataclass have no dashes."""
    name, equals, value = word.partition("=")
    return "--" + name[2:].replace("-", "_") + equals + value if word.startswith("--") else word


def _one_line(message: str) -> str:
    lines = [line.strip(" -") for line in message.splitlines()]
    line = " ".join(line for line in lines if line)
    line = re.sub(r"Expected a typing\.Literal\[([^]]*)\]", r"Expected one of \1", line)
    return re.sub(r"Expected a <class '(\w+)'>", r"Expected a value of type \1", line)


def _nearest(message: str, parser: Any) -> str:
    """` (did you mean …?)` for the unknown key that a parser message names."""
    named = re.findall(r"[Uu]nrecognized arguments: --([\w.]+)", message)
    named += [
        f"{group}.{key}"
        for group, key in re.findall(r"Group '([\w.]+)' does not accept option '([\w.]+)'", message)
    ]
    known = [action.dest for action in parser._actions if action.dest not in ("help", "config")]
    for key in named:
        close = difflib.get_close_matches(key, known, n=1, cutoff=0.4)
        tail = [name for name in known if name.endswith("." + key.rsplit(".", 1)[-1])]
        if close or tail:
            return f" (did you mean {(close or tail)[0]}?)"
    return ""


def dump_config(config: Any) -> str:
    """The fully resolved configuration as YAML."""
    import dataclasses

    import yaml

    return yaml.safe_dump(_plain(dataclasses.asdict(config)), sort_keys=False)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value if isinstance(value, int | float | bool | str | None) else str(value)
