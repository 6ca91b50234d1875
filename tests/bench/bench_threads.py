"""A short fine-tuning with threads as they come, alone and beside other load: another checkout too.

    python tests/bench/bench_threads.py MODEL_DIR MNRE_DIR --old CHECKOUT [--rounds 3]

`mtb` on relation rows, no thread count or wait policy in the environment: what a user gets who has
set nothing. The load is an endless loop a core. Checkouts take turns; medians of wall and CPU
seconds of the whole command, its start included.
"""

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("mnre", type=Path)
    parser.add_argument("--old", type=Path, required=True, help="a checkout to compare with")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    model, mnre = args.model.resolve(), args.mnre.resolve()
    cores = len(os.sched_getaffinity(0))
    print("| beside | build | wall s | CPU s |\n|---|---|---|---|")
    for load in (0, cores):
        spent: dict[str, list[tuple[float, float]]] = {"old": [], "new": []}
        busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(load)]
        try:
            for _ in range(args.rounds):
                for name, checkout in (("old", args.old), ("new", ROOT)):
                    spent[name].append(train(checkout.resolve(), model, mnre))
        finally:
            for process in busy:
                process.kill()
        for name, times in spent.items():
            wall, cpu = map(statistics.median, zip(*times, strict=True))
            print(f"| {load or 'no'} busy loops | {name} | {wall:.1f} | {cpu:.1f} |")


def train(checkout: Path, model: Path, mnre: Path) -> tuple[float, float]:
    """Wall and CPU seconds of one command."""
    clean = {name: value for name, value in os.environ.items()
             if not name.startswith(("OMP_", "KMP_", "GOMP_", "MKL_"))}  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        command = [
            sys.executable, "-m", "finetune", "train", "--config",
            "finetune/configs/sample/mnre.yaml", "--method", "mtb", "--data", str(mnre),
            "--architecture", str(model), "--out", f"{folder}/run", "--optim.epochs", "2",
            "--optim.min_steps", "1", "--engine.precision", "fp32",
        ]  # fmt: skip
        before, since = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        subprocess.run(command, cwd=checkout, env=clean | {"PYTHONPATH": str(checkout)}, check=True,
                       stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # fmt: skip
        wall, after = time.perf_counter() - since, resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


if __name__ == "__main__":
    main()
