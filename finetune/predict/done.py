"""What an earlier `predict --out` has written, and the stream for what is missing."""

import os
import sys
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shards.files import InputError, parse_object, read_json, write_json


@dataclass(frozen=True)
class Done:
    """What an earlier call has written to `--out`: OUT.partial until all is there."""

    out: Path | None
    rows: int = 0
    bad: int = 0
    finished: bool = False
    settings: dict[str, Any] | None = None
    """What the answers depend on, where nothing is there yet."""

    @staticmethod
    def none() -> "Done":
        """Standard output: nothing is kept."""
        return Done(None)

    @staticmethod
    def find(out: Path, settings: dict[str, Any]) -> "Done":
        """Look at `out`; keep whole lines of a partial file, cut off a broken one.

        Args:
            settings: what the answers depend on.

        Raises:
            InputError: what is there came from another input or other settings.
        """
        partial, state = with_end(out, ".partial"), with_end(out, ".settings.json")
        if out.exists() and not state.is_file():
            raise InputError(f"{out}: no answers of this command; give another --out")
        if out.exists() or partial.exists():
            before = read_json(state, f"remove {out if out.exists() else partial} to answer anew")
            # An option that came later was not set then.
            names = sorted(before.keys() | settings)
            if changed := [name for name in names if before.get(name) != settings.get(name)]:
                raise InputError(
                    f"{out if out.exists() else partial}: holds answers to another input, run or "
                    f"settings ({', '.join(changed)}); give another --out, or remove it"
                )
        else:
            return Done(out, settings=settings)
        path = out if out.exists() else partial
        rows = bad = end = 0
        with path.open("rb") as lines:
            for line in lines:
                if not line.endswith(b"\n"):
                    break
                rows, end = rows + 1, end + len(line)
                if b'"error": ' in line:
                    where = f"{path}: line {rows}"
                    bad += "error" in parse_object(line, where, f"remove {path} to answer anew")
        if path == partial:
            os.truncate(partial, end)
        return Done(out, rows, bad, finished=path == out)

    def open(self) -> Any:
        """The stream for further lines."""
        if self.out is None:
            return nullcontext(sys.stdout)
        if self.settings is not None:
            self.out.parent.mkdir(parents=True, exist_ok=True)
            write_json(with_end(self.out, ".settings.json"), self.settings)
        return with_end(self.out, ".partial").open("a", encoding="utf-8", buffering=1 << 16)

    def finish(self) -> None:
        """All lines are there: the file gets its name."""
        if self.out is not None:
            os.replace(with_end(self.out, ".partial"), self.out)


def with_end(path: Path, end: str) -> Path:
    """`path` with something after its name."""
    return path.with_name(path.name + end)
