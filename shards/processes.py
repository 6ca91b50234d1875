"""Worker processes that do not outlive the one that started them; the end of a process."""

import atexit
import multiprocessing
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import NoReturn, TypeVar

from shards.files import InputError

Task = TypeVar("Task")
Result = TypeVar("Result")


def run(main: Callable[[], object]) -> None:
    """A `main` as a process of its own, which ends at once (`leave`): after what is due at its exit
    where it has ended well; where it has failed the others of its job, and who started it, learn
    of it without delay."""
    well = False

    def last() -> None:
        if well and "torch" in sys.modules:
            leave()

    atexit.register(last)  # the first to be registered is the last to be called
    try:
        main()
        well = True
    except SystemExit as ended:
        well = not ended.code
        if ended.code and "torch" in sys.modules:
            leave(ended.code if isinstance(ended.code, int) else 1)
        raise


def leave(status: int = 0) -> NoReturn:
    """End this process at once, loader workers included.

    Taking an interpreter with all its libraries down in good order costs 1.5 to 2 CPU seconds: 11
    to 18 seconds on a busy machine. Launchers kill after 30, and everything is on disk already. And
    PyTorch's threads must not meet an interpreter that is half down: they abort the process.
    """
    for worker in multiprocessing.active_children():
        worker.kill()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def end_with(parent: int) -> None:
    """End this process when `parent`, which started it, is gone; nothing else tells it of a
    kill -9."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def in_order(work: Callable[[Task], Result], tasks: Iterable[Task], jobs: int) -> Iterator[Result]:
    """Results of `work`, in the order of the tasks; few tasks are in memory at a time.

    Args:
        jobs: processes; 1: this one.

    Raises:
        InputError: a process was killed.
    """
    if jobs <= 1:
        yield from map(work, tasks)
        return
    import webdataset  # noqa: F401 - forked workers share the libraries that are loaded before

    context = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(
        jobs, mp_context=context, initializer=end_with, initargs=(os.getpid(),)
    ) as pool:
        waiting: deque[Future[Result]] = deque()
        try:
            for task in tasks:
                waiting.append(pool.submit(work, task))
                # Enough to keep all busy while the oldest is waited for; a task holds the rows of a
                # shard.
                if len(waiting) > 2 * jobs:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        except BrokenProcessPool as error:
            raise InputError(
                "a writer process was killed (out of memory?); run the same command again, "
                "with fewer --jobs; it goes on where it stopped"
            ) from error
