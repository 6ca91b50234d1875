"""A checkpoint's files, written by a thread while training goes on.

What is to be saved is serialised into host memory at once, by `torch.save` itself, so that no later
update can reach it; from then on only bytes are moved. DeepSpeed's own decoupled writer (0.19) does
not serve: its `load` refuses what it wrote (issue 8500), it hands tensors over without a copy and
therefore holds the next update back until they are written, and it returns without a word when its
process has died.
"""

import io
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from pretrain import distributed
from shards.files import InputError


class BackgroundWriter:
    """Of one checkpoint at a time. All processes construct it, and start it alike."""

    def __init__(self) -> None:
        # Its own: what the threads tell each other never meets what the training sends.
        self._group = distributed.own_group()
        self._files: list[tuple[Path, io.BytesIO]] = []
        self._thread: threading.Thread | None = None
        self._error: Exception | None = None

    def take(self, state_dict: Any, path: str | Path) -> None:
        """In place of `torch.save`: what is here now is written to `path` after `start`."""
        buffer = io.BytesIO()
        torch.save(state_dict, buffer)
        self._files.append((Path(path), buffer))

    def start(self, complete: Callable[[], None]) -> None:
        """Write what was taken; where every process could, the main one calls `complete`."""
        files, self._files = self._files, []
        self._thread = threading.Thread(target=self._run, args=(files, complete))
        self._thread.start()

    def _run(self, files: list[tuple[Path, io.BytesIO]], complete: Callable[[], None]) -> None:
        # Whatever goes wrong here is kept for `finish`: nobody would see it leave a thread, and the
        # other processes wait for this one's answer.
        try:
            for path, buffer in files:
                path.write_bytes(buffer.getbuffer())
        except Exception as error:
            self._error = error
        failed = torch.tensor(self._error is not None, dtype=torch.int64)
        try:
            if self._group:
                dist.all_reduce(failed, dist.ReduceOp.MAX, group=self._group)
        except RuntimeError as error:  # gloo's word for a process that is gone
            reason = f"another process did not answer while a checkpoint was written: {error}"
            self._error = InputError(f"{reason}; earlier checkpoints are intact")
            return
        try:
            if distributed.is_main() and not failed:
                complete()
        except Exception as error:
            self._error = error

    def finish(self) -> None:
        """Wait for the checkpoint under way, if any.

        Raises:
            Exception: what kept this process from writing its part, or from completing the whole.
        """
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def check(self) -> None:
        """`finish`, unless it would wait."""
        if self._thread is not None and not self._thread.is_alive():
            self.finish()
