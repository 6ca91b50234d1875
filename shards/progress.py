"""How far a long command is: a bar on a terminal, elsewhere a line at least every 30 seconds."""

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sized
from types import TracebackType
from typing import Generic, TypeVar

from tqdm import tqdm

T = TypeVar("T")
EVERY_SECONDS = 30.0
"""Longest silence where standard error is no terminal."""


class Progress(Generic[T]):
    """Counts `unit`s done: iterate over it, or enter it and call `advance`."""

    def __init__(
        self,
        items: Iterable[T] = (),
        *,
        unit: str,
        total: int | None = None,
        done: int = 0,
        desc: str = "",
        samples: int = 0,
        silent: bool = False,
        say: Callable[[str], None] | None = None,
    ) -> None:
        """
        Args:
            unit: what is counted, in the singular. total: how many; None: `len(items)`, if known.
            done: how many an interrupted run did before.
            samples: in each unit; the speed is then in samples/s, else in units/s.
            silent: neither bar nor lines: processes other than the main one.
            say: takes a line; default: standard error.
        """
        if total is None and isinstance(items, Sized):
            total = len(items)
        self.items, self.unit, self.total, self.desc = items, unit, total, desc
        self.samples, self.done, self._first = samples, done, done
        self.bar = tqdm(
            total=total, initial=done, unit=unit, desc=desc or None, disable=silent or None
        )
        self._speaks = self.bar.disable and not silent
        self._say = say or (lambda line: print(line, file=sys.stderr, flush=True))
        self._since = self._spoke = time.monotonic()

    def __iter__(self) -> Iterator[T]:
        with self:
            for item in self.items:
                yield item
                self.advance()

    def __enter__(self) -> "Progress[T]":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.bar.close()

    def advance(self, count: int = 1) -> None:
        """`count` more are done."""
        self.done += count
        self.bar.update(count)
        if self._speaks and time.monotonic() - self._spoke >= EVERY_SECONDS:
            self._say(self.line())
            self.spoke()

    def spoke(self) -> None:
        """A line about this work was just printed elsewhere: silence is counted from here."""
        self._spoke = time.monotonic()

    def line(self) -> str:
        """`label: shard 3 of 20, 1.5 shards/s, 0:11 left`, since this process started."""
        speed = (self.done - self._first) / max(time.monotonic() - self._since, 1e-9)
        parts = [f"{self.unit} {self.done:,}"]
        if self.total is not None:
            parts[0] += f" of {self.total:,}"
        each = f"{speed * self.samples:.3g} samples/s" if self.samples else ""
        parts.append(each or f"{speed:.3g} {self.unit}s/s")
        if left := self.left():
            parts.append(left)
        return (f"{self.desc}: " if self.desc else "") + ", ".join(parts)

    def left(self) -> str:
        """`0:11 left` at the speed since this process started; "" where it cannot be said."""
        seconds, done = time.monotonic() - self._since, self.done - self._first
        if self.total is None or not done:
            return ""
        return f"{tqdm.format_interval((self.total - self.done) * seconds / done)} left"
