"""The small multimodal baselines against loops written by hand."""

import math
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional

from finetune import registry
from finetune.config import OptimConfig
from finetune.inputs.batch import Batch
from finetune.methods import mega
from finetune.methods.base import Source
from finetune.methods.config import MegaConfig, UmtConfig, VisualConfig
from finetune.methods.multimodal import CrossLayer
from finetune.methods.umgf import Across
from finetune.run.chain_calibration import chain_of, recorded
from finetune.tasks.base import TaskInfo
from finetune.tasks.mnre import MARKERS

RELATIONS = TaskInfo("mnre", "relation", ("None", "/per/per/couple", "/per/org/member_of"), MARKERS)
ENTITIES = TaskInfo("twitter2017", "entities", ("O", "B-PER", "I-PER", "B-LOC", "I-LOC"))
NAMES = ("two_tower", "umt", "umgf", "mega", "ifaformer", "visualbert")


@pytest.fixture
def make(tiny_model):
    def build(name, task=RELATIONS, **settings):
        torch.manual_seed(0)
        cls = registry.load("methods", name)
        config = cls.Config(**settings)
        return cls.build(config, task, Source(str(tiny_model)))[0].eval()

    return build


def batch(seed=0, regions=True, **changes):
    draw = torch.Generator().manual_seed(seed)

    def pixels(*shape):
        return torch.randint(0, 256, (*shape, 3, 16, 16), generator=draw, dtype=torch.uint8)

    fields = {
        "rows": torch.arange(2),
        "input_ids": torch.randint(5, 60, (2, 7), generator=draw),
        "attention_mask": torch.tensor([[True] * 7, [True] * 5 + [False] * 2]),
        "head_start": torch.tensor([1, 2]),
        "tail_start": torch.tensor([4, 3]),
        "labels": torch.tensor([1, 0]),
        "pixel_values": pixels(2),
        "image_mask": torch.tensor([True, True]),
    }
    if regions:
        fields |= {
            "region_pixels": pixels(2, 3),
            "region_mask": torch.tensor([[True, True, False], [True, False, False]]),
            "region_boxes": torch.rand(2, 3, 4, generator=draw)
            .sort(dim=-1)
            .values[..., [0, 1, 2, 3]],
        }
    return Batch(**fields | changes)


@torch.inference_mode()
def test_cross_layer_against_a_loop():
    torch.manual_seed(0)
    layer = CrossLayer(8, 2).eval()
    query, keys = torch.randn(2, 3, 8), torch.randn(2, 4, 8)
    mask = torch.tensor([[True, False, True, True], [False] * 4])
    result = layer(query, keys, mask)
    wq, wk, wv = layer.attention.in_proj_weight.chunk(3)
    bq, bk, bv = layer.attention.in_proj_bias.chunk(3)
    for row in range(2):
        for place in range(3):
            read = torch.zeros(8)
            if mask[row].any():
                for head in (slice(0, 4), slice(4, 8)):
                    q = (wq @ query[row, place] + bq)[head]
                    scores = [
                        float(q @ (wk @ keys[row, j] + bk)[head]) / 2 if mask[row, j] else -math.inf
                        for j in range(4)
                    ]
                    shares = torch.tensor(scores).softmax(0)
                    for j in range(4):
                        read[head] += shares[j] * (wv @ keys[row, j] + bv)[head]
                read = layer.attention.out_proj(read)
            states = layer.norms[0](query[row, place] + read)
            expected = layer.norms[1](states + layer.feed(states))
            torch.testing.assert_close(result[row, place], expected, atol=1e-5, rtol=1e-5)


@torch.inference_mode()
def test_messages_across_the_graph_against_a_loop():
    torch.manual_seed(0)
    across = Across(4).eval()
    words, objects = torch.randn(2, 3, 4), torch.randn(2, 2, 4)
    seen = torch.tensor([[True, False], [False, False]])
    result = across(words, objects, seen)
    for row in range(2):
        for i in range(3):
            message = torch.zeros(4)
            for j in range(2):
                if seen[row, j]:
                    gate = across.receiver(words[row, i]) + across.sender(objects[row, j])
                    message += gate.sigmoid() * objects[row, j]
            state = words[row, i]
            if seen[row].any():
                state = state + across.feed(message / seen[row].sum())
            torch.testing.assert_close(result[row, i], across.norm(state))


