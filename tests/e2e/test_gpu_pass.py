"""The GPU pass rehearsed on a CPU: `bash tests/run.sh -m slow tests/e2e/test_gpu_pass.py`."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MINUTES = 4
SECTIONS = ["equal", "engines", "resume", "tests", "speed", "where", "finetuning"]


@pytest.mark.slow
def test_ends_within_its_minutes_and_reports_every_section(tmp_path):
    """No section may fail, and no check; on a busy machine late rows may be left out, said so."""
    since = time.monotonic()
    command = ["bash", "tests/bench/gpu.sh", str(tmp_path), "--device", "cpu"]
    done = subprocess.run(
        [*command, "--minutes", str(MINUTES)], cwd=ROOT, env=os.environ | {"PYTHON": sys.executable}
    )
    assert time.monotonic() - since < 60 * MINUTES
    sections = json.loads((tmp_path / "gpu.json").read_text())["sections"]
    assert list(sections) == SECTIONS
    ends = {name: part["ended"] for name, part in sections.items()}
    assert not [name for name, ended in ends.items() if ended.startswith("failed")], ends
    checks = [row for part in sections.values() for row in part["tables"].get("checks", [])]
    assert checks and all(row["passed"] for row in checks), checks
    assert done.returncode == 0
    report = (tmp_path / "gpu.md").read_text()
    assert all(part["title"] in report for part in sections.values())


def test_the_last_section_still_fits_what_the_tests_write(tmp_path, monkeypatch):
    """One method of it, in seconds: the whole pass is slow, and this section borrows functions."""
    from bench.gpu import finetuning

    part = tmp_path / "part.json"
    monkeypatch.setenv("GPU_PASS_PART", str(part))
    monkeypatch.setattr(finetuning.Results, "has_time", lambda *given: given[-1] == "mtb")
    finetuning.main()
    (row,) = json.loads(part.read_text())["tables"]["rows a second"]
    assert row["method"] == "mtb" and row["ours, bf16"] > 0 and "note" not in row
