"""A run that goes on: over damaged checkpoints, other data, a longer schedule, a second process."""

import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
import yaml
from ranks import free_port
from safetensors.torch import load_file, save_file

from pretrain.checkpoint.card import pretraining_card
from pretrain.checkpoint.run import MARKER
from pretrain.config import PretrainConfig
from pretrain.data.tokenizer import learn_tokenizer
from pretrain.run_directory import _defaults, _flat, remember_config, remember_inputs
from pretrain.tracking import read_metrics
from pretrain.train import train
from shards.corpora import captions
from shards.files import InputError
from shards.locks import lock
from shards.options import parse_config
from shards.stream import ShardReader
from shards.write import build

ROOT = Path(__file__).parents[2]
TINY = """
    --config pretrain/configs/tiny.yaml --engine.kind single --loss.coe 0 --loss.cir 0
    --model.hidden_size 16 --model.num_attention_heads 2 --model.intermediate_size 32
    --model.text_layers 1 --model.fusion_layers 1 --model.vocab_size 60 --data.max_length 16
    --model.image_size 16 --model.vision_hidden_size 16 --model.vision_heads 2
    --model.vision_layers 1 --model.projection_size 8 --batch.global_size 8
    --optim.steps 6 --checkpoint.every 2 --checkpoint.keep 3 --log.every 1
""".split()  # noqa: SIM905


def arguments(run_dir: Path, shards: Path, *more: str) -> list[str]:
    return [*TINY, "--run_dir", str(run_dir), "--data.train", str(shards), *more]


def start(run_dir: Path, shards: Path, *more: str) -> Path | None:
    words = arguments(run_dir, shards, *more)
    return train(parse_config(PretrainConfig, words, prog="p", description="", example=""))


@pytest.fixture(scope="module")
def finished(pair_shards, tmp_path_factory) -> Path:
    """A run of six steps with checkpoints after 2, 4 and 6."""
    run_dir = tmp_path_factory.mktemp("runs") / "run"
    start(run_dir, pair_shards)
    return run_dir


@pytest.fixture
def run(finished, tmp_path) -> Path:
    """A copy of it that was cut off after step 4."""
    shutil.copytree(finished, tmp_path / "run")
    shutil.rmtree(tmp_path / "run/checkpoints/step-6")
    shutil.rmtree(tmp_path / "run/model")
    return tmp_path / "run"


def losses(run_dir: Path) -> dict[float, float]:
    return {line["step"]: line["loss"] for line in read_metrics(run_dir / "metrics.jsonl")}


