"""MKGformer's towers: whence they come, and that every tensor is used."""

import json
from dataclasses import replace
from functools import partial

import pytest
import torch
from parts_mkgformer import RELATION, TINY, batch, bert, tiny
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPVisionConfig,
    CLIPVisionModel,
)
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from finetune.methods.base import Source
from finetune.methods.mkgformer import names
from finetune.methods.mkgformer.model import MKGformer, MKGformerConfig, vision_layer
from finetune.methods.mkgformer.vision import Layout, VisionTower, resize_table
from finetune.methods.mkgformer.weights import fusion_vit, read_clip
from finetune.run.checkpoint import load_method, save_method
from pretrain.checkpoint.hub import load_fusion
from pretrain.model.config import FusionEncoderConfig
from pretrain.model.fusion_encoder import FusionEncoder
from shards.files import InputError


def test_11_every_tensor_of_a_clip_is_used(tmp_path):
    """By name, both kinds of directory; what is left is CLIP's last norm."""
    config = CLIPVisionConfig(
        hidden_size=32, num_hidden_layers=4, num_attention_heads=2, intermediate_size=64,
        patch_size=8, image_size=56,
    )  # fmt: skip
    model = CLIPVisionModel(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_()
    model.save_pretrained(tmp_path / "vision")
    text = {
        "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
        "intermediate_size": 16, "vocab_size": 50, "bos_token_id": 1, "eos_token_id": 2,
    }  # fmt: skip
    whole = CLIPModel(CLIPConfig(vision_config=config.to_dict(), text_config=text))
    whole.vision_model.load_state_dict(model.state_dict())
    whole.save_pretrained(tmp_path / "clip")
    colours = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]}
    (tmp_path / "clip/preprocessor_config.json").write_text(json.dumps(colours))
    theirs = model.state_dict()
    assert len(names.rename(theirs, names.CLIP, "CLIP")) == len(theirs) - 2
    for source in ("vision", "clip"):
        sizes, state = read_clip(str(tmp_path / source))
        mean, std = VisionTower(sizes, Layout(3, 32, 3, 16, True)).pixel_statistics.flatten(1) / 255
        own = [*colours.values()] if source == "clip" else [OPENAI_CLIP_MEAN, OPENAI_CLIP_STD]
        torch.testing.assert_close(torch.stack([mean, std]), torch.tensor(own))
        tower = VisionTower(sizes, Layout(3, 32, 3, 16, True))
        tower.load(state, "clip", source)
        block = tower.layer[2].mlp.fc1.weight
        assert torch.equal(block, model.encoder.layers[2].mlp.fc1.weight)
        assert torch.equal(tower.class_embedding, model.embeddings.class_embedding)
        table = model.embeddings.position_embedding.weight[1:]
        assert torch.equal(tower.image_position_embeddings, table)
        small = resize_table(table, 4)
        assert torch.equal(tower.vg_position_embeddings, small.repeat(3, 1))
        # one convolution over all regions is the patches of each of them
        pixels = torch.randn(2, 3, 3, 32, 32)
        seen = tower._patches(pixels).unflatten(1, (3, 16))
        one = model.embeddings.patch_embedding(pixels[1, 2]).flatten(1).T
        torch.testing.assert_close(seen[1, 2], one, atol=1e-5, rtol=1e-5)
    with pytest.raises(InputError, match="not 'clip_vision_model'"):
        bert().save_pretrained(tmp_path / "bert")
        read_clip(str(tmp_path / "bert"))


@torch.inference_mode()
def test_layers_alone_are_those_of_transformers_and_timm(tiny_model):
    method = tiny().eval()
    given = batch(method, region_pixels=None, region_mask=None)
    states = method.encode(given.input_ids, given.attention_mask)
    expected = method.encoder(given.input_ids, given.attention_mask).last_hidden_state
    torch.testing.assert_close(states, expected, atol=1e-5, rtol=1e-4)
    assert torch.isfinite(method(given).logits).all()
    states = torch.randn(2, 7, 32)
    block = method.vision.layer[0]
    torch.testing.assert_close(vision_layer(block, states, None), block(states, None))
    encoder, _ = load_fusion(tiny_model)
    sizes, state = fusion_vit(encoder.eval())
    tower = VisionTower(sizes, Layout(1, 16, 1, 8, False)).eval()
    tower.load(state, "clip", "fusion")
    pixels = torch.randn(2, 3, 16, 16)
    embedded = encoder.vision.patch_embed(pixels) + encoder.vision.pos_embed[:, 1:]
    ours = tower.embed(pixels[:, None], torch.zeros(2, 1, 3, 8, 8))[:, 1:5]
    torch.testing.assert_close(ours, embedded, atol=1e-5, rtol=1e-5)
    expected = encoder.vision.blocks[0](embedded)
    torch.testing.assert_close(
        vision_layer(tower.layer[0], ours, None), expected, atol=1e-5, rtol=1e-4
    )


