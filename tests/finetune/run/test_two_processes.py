"""Fine-tuning under a launcher: two processes give the run of one."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pretrain.tracking import read_metrics

ROOT = Path(__file__).resolve().parents[3]


def test_two_processes_equal_one(tmp_path, mnre_folder, tiny_model):
    """Without dropout: same losses, same dev figures, every row answered once."""
    still = tmp_path / "still"
    shutil.copytree(tiny_model, still)
    content = json.loads((still / "config.json").read_text())
    content |= {"hidden_dropout": 0.0, "attention_dropout": 0.0}
    (still / "config.json").write_text(json.dumps(content))
    options = f"train --task mnre --method promu --data {mnre_folder} --init {still}"
    options += " --optim.epochs 2 --optim.global_batch_size 14 --optim.accumulation"
    torchrun = "-m torch.distributed.run --nproc-per-node 2 --master-port 29617 -m finetune"
    launchers = {
        "one": ["-m", "finetune", *options.split(), "3"],
        "two": [*torchrun.split(), *options.split(), "2"],
    }
    environment = os.environ | {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    environment |= {"CUDA_VISIBLE_DEVICES": ""}
    curves, results = {}, {}
    for name, command in launchers.items():
        out = tmp_path / name
        done = subprocess.run(
            [sys.executable, *command, "--out", str(out)],
            cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-2000:]
        results[name] = json.loads((out / "result.json").read_text())
        curves[name] = read_metrics(out / "seed-1" / "metrics.jsonl")
    assert [results[name]["per_seed"][0]["processes"] for name in launchers] == [1, 2]
    for one, two in zip(curves["one"], curves["two"], strict=True):
        assert one["step"] == two["step"]
        for name in one:
            assert two[name] == pytest.approx(one[name], abs=1e-4), name
    assert results["one"]["test"] == results["two"]["test"]
