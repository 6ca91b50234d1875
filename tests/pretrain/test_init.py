"""Towers that start from another model directory."""

import families
import pytest
import timm
import torch
from transformers import BertConfig, BertModel

from pretrain.checkpoint import hub
from pretrain.checkpoint.directory import ModelDirectory
from pretrain.checkpoint.initial import (
    aligned_bridge,
    initial_architecture,
    initial_encoder,
)
from pretrain.config import PretrainConfig
from pretrain.convert import main as convert
from pretrain.data.tokenizer import learn_tokenizer
from pretrain.model.config import FusionEncoderConfig
from pretrain.model.fusion_encoder import FusionEncoder
from pretrain.model.promu import HeadsConfig, Promu
from pretrain.model.stated import ModelConfig
from pretrain.prepare import settle
from shards.files import InputError
from shards.options import parse_config


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
    directory = ModelDirectory.open(tmp_path / "m")
    ours_config = initial_architecture(directory, {"fusion_layers": ours})
    assert ours_config == architecture(fusion_layers=ours)
    encoder, notes = initial_encoder(directory, ours_config)
    theirs_state, state = source.state_dict(), encoder.state_dict()
    for name in state:
        same = name in theirs_state and torch.equal(state[name], theirs_state[name])
        assert same or (name.startswith("fusion.") and not theirs), name
    assert ("left" in notes) == (theirs > ours)


def test_what_is_stated_and_differs_is_refused_with_names(tmp_path):
    save(tmp_path / "m", architecture())
    stated = {"projection_size": 4, "vision_norm_eps": 1e-6, "vision_pool": "cls"}
    with pytest.raises(InputError) as refused:
        initial_architecture(ModelDirectory.open(tmp_path / "m"), stated)
    line = str(refused.value)
    assert "model.projection_size (8 there, 4 here), model.vision_norm_eps (1e-12 there" in line
    assert "pool" not in line


