"""On one machine of a supervised run: starts its ranks, passes signals on, ends them all.

`pretrain.supervise` talks to it on stdin, over ssh or here: orders, then a beat, signals, "kill".
"""

import ctypes
import os
import queue
import signal
import subprocess
import sys
import threading
import time

SILENCE = 20.0
"""Seconds after which an agent that hears nothing ends its ranks."""
GRACE = 20.0
"""Seconds for the other ranks to end by themselves, and say why, after the first failure."""
STOP = 60.0
"""Seconds from a stop signal to the end of the agreed checkpoint."""
BAD_INPUT = 2
STOPS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


class Agent:
    """On one machine: starts its ranks and ends them with the supervisor's connection."""

    def __init__(self, orders: dict) -> None:
        self.orders = orders
        self.lines: queue.Queue[str] = queue.Queue()
        self.ranks: dict[str, subprocess.Popen] = {}

    def run(self) -> int:
        """0 when every rank ended well; else the status of the one that failed first."""
        for number in STOPS:  # a signal to all processes of the machine: the ranks deal with it
            signal.signal(number, lambda *_: None)
        for rank in self.orders["ranks"]:
            self.ranks[rank["RANK"]] = subprocess.Popen(
                [sys.executable, "-u", "-m", "pretrain", *self.orders["settings"]],
                env={**os.environ, **self.orders["env"], **rank},
                stdin=subprocess.DEVNULL, start_new_session=True, preexec_fn=_die_with_parent,
            )  # fmt: skip
        threading.Thread(target=self._listen, daemon=True).start()
        heard, deadline, status = time.monotonic(), None, 0
        while any(rank.poll() is None for rank in self.ranks.values()):
            line = self._next()
            if line is not None:
                heard = time.monotonic()
                if line == "":  # the supervisor is gone: leave a checkpoint
                    line, deadline = f"signal {signal.SIGTERM}", deadline or heard + STOP
                if line.startswith("signal "):
                    self._signal(int(line.split()[1]))
            now = time.monotonic()
            if not status and (failed := self._failed()):
                status, deadline = failed, deadline or now + GRACE / 2
            cut_off = now - heard > SILENCE and deadline is None
            if line == "kill" or cut_off or (deadline and now > deadline):
                self._kill()
        return status or self._failed()

    def _listen(self) -> None:
        for line in sys.stdin:
            self.lines.put(line.strip())
        self.lines.put("")

    def _next(self) -> str | None:
        try:
            return self.lines.get(timeout=0.1)
        except queue.Empty:
            return None

    def _failed(self) -> int:
        """Status of a failed rank, bad input first, which no restart mends; 0: none failed."""
        failed = {n: status for n, rank in self.ranks.items() if (status := rank.poll())}
        for number, status in failed.items():
            if status < 0:
                name = signal.Signals(-status).name
                print(f"supervise: rank {number} on {os.uname().nodename}: {name}", flush=True)
        statuses = [status if status > 0 else 128 - status for status in failed.values()]
        return BAD_INPUT if BAD_INPUT in statuses else next(iter(statuses), 0)

    def _signal(self, number: int) -> None:
        for rank in self.ranks.values():
            if rank.poll() is None:
                rank.send_signal(number)

    def _kill(self) -> None:
        for rank in self.ranks.values():
            if rank.poll() is None:
                os.killpg(rank.pid, signal.SIGKILL)  # with its loader workers


def _die_with_parent() -> None:
    """In a new rank: a killed agent leaves no rank behind."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
