"""What an earlier `predict --out` has written, and the stream for what is missing.

Beside OUT.partial lies OUT.partial.crc32, a checksum a line: answers are plain JSON lines, which
hold none themselves, and a resumed file is handed out as if written in one go. Of a finished file
OUT.settings.json keeps the digest.
"""

import hashlib
import json
import os
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune.predict.live_options import WEIGHTS
from shards.files import InputError, atomic_path, digest, file_sha256
from shards.json_files import parse_object, read_json, write_json
from shards.options import same_setting

SUMS, WIDTH = ".crc32", 9
ANSWERS = "answers_sha256"
CAPTIONER = "caption_model_commit"
LATER = {"pictures", CAPTIONER, *(f"{name}_sha256" for name in WEIGHTS)}
"""What older code did not look at."""
OTHER_FORMS = (".bin", ".ckpt", ".gguf", ".h5", ".msgpack", ".onnx", ".ot", ".pt", ".pth")
"""Weights that `from_pretrained` passes over beside safetensors."""
CUT = b'"cut": true'
"""In the line of a post that was not read whole; inside a text the quotes would be escaped."""


@dataclass(frozen=True)
class Done:
    """What an earlier call has written to `--out`: OUT.partial until all is there."""

    out: Path | None
    rows: int = 0
    bad: int = 0
    cut: int = 0
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
            written = before.pop(ANSWERS, None)
            if out.exists() and written not in (None, digest(out)):
                raise InputError(
                    f"{out}: not what was written (damaged on the disk, or edited?); remove it to "
                    "answer anew"
                )
            before = {n: settings[n] for n in settings.keys() & LATER} | before
            # An option that came later was not set then.
            names = sorted(before.keys() | settings)
            if changed := [n for n in names if not same_setting(before.get(n), settings.get(n))]:
                raise InputError(
                    f"{out if out.exists() else partial}: holds answers to another input, run or "
                    f"settings ({', '.join(changed)}); give another --out, or remove it"
                )
        else:
            return Done(out, settings=settings)
        path = out if out.exists() else partial
        rows = bad = cut = end = 0
        sums_path = with_end(partial, SUMS)
        sums = sums_path.read_bytes() if path == partial and sums_path.is_file() else None
        fresh = bytearray()
        with path.open("rb") as lines:
            for line in lines:
                known = None if sums is None else sums[len(fresh) : len(fresh) + WIDTH]
                if not line.endswith(b"\n") or (known is not None and len(known) < WIDTH):
                    break  # the two files were not cut at the same line
                if known not in (None, checksum(line)):
                    raise InputError(
                        f"{path}: line {rows + 1}: not what was written (damaged on the disk?); "
                        f"remove {path} to answer anew"
                    )
                fresh += checksum(line)
                rows, end = rows + 1, end + len(line)
                cut += CUT in line
                if b'"error": ' in line:
                    where = f"{path}: line {rows}"
                    bad += "error" in parse_object(line, where, f"remove {path} to answer anew")
        if path == partial:
            os.truncate(partial, end)
            if sums is None:  # of older code
                with atomic_path(sums_path) as temporary:
                    temporary.write_bytes(fresh)
            os.truncate(sums_path, len(fresh))
        else:
            sums_path.unlink(missing_ok=True)  # killed before it was gone
        return Done(out, rows, bad, cut, finished=path == out)

    @contextmanager
    def open(self) -> Iterator[Callable[[str], Any]]:
        """What takes further lines."""
        if self.out is None:
            yield lambda line: sys.stdout.write(f"{line}\n")
            return
        if self.settings is not None:
            self.out.parent.mkdir(parents=True, exist_ok=True)
            write_json(with_end(self.out, ".settings.json"), self.settings)
        partial = with_end(self.out, ".partial")
        with (
            with_end(partial, SUMS).open("ab", buffering=1 << 16) as sums,
            partial.open("ab", buffering=1 << 16) as lines,
        ):

            def write(text: str) -> None:
                line = f"{text}\n".encode()
                lines.write(line)
                sums.write(checksum(line))

            yield write

    def finish(self) -> None:
        """All lines are there: the file gets its name."""
        if self.out is not None:
            partial, state = with_end(self.out, ".partial"), with_end(self.out, ".settings.json")
            write_json(state, read_json(state) | {ANSWERS: digest(partial)})
            os.replace(partial, self.out)
            with_end(partial, SUMS).unlink(missing_ok=True)


def checksum(line: bytes) -> bytes:
    """WIDTH bytes of text."""
    return b"%08x\n" % zlib.crc32(line)


def with_end(path: Path, end: str) -> Path:
    """`path` with something after its name."""
    return path.with_name(path.name + end)


def identity(source: str) -> str:
    """Digest of what a run answers with: its model, and the answers that it was calibrated on."""
    from finetune.run.open_run import best_seed, model_of

    seed = best_seed(source)
    files = sorted([*model_of(seed).iterdir(), seed / "pred_dev.jsonl"])
    return digest_of([path for path in files if path.is_file()])


def files_read(path: Path) -> list[Path]:
    """What loading reads of weights: of a folder of `transformers` no folder inside, and where
    there are safetensors no other form of them. It is hashed at every call: size and time of a file
    do not tell that two models differ."""
    files = sorted(p for p in [path, *path.rglob("*")] if p.is_file())
    if (path / "config.json").is_file():
        files = [file for file in files if file.parent == path]
    if any(file.suffix == ".safetensors" for file in files):
        files = [file for file in files if file.suffix not in OTHER_FORMS]
    return files


def digest_of(files: Iterable[Path]) -> str:
    """Of files by name and content, in their order."""
    digests = [(path.name, file_sha256(path)) for path in files]
    return hashlib.sha256(json.dumps(digests).encode()).hexdigest()
