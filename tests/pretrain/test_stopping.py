"""Signals: one flag among processes; launchers that are gone; workers that never hear of it."""

import os
import signal
import subprocess
import sys
import time

import psutil
import pytest
import torch
import torch.distributed as dist
from ranks import spawn
from warm import ROOT

from finetune.console import script
from pretrain.cluster.stopping import SIGNALS, StopSignal, launchers, signals_blocked
from shards.processes import run


def test_a_signal_alone_only_sets_a_flag():
    numbers = (signal.SIGUSR1, signal.SIGINT)
    before = [signal.getsignal(number) for number in numbers]
    with StopSignal() as stop:
        assert stop.agreed() is None
        os.kill(os.getpid(), signal.SIGUSR1)
        assert stop.agreed() == "SIGUSR1"
    assert [signal.getsignal(number) for number in numbers] == before


def steps_main(rank: int, folder: str) -> None:
    """Rank 1 alone is signalled in step 3; every rank writes the step it ends at, and why."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/rendezvous", rank=rank, world_size=2)
    with StopSignal() as stop:
        for step in range(1, 10):
            if rank == 1 and step == 3:
                os.kill(os.getpid(), signal.SIGTERM)
            if reason := stop.agreed():
                break
            time.sleep(0.05 * rank)  # one rank is slower
    with open(f"{folder}/{rank}", "w") as file:
        file.write(f"{step} {reason}")
    dist.destroy_process_group()


def test_all_ranks_end_at_the_same_step(tmp_path, interpreter):
    spawn(interpreter, steps_main, str(tmp_path), ranks=2)
    assert [(tmp_path / str(rank)).read_text() for rank in (0, 1)] == ["4 SIGTERM"] * 2


def test_launchers_are_parent_and_grandparent():
    code = "from pretrain.cluster.stopping import launchers; print(*launchers())"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.split() == [str(os.getpid()), str(os.getppid())]
    assert launchers()[0] == os.getppid()


@pytest.mark.parametrize("number", SIGNALS)
def test_processes_forked_under_the_mask_live_on(number):
    with signals_blocked():
        child = os.fork()
        if not child:
            time.sleep(30)
            os._exit(0)
    os.kill(child, number)
    time.sleep(0.1)
    assert psutil.Process(child).status() != psutil.STATUS_ZOMBIE
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    assert not signal.pthread_sigmask(signal.SIG_BLOCK, []) & set(SIGNALS)


@pytest.mark.parametrize(("code", "status"), [(2, 2), ("a word", 1), (None, 0), (0, 0)])
def test_a_process_leaves_at_once(monkeypatch, code, status):
    """One that ends well does so last of all that is due at its exit."""
    left, due = [], []
    monkeypatch.setattr("shards.processes.leave", lambda status=0: left.append(status))
    monkeypatch.setattr("atexit.register", due.append)
    monkeypatch.setattr("finetune.console.main", lambda: sys.exit(code))
    for end in (lambda: run(lambda: sys.exit(code)), script):  # `leave` would not come back
        with pytest.raises(SystemExit):
            end()
    assert left == ([status] * 2 if status else [])
    for last in due:
        last()
    assert left == [status] * 2
    run(lambda: None)
    due.pop()()
    assert left == [status] * 2 + [0]


END = """
import atexit, sys, threading, time
from shards.processes import run
atexit.register(print, "registered before")
def late(): time.sleep(0.2); print("a thread")
def main():
    sys.modules["torch"] = None  # the process looks like one that has imported it
    atexit.register(print, "due at the exit")
    threading.Thread(target=late).start()
    {last}
run(main)
"""


@pytest.mark.parametrize(("last", "status"), [("sys.exit(0)", 0), ("pass", 0), ("1 / 0", 1)])
def test_threads_and_what_is_due_come_before_the_end(last, status):
    """Nothing but the taking down is left out; an error that nobody expects ends as ever."""
    command = [sys.executable, "-c", END.format(last=last)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    lines = ["a thread", "due at the exit"] + ["registered before"] * bool(status)
    assert (done.returncode, done.stdout.splitlines()) == (status, lines)
    assert ("ZeroDivisionError" in done.stderr) == bool(status)
