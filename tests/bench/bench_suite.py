"""The fast test suite by the README's command, in this checkout and another in turn.

    python tests/bench/bench_suite.py --old CHECKOUT ENVIRONMENT [--rounds 2]

Wall and CPU seconds of everything that `tests/run.sh` starts, orphans too (this process adopts
them; Linux), and how many tests passed. FUSION_MRE_VENV names this checkout's environment;
environments that are not there yet are made first, uncounted.
"""

import argparse
import ctypes
import os
import re
import resource
import statistics
import subprocess
import time
from contextlib import suppress
from pathlib import Path

NEW = Path(__file__).resolve().parents[2]
PR_SET_CHILD_SUBREAPER = 36
LIMIT = 3600


def run(checkout: Path, environment: str) -> tuple[str, float, float]:
    """pytest's last line, wall and CPU seconds."""
    variables = os.environ | {"FUSION_MRE_VENV": environment}
    for name in ("OMP_NUM_THREADS", "PYTHONPATH"):
        variables.pop(name, None)
    started, before = time.monotonic(), cpu_seconds()
    done = subprocess.run(
        ["bash", "tests/run.sh"], cwd=checkout, env=variables, text=True, capture_output=True,
        timeout=LIMIT,
    )  # fmt: skip
    wall = time.monotonic() - started
    with suppress(ChildProcessError):  # none is left of those that outlived their parents
        while time.monotonic() < started + LIMIT:
            if os.waitpid(-1, os.WNOHANG) == (0, 0):
                time.sleep(0.1)
    last = [line for line in done.stdout.splitlines() if re.search(r"\d+ (passed|failed)", line)]
    return last[-1].strip("= ") if last else done.stderr[-300:], wall, cpu_seconds() - before


def cpu_seconds() -> float:
    """Of all processes that were waited for."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main() -> None:
    """Print a line a run, then the medians."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--old", nargs=2, metavar=("CHECKOUT", "ENVIRONMENT"))
    parser.add_argument("--rounds", type=int, default=2)
    args = parser.parse_args()
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    builds = {str(NEW): os.environ.get("FUSION_MRE_VENV", str(NEW / ".venv"))}
    if args.old:
        builds[args.old[0]] = args.old[1]
    for checkout, environment in builds.items():
        made = ["bash", "-c", 'source launch/environment.sh "yolo,lexicon,test"']
        subprocess.run(
            made, cwd=checkout, env=os.environ | {"FUSION_MRE_VENV": environment}, check=True
        )
    runs: dict[str, list[tuple[float, float]]] = {checkout: [] for checkout in builds}
    for _ in range(args.rounds):
        for checkout, environment in builds.items():
            last, *seconds = run(Path(checkout), environment)
            runs[checkout].append((seconds[0], seconds[1]))
            print(f"{checkout}: {seconds[0]:.0f} s, {seconds[1]:.0f} CPU s: {last}", flush=True)
    for checkout, both in runs.items():
        wall, cpu = map(statistics.median, zip(*both, strict=True))
        print(f"{checkout}, median of {args.rounds}: {wall:.0f} s, {cpu:.0f} CPU s")


if __name__ == "__main__":
    main()