@torch.inference_mode()
def test_late_fusion_is_a_sum(make):
    method, given = make("two_tower"), batch(regions=False)
    encoder = method.encoder
    text = encoder.fuse(
        encoder.encode_text(given.input_ids, given.attention_mask), given.attention_mask, None
    )
    picture = encoder.bridge(encoder.encode_image(given.pixel_values))[:, 0]
    states = text + method.visual(picture)[:, None]
    expected = torch.stack(
        [
            method.head.classifier(torch.cat([states[row, h], states[row, t]]))
            for row, (h, t) in enumerate([(1, 4), (2, 3)])
        ]
    )
    torch.testing.assert_close(method(given).logits, expected)


@torch.inference_mode()
def test_visualbert_is_one_stream(make):
    """Words and patches through every layer, those of text and fusion, under one mask."""
    method, given = make("visualbert"), batch(regions=False)
    encoder = method.encoder
    patches = method.visual(encoder.bridge(encoder.encode_image(given.pixel_values)))
    words = encoder.text.embeddings(given.input_ids)
    for row, length in enumerate([7, 5]):  # without padding: nothing to mask
        stream = torch.cat([words[row, :length], method.norm(patches[row] + method.segment)])[None]
        for layer in [*encoder.text.encoder.layer, *encoder.fusion.layer]:
            stream = layer(stream, None)
        pair = torch.cat([stream[0, given.head_start[row]], stream[0, given.tail_start[row]]])
        torch.testing.assert_close(method(given).logits[row], method.head.classifier(pair))


@torch.inference_mode()
def test_umt_finds_spans_beside_entities(make):
    method = make("umt", ENTITIES)
    tags = {
        "word_starts": torch.tensor([[1, 2, 4], [1, 3, 0]]),
        "word_mask": torch.tensor([[True, True, True], [True, True, False]]),
        "labels": torch.tensor([[1, 2, 0], [3, 0, 0]]),
        "head_start": None,
        "tail_start": None,
    }
    given = batch(regions=False, **tags)
    with recorded(chain_of(method)) as asked:
        output = method(given)
    # A temperature is fitted on these: the emissions that are decoded, and no others.
    assert len(asked) == 1 and torch.equal(asked[0][0], output.logits)
    text = method.read_text(given, None, None)
    at_words = torch.stack([text[row, given.word_starts[row]] for row in range(2)])
    spans = method.spans(at_words)
    visual, seen = method.visual_tokens(given)
    plain = method.head(method.fuse(text, given.attention_mask, visual, seen), given)
    # An emission gains the share of its span's tag: the conversion begins as the agreement.
    gain = spans.softmax(-1)[..., [0, 1, 2, 1, 2]]
    torch.testing.assert_close(output.logits, plain.logits + gain)
    without = make("umt", ENTITIES, span_weight=0.0)(given).loss
    found = method.span_crf.log_likelihood(
        spans, torch.tensor([[1, 2, 0], [1, 0, 0]]), given.word_mask
    )
    torch.testing.assert_close(output.loss, without - UmtConfig().span_weight * found.mean())
    rates = {id(p): g["lr"] for g in method.parameter_groups(OptimConfig()) for p in g["params"]}
    chains = [p for name, p in method.named_parameters() if "crf." in name]
    assert len(chains) == 6 and {rates[id(p)] for p in chains} == {OptimConfig().crf_lr}


@torch.inference_mode()
def test_mega_aligns_structures_against_a_loop(make):
    given = batch()
    mask, seen = (
        given.attention_mask,
        torch.tensor([[True] * 3 + [False], [True, True, False, False]]),
    )
    words, objects = mega.near_words(given, mask), mega.overlaps(given, seen)
    for row in range(2):
        for i in range(4):
            for j in range(4):
                if not (seen[row, i] and seen[row, j]):
                    joined = False
                elif 0 in (i, j):
                    joined = True
                else:
                    a, b = (given.region_boxes[row, k - 1].tolist() for k in (i, j))
                    wide = min(a[2], b[2]) > max(a[0], b[0])
                    joined = wide and min(a[3], b[3]) > max(a[1], b[1])
                assert bool(objects[row, i, j]) == joined, (row, i, j)
    assert words[0, 1, 4] and words[0, 4, 1] and not words[0, 0, 4] and words[0, 3, 5]
    assert not words[1, 3, 5]

    def signature(edges, there, node):
        degree = [int(edges[i].sum()) for i in range(len(edges))]
        around = [degree[j] for j in range(len(edges)) if edges[node, j]]
        most = int(there.sum())
        return np.array([degree[node], np.mean(around) if around else 0]) / most

    shares = mega.structural(words, objects, mask, seen)
    for row, length in enumerate([7, 5]):
        for i in range(length):
            mine = signature(words[row], mask[row], i)
            far = [
                -np.linalg.norm(mine - signature(objects[row], seen[row], j))
                if seen[row, j]
                else -1e9
                for j in range(4)
            ]
            expected = functional.softmax(torch.tensor(far), dim=0).float()
            torch.testing.assert_close(shares[row, i], expected, atol=1e-5, rtol=1e-4)
    assert MegaConfig().structure == 0.5


