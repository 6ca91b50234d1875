"""The real commands on tiny shards: ways to start, two DeepSpeed ranks, stops, kills, resume."""

import json
import os
import subprocess
import sys
import time
import uuid
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from safetensors.torch import load_file
from warm import CPU

from pretrain.__main__ import main as pretrain
from pretrain.cluster.stopping import SIGNALS
from shards.__main__ import main as shards_command
from shards.sample.write import SampleConfig, write_sample

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
STEPS = 20
TINY = f"""
    --config tiny
    --model.hidden_size 32 --model.num_attention_heads 2 --model.intermediate_size 64
    --model.text_layers 1 --model.fusion_layers 1 --model.vocab_size 300
    --model.image_size 32 --model.vision_hidden_size 32 --model.vision_heads 2
    --model.vision_layers 1 --model.projection_size 16
    --batch.global_size 16 --optim.steps {STEPS}
    --log.every 1 --log.validate_every 10 --log.validation_pairs 16
""".split()


def environment(programs: Path = BIN) -> dict[str, str]:
    mark = {"JOB": uuid.uuid4().hex}
    return os.environ | CPU | mark | {"PATH": f"{programs}:{BIN}:{os.environ['PATH']}"}


def run(*command: str, programs: Path = BIN) -> None:
    """A command that must end well, found among these programs first."""
    result = subprocess.run(
        command, cwd=ROOT, env=environment(programs), capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-4000:]


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
    write_sample(SampleConfig(out=folder / "corpora", pairs=240, rows=(8, 4, 4), size=32))
    corpora = folder / "corpora"
    for split in ("train", "val"):
        shards = str(folder / "shards" / split)
        sources = ["--news-clippings", str(corpora / "news_clippings")]
        sources += ["--visual-news", str(corpora / "visual_news"), "--split", split]
        shards_command(["build", "newsclippings", *sources, "--out", shards])
        boxes = str(corpora / "visual_news/objects.jsonl")
        shards_command(["detect", shards, "--detector", "file", "--boxes", boxes])
    (folder / "entities.tsv").write_text("ring\nball\ncrown\ntree\n")
    pretrain([*TINY, "--config", "prompter", "--model.fusion_layers", "0",
              "--run_dir", str(folder / "prompter"), "--data.train", str(folder / "shards/train"),
              "--optim.steps", "2"])  # fmt: skip
    for split in ("train", "val"):
        pretrain(["label", str(folder / "shards" / split), "--prompter",
                  str(folder / "prompter/model")])  # fmt: skip
    return folder


def arguments(world: Path, run_dir: Path) -> list[str]:
    return [
        *TINY, "--run_dir", str(run_dir), "--data.train", str(world / "shards/train"),
        "--data.val", str(world / "shards/val"), "--prompter.source", str(world / "prompter/model"),
        "--prompter.entities", str(world / "entities.tsv"),
        "--prompter.relations", str(world / "corpora/relations.tsv"),
    ]  # fmt: skip


@pytest.fixture(scope="module")
def undisturbed(world, interpreter) -> Path:
    """One process, all four losses, never interrupted."""
    run_dir = world / "undisturbed"
    run("python", "-m", "pretrain", *arguments(world, run_dir), programs=interpreter.path)
    return run_dir


WAYS = {
    "bash": ["bash", "launch/pretrain.sh"],
    "deepspeed": ["deepspeed", "--num_accelerators", "2", "launch/pretrain.sh"],
    "torchrun": ["torchrun", "--nproc-per-node", "2", "-m", "pretrain"],
}


@pytest.fixture(scope="module")
def two_ranks(world) -> Path:
    """Two of DeepSpeed's, never interrupted."""
    run_dir = world / "deepspeed"
    run(*WAYS["deepspeed"], *arguments(world, run_dir))
    return run_dir


@pytest.mark.parametrize("way", WAYS)
def test_every_way_to_start_gives_the_same_losses(way, world, undisturbed, two_ranks, interpreter):
    """Against one process without DeepSpeed: the global batches do not know the world size."""
    run_dir = world / way
    if way != "deepspeed":  # which the shell's lines start
        programs = interpreter.path if way == "bash" else BIN
        run(*WAYS[way], *arguments(world, run_dir), programs=programs)
    expected, found = losses(undisturbed), losses(run_dir)
    assert len(expected) == len(found) == STEPS
    for one, two in zip(expected, found, strict=True):
        assert one.keys() == two.keys() and "coe_loss" in one
        for name in one:
            assert two[name] == pytest.approx(one[name], abs=1e-5), name


