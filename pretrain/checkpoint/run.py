"""Checkpoints of a run in progress: `checkpoints/step-N/`, complete or not there.

A directory counts only with its `COMPLETE` marker, which is written last; what a kill leaves
half-written is removed by the next start.
"""

import re
import shutil
from pathlib import Path

from pretrain import distributed
from pretrain.checkpoint.zero import reshard
from pretrain.engine import Engine
from shards.schema import InputError, atomic_path, parse_object, write_json

MARKER = "COMPLETE"


class RunCheckpoints:
    """The `checkpoints/` directory of one run."""

    def __init__(self, run_dir: Path, *, keep: int) -> None:
        self.root = run_dir / "checkpoints"
        self.keep = keep

    def complete_steps(self) -> list[int]:
        """Steps with a complete checkpoint, oldest first."""
        steps = [
            int(match[1])
            for path in self.root.glob("step-*")
            if (match := re.fullmatch(r"step-(\d+)", path.name)) and (path / MARKER).is_file()
        ]
        return sorted(steps)

    def resume(self, engine: Engine) -> tuple[int, int]:
        """Load the newest complete checkpoint; its step and the pairs consumed, or (0, 0)."""
        found = distributed.on_main(self._newest)
        if not found:
            return 0, 0
        tag = f"step-{found['step']}"
        if found["layout"] != engine.layout:
            tag = self._relay(self.root / tag, found["layout"], engine.layout)
        engine.load(self.root, tag)
        return found["step"], found["samples"]

    def _newest(self) -> dict | None:
        for folder in self.root.glob("step-*"):
            if not (folder / MARKER).is_file():
                shutil.rmtree(folder)
        steps = self.complete_steps()
        if not steps:
            return None
        path = self.root / f"step-{steps[-1]}" / MARKER
        return parse_object(path.read_bytes(), str(path))

    def _relay(self, folder: Path, layout: str, wanted: str) -> str:
        """The tag of a copy that another number of ranks, or another ZeRO stage, can load."""
        if "single" in (layout, wanted):
            raise InputError(
                f"{folder}: written as {layout}, this run is {wanted}; resume with the engine that "
                "wrote it, or start a new run from it (`python -m pretrain.convert`, --model.init)"
            )
        if distributed.is_main():
            print(f"{folder}: written as {layout}, laid out anew for {wanted}", flush=True)
        return distributed.on_main(lambda: reshard(folder).name)

    def save(self, engine: Engine, step: int, samples: int) -> None:
        """Collective; `samples` pairs were consumed so far.

        Earlier checkpoints are touched only after this one is complete.
        """
        self.root.mkdir(parents=True, exist_ok=True)
        folder = self.root / f"step-{step}"
        engine.save(self.root, folder.name)
        distributed.barrier()
        if distributed.is_main():
            facts = {"step": step, "samples": samples, "layout": engine.layout}
            write_json(folder / MARKER, facts | {"world_size": distributed.world_size()})
            with atomic_path(self.root / "latest") as temporary:
                temporary.write_text(folder.name)
            for old in self.complete_steps()[: -self.keep]:
                shutil.rmtree(self.root / f"step-{old}")
        distributed.barrier()
