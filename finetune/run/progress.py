"""Where a seed stands, in its `resume/` folder: an interrupted run goes on after its last epoch."""

import logging
import pickle
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

from pretrain import distributed
from pretrain.checkpoint.zero import check_trained
from pretrain.engine import Engine
from shards.files import InputError, disk_errors
from shards.json_files import read_json, write_json

LOG = logging.getLogger(__name__)
DAMAGED = (OSError, ValueError, TypeError, KeyError, RuntimeError, EOFError, pickle.UnpicklingError)
"""What reading a cut or foreign checkpoint raises."""


@dataclass
class Progress:
    """Where a seed stands; written after every epoch."""

    epoch: int = 0
    """Whole epochs done."""
    step: int = 0
    """Optimiser steps done."""
    best_epoch: int = 0
    best_f1: float | None = None
    seconds: float = 0.0

    def save(self, directory: Path, engine: Engine) -> None:
        """State after a whole epoch; the previous one goes once this one is complete."""
        root, tag = directory / "resume", f"epoch-{self.epoch}"
        with disk_errors(root):
            engine.save(root, tag)
        distributed.barrier()
        if distributed.is_main():
            write_json(root / "progress.json", asdict(self), checksum=True)
            for old in root.glob("epoch-*"):
                if old.name != tag:
                    shutil.rmtree(old)

    @classmethod
    def resume(cls, directory: Path, engine: Engine) -> "Progress":
        """Load the last whole epoch of an interrupted seed, if there is one."""
        path = directory / "resume" / "progress.json"
        if not path.is_file():
            return cls()
        try:
            progress = cls(**read_json(path))
            for state in (path.parent / f"epoch-{progress.epoch}").rglob("*.pt"):
                check_trained(state)
            engine.load(path.parent, f"epoch-{progress.epoch}")
        except DAMAGED as error:
            reason = str(error).strip().partition("\n")[0]
            raise InputError(
                f"{path.parent}: cannot go on from there ({reason}); remove {directory} to "
                "train this seed anew"
            ) from None
        LOG.info("%s: goes on after epoch %d", directory, progress.epoch)
        return progress
