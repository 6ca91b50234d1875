"""A model directory that replaces another: killed at every step, on a full disk, any umask."""

import os
import resource
import signal
import stat
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from tokenizers.models import WordPiece

from pretrain.checkpoint import hub
from pretrain.data.tokenizer import learn_tokenizer
from pretrain.model.config import FusionEncoderConfig
from pretrain.model.fusion_encoder import FusionEncoder
from shards import files
from shards.command import exit_on_input_error
from shards.files import disk_errors, replace_folder

TINY = FusionEncoderConfig(
    vocab_size=40, hidden_size=8, num_attention_heads=2, intermediate_size=16, text_layers=1,
    fusion_layers=1, max_position_embeddings=8, image_size=8, patch_size=4, vision_hidden_size=8,
    vision_layers=1, vision_heads=2, projection_size=4,
)  # fmt: skip
STEPS = ("open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.chmod")
WRITES = os.O_WRONLY | os.O_RDWR


def killed(step: int, action: Callable[[], object]) -> bool:
    """Whether `action`, in a process of its own, was killed before its `step`-th write."""
    child = os.fork()
    if child == 0:
        seen = 0

        def count(event: str, arguments: tuple) -> None:
            nonlocal seen
            reads = event == "open" and not (arguments[2] or 0) & WRITES
            if event in STEPS and not reads:
                seen += 1
                if seen == step:
                    os.kill(os.getpid(), signal.SIGKILL)

        try:
            sys.addaudithook(count)
            action()
        finally:
            os._exit(0)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def write(folder: Path, text: str) -> None:
    with replace_folder(folder) as temporary:
        for name in "ab":
            (temporary / name).write_text(text)


@pytest.mark.parametrize("exchange", [True, False], ids=["exchange", "renamed aside"])
def test_every_kill_leaves_the_old_or_the_new(exchange, tmp_path, monkeypatch):
    if not exchange:  # as on a file system that cannot
        monkeypatch.setattr(files, "_exchange", lambda first, second: False)
    folder = tmp_path / "model"
    write(folder, "old")
    step = 0
    while True:
        step += 1
        dead = killed(step, lambda: write(folder, "new"))
        if exchange:
            assert set(content(folder).values()) in ({b"old"}, {b"new"}), step
        killed(1, lambda: write(folder, "newer"))  # the next start, killed at once
        write(folder, "last")
        assert content(folder) == {"a": b"last", "b": b"last"}, step
        assert os.listdir(tmp_path) == ["model"], step
        if not dead:
            break
        write(folder, "old")
    assert step >= 8


def test_a_model_directory_killed_at_every_step_is_written_by_the_same_command(tmp_path):
    tokenizer = learn_tokenizer(["a crown and a ring ."], 40)
    torch.manual_seed(0)
    encoders = [FusionEncoder(TINY) for _ in range(2)]
    encoders[1].save_pretrained(tmp_path / "reference", tokenizer)
    expected = content(tmp_path / "reference")
    place = tmp_path / "runs"
    step = 0
    while True:
        step += 1
        encoders[0].save_pretrained(place / "model", tokenizer)
        dead = killed(step, lambda: encoders[1].save_pretrained(place / "model", tokenizer))
        FusionEncoder.from_pretrained(place / "model")
        encoders[1].save_pretrained(place / "model", tokenizer)
        assert content(place / "model") == expected, step
        assert os.listdir(place) == ["model"], step
        if not dead:
            break
    assert step > 12


@pytest.mark.parametrize("mask", [0o022, 0o027, 0o077, 0o002])
def test_modes_follow_the_umask(mask, tmp_path):
    tokenizer = learn_tokenizer(["a crown and a ring ."], 40)
    before = os.umask(mask)
    try:
        FusionEncoder(TINY).save_pretrained(tmp_path / "model", tokenizer)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "model").stat().st_mode) == 0o777 & ~mask
    modes = {stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "model").iterdir()}
    assert modes == {0o666 & ~mask}


def write_safetensors(path: Path) -> None:
    save_file({"x": torch.zeros(100_000)}, path)


def write_torch(path: Path) -> None:
    torch.save({"x": torch.zeros(100_000)}, path)


def write_tokenizer(path: Path) -> None:
    words = {"[UNK]": 0} | {f"w{number}": number for number in range(1, 20_000)}
    Tokenizer(WordPiece(words, unk_token="[UNK]")).save(str(path))


def write_text(path: Path) -> None:
    path.write_text("x" * 400_000)


@pytest.mark.parametrize(
    "writer",
    [write_safetensors, write_torch, write_tokenizer, write_text],
    ids=lambda f: f.__name__,
)
def test_a_full_disk_is_one_line_whoever_writes(writer, tmp_path, capsys):
    folder = tmp_path / "model"
    write(folder, "old")

    @exit_on_input_error
    def command() -> None:
        with replace_folder(folder) as temporary:
            writer(temporary / "file")

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))  # as full as a disk gets in a test
    try:
        with pytest.raises(SystemExit) as stop:
            command()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    line = capsys.readouterr().err
    assert stop.value.code == 2 and line.startswith(f"error: {folder}: ") and line.count("\n") == 1
    assert content(folder) == {"a": b"old", "b": b"old"} and os.listdir(tmp_path) == ["model"]


def test_other_errors_are_left_as_they_are():
    with pytest.raises(RuntimeError, match="something else"), disk_errors("x"):
        raise RuntimeError("something else")


def test_a_link_keeps_its_place(tmp_path):
    write(tmp_path / "large_disk", "old")
    (tmp_path / "model").symlink_to(tmp_path / "large_disk")
    write(tmp_path / "model", "new")
    assert (tmp_path / "model").is_symlink()
    assert content(tmp_path / "large_disk") == {"a": b"new", "b": b"new"}


def test_something_else_is_not_replaced(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(files.InputError, match="choose another place"):
        hub.save_directory(tmp_path, lambda folder: None)
    assert (tmp_path / "thesis.txt").exists()
