"""Settings of foreign towers in somebody's `config.json`: one line, and nothing is fetched."""

import json
from dataclasses import replace

import families
import pytest
import torch
from torch import nn

from pretrain import convert
from pretrain.checkpoint.strict import check_size
from pretrain.model.config import FusionEncoderConfig
from pretrain.model.fusion_encoder import FusionEncoder
from pretrain.model.library import library_parameters
from shards.files import InputError

TINY = FusionEncoderConfig(
    vocab_size=50, hidden_size=32, num_attention_heads=4, intermediate_size=32, text_layers=1,
    fusion_layers=1, max_position_embeddings=40, image_size=32, patch_size=16,
    vision_hidden_size=32, vision_layers=1, vision_heads=4,
)  # fmt: skip


@pytest.mark.parametrize(
    "settings",
    [
        {"model_type": "roberta", "pad_token_id": 99},
        {"model_type": "roberta", "max_position_embeddings": "a"},
        {"model_type": "bert", "hidden_act": "zz"},
        {"model_type": "bert", "num_attention_heads": 5},
        {"model_type": "distilbert", "dim": -32, "n_heads": 4, "vocab_size": 50},
        {"model_type": "unheard"},
    ],
)
def test_a_text_encoder_that_cannot_be_is_refused(settings):
    with pytest.raises(InputError, match="text_config: "):
        FusionEncoder(replace(TINY, text_config=settings))


@pytest.mark.parametrize(
    "settings",
    [
        {"architecture": "unheard"},
        {"architecture": "hf-hub:timm/resnet18.a1_in1k"},
        {"architecture": "local-dir:folder"},
        {"architecture": "resnet10t", "model_args": {"pretrained": True}},
        {"architecture": "resnet10t", "model_args": {"checkpoint_path": "weights.pth"}},
        {"architecture": "resnet10t", "model_args": [1]},
    ],
)
def test_a_backbone_that_cannot_be_or_would_load_is_refused(settings, monkeypatch):
    import timm.models._factory as factory

    monkeypatch.setattr(factory, "load_checkpoint", lambda *_, **__: pytest.fail("loads"))
    monkeypatch.setattr(factory, "load_model_config_from_hf", lambda *_, **__: pytest.fail("asks"))
    with pytest.raises(InputError, match="vision_config: "):
        FusionEncoder(replace(TINY, vision_config=settings))


def test_heads_must_part_the_pictures_width():
    with pytest.raises(ValueError, match="vision_heads 5"):
        replace(TINY, vision_heads=5)


@pytest.mark.parametrize("text, vision", families.diagonal())
def test_parameters_are_counted_without_making_them(text, vision, tmp_path):
    convert.main(
        [str(families.write_text(text, tmp_path / "text")), str(tmp_path / "model"), "--vision",
         str(families.write_vision(vision, tmp_path / "vision"))]
    )  # fmt: skip
    content = json.loads((tmp_path / "model/config.json").read_text())
    config = FusionEncoderConfig.from_dict(content)
    encoder = FusionEncoder(config)
    towers = [("text_config", encoder.text), ("vision_config", encoder.vision)]
    parts = [tower for name, tower in towers if getattr(config, name)]
    if config.is_cut and config.text_config:
        parts[0] = nn.ModuleList([encoder.text.embeddings])
    counted = sum(parameter.numel() for part in parts for parameter in part.parameters())
    assert abs(library_parameters(config) - counted) < 0.05 * counted + 100


@pytest.mark.parametrize(
    "settings",
    [
        {"text_config": {"model_type": "roberta", "type_vocab_size": 10**10}},
        {"text_config": {"model_type": "bert", "max_position_embeddings": 10**10}},
        {"text_config": {"model_type": "mpnet", "vocab_size": 10**10}},
        {"text_config": {"model_type": "distilbert", "n_layers": 10**9}},
        {"vision_config": {"architecture": "vit_tiny_patch16_224",
                           "model_args": {"embed_dim": 10**6, "num_heads": 10}}},
        {"vision_config": {"architecture": "vit_tiny_patch16_224", "model_args": {"depth": 10**9}}},
        {"vision_config": {"architecture": "convnext_atto",
                           "model_args": {"depths": [10**8, 1, 1, 1]}}},
    ],
)  # fmt: skip
def test_a_giant_of_a_library_is_refused_before_it_is_made(settings):
    content = replace(TINY, **settings).to_dict()
    with pytest.raises(InputError, match=r"at least [\d,]+ parameters|layers"):
        check_size(content, {"a": torch.zeros(10)}, "model")
