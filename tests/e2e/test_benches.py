"""Every bench at its least, so that none is found broken when its figure is wanted:
`bash tests/run.sh -m slow tests/e2e/test_benches.py`. Not here: `bench_convert.py`, which writes
4 GB, `bench_peers.py`, which needs other packages, and `bench_suite.py`, which runs this suite.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from tiny_mnre import write_mnre
from tiny_model import write_model

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.slow
COMMANDS = {
    "engines": "--steps 1 --rounds 1",
    "finetune": "{model} {mnre}",
    "focalmre": "rect",
    "growth": "--old {root} --pairs 1e4 --rounds 1",
    "hvpnet": "{model} {mnre} --size small --batch 4 --steps 2",
    "loader": "--pictures 48 --repetitions 1",
    "pictures": "{pictures} {pictures}/captions.csv --old {root} --rounds 1",
    "predict": "--posts 20 --times 1",
    "pretrain": "--size tiny --pairs 4 --steps 1 --rounds 1",
    "shards": "--pictures 50 --pairs 3000",
    "startup": "--old {root} --times 1",
    "threads": "{model} {mnre} --old {root} --rounds 1",
}


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    """What the commands name."""
    folder = tmp_path_factory.mktemp("given")
    (folder / "pictures").mkdir()
    lines = ["image,caption"]
    for number in range(100):
        Image.new("RGB", (200, 150), (number, 0, 99)).save(folder / f"pictures/{number}.jpg")
        lines += [f"{number}.jpg,caption {number} of {row}" for row in range(5)]
    (folder / "pictures/captions.csv").write_text("\n".join(lines))
    mnre = write_mnre(folder / "mnre", {"train": 120, "val": 30, "test": 30})
    crops = {row: [f"{row}_{n}.png" for n in range(3)] for row in range(120)}
    torch.save(crops, mnre / "txt/mre_train_dict.pth")
    return {
        "root": ROOT,
        "pictures": folder / "pictures",
        "model": write_model(folder / "model"),
        "mnre": mnre,
    }


def test_all_but_three_are_here():
    benches = {path.stem.removeprefix("bench_") for path in ROOT.glob("tests/bench/bench_*.py")}
    assert benches - {"convert", "peers", "suite"} == set(COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_it_runs(name, given):
    words = COMMANDS[name].format(**given).split()
    result = subprocess.run(
        [sys.executable, f"tests/bench/bench_{name}.py", *words],
        cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True,
    )  # fmt: skip
    assert result.returncode == 0 and result.stdout, result.stderr[-3000:]
