"""The parser of all commands of the three packages that are no configuration dataclass."""

import argparse
import difflib
from typing import Any, NoReturn


class CommandParser(argparse.ArgumentParser):
    """Bad usage, too, is one line on standard error and exit status 2; subcommands inherit it.

    Names are given in full: `--seed` is not taken for `--seeds`, it is refused with that name.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"allow_abbrev": False, **kwargs})

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Refuses what is unknown here, where the options of this (sub)command are at hand."""
        namespace, extras = super().parse_known_args(args, namespace)
        if extras:
            self.error(f"unrecognized arguments: {' '.join(extras)}{self._meant(extras)}")
        return namespace, extras

    def _meant(self, extras: list[str]) -> str:
        """` (did you mean --seeds?)`"""
        known = [name for name in self._option_string_actions if name.startswith("--")]
        for word in (extra.partition("=")[0] for extra in extras if extra.startswith("--")):
            close = [name for name in known if name.startswith(word)]
            close += difflib.get_close_matches(word, known, n=1)
            if close:
                return f" (did you mean {close[0]}?)"
        return ""

    def error(self, message: str) -> NoReturn:
        """Instead of the usage, where to read more."""
        self.exit(2, f"error: {self.prog}: {message}; see `{self.prog} --help`\n")
