"""The README's walk through: a method in one file, brought in by an installed package."""

import json
import os
import re
import subprocess
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[1] / "example_method" / "late_fusion.py"
README = Path(__file__).parents[3] / "README.md"


@pytest.fixture
def installed(tmp_path):
    """What `pip install` leaves behind: the module, and the package's entry points."""
    site = tmp_path / "site"
    info = site / "my_package-1.0.dist-info"
    info.mkdir(parents=True)
    (site / "late_fusion.py").write_text(EXAMPLE.read_text())
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: my-package\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[fusion_mre.methods]\nlate_fusion = late_fusion:LateFusion\n"
    )
    return {**os.environ, "PYTHONPATH": str(site), "OMP_NUM_THREADS": "1"}


def run(interpreter, environment, *words):
    command = [interpreter.path / "python", "-m", "finetune", *map(str, words)]
    done = subprocess.run(
        command, env=environment, cwd=README.parent, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_it_trains_sees_the_picture_and_is_listed(
    tmp_path, installed, interpreter, mnre_folder, tiny_model
):
    out = tmp_path / "run"
    places = f"--data {mnre_folder} --init {tiny_model} --out {out} --method late_fusion"
    options = "--optim.epochs 12 --optim.lr 1e-3 --optim.head_lr 3e-3 --model.gate true"
    run(interpreter, installed, *f"train --task mnre {places} {options}".split())
    result = json.loads((out / "result.json").read_text())
    assert result["method"] == "late_fusion" and result["test"]["f1"]["mean"] > 90
    assert "late_fusion" in run(interpreter, installed, "list", "methods")


def test_it_is_as_short_as_promised():
    lines = [line for line in EXAMPLE.read_text().splitlines() if line.strip()]
    assert len(lines) <= 40
    assert re.search(r"example_method/late_fusion\.py", README.read_text())
