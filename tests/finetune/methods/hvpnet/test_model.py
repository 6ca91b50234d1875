"""HVPNeT as a method: what is absent, frozen, trained and decoded."""

import dataclasses
from types import SimpleNamespace

import pytest
import torch
from parts_hvpnet import ENTITIES, TINY, bert, close
from torchcrf import CRF

from finetune.config import OptimConfig
from finetune.inputs.batch import Batch
from finetune.methods.hvpnet.config import HvpnetConfig
from finetune.methods.hvpnet.model import Hvpnet
from finetune.methods.layers import TaggingHead
from finetune.methods.towers.resnet import load_resnet, prompt_tokens
from finetune.tasks.base import TaskInfo
from finetune.tasks.mnre import MARKERS

RELATION = TaskInfo("mnre", "relation", ("None", "a", "b"), MARKERS)


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
