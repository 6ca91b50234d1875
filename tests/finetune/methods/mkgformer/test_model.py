"""MKGformer against naive references."""

import math
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from parts_mkgformer import RELATION, TINY, batch, tiny
from PIL import Image

from finetune.config import OptimConfig
from finetune.inputs.load import load_split
from finetune.inputs.split import InputOptions
from finetune.methods.base import Source
from finetune.methods.mkgformer.model import MKGformer, MKGformerConfig, text_layer, vision_layer
from finetune.tasks.base import TaskInfo
from finetune.tasks.mnre import Mnre
from finetune.tasks.region_cache import Region, Regions, write_regions
from shards.files import InputError


@pytest.mark.parametrize(("vg", "tokens"), [(3, 61), (4, 77)])
def test_1_visual_tokens(vg, tokens):
    method = tiny(vg=vg, vg_size=128, od_size=64, vision_patch=32)
    seen = method.vision.embed(torch.zeros(2, vg, 3, 128, 128), torch.zeros(2, 3, 3, 64, 64))
    assert seen.shape == (2, tokens, 32)
    mask = method.vision.token_mask(torch.tensor([[1] * (vg + 2) + [0]]).bool(), None)
    assert mask.sum() == tokens - 4 and mask.shape == (1, tokens)


@torch.inference_mode()
def test_2_whole_picture():
    legacy = tiny(profile="legacy").eval()
    given = batch(legacy)
    with_picture = batch(legacy, pixel_values=torch.full((3, 3, 8, 8), 255, dtype=torch.uint8))
    assert "image" not in legacy.needs
    assert torch.equal(legacy(given).logits, legacy(with_picture).logits)
    whole = tiny(use_full_image=True).eval()
    given = batch(whole)
    changed = replace(given, pixel_values=255 - given.pixel_values)
    assert "image" in whole.needs
    assert not torch.allclose(whole(given).logits, whole(changed).logits, atol=1e-4)
    hidden = replace(given, image_mask=torch.zeros(3, dtype=torch.bool))
    again = replace(hidden, pixel_values=changed.pixel_values)
    assert torch.equal(whole(hidden).logits, whole(again).logits)


def layers_of(method, given):
    """Outputs of every text and vision layer."""
    text, seen = [], []
    hooks = [
        layer.output.register_forward_hook(lambda m, a, output: text.append(output))
        for layer in method.encoder.encoder.layer
    ] + [
        layer.mlp.register_forward_hook(lambda m, a, output: seen.append(output))
        for layer in method.vision.layer
    ]
    with torch.inference_mode():
        method(given)
    for hook in hooks:
        hook.remove()
    return text, seen


@pytest.mark.parametrize("profile", ["fixed", "legacy"])
def test_3_and_4_what_depends_on_what(profile):
    """Below the joined layers (here 0 and 1) no tower knows the other; from there on both do."""
    method = tiny(profile=profile).eval()
    given = batch(method)
    text, seen = layers_of(method, given)
    other, _ = layers_of(method, replace(given, region_pixels=255 - given.region_pixels))
    assert [torch.equal(*pair) for pair in zip(text, other, strict=True)] == [True] * 2 + [
        False
    ] * 2
    ids = torch.where(given.input_ids > 0, (given.input_ids + 7) % 50 + 5, 0)
    _, other = layers_of(method, replace(given, input_ids=ids))
    assert [torch.equal(*pair) for pair in zip(seen, other, strict=True)] == [True] * 2 + [
        False
    ] * 2


