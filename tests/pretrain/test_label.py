"""The teacher column: what is encoded, and that kill -9 does not change a byte."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import load_file

from pretrain import engine
from pretrain.checkpoint.hub import load_fusion, save_model_directory
from pretrain.data.clean import object_crop
from pretrain.data.tokenizer import learn_tokenizer
from pretrain.label import LabelConfig, label, main
from pretrain.model.config import FusionEncoderConfig
from pretrain.model.fusion_encoder import FusionEncoder
from pretrain.model.promu import HeadsConfig, Promu
from pretrain.prompter import column
from pretrain.prompter.column import write_teacher_column
from shards import threads
from shards.schema import DetectedObject, PairMeta
from shards.stream import Sample, ShardReader

ROOT = Path(__file__).resolve().parents[2]
TINY = FusionEncoderConfig(
    vocab_size=60, hidden_size=8, num_attention_heads=2, intermediate_size=16, text_layers=1,
    fusion_layers=0, max_position_embeddings=8, image_size=32, patch_size=8, vision_hidden_size=8,
    vision_layers=1, vision_heads=2, projection_size=4,
)  # fmt: skip


def save_prompter(folder: Path, seed: int) -> Path:
    """A tiny dual encoder of random weights, with its temperature."""
    torch.manual_seed(seed)
    model = Promu(FusionEncoder(TINY), HeadsConfig(itm=False))
    save_model_directory(
        folder,
        config=model.released_config(),
        state=model.released_state(),
        tokenizer=learn_tokenizer(["a dog", "the cat"], 60),
        card="",
    )
    return folder


@pytest.fixture(scope="module")
def prompter(tmp_path_factory) -> Path:
    return save_prompter(tmp_path_factory.mktemp("prompter") / "model", seed=0)


@pytest.fixture
def shards(pair_shards, tmp_path) -> Path:
    return Path(shutil.copytree(pair_shards, tmp_path / "shards"))


@pytest.mark.parametrize(
    ("box", "expected"),
    [
        ((20, 10, 60, 40), (10, 5, 30, 20)),  # the picture is decoded at half size
        ((21.8, 9.6, 61, 40.8), (11, 5, 30, 20)),
        ((-10, -8, 300, 300), (0, 0, 50, 25)),
        ((30.2, 20.2, 30.4, 20.6), (15, 10, 16, 11)),  # one pixel at least
        ((99.5, 49.5, 120, 60), (49, 24, 50, 25)),
        ((150, 80, 160, 90), (49, 24, 50, 25)),
    ],
)
def test_object_crop(box, expected):
    meta = PairMeta("a", True, "c", "i", (100, 50), "s")
    sample = Sample("k", b"", meta, (DetectedObject(box, 0.9, "dog"),))
    pixels = np.stack([*np.mgrid[:25, :50], np.zeros((25, 50))], axis=2).astype(np.uint8)
    left, top, right, bottom = expected
    assert np.array_equal(object_crop(sample, pixels), pixels[top:bottom, left:right])


@torch.inference_mode()
def test_features_are_those_of_the_encoder(shards, prompter):
    """Each picture and crop by hand, alone, with Pillow's own crop."""
    write_teacher_column(str(shards), str(prompter), batch_size=3)
    encoder, _ = load_fusion(prompter)
    encoder.eval()

    def encode(image: Image.Image) -> np.ndarray:
        pixels = np.asarray(image.resize((32, 32), Image.Resampling.BICUBIC))
        pixels = (torch.tensor(pixels).permute(2, 0, 1) / 255 - 0.5) / 0.5
        return encoder.image_feat(encoder.encode_image(pixels[None]))[0].numpy()

    reader, with_object = ShardReader(shards, columns=["objects", "teacher"]), 0
    assert reader.has_column("teacher")
    for number, shard in enumerate(reader.index.shards):
        sample = reader.read(number, 0)
        (shards / "one.jpg").write_bytes(sample.image)
        picture = Image.open(shards / "one.jpg").convert("RGB")
        stored = load_file(shards / "teacher" / f"{shard.stem}.safetensors")
        assert stored["image_feat"].dtype == stored["object_feat"].dtype == np.float16
        assert stored["image_feat"][0] == pytest.approx(encode(picture), abs=2e-3)
        assert stored["has_object"].tolist() == [bool(sample.objects)]
        if sample.objects:
            crop = picture.crop([round(side) for side in sample.objects[0].box])
            assert stored["object_feat"][0] == pytest.approx(encode(crop), abs=4e-3)
            assert np.array_equal(sample.teacher["object_feat"], stored["object_feat"][0])
            with_object += 1
        else:
            assert not stored["object_feat"].any()
    assert with_object == 12