# ---------------------------------------------------- directories that their own libraries saved


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A BERT saved by `transformers` (48 rows for 40 word pieces, 32 positions, no dropout) and a
    ViT saved by timm (ImageNet's statistics), converted as README does it."""
    root = tmp_path_factory.mktemp("published")
    tokenizer = learn_tokenizer(["a crown and a ring ."], 40)
    settings = BertConfig(
        vocab_size=48, hidden_size=16, num_attention_heads=2, intermediate_size=24,
        num_hidden_layers=4, max_position_embeddings=32, hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0, layer_norm_eps=1e-6,
    )  # fmt: skip
    torch.manual_seed(0)
    BertModel(settings, add_pooling_layer=False).save_pretrained(root / "bert")
    tokenizer.save_pretrained(root / "bert")
    sizes = {"img_size": 16, "patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2}
    statistics = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
    vit = timm.create_model(
        "vit_base_patch16_224", num_classes=0, pretrained_cfg_overlay=statistics, **sizes
    )
    timm.models.save_for_hf(vit, root / "vit", model_config={"num_classes": 0}, model_args=sizes)
    convert([str(root / "bert"), str(root / "weights"), "--vision", str(root / "vit")])
    return root


def configured(weights, *words):
    fixed = "--run_dir r --data.train s --loss.coe 0 --loss.cir 0"
    configs = [word for word in words if word in ("paper", "base", "prompter")]
    argv = [w for name in configs for w in ("--config", f"pretrain/configs/{name}.yaml")]
    argv += [*fixed.split(), "--model.init", str(weights / "weights")]
    argv += [word for word in words if word not in configs]
    return parse_config(PretrainConfig, argv, prog="p", description="", example="")


@pytest.mark.parametrize("name", ["paper", "base"])
def test_ready_configurations_take_everything_from_the_weights(name, weights):
    length = ["--data.max_length", "32"] if name == "paper" else []  # paper.yaml states 80
    config, directory = settle(configured(weights, name, *length))
    model = config.model
    assert model.vision_norm_eps == 1e-6 and model.image_mean == (0.485, 0.456, 0.406)
    assert (model.layer_norm_eps, model.hidden_dropout, model.vocab_size) == (1e-6, 0.0, 48)
    assert (model.text_layers, model.fusion_layers, model.image_size) == (2, 2, 16)
    assert config.data.max_length == 32  # not our 80: the BERT has no more positions
    encoder, notes = initial_encoder(directory, model.architecture())
    vit = timm.create_model(f"local-dir:{weights / 'vit'}", pretrained=True).eval()
    pixels = torch.randn(2, 3, 16, 16)
    with torch.inference_mode():
        theirs = vit.forward_features(pixels)
        torch.testing.assert_close(encoder.eval().encode_image(pixels), theirs)
    assert "0 fusion tensors drawn" in notes


def test_a_stated_length_beyond_the_positions_is_refused(weights):
    with pytest.raises(InputError, match=r"data.max_length 80 is beyond .* 32"):
        settle(configured(weights, "paper"))


def test_another_picture_size_resizes_the_positions_and_says_so(weights):
    config, directory = settle(configured(weights, "base", "--model.image_size", "32"))
    encoder, notes = initial_encoder(directory, config.model.architecture())
    assert "vision.pos_embed resized from 2x2 to 4x4 patches" in notes
    assert encoder.encode_image(torch.zeros(1, 3, 32, 32, dtype=torch.uint8)).shape == (1, 17, 16)
    with pytest.raises(InputError, match="multiple of"):
        settle(configured(weights, "base", "--model.image_size", "30"))


def test_stage_1_and_what_starts_from_its_prompter(weights, tmp_path):
    config, _ = settle(configured(weights, "base", "prompter"))
    assert (config.model.text_layers, config.model.fusion_layers) == (2, 0)
    save(tmp_path / "prompter", architecture(fusion_layers=0))
    directory = ModelDirectory.open(tmp_path / "prompter")
    assert initial_architecture(directory, {}).fusion_layers == 1


def test_a_bert_alone_is_answered_with_the_command_that_is_missing(weights):
    with pytest.raises(InputError, match=r"python -m pretrain.convert .* --vision"):
        initial_architecture(ModelDirectory.open(weights / "bert"), {})


def test_two_whole_berts_are_made_by_convert_alone(weights, tmp_path):
    with pytest.raises(InputError, match="convert --encoder-layout two_bert"):
        words = "--run_dir r --data.train s --loss.coe 0 --loss.cir 0"
        words += " --model.encoder_layout two_bert"
        parse_config(PretrainConfig, words.split(), prog="p", description="", example="")
    convert([str(weights / "bert"), str(tmp_path / "two"), "--vision", str(weights / "vit"),
             "--encoder-layout", "two_bert"])  # fmt: skip
    taken = initial_architecture(ModelDirectory.open(tmp_path / "two"), {})
    assert (taken.encoder_layout, taken.text_layers, taken.fusion_layers) == ("two_bert", 4, 4)
    with pytest.raises(InputError, match=r"model.encoder_layout \(two_bert there, split here\)"):
        initial_architecture(ModelDirectory.open(tmp_path / "two"), {"encoder_layout": "split"})


def test_patches_cannot_be_dropped_in_a_tower_of_timm(tmp_path):
    """Told before anything is read or built, not at the first step."""
    text = families.write_text("bert", tmp_path / "text")
    vision = families.write_vision(list(families.VISIONS)[-1], tmp_path / "vision")
    convert([str(text), str(tmp_path / "model"), "--vision", str(vision)])
    words = ["--run_dir", "r", "--data.train", "s", "--loss.coe", "0", "--loss.cir", "0"]
    words += ["--model.init", str(tmp_path / "model")]

    def settled(share):
        words_of_share = [*words, "--data.keep_patches", share]
        return settle(parse_config(PretrainConfig, words_of_share, prog="p", example=""))

    settled("1")
    with pytest.raises(InputError, match=r"data\.keep_patches: .* looks at whole pictures"):
        settled("0.5")


@pytest.mark.parametrize("width", [16, 24])
def test_an_aligned_bridge_turns_a_picture_into_the_text_that_cit_compares_with_it(width, tmp_path):
    torch.manual_seed(0)
    source = save(tmp_path / "m", architecture(vision_hidden_size=width))
    directory = ModelDirectory.open(tmp_path / "m")
    ours = initial_architecture(directory, {"bridge": "aligned"})
    encoder, notes = initial_encoder(directory, ours)
    assert "bridge from both projections" in notes
    states = torch.randn(50, width)
    as_text = encoder.text_proj(encoder.bridge(states))
    # Damping makes it a little smaller, nothing else: the same direction.
    cosines = torch.cosine_similarity(as_text, encoder.vision_proj(states), dim=-1)
    assert cosines.min() > 0.98
    # Its least-norm solution without damping is exact, and lies where the text's projection looks.
    exact = aligned_bridge(source.state_dict(), damping=0)
    mapped = torch.nn.functional.linear(states, exact["bridge.weight"], exact["bridge.bias"])
    torch.testing.assert_close(source.text_proj(mapped), source.vision_proj(states))
    inverse = torch.linalg.pinv(source.text_proj.weight)
    torch.testing.assert_close(exact["bridge.weight"], inverse @ source.vision_proj.weight)


def test_an_aligned_bridge_is_stored_and_goes_on_as_trained(tmp_path, capsys):
    save(tmp_path / "m", architecture())
    config = architecture(bridge="aligned")
    content = config.to_dict()
    assert content["format_version"] == 4 and FusionEncoderConfig.from_dict(content) == config
    assert "bridge" not in architecture().to_dict()
    trained = save(tmp_path / "trained", config)
    directory = ModelDirectory.open(tmp_path / "trained")
    for stated in ({}, {"bridge": "aligned"}):
        encoder, notes = initial_encoder(directory, initial_architecture(directory, stated))
        assert torch.equal(encoder.bridge.weight, trained.bridge.weight)
        assert "both projections" not in notes
    with pytest.raises(InputError, match=r"model.bridge \(aligned there, auto here\)"):
        initial_architecture(directory, {"bridge": "auto"})
    with pytest.raises(SystemExit):
        convert([str(tmp_path / "trained"), str(tmp_path / "promu.pt"), "--to", "promu"])
    assert "no place for 2 tensors (bridge.bias, bridge.weight)" in capsys.readouterr().err


def test_an_aligned_bridge_needs_projections_to_begin_with():
    with pytest.raises(ValueError, match=r"model.bridge aligned: .* name a model directory"):
        ModelConfig(bridge="aligned").settled()
