"""`pytest -m gpu`: the tests that need an accelerator, run on the device of this pass."""

import os
import re
import subprocess
import sys
import time

from bench.gpu.common import DEVICE, ROOT, Results


def main() -> None:
    results = Results("a. Correctness: `pytest -m gpu`")
    # Only the files that hold such tests: what the others import need not be there.
    files = [
        str(path.relative_to(ROOT))
        for path in sorted((ROOT / "tests").rglob("test_*.py"))
        if "mark.gpu" in path.read_text(encoding="utf-8")
    ]
    command = [sys.executable, "-m", "pytest", "-v", "-m", "gpu", "-p", "no:cacheprovider"]
    environment = os.environ | {"FUSION_MRE_TEST_DEVICE": DEVICE.type}
    process = subprocess.Popen([*command, "--tb=line", *files], cwd=ROOT, env=environment,
                               stdout=subprocess.PIPE, text=True)  # fmt: skip
    counts = {"PASSED": 0, "FAILED": 0, "ERROR": 0, "SKIPPED": 0}
    for line in process.stdout or ():
        print(line, end="", flush=True)
        outcome = re.match(r"(tests\S*::\S+) (PASSED|FAILED|ERROR|SKIPPED)", line)
        if outcome:
            counts[outcome[2]] += 1
            results.add("tests", test=outcome[1].rpartition("::")[2], outcome=outcome[2].lower())
            if outcome[2] in ("FAILED", "ERROR"):
                results.check(outcome[1].rpartition("/")[2], False, outcome[2].lower())
        if time.time() > results.end:
            results.note("no time left for the tests after this one")
            process.kill()
            break
    process.wait()
    told = ", ".join(f"{count} {outcome.lower()}" for outcome, count in counts.items() if count)
    good = counts["PASSED"] > 0 and not counts["FAILED"] + counts["ERROR"]
    results.check(f"{len(files)} files with tests marked gpu", good, told or "none ran")


if __name__ == "__main__":
    main()