def kill_at_step(command: list[str], run_dir: Path, step: int, programs: Path = BIN) -> None:
    """Start a run and kill -9 all its processes once it has logged `step`."""
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen(command, cwd=ROOT, env=environment(programs), **quiet)
    log, deadline = run_dir / "metrics.jsonl", time.monotonic() + 200
    while not (log.exists() and f'{{"step": {step},' in log.read_text()):
        assert process.poll() is None and time.monotonic() < deadline, "ended before it was killed"
        time.sleep(0.02)
    for member in [*family(process), process]:
        member.kill()
    process.wait()


def same_weights(one: Path, two: Path) -> bool:
    """Of two runs, to the bit."""
    states = [load_file(run_dir / "model/model.safetensors") for run_dir in (one, two)]
    assert states[0].keys() == states[1].keys()
    return all((states[0][name] == states[1][name]).all() for name in states[0])


@pytest.mark.parametrize("engine", ["single", "deepspeed"])
def test_killed_and_resumed_ends_with_the_same_bits(engine, world, request, interpreter):
    start = ["python", "-m", "pretrain"] if engine == "single" else WAYS["deepspeed"]
    whole = request.getfixturevalue("undisturbed" if engine == "single" else "two_ranks")
    run_dir = world / f"killed-{engine}"
    command = [*start, *arguments(world, run_dir), "--checkpoint.every", "4"]
    kill_at_step(command, run_dir, step=11, programs=interpreter.path)
    assert not (run_dir / "model").exists()
    run(*command, programs=interpreter.path)
    assert same_weights(whole, run_dir)
    assert losses(run_dir) == losses(whole)


def family(process: subprocess.Popen) -> list[psutil.Process]:
    """What it has started, by their environment: a process of `warm` is no child of its caller."""
    mark = psutil.Process(process.pid).environ()["JOB"]
    others = (p for p in psutil.process_iter(["environ"]) if p.pid != process.pid)
    return [p for p in others if (p.info["environ"] or {}).get("JOB") == mark]


def ranks(process: subprocess.Popen) -> list[psutil.Process]:
    """The training processes below DeepSpeed's runner and launcher, rank 0 first."""
    ours = [p for p in family(process) if p.name().startswith("python") and "RANK" in p.environ()]
    return sorted(
        (p for p in ours if p.parent() not in ours), key=lambda p: int(p.environ()["RANK"])
    )


def disturb(how: str, process: subprocess.Popen, random: np.random.Generator) -> None:
    """End a two-rank DeepSpeed job in one way; it must be gone in time, with the right status."""
    members, ours = family(process), ranks(process)
    if how == "kill job":
        for member in [*members, process]:
            member.kill()
    elif how == "kill rank":
        ours[random.integers(2)].kill()
    elif how == "stop rank":  # the signal reaches one rank alone: all agree
        ours[random.integers(2)].send_signal(random.choice(SIGNALS))
    elif how == "stop launcher":  # it dies and passes nothing on: its ranks notice
        process.terminate()
    since = time.monotonic()
    _, alive = psutil.wait_procs(ours, timeout=25)
    print(f"{how}: ranks gone after {time.monotonic() - since:.1f} s", flush=True)
    assert not alive, f"{how}: {alive}"
    process.wait(timeout=120)  # DeepSpeed's two launchers take their time on a busy machine
    assert not psutil.wait_procs(members, timeout=60)[1]
    expected = {"kill job": [-9], "stop rank": [0], "stop launcher": [-15]}
    assert process.returncode in expected.get(how, range(1, 256))


def disturbed(
    world: Path, command: list[str], run_dir: Path, plan: list[str], programs: Path
) -> None:
    """One training, disturbed at random steps in these ways, and resumed each time but the last."""
    random = np.random.default_rng(0)
    log = run_dir / "metrics.jsonl"
    for how in plan:
        with (world / "disturbed.log").open("a") as out:
            process = subprocess.Popen(
                command, cwd=ROOT, env=environment(programs), stdout=out, stderr=out
            )
        deadline, seen, wanted = time.monotonic() + 200, set(), random.integers(1, 6)
        before = log.read_text() if log.exists() else ""
        while len(seen) < wanted:  # steps logged since this start
            assert process.poll() is None and time.monotonic() < deadline, "ended undisturbed"
            text = log.read_text() if log.exists() else ""
            if text and not before.startswith(text):
                seen |= {line[:12] for line in text.splitlines() if line not in before}
            time.sleep(0.02)
        disturb(how, process, random)


