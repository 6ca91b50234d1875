"""The real commands on tiny shards: four ways to start, two DeepSpeed ranks, kill -9 and resume."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file

from shards.sample import write_sample

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
TINY = """
    --config pretrain/configs/tiny.yaml
    --model.hidden_size 32 --model.num_attention_heads 2 --model.intermediate_size 64
    --model.text_layers 1 --model.fusion_layers 1 --model.vocab_size 300
    --model.image_size 32 --model.vision_hidden_size 32 --model.vision_heads 2
    --model.vision_layers 1 --model.projection_size 16
    --batch.global_size 16 --optim.steps 20
    --log.every 1 --log.validate_every 10 --log.validation_pairs 16
""".split()  # noqa: SIM905


def command(*parts: str) -> list[str]:
    return [str(BIN / parts[0]), *parts[1:]]


def environment() -> dict[str, str]:
    cpu = {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return os.environ | cpu | {"PATH": f"{BIN}:{os.environ['PATH']}"}


def run(*parts: str, timeout: float = 300) -> str:
    result = subprocess.run(
        command(*parts),
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-4000:]
    return result.stdout


def losses(run_dir: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [
        {name: value for name, value in line.items() if name.endswith("loss")}
        for line in lines
        if "loss" in line
    ]


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """Corpora, shards with objects, a prompter and its teacher column."""
    folder = tmp_path_factory.mktemp("world")
    write_sample(folder / "corpora", pairs=240, rows=(8, 4, 4), size=32)
    corpora = folder / "corpora"
    for split in ("train", "val"):
        shards = str(folder / "shards" / split)
        run("python", "-m", "shards", "build", "newsclippings", "--news-clippings",
            str(corpora / "news_clippings"), "--visual-news", str(corpora / "visual_news"),
            "--split", split, "--out", shards)  # fmt: skip
        run("python", "-m", "shards", "detect", shards, "--detector", "file", "--boxes",
            str(corpora / "visual_news/objects.jsonl"))  # fmt: skip
    (folder / "entities.tsv").write_text("ring\nball\ncrown\ntree\n")
    run("python", "-m", "pretrain", *TINY, "--config", "pretrain/configs/prompter.yaml",
        "--model.fusion_layers", "0", "--run_dir", str(folder / "prompter"),
        "--data.train", str(folder / "shards/train"), "--optim.steps", "2")  # fmt: skip
    for split in ("train", "val"):
        run("python", "-m", "pretrain.label", str(folder / "shards" / split), "--prompter",
            str(folder / "prompter/model"))  # fmt: skip
    return folder


def arguments(world: Path, run_dir: Path) -> list[str]:
    return [
        *TINY, "--run_dir", str(run_dir), "--data.train", str(world / "shards/train"),
        "--data.val", str(world / "shards/val"), "--prompter.source", str(world / "prompter/model"),
        "--prompter.entities", str(world / "entities.tsv"),
        "--prompter.relations", str(world / "corpora/relations.tsv"),
    ]  # fmt: skip


@pytest.fixture(scope="module")
def undisturbed(world) -> Path:
    """One process, all four losses, never interrupted."""
    run_dir = world / "undisturbed"
    run("python", "-m", "pretrain", *arguments(world, run_dir))
    return run_dir


WAYS = {
    "bash": ["bash", "launch/pretrain.sh"],
    "deepspeed": ["deepspeed", "--num_accelerators", "2", "launch/pretrain.sh"],
    "torchrun": ["torchrun", "--nproc-per-node", "2", "-m", "pretrain"],
}


@pytest.mark.parametrize("way", WAYS)
def test_every_way_to_start_gives_the_same_losses(way, world, undisturbed):
    """Against one process without DeepSpeed: the global batches do not know the world size."""
    run_dir = world / way
    subprocess_command = [*WAYS[way], *arguments(world, run_dir)]
    if way == "bash":
        result = subprocess.run(
            subprocess_command,
            cwd=ROOT,
            env=environment(),
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert result.returncode == 0, result.stderr[-4000:]
    else:
        run(*subprocess_command)
    expected, found = losses(undisturbed), losses(run_dir)
    assert len(expected) == len(found) == 20
    for one, two in zip(expected, found, strict=True):
        assert one.keys() == two.keys() and "coe_loss" in one
        for name in one:
            assert two[name] == pytest.approx(one[name], abs=1e-5), name


def kill_at_step(parts: list[str], run_dir: Path, step: int) -> None:
    """Start a run and kill -9 all its processes once it has logged `step`."""
    process = subprocess.Popen(
        parts, cwd=ROOT, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    log, deadline = run_dir / "metrics.jsonl", time.monotonic() + 200
    while not (log.exists() and f'{{"step": {step},' in log.read_text()):
        assert process.poll() is None and time.monotonic() < deadline, "ended before it was killed"
        time.sleep(0.02)
    family = [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]
    for member in family:
        member.kill()
    process.wait()


@pytest.mark.parametrize("engine", ["single", "deepspeed"])
def test_killed_and_resumed_ends_with_the_same_bits(engine, world, undisturbed):
    start = ["python", "-m", "pretrain"] if engine == "single" else WAYS["deepspeed"]
    whole = undisturbed if engine == "single" else world / "whole"
    if engine == "deepspeed":
        run(*start, *arguments(world, whole))
    run_dir = world / f"killed-{engine}"
    options = [*arguments(world, run_dir), "--checkpoint.every", "4"]
    kill_at_step(command(*start, *options), run_dir, step=11)
    assert not (run_dir / "model").exists()
    run(*start, *options)
    one, two = (load_file(folder / "model/model.safetensors") for folder in (whole, run_dir))
    assert one.keys() == two.keys()
    assert all((one[name] == two[name]).all() for name in one)
    assert losses(run_dir) == losses(whole)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("before", "after"), [((2, 1), (1, 1)), ((1, 2), (2, 1)), ((2, 3), (2, 3))]
)
def test_resumed_on_other_ranks_and_stage(before, after, world, undisturbed):
    """(ranks, ZeRO stage) before and after: the same global batches, hence the same losses."""
    run_dir = world / f"elastic-{before}-{after}"

    def start(ranks: int, stage: int) -> list[str]:
        launcher = ["deepspeed", "--num_accelerators", str(ranks), "launch/pretrain.sh"]
        options = ["--checkpoint.every", "5", "--engine.deepspeed", f"launch/zero{stage}.json"]
        return [*launcher, *arguments(world, run_dir), *options]

    kill_at_step(command(*start(*before)), run_dir, step=12)
    assert not (run_dir / "model").exists()
    run(*start(*after))
    for one, two in zip(losses(undisturbed), losses(run_dir), strict=True):
        assert two["loss"] == pytest.approx(one["loss"], abs=2e-4)
    one, two = (load_file(d / "model/model.safetensors") for d in (undisturbed, run_dir))
    assert all(torch.allclose(one[name], two[name], atol=2e-3) for name in one)


def test_running_again_changes_nothing_and_another_configuration_is_refused(world, undisturbed):
    before = (undisturbed / "model/model.safetensors").stat().st_mtime_ns
    assert "finished before" in run("python", "-m", "pretrain", *arguments(world, undisturbed))
    assert (undisturbed / "model/model.safetensors").stat().st_mtime_ns == before
    changed = [*arguments(world, undisturbed), "--optim.lr", "0.5"]
    result = subprocess.run(
        command("python", "-m", "pretrain", *changed),
        cwd=ROOT, env=environment(), capture_output=True, text=True,
    )  # fmt: skip
    assert result.returncode == 2
    assert "optim.lr (0.001 -> 0.5)" in result.stderr and "Traceback" not in result.stderr
