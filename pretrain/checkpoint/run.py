"""Checkpoints of a run in progress: `checkpoints/step-N/`, complete or not there.

A directory counts only with its `COMPLETE` marker, which is written last; what a kill leaves
half-written is removed by the next start.
"""

import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch

from pretrain import distributed
from pretrain.checkpoint.background import BackgroundWriter
from pretrain.checkpoint.reshard import reshard
from pretrain.checkpoint.zero import check_trained, members_crc32
from pretrain.engine import Engine, SingleEngine
from shards.files import CommonError, InputError, atomic_path
from shards.json_files import read_json, write_json

MARKER = "COMPLETE"
_DAMAGED = ".damaged"


class RunCheckpoints:
    """The `checkpoints/` directory of one run."""

    def __init__(
        self, run_dir: Path, *, keep: int, best: str | None = None, background: bool = False
    ) -> None:
        """Keeps the `keep` newest, and the one with the best value of the figure `best`.

        background: `save` returns before the files are written; collective.
        """
        self.root = run_dir / "checkpoints"
        self.keep, self.best = keep, best
        self._writer = BackgroundWriter() if background else None
        self._under_way = self.root

    def complete_steps(self) -> list[int]:
        """Steps with a complete checkpoint, oldest first."""
        steps = [
            int(match[1])
            for path in self.root.glob("step-*")
            if (match := re.fullmatch(r"step-(\d+)", path.name)) and (path / MARKER).is_file()
        ]
        return sorted(steps)

    def resume(self, engine: Engine) -> tuple[int, int]:
        """Load the newest whole checkpoint; its step and the pairs consumed, or (0, 0).

        One that is damaged is named and set aside as `step-N.damaged`, and an older one taken.

        Raises:
            CommonError: there are checkpoints, and all of them are damaged.
        """
        distributed.on_main(self._clear)
        damaged: dict[int, str] = {}
        for step in reversed(distributed.on_main(self.complete_steps)):
            folder = self.root / f"step-{step}"
            problem = self._damage(folder)
            if not problem:
                distributed.on_main(partial(self._set_aside, damaged, folder))
                return self._load(engine, folder)
            damaged[step] = problem
        if damaged:
            raise CommonError(
                f"{self.root}: every checkpoint is damaged ({'; '.join(damaged.values())}); "
                f"remove {self.root} to start anew, or give another --run_dir"
            )
        return 0, 0

    def _load(self, engine: Engine, folder: Path) -> tuple[int, int]:
        facts = distributed.on_main(lambda: read_marker(folder))
        tag = folder.name
        if facts["layout"] != engine.layout:
            tag = self._relay(folder, facts["layout"], engine)
        engine.load(self.root, tag)
        distributed.barrier()
        if tag != folder.name:  # the copy, as large as the checkpoint
            distributed.on_main(lambda: shutil.rmtree(self.root / tag))
        distributed.on_main(partial(self._retire, folder))  # which a kill may have prevented
        return facts["step"], facts["samples"]

    def _clear(self) -> None:
        """Remove what a kill left half-written."""
        for folder in self.root.glob("step-*"):
            if not (folder / MARKER).is_file() and folder.suffix != _DAMAGED:
                shutil.rmtree(folder)

    def _damage(self, folder: Path) -> str:
        """What is wrong with a checkpoint, "" where nothing is; collective.

        Every file is read once here, its checksums compared, its pickle held to tensors and plain
        containers: DeepSpeed, which loads it afterwards, would run whatever a pickle asks for.
        """
        problem = ""
        try:
            # Each process looks at its share; together they have seen every file.
            check_checkpoint(folder, distributed.rank(), distributed.world_size())
        except InputError as error:
            problem = str(error)
        return next(filter(None, distributed.all_objects(problem)), "")

    def _set_aside(self, damaged: dict[int, str], instead: Path) -> None:
        for step, problem in damaged.items():
            folder = self.root / f"step-{step}"
            shutil.rmtree(folder.with_suffix(_DAMAGED), ignore_errors=True)
            folder.rename(folder.with_suffix(_DAMAGED))
            print(
                f"{problem}: set aside as {folder.name}{_DAMAGED}; going on from {instead}",
                flush=True,
            )

    def _relay(self, folder: Path, layout: str, engine: Engine) -> str:
        """The tag of a copy that another number of ranks, or another ZeRO stage, can load."""
        if layout == "single" or isinstance(engine, SingleEngine):
            raise CommonError(
                f"{folder}: written as {layout}, this run is {engine.layout}; resume with the "
                "engine that wrote it, or start a new run from it (`python -m pretrain convert`, "
                "--model.init)"
            )
        if distributed.is_main():
            print(f"{folder}: written as {layout}, laid out anew for {engine.layout}", flush=True)

        def copy() -> str:
            with _writing(self.root):
                return reshard(folder, engine.groups, engine.stage).name

        return distributed.on_main(copy)

    def is_better(self, value: float) -> bool:
        """Whether no complete checkpoint has so good a figure; the same on every process."""
        self.finish()
        known = distributed.on_main(self._figures).values()
        return not known or max(known) < self._sign * value

    def save(
        self, engine: Engine, step: int, samples: int, figures: dict[str, float] | None = None
    ) -> None:
        """Collective; `samples` pairs were consumed so far, `figures` is this step's validation.

        Earlier checkpoints are touched only after this one is complete.

        Raises:
            InputError: it, or the one before in the background, could not be written, on the
                process that could not.
        """
        self.finish()
        folder = self.root / f"step-{step}"
        write = self._writer.take if self._writer else torch.save
        with _writing(folder):
            self.root.mkdir(parents=True, exist_ok=True)
            engine.save(self.root, folder.name, write)

        def complete() -> None:
            self._complete(folder, step, samples, engine.layout, figures)

        if self._writer:
            self._under_way = folder
            self._writer.start(complete)
        else:
            distributed.barrier()
            distributed.on_main(complete)

    def finish(self) -> None:
        """Wait until the checkpoint in the background is complete.

        Raises:
            InputError: it could not be written, on the process that could not.
        """
        if self._writer:
            with _writing(self._under_way):
                self._writer.finish()

    @contextmanager
    def finished(self) -> Iterator[None]:
        """At its end nothing is under way; an error that ended it stays the one told last."""
        try:
            yield
        except BaseException:
            try:
                self.finish()
            except InputError as error:
                sys.stderr.write(f"error: {error}\n")
            raise
        self.finish()

    def check(self) -> None:
        """Raise what `finish` would raise, without waiting."""
        if self._writer:
            with _writing(self._under_way):
                self._writer.check()

    def _complete(
        self, folder: Path, step: int, samples: int, layout: str, figures: dict | None
    ) -> None:
        facts = {"step": step, "samples": samples, "layout": layout, "figures": figures or {}}
        paths = [path for path in sorted(folder.rglob("*")) if path.is_file()]
        names = {path.relative_to(folder).as_posix(): path for path in paths}
        facts |= {
            "world_size": distributed.world_size(),
            "files": {name: path.stat().st_size for name, path in names.items()},
            "crc32": {n: members_crc32(path) for n, path in names.items() if path.suffix == ".pt"},
        }
        write_json(folder / MARKER, facts, checksum=True)
        self._retire(folder)

    def _retire(self, folder: Path) -> None:
        """Name the newest checkpoint, and remove those that need not be kept beside it."""
        with atomic_path(self.root / "latest") as temporary:
            temporary.write_text(folder.name)
        steps = set(self.complete_steps()[-self.keep :])
        if figures_by_step := self._figures():
            steps.add(max(figures_by_step, key=lambda step: figures_by_step[step]))
        for old in set(self.complete_steps()) - steps:
            retired = self.root / f"step-{old}"
            (retired / MARKER).unlink()  # first: half a directory is no checkpoint
            shutil.rmtree(retired)

    def _figures(self) -> dict[int, float]:
        """Complete step -> its `best` figure, made so that larger is better."""
        values = {}
        for step in self.complete_steps():
            with suppress(InputError):  # damaged: no candidate; `resume` names it
                figures = read_marker(self.root / f"step-{step}").get("figures", {})
                if self.best in figures:
                    values[step] = self._sign * figures[self.best]
        return values

    @property
    def _sign(self) -> int:
        return -1 if (self.best or "").endswith(("loss", "kl")) else 1


