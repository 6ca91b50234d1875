"""Checkpoints of a run: which are kept, and what a failing disk leaves."""

import errno
import json
import resource
from pathlib import Path

import pytest
import torch
from torch import nn

from pretrain.checkpoint.run import RunCheckpoints
from pretrain.engine import SingleEngine
from pretrain.optim import adamw, linear_schedule
from shards.schema import InputError


def engine(width: int = 4) -> SingleEngine:
    def build(module):
        optimizer = adamw([{"params": list(module.parameters()), "lr": 0.1}])
        return optimizer, linear_schedule(optimizer, 1, 100)

    options = {"precision": "fp32", "accumulation": 1, "clip": 0.0}
    return SingleEngine(nn.Linear(width, width), build, **options)


@pytest.mark.parametrize(
    ("best", "kept"),
    [(None, [50, 60]), ("val_recall@1", [20, 50, 60]), ("val_cit_loss", [30, 50, 60])],
)
def test_the_newest_and_the_best_are_kept(best, kept, tmp_path):
    recall = {10: 1.0, 20: 9.0, 30: 2.0, 40: 9.0, 50: 3.0, 60: 4.0}
    checkpoints = RunCheckpoints(tmp_path, keep=2, best=best)
    for step, value in recall.items():
        figures = {"val_recall@1": value, "val_cit_loss": abs(step - 30) + 0.5}
        if best == "val_recall@1":
            assert checkpoints.is_better(value) == (step in (10, 20))
        checkpoints.save(engine(), step, step * 8, figures)
    assert checkpoints.complete_steps() == kept
    assert sorted(path.name for path in checkpoints.root.glob("step-*")) == [
        f"step-{step}" for step in kept
    ]


def test_a_disk_that_is_full_leaves_the_earlier_ones(tmp_path):
    """A file-size limit: the kernel refuses the write inside torch.save, as a full disk does."""
    checkpoints, small = RunCheckpoints(tmp_path, keep=1), engine()
    checkpoints.save(small, 1, 8)
    before = {path: path.read_bytes() for path in checkpoints.root.rglob("*") if path.is_file()}
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(InputError, match=r"step-2 could not be written \(.*are intact"):
            checkpoints.save(engine(400), 2, 16)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert all(path.read_bytes() == content for path, content in before.items())
    weights = small.module.weight.clone()
    nn.init.zeros_(small.module.weight)
    assert checkpoints.resume(small) == (1, 8)
    assert torch.equal(small.module.weight, weights)
    assert not (checkpoints.root / "step-2").exists()  # its remains are cleared away


def test_a_read_only_disk_leaves_the_earlier_ones(tmp_path, monkeypatch):
    checkpoints, small = RunCheckpoints(tmp_path, keep=1), engine()
    checkpoints.save(small, 1, 8)

    def refuse(*_, **__):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(Path, "mkdir", refuse)  # root may write anywhere: the call itself fails
    with pytest.raises(InputError, match="Read-only file system"):
        checkpoints.save(small, 2, 16)
    monkeypatch.undo()
    assert checkpoints.complete_steps() == [1]


def test_a_checkpoint_without_its_marker_is_none(tmp_path):
    checkpoints = RunCheckpoints(tmp_path, keep=2)
    for step in (1, 2):
        checkpoints.save(engine(), step, step * 8)
    (checkpoints.root / "step-2/COMPLETE").unlink()
    assert checkpoints.resume(engine()) == (1, 8)
    facts = json.loads((checkpoints.root / "step-1/COMPLETE").read_text())
    assert facts["step"] == 1 and facts["layout"] == "single"
