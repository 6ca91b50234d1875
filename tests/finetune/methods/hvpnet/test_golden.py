"""HVPNeT against the authors' numbers."""

import json
import math
import zlib

import numpy as np
import pytest
import torch
from parts_hvpnet import ENTITIES, GOLDEN, close
from transformers import BertConfig

from finetune.inputs.batch import Batch
from finetune.methods.hvpnet import names
from finetune.methods.hvpnet.config import HvpnetConfig
from finetune.methods.hvpnet.model import Hvpnet
from finetune.methods.hvpnet.prefix import encode_with_prefix
from finetune.methods.towers.resnet import load_resnet, prompt_tokens
from finetune.tasks.base import TaskInfo
from finetune.tasks.mnre import MARKERS
from pretrain.model.bert import Bert


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
        encoder = Bert(BertConfig(vocab_size=words))
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
