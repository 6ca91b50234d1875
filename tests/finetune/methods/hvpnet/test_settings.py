"""HVPNeT's settings: towers that can and cannot be had, shipped configurations."""

import json
from pathlib import Path

import pytest
import timm
import torch
from parts_hvpnet import close
from safetensors.torch import save_file

from finetune.config import parse_train
from finetune.methods.hvpnet.config import HvpnetConfig
from finetune.methods.towers.resnet import load_resnet
from finetune.protocols import PROTOCOLS
from shards.files import InputError


def test_narrow_resnets():
    """All widths follow the first stage's, the stem's too where it is made of three layers."""
    net = load_resnet("resnet10t", random_weights=True, width=8)
    assert net.channels == (8, 16, 32, 64) and net.net.conv1[0].out_channels == 3
    assert load_resnet("resnet10t", random_weights=True).channels == (64, 128, 256, 512)
    maps = net(net.normalise(torch.zeros(1, 3, 64, 64, dtype=torch.uint8)))
    assert [tuple(stage.shape[1:]) for stage in maps] == [
        (8, 16, 16), (16, 8, 8), (32, 4, 4), (64, 2, 2)
    ]  # fmt: skip


def test_resnet_of_a_directory(tmp_path):
    """timm's layout, with ImageNet's classifier in it: weights and colours are the file's."""
    net = timm.create_model("resnet10t", num_classes=10, channels=(4, 8, 16, 32), stem_width=4)
    save_file(net.state_dict(), tmp_path / "model.safetensors")
    config = {
        "architecture": "resnet10t",
        "num_classes": 10,
        "model_args": {"channels": [4, 8, 16, 32], "stem_width": 4},
        "pretrained_cfg": {"mean": [0.5, 0.5, 0.5], "std": [0.25, 0.5, 0.5], "num_classes": 10},
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    vision = load_resnet(str(tmp_path), random_weights=False).eval()
    pixels = torch.randint(256, (2, 3, 64, 64), dtype=torch.uint8)
    mean, std = torch.full((3, 1, 1), 0.5), torch.tensor([0.25, 0.5, 0.5]).view(3, 1, 1)
    with torch.no_grad():
        wanted = net.eval().forward_features((pixels / 255 - mean) / std)
        close(vision(vision.normalise(pixels))[-1], wanted, 1e-4)


def test_bad_settings():
    with pytest.raises(ValueError, match="image_size must be at least 64"):
        HvpnetConfig(image_size=32)
    with pytest.raises(InputError, match="no published weights"):
        load_resnet("resnet18", random_weights=False, width=8)
    with pytest.raises(InputError, match="timm cannot load it"):
        load_resnet("resnet_none", random_weights=True)
    with pytest.raises(InputError, match="not a ResNet"):
        load_resnet("vgg11", random_weights=True)


CONFIGS = Path(__file__).parents[4] / "finetune/configs"


def test_configs():
    for path in CONFIGS.glob("*/hvpnet.yaml"):
        config = parse_train(
            ["--config", str(path), "--data", "D", "--out", "O", "--architecture", "M"]
        )
        assert config.method == "hvpnet" and isinstance(config.model, HvpnetConfig)


@pytest.mark.parametrize(
    ("task", "method", "epochs", "batch", "lr", "warmup", "length"),
    [
        ("mnre", "hvpnet", 15, 16, 3e-5, 0.06, 80),
        ("mnre", "camim_hvpnet", 30, 32, 3e-5, 0.10, 128),
        ("twitter2015", "hvpnet", 30, 8, 3e-5, 0.01, 80),
        ("twitter2017", "hvpnet", 30, 8, 3e-5, 0.01, 128),
    ],
)
def test_published_settings(task, method, epochs, batch, lr, warmup, length):
    """The table of hvpnet.md §4; no clipping, weight decay 0.01, the CRF at 5e-2."""
    path = CONFIGS / task / f"{method}.yaml"
    config = parse_train(["--config", str(path), "--data", "D", "--out", "O", "--init", "M"])
    optim = config.optim
    assert (optim.epochs, optim.global_batch_size, optim.warmup) == (epochs, batch, warmup)
    assert (optim.lr, optim.head_lr, config.max_length) == (lr, lr, length)
    assert (optim.clip, optim.weight_decay, optim.accumulation) == (0, 0.01, 1)
    assert task == "mnre" or optim.crf_lr == 5e-2
    ways = {"hvpnet": 1, "hvpnet_ner": 3, "camim": 9}
    assert {name: PROTOCOLS[name].first_epoch for name in ways} == ways
    assert all(PROTOCOLS[name].improves(50.0, 50.0) for name in ways)  # ties: the later epoch
