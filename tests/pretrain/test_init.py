"""Towers that start from another model directory."""

import pytest
import torch

from pretrain.checkpoint import hub
from pretrain.data.tokenizer import learn_tokenizer
from pretrain.model.fusion_encoder import FusionEncoder, FusionEncoderConfig
from pretrain.model.promu import HeadsConfig, Promu
from shards.files import InputError


def architecture(**changes) -> FusionEncoderConfig:
    small = {
        "hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32, "text_layers": 1,
        "fusion_layers": 1, "image_size": 16, "patch_size": 8, "vision_hidden_size": 16,
        "vision_layers": 1, "vision_heads": 2, "projection_size": 8, "vocab_size": 40,
    }  # fmt: skip
    return FusionEncoderConfig(**small | changes)


def save(folder, config):
    model = Promu(FusionEncoder(config), HeadsConfig())
    hub.save_model_directory(
        folder,
        config=model.released_config(),
        state=model.released_state(),
        tokenizer=learn_tokenizer(["a crown and a ring ."], 40),
        card="",
    )
    return model.encoder


@pytest.mark.parametrize(("theirs", "ours"), [(1, 1), (0, 1), (1, 0)])
def test_towers_are_taken_and_fusion_layers_may_be_on_one_side(theirs, ours, tmp_path):
    source = save(tmp_path / "m", architecture(fusion_layers=theirs))
    encoder, notes = hub.init_encoder(tmp_path / "m", architecture(fusion_layers=ours))
    theirs_state, state = source.state_dict(), encoder.state_dict()
    for name in state:
        same = name in theirs_state and torch.equal(state[name], theirs_state[name])
        assert same or (name.startswith("fusion.") and not theirs), name
    assert ("left" in notes) == (theirs > ours)


def test_another_width_is_refused_with_names(tmp_path):
    save(tmp_path / "m", architecture())
    with pytest.raises(InputError, match=r"text_proj.weight is \(8, 16\), expected \(4, 16\)"):
        hub.init_encoder(tmp_path / "m", architecture(projection_size=4))
