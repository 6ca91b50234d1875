"""Commands: a table of names, one line per error, exit statuses; the options are `options.py`'s."""

import difflib
import errno
import functools
import importlib
import importlib.util
import os
import re
import sys
import textwrap
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from importlib.metadata import PackageNotFoundError, version
from typing import Any, NamedTuple

from shards.files import DISK_FULL, CommonError, InputError
from shards.locks import lock_file
from shards.options import first_line, parse_config
from shards.redact import without_secrets

_HICCUP = (errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EREMOTEIO)
"""What a disk or a file server answers that fails by itself."""
_WRONG_PATH = (
    *(errno.ENOENT, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EISDIR, errno.EEXIST),
    *(errno.ENOTEMPTY, errno.ENAMETOOLONG, errno.ELOOP),
)


class Module(NamedTuple):
    """A command that is imported when it is called: a function of its words, or a `Tool`."""

    place: str
    """`module:name`; a module alone: its `main`."""
    text: str
    """One line of help."""

    def load(self) -> Any:
        """What `place` names."""
        module, _, name = self.place.partition(":")
        return getattr(importlib.import_module(module), name or "main")


class Tool(NamedTuple):
    """A command that is a function of a configuration dataclass."""

    config: type
    """Its docstring explains the command, its fields are the options."""
    run: Callable[[Any], object]
    example: str
    """What follows the command's name."""
    alone: bool = False
    """Whether it holds its `--out` against other processes."""

    @property
    def text(self) -> str:
        """One line of help."""
        return first_line(self.config)

    def __call__(self, prog: str, argv: Sequence[str]) -> None:
        """Parse, then run."""
        config: Any = parse_config(self.config, argv, prog=prog, example=f"{prog} {self.example}")
        with lock_file(config.out) if self.alone else nullcontext():
            self.run(config)


class Group(NamedTuple):
    """A command that is a table of tools."""

    prog: str
    tools: Mapping[str, Tool]
    text: str
    """What it is for, in a sentence."""
    first: str
    """The tool whose example stands for all."""

    def __call__(self, argv: Sequence[str]) -> None:
        """Run the tool that the first word names."""
        example = f"{self.first} {self.tools[self.first].example}"
        dispatch(self.prog, self.tools, argv, self.text, example)


def exit_on_input_error(main: Callable[..., Any]) -> Callable[..., Any]:
    """Decorate a command: `InputError` becomes one line on standard error and exit status 2."""

    @functools.wraps(main)
    def run(*args: Any, **kwargs: Any) -> Any:
        try:
            return main(*args, **kwargs)
        except InputError as error:
            if not isinstance(error, CommonError) or os.environ.get("RANK", "0") in ("", "0"):
                sys.stderr.write(f"error: {without_secrets(str(error))}\n")
            sys.exit(2)
        except BrokenPipeError:  # `… | head` closed our output: not a failure of ours
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(141)
        except OSError as error:
            wrong = error.errno in DISK_FULL or (error.filename and error.errno in _WRONG_PATH)
            if not wrong and error.errno not in _HICCUP:
                raise
            sys.stderr.write(f"error: {error.filename or 'disk'}: {error.strerror}\n")
            sys.exit(2 if wrong else 1)  # 1: the same command may do better
        except KeyboardInterrupt:
            sys.stderr.write("interrupted; where it can resume, the same command goes on\n")
            sys.exit(130)

    return run


def dispatch(
    prog: str,
    commands: Mapping[str, Module | Tool],
    argv: Sequence[str],
    description: str,
    example: str,
) -> None:
    """Run the command that the first word names; `--help` lists all, `--version` answers.

    Raises:
        InputError: no such command; says which there are.
    """
    name, *rest = argv or ("",)
    if name in commands:
        command = commands[name]
        if isinstance(command, Module):
            command = command.load()
        command(f"{prog} {name}", rest) if isinstance(command, Tool) else command(rest)
    elif name in ("", "-h", "--help"):
        print(usage(prog, commands, description, example), end="")
        sys.exit(0 if name else 2)  # who gave no command asked for nothing that could be done
    elif name == "--version":
        print(f"fusion-mre {product_version()}")
    else:
        close = difflib.get_close_matches(name, commands, n=1)
        meant = f" (did you mean {close[0]}?)" if close else ""
        raise InputError(
            f"{prog}: unknown command {name!r}{meant}; there are {', '.join(commands)}"
        )


def usage(prog: str, commands: Mapping[str, Module | Tool], description: str, example: str) -> str:
    """What `--help` shows of a table of commands, on 80 columns."""
    width = max(map(len, commands)) + 2
    lines = [f"usage: {prog} COMMAND …", "", *textwrap.wrap(description, 80), ""]
    for name, command in commands.items():
        text = textwrap.wrap(command.text, 78 - width)
        lines += [f"  {name:<{width}}{text[0]}", *(" " * (width + 2) + line for line in text[1:])]
    example = textwrap.fill(
        f"example: {prog} {example}", 80, subsequent_indent="    ", break_long_words=False,
        break_on_hyphens=False,
    )  # fmt: skip
    return "\n".join(
        [*lines, "", f"`{prog} COMMAND --help` explains each, with an example.", "", example, ""]
    )


def require_extra(module: str, extra: str, what: str) -> None:
    """Refuse now, before the work, what an optional dependency would refuse after it."""
    if importlib.util.find_spec(module) is None:
        raise InputError(f"{what}: pip install 'fusion-mre[{extra}]'")


def product_version() -> str:
    """Of the installed distribution."""
    try:
        return version("fusion-mre")
    except PackageNotFoundError:
        return "(not installed)"


def without_local_rank(argv: Sequence[str] | None) -> list[str]:
    """The words of the command line; DeepSpeed's launcher puts `--local_rank=N` first, but the rank
    comes from the environment."""
    words = sys.argv[1:] if argv is None else argv
    return [word for word in words if not re.fullmatch(r"--local[-_]rank=-?\d+", word)]
