"""Fine-tuning under a launcher: two processes give the run of one."""

import json
import os
import shutil
import subprocess

import pytest
from warm import CPU, ROOT

from finetune.__main__ import main
from pretrain.tracking import read_metrics


def test_two_processes_equal_one(tmp_path, mnre_folder, tiny_model, interpreter):
    """Without dropout: same losses, same dev figures, every row answered once."""
    still = tmp_path / "still"
    shutil.copytree(tiny_model, still)
    content = json.loads((still / "config.json").read_text())
    content |= {"hidden_dropout": 0.0, "attention_dropout": 0.0}
    (still / "config.json").write_text(json.dumps(content))
    options = f"train --task mnre --method promu --data {mnre_folder} --init {still}"
    options += " --optim.epochs 2 --optim.global_batch_size 14 --optim.accumulation"
    main([*options.split(), "3", "--out", str(tmp_path / "one")])
    torchrun = "-m torch.distributed.run --nproc-per-node 2 --master-port 29617 -m finetune"
    command = [interpreter.path / "python", *torchrun.split(), *options.split(), "2"]
    done = subprocess.run(
        [*command, "--out", str(tmp_path / "two")],
        cwd=ROOT, env=os.environ | CPU, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    folders = {name: tmp_path / name for name in ("one", "two")}
    results = {n: json.loads((folder / "result.json").read_text()) for n, folder in folders.items()}
    curves = {n: read_metrics(folder / "seed-1/metrics.jsonl") for n, folder in folders.items()}
    assert [result["per_seed"][0]["processes"] for result in results.values()] == [1, 2]
    for one, two in zip(curves["one"], curves["two"], strict=True):
        assert one["step"] == two["step"]
        for name in one:
            assert two[name] == pytest.approx(one[name], abs=1e-4), name
    assert results["one"]["test"] == results["two"]["test"]
