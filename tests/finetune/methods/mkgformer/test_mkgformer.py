"""MKGformer against the authors' numbers, a naive reference, and the tests of mkgformer.md §8."""

import json
import math
import re
import zlib
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    BertConfig,
    BertModel,
    CLIPConfig,
    CLIPModel,
    CLIPVisionConfig,
    CLIPVisionModel,
)

from finetune.config import OptimConfig
from finetune.inputs.batch import Batch
from finetune.inputs.load import InputOptions, load_split
from finetune.methods.base import Source
from finetune.methods.mkgformer import names
from finetune.methods.mkgformer.model import MKGformer, MKGformerConfig, text_layer, vision_layer
from finetune.methods.mkgformer.vision import (
    Layout,
    VisionTower,
    drawn,
    fusion_vit,
    read_clip,
    resize_table,
)
from finetune.run.checkpoint import load_method, save_method
from finetune.tasks.base import TaskInfo
from finetune.tasks.mnre import MARKERS, Mnre
from finetune.tasks.region_cache import Region, Regions, write_regions
from pretrain.checkpoint.hub import load_fusion
from shards.files import InputError

GOLDEN = Path(__file__).parents[2] / "golden/mkgformer.json"
RELATION = TaskInfo("mnre", "relation", ("None", "a", "b"), MARKERS)
TINY = {"vg_size": 32, "od_size": 16, "vision_patch": 8, "vision": "random"}


def bert(layers: int = 4, words: int = 60, width: int = 32) -> BertModel:
    config = BertConfig(
        vocab_size=words, hidden_size=width, num_hidden_layers=layers, num_attention_heads=2,
        intermediate_size=2 * width, max_position_embeddings=96,
    )  # fmt: skip
    return BertModel(config, add_pooling_layer=False)


def tiny(task: TaskInfo = RELATION, **settings) -> MKGformer:
    """Four layers of width 32, two of them joined; random weights."""
    torch.manual_seed(0)
    config = MKGformerConfig(**{"fusion_layers": 2} | TINY | settings)
    encoder = bert()
    sizes, state = drawn(encoder.config, config.vision_patch)
    regions = Layout(config.vg, config.vg_size, config.od, config.od_size, config.use_full_image)
    tower = VisionTower(sizes, regions)
    tower.load(state, config.settled().positions, "random")
    return MKGformer(encoder, tower, task, config)


def batch(method: MKGformer, rows: int = 3, length: int = 16, seed: int = 1, **changed) -> Batch:
    """Random ids and regions; row i is i word pieces shorter and lacks its last i % 3 regions."""
    generator = torch.Generator().manual_seed(seed)
    config = method.config
    slots, side = config.vg + config.od, config.vg_size
    mask = torch.arange(length) < (length - torch.arange(rows)[:, None])
    ids = torch.randint(5, 60, (rows, length), generator=generator) * mask
    present = torch.arange(slots) < slots - torch.arange(rows)[:, None] % 3
    pixels = torch.randint(0, 256, (rows, slots, 3, side, side), generator=generator)
    values = {
        "rows": torch.arange(rows),
        "input_ids": ids,
        "attention_mask": mask,
        "labels": torch.arange(rows) % 3,
        "head_start": torch.full((rows,), 1),
        "tail_start": torch.full((rows,), 4),
        "region_pixels": (pixels * present[:, :, None, None, None]).to(torch.uint8),
        "region_mask": present,
    }
    if config.use_full_image:
        shape = (rows, 3, method.image_size, method.image_size)
        values["pixel_values"] = torch.randint(0, 256, shape, generator=generator).to(torch.uint8)
        values["image_mask"] = torch.ones(rows, dtype=torch.bool)
    return Batch(**values | changed)


# ---------------------------------------------------------------------- the authors' numbers


def random_like(name: str, shape: list[int], kind: str) -> torch.Tensor:
    """A weight by the rule of the golden files: seeded by its name, in float32."""
    generator = np.random.default_rng(zlib.crc32(name.encode()))
    x = np.asarray(generator.standard_normal(tuple(shape))).astype(np.float32)
    f = np.float32
    if kind == "scale":
        x = f(1) + f(0.02) * x
    elif kind == "conv":
        x = f(1 / math.sqrt(math.prod(shape[1:]))) * x
    else:
        x = f(0.02 if kind == "std" else float(kind[4:])) * x
    return torch.from_numpy(x.reshape(tuple(shape)))