@pytest.mark.parametrize("scale", ["one", "sqrt"])
@torch.inference_mode()
def test_5_fusion_against_a_loop(scale):
    method = tiny(caf_scale=scale)
    heads, seen = torch.randn(2, 5, 32), torch.randn(2, 7, 32)
    shown = torch.rand(2, 7) < 0.7
    shown[:, 0] = True
    found = method.correlate(method.fusion[0], seen, shown[:, None, None], heads)
    factor = 1.0 if scale == "one" else 32**-0.5
    for row in range(2):
        for place in range(5):
            scores = [
                factor * float(heads[row, place] @ seen[row, k]) if shown[row, k] else -math.inf
                for k in range(7)
            ]
            weights = [math.exp(score - max(scores)) for score in scores]
            gathered = sum(w * seen[row, k] for k, w in enumerate(weights)) / sum(weights)
            expected = method.fusion[0](gathered)
            torch.testing.assert_close(found[row, place], expected, atol=1e-5, rtol=1e-5)


@torch.inference_mode()
def test_5_fusion_inside_the_feed_forward_layer():
    """W2 GELU(W1 x + b1 + W3 A + b3), from the layer's own pieces."""
    method = tiny().eval()
    layer, states = method.encoder.encoder.layer[3], torch.randn(2, 5, 32)
    keys = torch.ones(2, 1, 1, 5, dtype=torch.bool)
    extra = torch.randn(2, 5, 64)
    captured = {}
    found, _ = text_layer(layer, states, keys, lambda heads: captured.update(c=heads) or extra)
    x = layer.attention(states)
    inner = layer.intermediate.dense(x) + extra
    expected = layer.output.LayerNorm(layer.output.dense(torch.nn.functional.gelu(inner)) + x)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    context = layer.attention.self(states)
    torch.testing.assert_close(captured["c"], context, atol=1e-5, rtol=1e-5)


@torch.inference_mode()
def test_6_prefix_is_plain_attention_over_both():
    """Queries of vision; keys and values of text layer i-1, then its own; pads hidden."""
    method = tiny().eval()
    text, states = torch.randn(2, 5, 32), torch.randn(2, 7, 32)
    below, block = method.encoder.encoder.layer[1].attention.self, method.vision.layer[2]
    shown = torch.ones(2, 12, dtype=torch.bool)
    shown[1, 3:5] = False
    keys_of_text = torch.ones(2, 1, 1, 5, dtype=torch.bool)
    _, prefix = text_layer(method.encoder.encoder.layer[1], text, keys_of_text)
    found = vision_layer(block, states, shown[:, None, None], prefix)
    normed, attention = block.layer_norm1(states), block.self_attn
    key = torch.cat([below.key(text), attention.k_proj(normed)], dim=1)
    value = torch.cat([below.value(text), attention.v_proj(normed)], dim=1)
    heads = []
    for head in (slice(0, 16), slice(16, 32)):
        scores = attention.q_proj(normed)[..., head] @ key[..., head].transpose(1, 2) / 4
        scores = scores.masked_fill(~shown[:, None], -math.inf)
        heads.append(scores.softmax(-1) @ value[..., head])
    expected = states + attention.out_proj(torch.cat(heads, -1))
    expected = expected + block.mlp(block.layer_norm2(expected))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@torch.inference_mode()
def test_7_padding_length():
    """No influence where pads are hidden; in `legacy` one, so that texts are padded to 80."""

    def change(**settings):
        method = tiny(**settings).eval()
        short = batch(method, length=16)
        wide = {name: torch.nn.functional.pad(getattr(short, name), (0, 24))
                for name in ("input_ids", "attention_mask")}  # fmt: skip
        return (method(short).logits - method(replace(short, **wide)).logits).abs().max().item()

    assert change() < 1e-5
    assert change(profile="legacy", pad_to=0) > 1e-4
    assert change(profile="legacy") < 1e-5


@torch.inference_mode()
def test_empty_slots():
    """Hidden in `fixed`, whatever they hold; zero after normalisation in `legacy`, and seen."""
    for profile in ("fixed", "legacy"):
        method = tiny(profile=profile).eval()
        given = batch(method)
        noise = torch.where(given.region_mask[:, :, None, None, None], given.region_pixels, 99)
        other = replace(given, region_pixels=noise.to(torch.uint8))
        assert torch.equal(method(given).logits, method(other).logits)
        fewer = replace(given, region_mask=given.region_mask[:, :1].expand(-1, 6))
        assert not torch.equal(method(given).logits, method(fewer).logits)
    modern = tiny().eval()
    modern.vision.od_position_embeddings[-4:] = 1e3  # of the slot that row 1 lacks
    changed = modern(given).logits - tiny().eval()(given).logits
    assert changed[1].abs().max() < 1e-5 < changed[0].abs().max()