def cut(folder: Path) -> None:
    content = (folder / "state.pt").read_bytes()
    (folder / "state.pt").write_bytes(content[: len(content) // 2])


def zeros(folder: Path) -> None:
    (folder / "state.pt").write_bytes(bytes((folder / "state.pt").stat().st_size))


def one_byte(folder: Path) -> None:
    content = bytearray((folder / "state.pt").read_bytes())
    content[len(content) // 2] ^= 1
    (folder / "state.pt").write_bytes(content)


def empty(folder: Path) -> None:
    (folder / "state.pt").write_bytes(b"")


def gone(folder: Path) -> None:
    (folder / "state.pt").unlink()


def empty_marker(folder: Path) -> None:
    (folder / MARKER).write_text("")


def marker_without_words(folder: Path) -> None:
    (folder / MARKER).write_text("{}")


DAMAGES = [cut, zeros, one_byte, empty, gone, empty_marker, marker_without_words]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_named_and_the_older_one_taken(
    damage, run, finished, pair_shards, capsys
):
    damage(run / "checkpoints/step-4")
    assert start(run, pair_shards) == run / "model"
    told = capsys.readouterr().out
    assert re.search(r"step-4.*: set aside as step-4.damaged; going on from .*step-2", told)
    assert (run / "checkpoints/step-4.damaged").is_dir()
    assert losses(run) == losses(finished)


def test_a_run_that_drops_patches_goes_on_to_the_same_losses(pair_shards, tmp_path):
    options = ("--data.keep_patches", "0.5", "--data.unmasked_steps", "1")
    start(tmp_path / "run", pair_shards, *options)
    expected = losses(tmp_path / "run")
    for part in ("checkpoints/step-6", "checkpoints/step-4", "model"):
        shutil.rmtree(tmp_path / "run" / part)
    start(tmp_path / "run", pair_shards, *options)
    assert losses(tmp_path / "run") == expected


def test_a_run_of_before_patches_were_dropped_goes_on(run, finished, pair_shards):
    settings = run / "config.yaml"
    old = re.sub("  (keep_patches|unmasked_steps): .*\n", "", settings.read_text())
    assert old != settings.read_text()
    settings.write_text(old)
    with pytest.raises(InputError, match=r"data\.keep_patches"):
        start(run, pair_shards, "--data.keep_patches", "0.5")
    start(run, pair_shards)
    assert losses(run) == losses(finished)


def test_a_run_of_before_any_option_that_has_a_default_goes_on(run, finished, pair_shards):
    """Whatever later code adds: what a run did not say is what options do by default."""
    settings = yaml.safe_load((run / "config.yaml").read_text())
    plain = _flat(settings)
    unsaid = {
        key for key, value in _defaults(PretrainConfig).items() if plain.get(key, ...) == value
    }
    assert {"data.fixed_views", "optim.tower_lr_scale", "model.text_pool"} < unsaid
    for key in unsaid:
        section, _, name = key.rpartition(".")
        del (settings[section] if section else settings)[name]
    (run / "config.yaml").write_text(yaml.safe_dump(settings))
    start(run, pair_shards)
    assert losses(run) == losses(finished)


def test_a_folder_spelled_otherwise_is_the_same_folder(run, pair_shards, monkeypatch):
    monkeypatch.chdir(pair_shards.parent)
    for name in (f"{pair_shards.name}/", f"./{pair_shards.name}", pair_shards.name):
        assert start(run, Path(name)) == run / "model"
    (pair_shards.parent / "link").symlink_to(pair_shards)
    assert start(run, Path("link")) == run / "model"
    (pair_shards.parent / "link").unlink()


def test_where_every_checkpoint_is_damaged_nothing_starts_anew(run, pair_shards):
    for folder in (run / "checkpoints").glob("step-*"):
        zeros(folder)
    for _ in range(2):
        with pytest.raises(InputError, match=r"every checkpoint is damaged \(.*step-4.*step-2"):
            start(run, pair_shards)


class Marking:
    """Unpickled, it makes a file: harmless, and seen."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("where", ["mp_rank_00_model_states.pt", "state.pt"])
def test_no_code_of_a_checkpoint_runs(where, run, pair_shards, tmp_path):
    """DeepSpeed alone would unpickle it."""
    marker = tmp_path / "code ran"
    for folder in (run / "checkpoints").glob("step-*"):
        torch.save({"module": Marking(marker)}, folder / where)
    with pytest.raises(InputError, match=r"loading it would run `posix.mkdir`"):
        start(run, pair_shards)
    assert not marker.exists()
    pickle.loads(pickle.dumps(Marking(marker)))
    assert marker.is_dir()


def test_what_a_run_says_in_a_log_file(pair_shards, tmp_path, capsys):
    start(tmp_path / "run", pair_shards, "--optim.steps", "3")
    threads, first, *steps = capsys.readouterr().out.splitlines()
    assert threads.startswith("threads: ")
    assert first.startswith("3 steps of 8 pairs (8 x 1 x 1 processes), 32 pairs in ")
    assert "parameters, cpu, fp32, single; writes " in first
    assert steps[0].startswith("step 1 of 3: loss ") and steps[0].endswith(" left")
    assert (tmp_path / "run/log.txt").read_text().splitlines()[0] == first


def test_a_password_in_a_url_stays_out_of_what_others_read(tmp_path, capsys):
    words = arguments(tmp_path, Path("s"), "--data.train", "https://me:pa55@host/shards")
    config = parse_config(PretrainConfig, words, prog="p", description="", example="")
    remember_config(config, tmp_path, [])
    assert "https://…@host/shards" in (tmp_path / "config.yaml").read_text(encoding="utf-8")
    remember_config(config, tmp_path, [2])  # the same run, whatever the password is now
    (tmp_path / "metrics.jsonl").write_text("")
    text = pretraining_card(asdict(config), tmp_path, samples_per_epoch=1, step=1)
    assert "https://…@host/shards" in text and "pa55" not in text


# ------------------------------------------------------------------ what a run was begun with


def test_shards_that_were_rebuilt_under_a_run_are_refused_by_name(
    run, pair_shards, tmp_path, capsys
):
    copy = tmp_path / "shards"
    shutil.copytree(pair_shards, copy)
    (run / "config.yaml").write_text(
        (run / "config.yaml").read_text().replace(str(pair_shards), str(copy))
    )
    assert start(run, copy)  # the same bytes at another place: other words for the same shards
    shutil.rmtree(copy)
    assert start(run, copy) == run / "model"  # finished: what is gone contradicts nothing
    source = pair_shards.parent
    lines = (source / "captions.csv").read_text().replace("a dog 1\n", "a cat 1\n")
    (tmp_path / "captions.csv").write_text(lines)
    build(captions(source, tmp_path / "captions.csv"), copy, shard_size=1)
    for _ in range(2):  # called finished before, and gone on with
        with pytest.raises(InputError, match=r"data.train \(shards\) changed after this run began"):
            start(run, copy)
        shutil.rmtree(run / "checkpoints/step-6", ignore_errors=True)
    (run / "inputs.json").unlink()  # as runs of earlier versions: nothing to compare with
    assert start(run, copy)


@pytest.mark.parametrize("name", ["entities", "relations"])
def test_classes_that_were_renumbered_under_a_run_are_refused(name, pair_shards, tmp_path):
    """Their lines are the rows of a trained head."""
    vocabulary = tmp_path / f"{name}.tsv"
    words = ["--run_dir", "x", "--data.train", str(pair_shards), "--prompter.source", "p"]
    words += ["--prompter.entities", "e", f"--prompter.{name}", str(vocabulary)]
    config = parse_config(PretrainConfig, words, prog="p", description="", example="")
    readers = {"data.train": ShardReader(pair_shards)}
    vocabulary.write_text("dog\t5\ncat\t3\n")
    remember_inputs(config, readers, tmp_path, resumes=False)
    remember_inputs(config, readers, tmp_path, resumes=True)
    vocabulary.write_text("cat\t3\ndog\t5\n")
    with pytest.raises(InputError, match=rf"prompter\.{name} changed after this run began"):
        remember_inputs(config, readers, tmp_path, resumes=True)
    remember_inputs(config, readers, tmp_path, resumes=False)  # a run without a checkpoint is free


def test_initial_weights_that_changed_under_a_run_are_refused(finished, pair_shards, tmp_path):
    model = shutil.copytree(finished / "model", tmp_path / "model")
    words = ("--model.init", str(model), "--optim.steps", "1")
    start(tmp_path / "run", pair_shards, *words)
    assert start(tmp_path / "run", pair_shards, *words)
    state = {name: tensor + 1 for name, tensor in load_file(model / "model.safetensors").items()}
    save_file(state, model / "model.safetensors", metadata={"format": "pt"})
    (model / "checksums.json").unlink()
    with pytest.raises(InputError, match=r"model\.init changed after this run began"):
        start(tmp_path / "run", pair_shards, *words)


def test_a_first_start_that_failed_leaves_no_tokenizer(finished, pair_shards, tmp_path):
    folder = tmp_path / "run/architecture"
    learn_tokenizer(["the captions of another start"], 40).save_pretrained(folder)
    assert start(tmp_path / "run", pair_shards, "--optim.steps", "1")
    written = (folder / "tokenizer.json").read_bytes()
    assert written == (finished / "architecture/tokenizer.json").read_bytes()
    # With a checkpoint it is the run's, and stays.
    learn_tokenizer(["others"], 40).save_pretrained(tmp_path / "other")
    with pytest.raises(InputError, match=r"model.tokenizer"):
        start(tmp_path / "run", pair_shards, "--model.tokenizer", str(tmp_path / "other"))


# ------------------------------------------------------------------ longer, and by two


def test_a_finished_run_is_trained_longer(finished, pair_shards, tmp_path, capsys):
    run_dir = tmp_path / "run"
    shutil.copytree(finished, run_dir)
    longer = ("--optim.steps", "10")
    with pytest.raises(InputError, match=r"optim.steps \(6 -> 10\).*add --extend true"):
        start(run_dir, pair_shards, *longer)
    with pytest.raises(InputError, match=r"optim.lr \(0.001 -> 1e-05\)"):
        start(run_dir, pair_shards, *longer, "--extend", "true", "--optim.lr", "1e-5")
    start(run_dir, pair_shards, *longer, "--extend", "true")
    assert (
        "extended from 6 to 10 steps: from step 6 on the learning rate" in capsys.readouterr().out
    )
    start(tmp_path / "whole", pair_shards, *longer)
    rates = [
        {line["step"]: line["lr"] for line in read_metrics(path / "metrics.jsonl")}
        for path in (run_dir, tmp_path / "whole")
    ]
    # Both follow the schedule of ten steps from there on; before, the first one's was of six.
    for step in (7, 8, 9, 10):
        assert rates[0][step] == pytest.approx(rates[1][step])
    assert rates[0][5] != pytest.approx(rates[1][5])
    lines = losses(run_dir)
    assert sorted(lines) == list(range(1, 11))
    before = torch.load(finished / "checkpoints/step-6/state.pt", weights_only=True)["model"]
    after = torch.load(run_dir / "checkpoints/step-8/state.pt", weights_only=True)["model"]
    assert not torch.equal(before["encoder.text_proj.weight"], after["encoder.text_proj.weight"])
    assert start(run_dir, pair_shards, *longer) == run_dir / "model"  # finished, extend or not


@pytest.mark.parametrize("content", [b"", b"a: 1", b"a: [", b"\xff", b"[1]"])
def test_damaged_settings_are_named(run, pair_shards, content):
    (run / "config.yaml").write_bytes(content)
    with pytest.raises(InputError, match=r"config\.yaml: damaged"):
        start(run, pair_shards)


def test_a_second_process_on_a_run_directory_is_refused(pair_shards, tmp_path):
    with (
        lock(tmp_path / "run"),
        pytest.raises(InputError, match=rf"run: pid {os.getpid()} on .* is writing here"),
    ):
        start(tmp_path / "run", pair_shards)
    assert not (tmp_path / "run/config.yaml").exists()


def children(pid: int) -> list[int]:
    """Processes that another one has started itself, Python's own helper left aside."""
    pids = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    commands = {int(child): Path(f"/proc/{child}/cmdline").read_bytes() for child in pids}
    return [child for child, command in commands.items() if b"resource_tracker" not in command]


@pytest.mark.slow
def test_of_two_ranks_the_one_whose_worker_was_killed_is_named(pair_shards, tmp_path):
    words = arguments(tmp_path / "run", pair_shards, "--optim.steps", "100000")
    words += ["--data.workers", "1", "--engine.kind", "auto"]
    launcher = f"-m torch.distributed.run --nproc-per-node 2 --master-port {free_port()}"
    process = subprocess.Popen(
        [sys.executable, *launcher.split(), "-m", "pretrain", *words], cwd=ROOT, text=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        env=os.environ | {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 240
        while not any((tmp_path / "run/checkpoints").glob(f"step-*/{MARKER}")):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.2)
        ranks = children(process.pid)
        (rank,) = (r for r in ranks if b"\0RANK=1\0" in Path(f"/proc/{r}/environ").read_bytes())
        os.kill(children(rank)[0], signal.SIGKILL)
        _, errors = process.communicate(timeout=100)
    finally:
        process.kill()
    assert process.returncode
    lines = [line for line in errors.splitlines() if line.startswith("error")]
    assert any("rank 1: DataLoader worker" in line for line in lines), errors
    assert not any("rank 0: DataLoader worker" in line for line in lines), errors


def test_a_worker_that_is_killed_ends_the_run_with_one_line(pair_shards, tmp_path):
    """At once, as `leave` does: the interpreter's own end took 11 to 18 seconds beside other load,
    which this test, and whoever supervises ranks, took for a process that hangs."""
    words = arguments(tmp_path / "run", pair_shards, "--optim.steps", "100000")
    words += ["--data.workers", "2"]
    process = subprocess.Popen(
        [sys.executable, "-m", "pretrain", *words], cwd=ROOT, text=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 120
        while not any((tmp_path / "run/checkpoints").glob(f"step-*/{MARKER}")):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.2)
        os.kill(children(process.pid)[0], signal.SIGKILL)
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 2
    lines = [line for line in errors.splitlines() if line.startswith("error")]
    assert len(lines) == 1 and "rank 0: DataLoader worker" in lines[0]
    assert "Traceback" not in errors