def check_checkpoint(folder: Path, part: int = 0, parts: int = 1) -> None:
    """Read each `parts`-th of its files from `part` on, and compare with its marker.

    Raises:
        InputError: a file is missing, damaged, or of another checkpoint.
    """
    marker = read_marker(folder)
    crc32 = marker.get("crc32", {})
    files = sorted(folder.rglob("*.pt"))
    for path in files[part::parts]:
        check_trained(path, crc32.get(path.relative_to(folder).as_posix()))
    for name, size in marker.get("files", {}).items():
        path = folder / name
        if not path.is_file() or path.stat().st_size != size:
            raise InputError(f"{path}: missing or not of its {size} bytes")
    if not files:
        raise InputError(f"{folder}: holds no tensors")


def read_marker(folder: Path) -> dict[str, Any]:
    """What a complete checkpoint says of itself.

    Raises:
        InputError: its marker is cut, empty, or lacks what resuming needs.
    """
    facts = read_json(folder / MARKER)
    kinds = {"step": int, "samples": int, "layout": str}
    if any(not isinstance(facts.get(name), kind) for name, kind in kinds.items()):
        raise InputError(f"{folder / MARKER}: damaged (lacks one of {', '.join(kinds)})")
    return facts


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    """A disk that is full or read-only becomes an InputError."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "inline_container" not in str(error):
            raise  # not torch.save's way to say that the disk is full
        reason = str(error).strip().split("\n")[0]
        raise InputError(
            f"{folder} could not be written ({reason}); earlier checkpoints are intact: make "
            "room, and give the same command again"
        ) from error
