"""A training on the device, killed and resumed, against one that ran through."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bench.bench_pretrain import write_corpus
from bench.gpu.common import ROOT, Results

from pretrain.tracking import read_metrics

STEPS, KILL_AFTER = 8, 2
OPTIONS = f"""
    --config pretrain/configs/tiny.yaml --engine.kind single --engine.precision bf16
    --loss.coe 0 --loss.cir 0 --batch.global_size 8 --optim.steps {STEPS} --checkpoint.every 2
    --log.every 1 --data.workers 2 --data.max_length 40 --model.hidden_dropout 0.1
""".split()


def command(folder: Path, run: str) -> list[str]:
    """The training of a run directory."""
    words = ["--run_dir", str(folder / run), "--data.train", str(folder / "shards")]
    return [sys.executable, "-m", "pretrain", *OPTIONS, *words]


def run_through(folder: Path, run: str) -> None:
    """Start, or resume, and wait for the end."""
    done = subprocess.run(command(folder, run), cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:] or done.stdout[-2000:])


def start(folder: Path, run: str, **popen: bool) -> subprocess.Popen:
    """Start a training, its words unread."""
    return subprocess.Popen(
        command(folder, run), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        **popen,
    )  # fmt: skip


def kill_after(folder: Path, run: str, step: int) -> bool:
    """Start, and kill all its processes as soon as the checkpoint of `step` lies there."""
    process = start(folder, run, start_new_session=True)
    while not any((folder / run / "checkpoints").glob(f"step-{step}")):
        if process.poll() is not None:
            return False
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    return not (folder / run / "model").exists()


def losses(folder: Path, run: str) -> dict[int, float]:
    """Step -> loss."""
    return {line["step"]: line["loss"] for line in read_metrics(folder / run / "metrics.jsonl")}


def main() -> None:
    results = Results("a. Correctness: killed and resumed on the device")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_corpus(folder)
        through = start(folder, "through")  # beside the other: most of the time is their start
        killed = kill_after(folder, "killed", KILL_AFTER)
        results.check(f"killed after the checkpoint of step {KILL_AFTER}", killed, str(killed))
        run_through(folder, "killed")
        resumed = losses(folder, "killed")
        whole = list(resumed) == list(range(1, STEPS + 1))
        results.check("resumed to its end, no step missing or twice", whole, f"{len(resumed)}")
        if through.wait():
            raise RuntimeError("the run that is not killed failed")
        uncut = losses(folder, "through")
        apart = max(abs(resumed[step] - uncut[step]) for step in uncut)
        # Sums on a GPU come in no fixed order; after a wrong resume the losses differ by tenths.
        results.check("losses of all steps within 5e-3 of a run not killed", apart <= 5e-3,
                      f"{apart:.2e}")  # fmt: skip


if __name__ == "__main__":
    main()