def test_towers_that_do_not_fit_are_named(tiny_model):
    build = partial(MKGformer.build, task=RELATION, source=Source(str(tiny_model)))
    with pytest.raises(InputError, match="hidden_size is 32 in the text tower, 16 in the vision"):
        build(MKGformerConfig(vision="init", fusion_layers=1))
    with pytest.raises(InputError, match="fusion_layers 4: PGI reads the text layer below"):
        build(MKGformerConfig(vision="random"))
    with pytest.raises(InputError, match=r"od_size 20 is no multiple .* patches of 8"):
        build(MKGformerConfig(**TINY | {"od_size": 20, "fusion_layers": 1}))
    with pytest.raises(InputError, match=r"pad_to 999: .* has 512 positions"):
        build(MKGformerConfig(pad_to=999))
    with pytest.raises(ValueError, match="od_size must not exceed"):
        MKGformerConfig(vg_size=32)


def test_a_finished_run_gives_its_towers(tmp_path, tiny_model, caplog):
    """Saved, loaded, and taken as --init with another number of slots: the vision tower goes on."""
    torch.manual_seed(0)
    config = MKGformerConfig(**TINY, fusion_layers=1)
    method, tokenizer = MKGformer.build(config, RELATION, Source(str(tiny_model)))
    directory = tmp_path / "model"
    save_method(
        directory, method, tokenizer, name="mkgformer", config=config, task=RELATION,
        inputs={"images": "required", "max_length": 40}, card="# card\n",
    )  # fmt: skip
    with caplog.at_level("INFO"):
        wider = replace(config, vg=4)
        again, _ = MKGformer.build(wider, RELATION, Source(str(directory)))
    assert "left: its fusion layers and head, vg_position_embeddings" in caplog.text
    for name, tensor in method.vision.state_dict().items():
        if name != "vg_position_embeddings":
            assert torch.equal(tensor, again.vision.state_dict()[name]), name
    given = batch(method)
    loaded, _, _ = load_method(directory)
    with torch.inference_mode():
        assert torch.equal(loaded(given).logits, method.eval()(given).logits)


def test_the_last_layers_of_towers_of_different_depth_are_joined(tmp_path, tiny_model, caplog):
    """The vision tower of a fusion model, as if it began with a layer that changes nothing."""
    sizes = FusionEncoderConfig(
        vocab_size=200, hidden_size=32, num_attention_heads=2, intermediate_size=48, text_layers=2,
        fusion_layers=2, max_position_embeddings=96, image_size=32, patch_size=8,
        vision_hidden_size=32, vision_layers=2, vision_heads=2, projection_size=8,
    )  # fmt: skip
    _, tokenizer = load_fusion(tiny_model)
    FusionEncoder(replace(sizes, vocab_size=len(tokenizer))).save_pretrained(tmp_path, tokenizer)
    config = MKGformerConfig(**TINY | {"vision": "init", "fusion_layers": 2})
    build = partial(MKGformer.build, task=RELATION, source=Source(str(tmp_path)))
    with caplog.at_level("INFO"):
        method, _ = build(config)
    assert "vision: the ViT of" in caplog.text
    deeper = type(method.vision.config)(**method.vision.config.to_dict() | {"num_hidden_layers": 3})
    tower = VisionTower(deeper, method.vision.layout)
    for place, layer in enumerate(method.vision.layer):
        tower.layer[place + 1].load_state_dict(layer.state_dict())
    rest = {n: t for n, t in method.vision.state_dict().items() if not n.startswith("layer.")}
    tower.load_state_dict(rest, strict=False)
    for part in (tower.layer[0].self_attn.out_proj, tower.layer[0].mlp.fc2):
        torch.nn.init.zeros_(part.weight)
        torch.nn.init.zeros_(part.bias)
    other = MKGformer(method.encoder, tower, RELATION, method.config)
    other.fusion, other.head = method.fusion, method.head
    given = batch(method)
    with torch.inference_mode():
        torch.testing.assert_close(method.eval()(given).logits, other.eval()(given).logits)
    with pytest.raises(InputError, match="fusion_layers 3: the vision tower has 2 layers"):
        build(replace(config, fusion_layers=3))
    with caplog.at_level("INFO"):
        uneven, tokenizer = build(replace(config, vg_size=20, od_size=12))
    assert "regions are 24 and 16 pixels a side, whole patches of 8" in caplog.text
    save_method(
        tmp_path / "run", uneven, tokenizer, name="mkgformer", config=uneven.config, task=RELATION,
        inputs={"images": "required", "max_length": 40}, card="# card\n",
    )  # fmt: skip
    for one in (uneven, load_method(tmp_path / "run")[0]):
        assert (one.region_size, one.vision.layout.od_size) == (24, 16)
