"""A lock of a killed process is waited for while its children hold it, a living one's is not."""

import os
import signal
import time

import pytest

from shards import locks
from shards.files import InputError
from shards.locks import lock


def hold_with_child(folder, seconds: float) -> int:
    """A process that holds the lock, with a child that lives on for so many seconds."""
    parent = os.fork()
    if parent:
        while not (folder / ".lock").is_file() or not (folder / ".lock").read_text():
            time.sleep(0.01)
        return parent
    with lock(folder):
        if os.fork() == 0:
            time.sleep(seconds)
            os._exit(0)
        time.sleep(60)
    os._exit(0)


def test_children_of_a_killed_process_are_waited_for(tmp_path):
    holder = hold_with_child(tmp_path, 1.0)
    with pytest.raises(InputError, match=rf"pid {holder} on .* is writing here"), lock(tmp_path):
        pass
    time.sleep(0.3)  # its child has begun
    os.kill(holder, signal.SIGKILL)
    os.waitpid(holder, 0)
    since = time.monotonic()
    with lock(tmp_path):
        assert time.monotonic() - since > 0.2


def test_they_are_not_waited_for_without_end(tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "PATIENCE", 0.5)
    holder = hold_with_child(tmp_path, 5.0)
    time.sleep(0.3)
    os.kill(holder, signal.SIGKILL)
    os.waitpid(holder, 0)
    with pytest.raises(InputError, match="is writing here"), lock(tmp_path):
        pass


def test_what_is_shared_is_waited_for(tmp_path):
    if (other := os.fork()) == 0:
        with lock(tmp_path):
            time.sleep(1.0)
        os._exit(0)
    while not (tmp_path / ".lock").is_file():
        time.sleep(0.01)
    since = time.monotonic()
    with lock(tmp_path, wait=True):
        assert time.monotonic() - since > 0.2
    os.waitpid(other, 0)
