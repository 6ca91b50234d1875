"""All sections of the GPU pass, one process each, within the minutes: see `gpu.sh`.

A section gets its share of the time that is left, so that what one does not need the later ones
have; it is told its end, and killed a little after it. What it had found by then is reported.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from bench.gpu.report import markdown

SECTIONS = {
    "equal": 4, "engines": 5, "resume": 6, "tests": 4, "speed": 10, "where": 4, "finetuning": 6,
}  # fmt: skip
"""Most important first; shares of the time."""
LEAST_SECONDS = 12
GRACE = 5
"""Seconds between the end that a section is told and its being killed, and for the report."""


def run_section(name: str, out: Path, device: str, seconds: float) -> dict:
    """A section's results, as far as it came, with how it ended."""
    part, log = out / "parts" / f"{name}.json", out / "parts" / f"{name}.log"
    part.unlink(missing_ok=True)
    since = time.time()
    environment = os.environ | {
        "GPU_PASS_PART": str(part),
        "GPU_PASS_DEVICE": device,
        "GPU_PASS_END": str(since + seconds - GRACE),
    }
    with log.open("w") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", f"bench.gpu.{name}"],
            stdout=output, stderr=subprocess.STDOUT, env=environment, start_new_session=True,
        )  # fmt: skip
        try:
            code = process.wait(timeout=seconds)
            ended = "done" if code == 0 else f"failed with exit code {code}: {last_line(log)}"
        except subprocess.TimeoutExpired:
            ended = f"cut off after {seconds:.0f} s"
        finally:
            end_group(process)
    results = json.loads(part.read_text()) if part.is_file() else {"title": name, "tables": {}}
    return results | {"ended": ended, "seconds": round(time.time() - since, 1)}


def end_group(process: subprocess.Popen) -> None:
    """Kill what is left of a section: itself, loader workers, a training it had started."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    process.wait()


def last_line(log: Path) -> str:
    """What a process said last: of a traceback, the error."""
    lines = log.read_text(errors="replace").strip().splitlines()
    return lines[-1][:300] if lines else "no word"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--minutes", type=float, default=8)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--started", type=float, default=time.time(), help="seconds of the epoch")
    parser.add_argument("--only", nargs="*", choices=SECTIONS, default=list(SECTIONS))
    args = parser.parse_args()
    (args.out / "parts").mkdir(parents=True, exist_ok=True)
    end = args.started + 60 * args.minutes - GRACE
    sections, shares = {}, sum(SECTIONS[name] for name in args.only)
    for name in args.only:
        seconds = (end - time.time()) * SECTIONS[name] / shares
        shares -= SECTIONS[name]
        if seconds < LEAST_SECONDS:
            sections[name] = {"title": name, "tables": {}, "ended": "skipped: no time left",
                              "seconds": 0}  # fmt: skip
        else:
            sections[name] = run_section(name, args.out, args.device, seconds)
        print(f"{name}: {sections[name]['ended']} ({sections[name]['seconds']} s)", flush=True)
        # After each: whatever ends this process, the report so far is on disk.
        report = {"device": args.device, "minutes": args.minutes, "sections": sections}
        (args.out / "gpu.json").write_text(json.dumps(report, indent=1))
        (args.out / "gpu.md").write_text(markdown(report))
    print((args.out / "gpu.md").read_text())
    checks = [row for part in sections.values() for row in part["tables"].get("checks", [])]
    wrong = any(not row["passed"] for row in checks)
    sys.exit(wrong or any(part["ended"].startswith("failed") for part in sections.values()))


if __name__ == "__main__":
    main()
