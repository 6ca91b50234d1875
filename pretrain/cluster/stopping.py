"""SIGTERM, SIGINT and SIGUSR1: all processes agree on one step, checkpoint there, and exit 0."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.distributed as dist

from pretrain import distributed

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
_LAUNCHER_ENDED = 1000  # beyond every signal number


class StopSignal:
    """A context in which a signal to any process ends the run of all at the same step.

    The signal only sets a flag. Flags are compared once a step by a reduction between CPUs that
    runs while the device computes the step: nothing waits for the device, and the run ends at
    the second step boundary after the signal. A launcher that is gone (`deepspeed` passes no
    signal on: it dies and leaves its processes running) counts as a signal.
    """

    def __init__(self) -> None:
        self._requested = 0
        self._group = distributed.own_group()
        self._flag = torch.zeros(1, dtype=torch.int64)
        self._pending: dist.Work | None = None
        self._launchers = launchers() if self._group else ()

    def __enter__(self) -> "StopSignal":
        self._before = {number: signal.signal(number, self._request) for number in SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _request(self, number: int, _: object) -> None:
        self._requested = number

    def agreed(self) -> str | None:
        """Why every process stops at this step, or None. Collective, at each step boundary."""
        if self._group is None:
            return _reason(self._requested)
        if self._pending is not None:
            self._pending.wait()
            if reason := _reason(int(self._flag)):
                return reason
        if not self._requested and launchers() != self._launchers:
            self._requested = _LAUNCHER_ENDED
        self._flag.fill_(self._requested)
        self._pending = dist.all_reduce(
            self._flag, dist.ReduceOp.MAX, group=self._group, async_op=True
        )
        return None


@contextmanager
def signals_blocked() -> Iterator[None]:
    """Processes forked in here never see our signals: a stop sent to a whole job, as Slurm and
    DeepSpeed's launcher send it, must not take the loader workers away from the last steps."""
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)


def launchers() -> tuple[int, ...]:
    """Process ids of parent and grandparent: launcher, and what started it."""
    parent = os.getppid()
    try:
        # pid (name) state ppid …: the name may hold blanks and parentheses
        after_name = Path(f"/proc/{parent}/stat").read_text().rpartition(")")[2]
    except OSError:  # no /proc on this system, or the parent ended just now
        return (parent,)
    return parent, int(after_name.split()[1])


def _reason(number: int) -> str | None:
    if not number:
        return None
    return "end of its launcher" if number == _LAUNCHER_ENDED else signal.Signals(number).name
