"""Settings of foreign towers in somebody's `config.json`: one line, and nothing is fetched."""

from dataclasses import replace

import pytest

from pretrain.model.fusion_encoder import FusionEncoder, FusionEncoderConfig
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