PLANS = [
    pytest.param(["stop rank"], STEPS, id="one stop"),
    pytest.param(["kill rank"], 60, id="one rank killed", marks=pytest.mark.slow),
    pytest.param(
        ["stop rank"] * 3 + ["stop launcher"] * 2 + ["kill job"] * 20 + ["kill rank"] * 10,
        150,
        id="5 stops 20 kills 10 of a rank",
        marks=pytest.mark.slow,
    ),
]


@pytest.mark.parametrize(("plan", "steps"), PLANS)
def test_disturbed_in_whatever_way_ends_with_the_same_bits(
    plan, steps, world, two_ranks, interpreter
):
    """Stops, kills of the job, kills of a rank, at random steps of one training."""
    whole, run_dir = two_ranks, world / f"disturbed-{len(plan)}-{plan[0]}"
    options = ["--checkpoint.every", "3", "--optim.steps", str(steps), "--data.workers", "1"]
    start = WAYS["deepspeed"]
    if steps != STEPS:
        whole = world / f"whole-{steps}"
        run(*start, *arguments(world, whole), *options, programs=interpreter.path)
    command = [*start, *arguments(world, run_dir), *options]
    # Ranks notice the end of a launcher that is their parent.
    disturbed(world, command, run_dir, plan, interpreter.path if plan == ["stop rank"] else BIN)
    run(*command, programs=interpreter.path)
    assert same_weights(whole, run_dir)


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

    kill_at_step(start(*before), run_dir, step=12)
    assert not (run_dir / "model").exists()
    run(*start(*after))
    for one, two in zip(losses(undisturbed), losses(run_dir), strict=True):
        assert two["loss"] == pytest.approx(one["loss"], abs=2e-4)
    one, two = (load_file(d / "model/model.safetensors") for d in (undisturbed, run_dir))
    assert all(torch.allclose(one[name], two[name], atol=2e-3) for name in one)


@pytest.mark.slow
@pytest.mark.parametrize(
    "zero",
    [
        {
            "stage": 3,
            "stage3_param_persistence_threshold": 0,
        },  # every parameter is cut, pos_embed too
        {"stage": 1, "offload_optimizer": {"device": "cpu"}},
    ],
    ids=["zero3", "offload"],
)
def test_other_tuning_computes_the_same(zero, world, undisturbed, tmp_path):
    (tmp_path / "tuning.json").write_text(json.dumps({"zero_optimization": zero}))
    options = ["--engine.deepspeed", str(tmp_path / "tuning.json")]
    run(*WAYS["deepspeed"], *arguments(world, tmp_path / "run"), *options)
    for one, two in zip(losses(undisturbed), losses(tmp_path / "run"), strict=True):
        assert two == pytest.approx(one, abs=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_two_ranks_with_accumulation_are_one_large_batch(stage, world, undisturbed, tmp_path):
    """Two ranks x two micro-batches, negatives of the whole step, against one process's batch."""
    (tmp_path / "tuning.json").write_text(json.dumps({"zero_optimization": {"stage": stage}}))
    options = ["--engine.deepspeed", str(tmp_path / "tuning.json"), "--batch.accumulation", "2"]
    options += ["--batch.negatives", "step"]
    run(*WAYS["deepspeed"], *arguments(world, tmp_path / "run"), *options)
    pairs = list(zip(losses(undisturbed), losses(tmp_path / "run"), strict=True))
    off = [max(abs(two[name] - one[name]) for name in one) for one, two in pairs]
    print(
        f"stage {stage}: losses differ by {max(off[:3]):.1e} in 3 steps, {max(off):.1e} in {STEPS}"
    )
    assert max(off[:3]) <= 1e-5 and max(off) <= 1e-4


def test_running_again_changes_nothing_and_another_configuration_is_refused(
    world, undisturbed, capsys
):
    before = (undisturbed / "model/model.safetensors").stat().st_mtime_ns
    pretrain(arguments(world, undisturbed))
    assert "finished before" in capsys.readouterr().out
    assert (undisturbed / "model/model.safetensors").stat().st_mtime_ns == before
    changed = [*arguments(world, undisturbed), "--optim.lr", "0.5"]
    with pytest.raises(SystemExit) as stopped:
        pretrain(changed)
    assert stopped.value.code == 2
    assert "optim.lr (0.001 -> 0.5)" in capsys.readouterr().err
