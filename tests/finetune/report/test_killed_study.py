"""A study of several processes of which one is killed."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]


def words_of(path, data, model, out) -> list[str]:
    text = f"-m finetune study {path} --data {data} --model {model} --out {out} --seeds 1 --jobs 2"
    return [sys.executable, *text.split()]


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["worker", "parent"])
def test_a_killed_process_is_told_of_and_the_same_command_goes_on(
    victim, tmp_path, mnre_folder, tiny_model
):
    """A worker: one line; the parent: its workers end, too. Neither keeps a lock."""
    path, out = tmp_path / "two.yaml", tmp_path / "out"
    path.write_text(
        "settings: {task: mnre, optim.epochs: 12, init: $model, images: none}\n"
        "runs: {text: {method: mtb}, slower: {method: mtb, optim.lr: 1.0e-4}}\n"
        "tables: {All: {as it is: {}}}\n"
    )
    command = words_of(path, mnre_folder, tiny_model, out)
    options = {"cwd": ROOT, "text": True, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = subprocess.Popen(command, **options)
    try:
        deadline, started = time.monotonic() + 200, [out / "runs/text", out / "runs/slower"]
        while not all((run / "seed-1/resume/progress.json").is_file() for run in started):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
        (worker,) = re.findall(r"pid (\d+) on", (started[1] / ".lock").read_text())
        os.kill(int(worker) if victim == "worker" else process.pid, signal.SIGKILL)
        _, errors = process.communicate(timeout=100)
    finally:
        process.kill()
    assert "Traceback" not in errors
    if victim == "worker":
        assert process.returncode == 2
        lines = [line for line in errors.splitlines() if line.startswith("error:")]
        assert len(lines) == 1 and "a training process was killed" in lines[0]
    again = subprocess.run(command, **options, timeout=300)
    assert again.returncode == 0, again.stderr
    assert not list(out.rglob(".lock"))
    cells = json.loads((out / "study.json").read_text())["cells"]
    assert [cell["run"] for cell in cells] == ["text", "slower"]