@pytest.mark.parametrize("task", [RELATION, TaskInfo("t", "entities", ("O", "B-X", "I-X"))])
@pytest.mark.parametrize("profile", ["fixed", "legacy"])
def test_8_optimiser_and_9_gradients(profile, task):
    """Modern: every parameter once, each with a gradient. Legacy: all but the classifier's two."""
    method = tiny(task, profile=profile)
    given = batch(method)
    if task.kind == "entities":
        words = {
            "word_starts": torch.arange(1, 5).expand(3, 4),
            "labels": given.labels[:, None] % 2,
        }
        words["word_mask"] = torch.ones(3, 4, dtype=torch.bool)
        given = replace(given, **words | {"labels": words["labels"].expand(3, 4)})
    groups = method.parameter_groups(OptimConfig(lr=1.0, head_lr=2.0, weight_decay=0.5))
    grouped = [id(p) for group in groups for p in group["params"]]
    named = dict(method.named_parameters())
    frozen = set()
    if (profile, task.kind) == ("legacy", "relation"):
        frozen = {"head.classifier.weight", "head.classifier.bias"}
    assert sorted(grouped) == sorted(id(p) for name, p in named.items() if name not in frozen)
    decay = {id(p): g["weight_decay"] for g in groups for p in g["params"]}
    rate = {id(p): g["lr"] for g in groups for p in g["params"]}
    assert rate[id(named["vision.layer.0.mlp.fc1.weight"])] == 1.0
    assert rate[id(named["fusion.0.weight"])] == 2.0
    assert decay[id(named["vision.norm.bias"])] == (0.5 if profile == "legacy" else 0.0)
    output = method.train()(given)
    output.loss.backward()
    without = {n for n, p in named.items() if p.grad is None or not p.grad.any()}
    assert without <= frozen, without
    assert len(method.eval().decode(output, given)) == 3


def test_10_regions_stay_with_their_rows(tmp_path, mnre_folder, tiny_model):
    """Filtered and shuffled, a row keeps the pixels of its own regions; a missing line is an error
    (missing files: test_region_inputs.py)."""
    task = Mnre(mnre_folder)
    config = MKGformerConfig(**TINY, fusion_layers=1, od=0)
    method, tokenizer = MKGformer.build(config, task.info, Source(str(tiny_model)))
    boxes = {
        row.row: Regions(row.image_id, (20, 16), (Region((0, 0, 8, 8), 1.0, "x", "head"),))
        for row in task.read("val")
    }
    write_regions(mnre_folder / "regions_vg_val.jsonl", {"leaky": False}, boxes)
    options = InputOptions(
        images="required", max_length=40, regions=str(mnre_folder), cache=tmp_path / "cache"
    )
    load = partial(load_split, task, "val", tokenizer, method, options)
    kept = load().subset(np.array([17, 3, 28, 4]))
    for given in kept.dataset.batches(2, np.random.default_rng(0)):
        for row, pixels, shown in zip(
            given.rows, given.region_pixels, given.region_mask, strict=True
        ):
            with Image.open(mnre_folder / f"img_org/val/val{row}.jpg") as picture:
                colour = picture.getpixel((4, 4))
            assert shown.tolist() == [True, False, False]
            assert pixels[0, :, 16, 16].tolist() == list(colour)
            assert not pixels[1:].any()
    del boxes[29]
    write_regions(mnre_folder / "regions_vg_val.jsonl", {"leaky": False}, boxes)
    with pytest.raises(InputError, match="29"):
        load()