def test_labelling_again_changes_nothing_and_another_prompter_everything(
    shards, prompter, tmp_path
):
    write_teacher_column(str(shards), str(prompter))
    before = {path.name: path.stat().st_mtime_ns for path in shards.glob("teacher/*.safetensors")}
    write_teacher_column(str(shards), str(prompter))
    after = {path.name: path.stat().st_mtime_ns for path in shards.glob("teacher/*.safetensors")}
    assert before == after and len(after) == 16
    content = contents(shards)
    write_teacher_column(str(shards), str(save_prompter(tmp_path / "other", seed=1)))
    assert all(content[name] != found for name, found in contents(shards).items())


@pytest.mark.parametrize("wrong", ["no objects column", "no such prompter"])
def test_wrong_input_is_one_line(wrong, shards, prompter, tmp_path, capsys):
    if wrong == "no objects column":
        shutil.rmtree(shards / "objects")
        expected = f"{shards}: no objects column; run `python -m shards detect {shards}` first"
    else:
        prompter = tmp_path / "nowhere"
        expected = str(prompter)
    with pytest.raises(SystemExit) as caught:
        main([str(shards), "--prompter", str(prompter)])
    assert caught.value.code == 2
    message = capsys.readouterr().err
    assert expected in message and message.count("\n") == 1
    assert not (shards / "teacher").exists()


def test_loader_processes_are_as_many_as_the_container_has_cores(monkeypatch):
    calls: list[dict] = []
    monkeypatch.setattr(threads, "cores", lambda: 8)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.setattr(column, "write_teacher_column", lambda *_, **options: calls.append(options))
    monkeypatch.setattr(engine, "start", lambda kind: "single")
    label(LabelConfig(shards="shards", prompter="prompter"))
    assert calls[0]["workers"] == 3


# ------------------------------------------------------------------ kill -9

# Every rename waits a little, so that kills hit all stages of it.
SLOW_LABEL = """
import os, sys, time
replace = os.replace
os.replace = lambda *paths: (time.sleep(0.02), replace(*paths), time.sleep(0.02))
from pretrain.label import LabelConfig, label, main
main(sys.argv[1:])
"""


def contents(shards: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (shards / "teacher").iterdir()}


def names(shards: Path) -> set[str]:
    return {path.name for path in shards.glob("teacher/*")}


@pytest.mark.parametrize("kills", [1, pytest.param(20, marks=pytest.mark.slow)])
def test_kill_9_during_label(shards, prompter, tmp_path, kills):
    plain = Path(shutil.copytree(shards, tmp_path / "plain"))
    write_teacher_column(str(plain), str(prompter))
    command = [sys.executable, "-c", SLOW_LABEL, str(shards), "--prompter", str(prompter)]
    options = {"cwd": ROOT, "env": os.environ | {"OMP_NUM_THREADS": "1"}}
    delays, hits = random.Random(kills), 0
    for _ in range(kills):
        before = names(shards)
        process = subprocess.Popen(command, **options)
        while process.poll() is None and names(shards) == before:  # still starting
            time.sleep(0.001)
        time.sleep(delays.uniform(0, 0.05))
        process.send_signal(signal.SIGKILL)
        hits += process.wait() == -signal.SIGKILL
        assert not ShardReader(shards).has_column("teacher")
    assert hits == kills
    write_teacher_column(str(shards), str(prompter))
    assert contents(shards) == contents(plain)
    assert ShardReader(shards).has_column("teacher")
