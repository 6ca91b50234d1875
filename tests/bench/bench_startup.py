"""CPU seconds until a command has said its help, list or mistake: another checkout beside this.

    python tests/bench/bench_startup.py --old ../old [--run RUN --image 17.jpg] [--times 5]

Both of a kind are called in turn, each in a process of its own; medians. With --run, one post
through `predict` is timed too.
"""

import argparse
import os
import resource
import statistics
import subprocess
import sys
from pathlib import Path

NEW = Path(__file__).resolve().parents[2]
CALLS = {
    "pretrain --help": "-m pretrain --help",
    "pretrain.convert --help": "-m pretrain.convert --help",
    "pretrain.label --help": "-m pretrain.label --help",
    "pretrain, wrong option": "-m pretrain --no_such 1",
    "finetune --help": "-m finetune --help",
    "finetune list": "-m finetune list",
    "finetune train --method tmr --help": "-m finetune train --method tmr --help",
    "finetune predict --help": "-m finetune predict --help",
    "finetune serve --help": "-m finetune serve --help",
    "finetune report --help": "-m finetune report --help",
    "finetune regions build --help": "-m finetune regions build --help",
    "finetune types --help": "-m finetune types --help",
    "shards --help": "-m shards --help",
}


def cpu_seconds(checkout: Path, words: list[str]) -> float:
    """User and system time of one call."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    environment = os.environ | {"PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, *words], cwd=checkout, capture_output=True, env=environment)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--old", type=Path, required=True, help="the other checkout")
    parser.add_argument("--run", help="a finished run with relations")
    parser.add_argument("--image", help="picture of the post")
    parser.add_argument("--times", type=int, default=5)
    args = parser.parse_args()
    calls = {name: line.split() for name, line in CALLS.items()}
    if args.run:
        post = ["--text", "Bob in Oslo", "--head", "Bob", "--tail", "Oslo"]
        image = ["--image", args.image] if args.image else []
        calls["predict, one post"] = ["-m", "finetune", "predict", args.run, *post, *image]
    print(f"{'CPU seconds, median of ' + str(args.times):36}{'old':>8}{'new':>8}{'x':>7}")
    for name, words in calls.items():
        seconds: dict[Path, list[float]] = {args.old: [], NEW: []}
        for _ in range(args.times):
            for checkout in seconds:
                seconds[checkout].append(cpu_seconds(checkout, words))
        old, new = (statistics.median(seconds[checkout]) for checkout in (args.old, NEW))
        print(f"{name:36}{old:8.2f}{new:8.2f}{old / new:7.1f}", flush=True)


if __name__ == "__main__":
    main()