@pytest.mark.parametrize("name", NAMES)
@torch.inference_mode()
def test_what_is_seen_counts_and_what_is_not_does_not(make, name):
    """Another picture changes the logits; pixels of an absent picture or region do not; without
    pictures the text is read alone."""
    method = make(name)
    reads_regions = "region_pixels" in method.needs
    given = batch(regions=reads_regions)
    logits = method(given).logits
    other = batch(seed=1, regions=reads_regions)
    assert not torch.allclose(
        logits, method(batch(regions=reads_regions, pixel_values=other.pixel_values)).logits
    )
    none = torch.tensor([False, False])
    hidden = {"image_mask": none}
    if reads_regions:
        hidden["region_mask"] = torch.zeros(2, 3, dtype=torch.bool)
        blind = {"region_pixels": given.region_pixels.clone()}
        blind["region_pixels"][~given.region_mask] = 7
        torch.testing.assert_close(method(batch(**blind)).logits, logits)
    absent = method(batch(regions=reads_regions, **hidden)).logits
    other_absent = method(
        batch(regions=reads_regions, pixel_values=other.pixel_values, **hidden)
    ).logits
    torch.testing.assert_close(absent, other_absent)
    text_alone = batch(regions=False, pixel_values=None, image_mask=None)
    torch.testing.assert_close(method(text_alone).logits, absent, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_a_text_model_alone_is_refused(name, tmp_path, tiny_model):
    """In one line that says what to name."""
    from pretrain.checkpoint.conversion import convert
    from pretrain.checkpoint.convert_config import ConvertConfig
    from shards.files import InputError

    convert(ConvertConfig(source=str(tiny_model), out=str(tmp_path / "bert"), target="bert"))
    cls = registry.load("methods", name)
    with pytest.raises(InputError, match=r"has no picture tower; name one with --model\.vision"):
        cls.build(cls.Config(), RELATIONS, Source(str(tmp_path / "bert")))
    assert issubclass(cls.Config, VisualConfig)


@pytest.mark.parametrize("name", NAMES)
@torch.inference_mode()
def test_captions_stand_for_pictures(make, name):
    """No tower, no picture asked for; what the caption says is read, an empty one is nothing."""
    method = make(name, vision="none")
    assert method.spec.needs == {"caption"} and method.spec.image_size is None
    captions = torch.tensor([[2, 20, 21, 22, 3], [2, 30, 3, 0, 0]])
    given = batch(regions=False, pixel_values=None, image_mask=None)
    given = replace(given, caption_ids=captions, caption_mask=captions > 0)
    logits = method(given).logits
    other = captions.clone()
    other[0, 2] = 40
    changed = method(replace(given, caption_ids=other)).logits
    assert (changed[0] - logits[0]).abs().max() > 1e-6
    torch.testing.assert_close(changed[1], logits[1])
    empty, filler = (torch.tensor([[2, 3, x, x, x]] * 2) for x in (0, 9))
    only = torch.tensor([[True, True, False, False, False]] * 2)
    silent = [
        method(replace(given, caption_ids=ids, caption_mask=only)).logits for ids in (empty, filler)
    ]
    torch.testing.assert_close(*silent)


def test_a_run_on_captions_is_read_again(make, tiny_model, tmp_path):
    method = make("ifaformer", vision="none")
    method.encoder.save_pretrained(tmp_path / "model")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tiny_model / name, tmp_path / "model")
    cls = registry.load("methods", "ifaformer")
    source = Source(str(tmp_path / "model"), finished=True)
    again, _ = cls.build(cls.Config(vision="none"), RELATIONS, source)
    assert again.state_dict().keys() == method.state_dict().keys()
