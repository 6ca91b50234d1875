"""What a run tells: `metrics.jsonl` and TensorBoard, gapless through a resume; progress, log."""

import json
import os
import resource
import socket
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pretrain.flops import peak_flops
from shards.files import InputError, atomic_path
from shards.json_files import is_number, parse_object, with_crc32
from shards.progress import Progress
from shards.redact import without_secrets


class MetricsLog:
    """One JSON line and one TensorBoard scalar per value."""

    def __init__(self, run_dir: Path, *, resume_step: int = 0) -> None:
        """Lines of steps after `resume_step` belong to a run that was cut off; they are dropped."""
        self.path = run_dir / "metrics.jsonl"
        run_dir.mkdir(parents=True, exist_ok=True)
        if self.path.exists():
            earlier = [line for line in read_metrics(self.path) if line["step"] <= resume_step]
            with atomic_path(self.path) as temporary:
                temporary.write_text("".join(map(_line, earlier)))
        self._file = self.path.open("a", encoding="utf-8")
        self._events = EventFile(run_dir / "tensorboard", resume_step + 1)

    def write(self, step: int, values: dict[str, float]) -> None:
        """Record values of one step; they are on disk when this returns."""
        from torch.utils.tensorboard.summary import scalar

        self._file.write(_line({"step": step, **values}))
        self._file.flush()
        for name, value in values.items():
            self._events.write(step, summary=scalar(name, value))
        self._events.flush()

    def picture(self, step: int, pixels: np.ndarray) -> None:
        """(H, W, 3) uint8 to TensorBoard alone."""
        from torch.utils.tensorboard.summary import image

        self._events.write(step, summary=image("validation", pixels, dataformats="HWC"))
        self._events.flush()

    def close(self) -> None:
        """Flush both."""
        self._file.close()
        self._events.close()


class EventFile:
    """A file of TensorBoard's. Its own writer has a thread, whose errors (a full disk) nobody can
    catch: they are tracebacks on standard error."""

    def __init__(self, folder: Path, first_step: int) -> None:
        """What earlier files hold of `first_step` and later is no longer shown."""
        from tensorboard.compat.proto.event_pb2 import SessionLog
        from tensorboard.summary.writer.record_writer import RecordWriter

        folder.mkdir(parents=True, exist_ok=True)
        name = f"events.out.tfevents.{time.time_ns()}.{socket.gethostname()}.{os.getpid()}"
        self._records = RecordWriter((folder / name).open("ab"))
        self.write(first_step, file_version="brain.Event:2")
        self.write(first_step, session_log=SessionLog(status=SessionLog.START))

    def write(self, step: int, **content: Any) -> None:
        """An `Event` that holds `content`."""
        from tensorboard.compat.proto.event_pb2 import Event

        event = Event(wall_time=time.time(), step=step, **content)
        self._records.write(event.SerializeToString())

    def flush(self) -> None:
        """To the disk."""
        self._records.flush()

    def close(self) -> None:
        """Flush, and no more."""
        self._records.close()


def _line(values: dict[str, Any]) -> str:
    return json.dumps(with_crc32(values)) + "\n"


def read_metrics(path: Path) -> list[dict[str, float]]:
    """The lines of a metrics file; a last line cut off by a kill is left out.

    Raises:
        InputError: another one is damaged; names it.
    """
    lines, values = path.read_bytes().split(b"\n"), []
    for number, line in enumerate(lines[:-1], start=1):
        if line.endswith(b"}") or number < len(lines) - 1:
            values.append(parse_object(line, f"{path}: line {number}", "remove this line"))
            if not is_number(values[-1].get("step")):
                raise InputError(f"{path}: line {number}: no step; remove this line")
    return values


class Reporter:
    """Progress bar, `log.txt`, `metrics.jsonl` and TensorBoard of the main process."""

    def __init__(self, run_dir: Path, *, total: int, done: int, batch_size: int) -> None:
        self.log = MetricsLog(run_dir, resume_step=done)
        self.text = (run_dir / "log.txt").open("a", encoding="utf-8")
        self.progress: Progress[None] = Progress(
            total=total, done=done, unit="step", samples=batch_size, say=self.say
        )
        self.batch_size = batch_size
        self.restart_clock()
        if done:
            self.say(f"resuming after step {done} from {run_dir / 'checkpoints'}")

    def advance(self) -> None:
        """One optimizer step is done."""
        self.steps += 1
        self.progress.advance()

    def restart_clock(self) -> None:
        """`speed` counts from here."""
        self.since, self.steps = time.perf_counter(), 0

    def speed(self, waited: float, flops: float, device: torch.device) -> dict[str, float]:
        """Of the steps since the clock's start.

        Args:
            waited: seconds of it without a batch. flops: operations of this process in it.
        """
        seconds = max(time.perf_counter() - self.since, 1e-9)
        speed = {
            "samples_per_second": self.steps * self.batch_size / seconds,
            "data_wait_percent": 100 * waited / seconds,
            "teraflops": flops / seconds / 1e12,
        }
        if peak := peak_flops(device):
            speed["mfu_percent"] = 100 * flops / seconds / peak
        if device.type == "cuda":
            speed["memory_gib"] = torch.cuda.max_memory_allocated(device) / 2**30
        else:
            speed["memory_gib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        return speed

    def picture(self, step: int, pixels: np.ndarray) -> None:
        """(H, W, 3) uint8 to TensorBoard."""
        self.log.picture(step, pixels)

    def write(self, step: int, values: dict[str, float]) -> None:
        """Record values of a step."""
        self.log.write(step, values)
        listed = " ".join(f"{name} {value:.4g}" for name, value in values.items() if name != "lr")
        left = self.progress.left()
        self.say(f"step {step} of {self.progress.total}: {listed}{left and ', '}{left}")
        self.progress.spoke()

    def say(self, line: str) -> None:
        """One line to the terminal and to `log.txt`."""
        line = without_secrets(line)
        self.progress.bar.write(line)
        self.text.write(line + "\n")
        self.text.flush()

    def close(self) -> None:
        """Flush everything."""
        self.progress.bar.close()
        self.text.close()
        self.log.close()
