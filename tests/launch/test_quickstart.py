"""What quickstart.sh runs beside each other: both to their ends; a failure is named."""

import re
import subprocess
from pathlib import Path

SCRIPT = Path(__file__).resolve().parents[2] / "launch/quickstart.sh"


def beside(tmp_path: Path, *functions: str) -> subprocess.CompletedProcess[str]:
    """`beside` of the script with these shell functions, in a script that stops at errors."""
    (tmp_path / "logs").mkdir()
    found = re.search(r"^beside\(\) \{.*?^\}$", SCRIPT.read_text(), re.M | re.S)
    assert found
    names = " ".join(function.partition("(")[0] for function in functions)
    lines = [f"work={tmp_path} cores=2", found[0], *functions, f"beside {names}", "echo goes on"]
    command = ["bash", "-euo", "pipefail", "-c", "\n".join(lines)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def test_both_run_and_print_to_their_own_files(tmp_path):
    waits = "until [ -e $work/met ]; do sleep 0.1; done"  # ends only beside the other
    done = beside(tmp_path, f"first() {{ {waits}; echo $OMP_NUM_THREADS; }}",
                  "second() { touch $work/met; echo two; }")  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (0, "goes on\n", "")
    texts = [(tmp_path / f"logs/{name}.txt").read_text() for name in ("first", "second")]
    assert texts[1] == "two\n" and texts[0].strip().isdigit()


def test_a_failure_names_itself_after_both_have_ended(tmp_path):
    done = beside(tmp_path, "bad() { echo why; false; echo unreached; }",
                  "good() { sleep 1; touch $work/whole; }")  # fmt: skip
    assert done.returncode == 1 and "goes on" not in done.stdout
    assert "bad failed" in done.stderr and "why" in done.stderr
    assert "unreached" not in done.stderr and "good" not in done.stderr
    assert (tmp_path / "whole").exists()
