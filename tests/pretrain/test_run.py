"""Checkpoints of a run: which are kept, and what a failing disk leaves."""

import errno
import json
import resource
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from pretrain.checkpoint.run import RunCheckpoints
from pretrain.engine import SingleEngine
from pretrain.optim import adamw, linear_schedule
from shards.files import InputError


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


def test_a_full_disk_while_a_checkpoint_is_laid_out_anew(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    checkpoints, small = RunCheckpoints(tmp_path, keep=1), engine()
    checkpoints.save(small, 1, 8)
    path = checkpoints.root / "step-1/COMPLETE"
    facts = json.loads(path.read_text()) | {"layout": "zero1-8"}
    path.write_text(json.dumps({key: facts[key] for key in facts if key != "_crc32"}))
    monkeypatch.setattr("pretrain.checkpoint.run.reshard", refuse)
    other = SimpleNamespace(layout="zero0", groups=[], stage=0)
    with pytest.raises(InputError, match="No space left"):
        checkpoints.resume(other)
    assert checkpoints.complete_steps() == [1]


def test_a_checkpoint_without_its_marker_is_none(tmp_path):
    checkpoints = RunCheckpoints(tmp_path, keep=2)
    for step in (1, 2):
        checkpoints.save(engine(), step, step * 8)
    (checkpoints.root / "step-2/COMPLETE").unlink()
    assert checkpoints.resume(engine()) == (1, 8)
    facts = json.loads((checkpoints.root / "step-1/COMPLETE").read_text())
    assert facts["step"] == 1 and facts["layout"] == "single"


# ------------------------------------------------------------------ in the background


@pytest.fixture
def held(monkeypatch):
    """An event without which no file of a background checkpoint is written."""
    release, write = threading.Event(), Path.write_bytes

    def wait_and_write(path, content):
        assert release.wait(20)
        return write(path, content)

    monkeypatch.setattr(Path, "write_bytes", wait_and_write)
    yield release
    release.set()


def test_what_the_background_writes_is_what_was_there_when_it_was_asked(held, tmp_path):
    checkpoints = RunCheckpoints(tmp_path, keep=1, background=True)
    small = engine()
    before = small.module.weight.detach().clone()
    checkpoints.save(small, 1, 8)
    small.backward(small.module(torch.ones(1, 4)).sum())
    small.step()  # training goes on
    checkpoints.check()
    assert checkpoints.complete_steps() == []
    held.set()
    checkpoints.finish()
    assert checkpoints.complete_steps() == [1]
    assert not torch.equal(small.module.weight, before)
    assert checkpoints.resume(small) == (1, 8)
    assert torch.equal(small.module.weight, before)


def test_the_next_waits_for_the_one_before_which_then_goes(held, tmp_path):
    checkpoints = RunCheckpoints(tmp_path, keep=1, background=True)
    checkpoints.save(engine(), 1, 8)
    threading.Timer(0.2, held.set).start()
    checkpoints.save(engine(), 2, 16)
    checkpoints.finish()
    assert checkpoints.complete_steps() == [2]


def test_killed_in_the_middle_of_a_background_write(tmp_path):
    checkpoints = RunCheckpoints(tmp_path, keep=1, background=True)
    small = engine()
    checkpoints.save(small, 1, 8)
    checkpoints.finish()
    code = f"""
import os, signal, sys
from pathlib import Path
sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_run import RunCheckpoints, engine
def half(path, content):
    with open(path, "wb") as file:
        file.write(content[: len(content) // 2])
    os.kill(os.getpid(), signal.SIGKILL)
Path.write_bytes = half
RunCheckpoints(Path({str(tmp_path)!r}), keep=1, background=True).save(engine(), 2, 16)
"""
    killed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert (checkpoints.root / "step-2/state.pt").stat().st_size  # it was on its way
    assert checkpoints.resume(small) == (1, 8)
    assert not (checkpoints.root / "step-2").exists()


def test_a_disk_that_is_full_is_told_at_the_next_step(monkeypatch, tmp_path):
    checkpoints = RunCheckpoints(tmp_path, keep=1, background=True)
    checkpoints.save(engine(), 1, 8)
    checkpoints.finish()

    def refuse(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", refuse)
    checkpoints.save(engine(), 2, 16)
    with pytest.raises(InputError, match=r"step-2 could not be written \(.*No space left.*intact"):
        for _ in range(100):
            checkpoints.check()
            time.sleep(0.05)
    assert checkpoints.complete_steps() == [1]
    checkpoints.check()  # told once


def test_what_goes_wrong_in_the_background_is_raised_whatever_it_is(tmp_path, monkeypatch):
    checkpoints = RunCheckpoints(tmp_path, keep=1, best="val_loss", background=True)
    checkpoints.save(engine(), 1, 8)
    checkpoints.finish()

    def refuse(*_, **__):
        raise KeyError("no disk's error")

    monkeypatch.setattr("pretrain.checkpoint.run.write_json", refuse)
    checkpoints.save(engine(), 2, 16)
    with pytest.raises(KeyError, match="no disk's error"):
        checkpoints.finish()


def test_the_first_error_stays_the_one_that_is_told_last(monkeypatch, tmp_path, capsys):
    checkpoints = RunCheckpoints(tmp_path, keep=1, background=True)

    def refuse(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", refuse)
    with pytest.raises(InputError, match="bad sample"), checkpoints.finished():
        checkpoints.save(engine(), 2, 16)
        raise InputError("bad sample")
    assert "step-2 could not be written" in capsys.readouterr().err