def image(key: str, lead: tuple[int, ...], side: int) -> torch.Tensor:
    """A picture likewise: an offset, coarse cells and fine noise."""
    r = np.random.default_rng(zlib.crc32(key.encode()))
    o = r.standard_normal((*lead, 3, 1, 1))
    c = r.standard_normal((*lead, 3, side // 32, side // 32))
    f = r.standard_normal((*lead, 3, side, side))
    return torch.from_numpy((o + c.repeat(32, -2).repeat(32, -1) + 0.5 * f).astype(np.float32))


@pytest.fixture(scope="module")
def golden():
    return json.loads(GOLDEN.read_text())


@pytest.fixture(scope="module")
def authors(golden):
    """Profile `legacy` at full size, with the golden weights through the converter."""
    torch.manual_seed(0)
    with torch.device("meta"):
        encoder = BertModel(BertConfig(vocab_size=30526), add_pooling_layer=False)
    config = MKGformerConfig(profile="legacy")
    sizes = CLIPVisionConfig(
        hidden_size=768, num_hidden_layers=12, num_attention_heads=12, intermediate_size=3072,
        patch_size=32, image_size=224, pre_norm=True, image_mean=[0.5] * 3, image_std=[0.5] * 3,
    )  # fmt: skip
    task = TaskInfo("mnre", "relation", tuple(map(str, range(23))), MARKERS)
    with torch.device("meta"):
        tower = VisionTower(sizes, Layout(3, 128, 3, 64, False))
        method = MKGformer(encoder, tower, task, config)
    dead = re.compile(r"model\.encoder\.text_layer\.[0-7]\.intermediate\.fusion_dense\..+")
    state = {}
    for name, shape, kind, first in golden["weights"]:
        if kind == "keep" or dead.fullmatch(name):
            state[name] = torch.zeros(1)  # not used, so not drawn
            continue
        state[name] = random_like(name, shape, kind)
        assert state[name].flatten()[0].item() == pytest.approx(first, rel=1e-6)
    method.load_state_dict(names.convert_state(state), assign=True)  # strict: none left, none more
    encoder.embeddings.position_ids = torch.arange(512)[None]
    encoder.embeddings.token_type_ids = torch.zeros(1, 512, dtype=torch.long)
    return method.eval()


@pytest.fixture(scope="module")
def inputs(golden):
    """(ids, mask, vg, od) as the authors' run had them."""
    given = golden["inputs"]
    mask = torch.arange(given["L"]) < torch.tensor(given["lengths"])[:, None]
    vg, od = image("mkgformer:aux_imgs", (2, 3), 128), image("mkgformer:rcnn_imgs", (2, 3), 64)
    vg[0, 2] = 0
    od[1, 1:] = 0
    return torch.tensor(given["input_ids"]), mask, vg, od


def logits(method, ids, mask, vg, od):
    states = method.encode(ids, mask, method.vision.embed(vg, od))
    rows = torch.arange(len(ids))
    pair = [states[rows, (ids == marker).int().argmax(1)] for marker in (30522, 30524)]
    return method.head.classifier(torch.cat(pair, dim=-1))


def agrees(found: torch.Tensor, recorded: dict, tolerance: float) -> None:
    flat = found.flatten().double()
    assert list(found.shape) == recorded["shape"], recorded["name"]
    for value, name in (
        (flat[:8], "first8"),
        (flat[-8:], "last8"),
        (flat.mean(), "mean"),
        (flat.std(correction=0), "std"),
        (flat.abs().max(), "absmax"),
    ):
        expected = torch.tensor(recorded[name], dtype=torch.float64)
        torch.testing.assert_close(value, expected, atol=tolerance, rtol=1e-5)


@torch.inference_mode()
def test_golden(golden, authors, inputs):
    """Logits, loss and every recorded state, within the tolerances that came with the numbers."""
    ids, mask, vg, od = inputs
    for given, name in ((vg, "aux_imgs"), (od, "rcnn_imgs")):
        agrees(given, golden["inputs"][name], 1e-6)
    seen = {}

    def keep(name):
        return lambda module, args, output=None: seen.update({name: args[0]})

    hooks = [authors.vision.norm.register_forward_pre_hook(keep("vision embeddings before"))]
    hooks.append(authors.vision.layer[0].layer_norm1.register_forward_pre_hook(keep("after pre")))
    hooks.append(
        authors.encoder.encoder.layer[0].attention.self.query.register_forward_pre_hook(
            keep("text embeddings")
        )
    )
    for i in (0, 7, 8, 11):
        block, layer = authors.vision.layer[i], authors.encoder.encoder.layer[i]

        def visual(module, args, output, i=i):
            seen[f"vision layer {i}"] = seen[f"before mlp {i}"] + output

        def before(module, args, i=i):
            seen[f"before mlp {i}"] = args[0]

        def textual(module, args, output, i=i):
            seen[f"text layer {i}"] = output

        hooks += [
            block.layer_norm2.register_forward_pre_hook(before),
            block.mlp.register_forward_hook(visual),
            layer.output.register_forward_hook(textual),
        ]
        if i >= 8:
            hooks.append(
                authors.fusion[i - 8].register_forward_pre_hook(keep(f"CAF aggregate A, layer {i}"))
            )
    found = logits(authors, ids, mask, vg, od)
    for hook in hooks:
        hook.remove()
    torch.testing.assert_close(found, torch.tensor(golden["logits"]), atol=2e-4, rtol=0)
    loss = torch.nn.functional.cross_entropy(found, torch.tensor(golden["inputs"]["labels"]))
    assert loss.item() == pytest.approx(golden["loss"], abs=1e-4)
    checked = 0
    for recorded in golden["intermediates"]:
        name = recorded["name"].replace("A, text layer", "A, layer")
        key = next((key for key in seen if name.startswith(key)), None)
        if key is None:
            continue
        value, tolerance = seen[key], 2e-5
        if row := re.search(r"real tokens of row (\d) \((\d+),", name):
            value = value[int(row[1]), : int(row[2])]
        if layer := re.search(r"layer (\d+)", name):
            tolerance = 5e-4 if int(layer[1]) >= 8 else 2e-5
        agrees(value, recorded, tolerance)
        checked += 1
    assert checked == len(golden["intermediates"]) - 2, "all but the two marker states"


@torch.inference_mode()
def test_golden_padding(golden, authors, inputs):
    """Padding to 47 changes the legacy result as recorded; masked pads are the unpadded rows."""
    ids, mask, vg, od = inputs
    found = logits(authors, ids[:, :47], mask[:, :47], vg, od)
    expected = golden["alternatives"]["padded_to_47"]["logits"]
    torch.testing.assert_close(found, torch.tensor(expected), atol=2e-4, rtol=0)
    authors.config = MKGformerConfig(profile="legacy", mask_text_pad=True).settled()
    found = logits(authors, ids, mask, vg, od)
    authors.config = MKGformerConfig(profile="legacy").settled()
    expected = golden["alternatives"]["no_padding_each_row_alone"]["logits"]
    torch.testing.assert_close(found, torch.tensor(expected), atol=2e-4, rtol=0)


def test_foreign_names_are_refused():
    with pytest.raises(
        InputError,
        match=r"not a checkpoint of MKGformer: 1 unknown names: model\.encoder\.text_layers\.0\.x",
    ):
        names.convert_state({"model.encoder.text_layers.0.x": torch.zeros(1)})
    with pytest.raises(InputError, match="no text layer"):
        names.convert_state({"classifier.bias": torch.zeros(3)})


# ---------------------------------------------------------------------- mkgformer.md §8, by number


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
    x = layer.attention(states, attention_mask=None)[0]
    inner = layer.intermediate.dense(x) + extra
    expected = layer.output.LayerNorm(layer.output.dense(torch.nn.functional.gelu(inner)) + x)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    context = layer.attention.self(states, attention_mask=None)[0]
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
    for batch in kept.dataset.batches(2, np.random.default_rng(0)):
        for row, pixels, shown in zip(
            batch.rows, batch.region_pixels, batch.region_mask, strict=True
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


# ---------------------------------------------------------------------- 11, and whence the towers


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
    theirs = model.state_dict()
    assert len(names.rename(theirs, names.CLIP, "CLIP")) == len(theirs) - 2
    for source in ("vision", "clip"):
        sizes, state = read_clip(str(tmp_path / source))
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
    with pytest.raises(
        InputError, match="num_hidden_layers is 2 in the text tower, 1 in the vision"
    ):
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
        inputs={}, card="# card\n",
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
