"""FocalMRE against loops: equations 3 to 6, attention, gate, slots without a region."""

import dataclasses
import math

import pytest
import torch
from parts_focalmre import build, some_batch, states, with_mask

from finetune.inputs.batch import Batch
from finetune.methods.focalmre.attention import FocalAttention
from finetune.methods.focalmre.model import FocalMRE, repeated


def by_loops(method: FocalMRE, batch: Batch) -> torch.Tensor:
    """z of equation 6 for `fill: unframed`, one number after the other."""
    config = method.config
    states = method.read(batch, "all").double()
    pictures = method.encode(method.pictures(batch)).double()
    rows = []
    for row in range(len(batch)):
        z, start = [], 0
        for kind, number in config.slots.items():
            focus = method.focus_of(kind).double()
            weights = method.fusion_weights(kind).double()
            for position in (batch.head_start[row], batch.tail_start[row]):
                text, mixed = states[row, position], 0
                for i in range(number):
                    patches = pictures[row, start + i, 1:]
                    query = focus.query.weight @ text + focus.query.bias
                    scores = [
                        (query @ (focus.key.weight @ patch)).item() / math.sqrt(len(query))
                        for patch in patches
                    ]
                    total = sum(map(math.exp, scores))
                    seen = sum(
                        math.exp(score) / total * (focus.value.weight @ patch + focus.value.bias)
                        for score, patch in zip(scores, patches, strict=True)
                    )
                    gate = focus.gate_text.weight @ text + focus.gate_picture.weight @ seen
                    share = 1 / (1 + torch.exp(-gate))
                    mixed = mixed + weights[i] * ((1 - share) * text + share * seen)
                z.append(mixed)
            start += number
        rows.append(torch.cat(z))
    return torch.stack(rows)


@pytest.mark.parametrize("settings", [{}, {"gate": "token"}, {"share_kinds": False}])
def test_equations_3_to_6(tiny_model, settings):
    method = build(tiny_model, num_grounded=2, num_detected=1, **settings)
    batch = some_batch(method)
    with torch.inference_mode():
        fused = method.fuse(method.read(batch, "entities"), batch)
        found = torch.cat([part.flatten(1) for part in fused.values()], -1)
        output = method(batch).logits
        z = by_loops(method, batch)
        logits = method.classifier(z.float())
    torch.testing.assert_close(found.double(), z, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(output, logits, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("gate", ["dim", "token", "none"])
def test_two_positions_are_enough(tiny_model, gate):
    """Markers first, then the fusion = all positions fused, then the markers."""
    method = build(tiny_model, gate=gate)
    batch = some_batch(method)
    with torch.inference_mode():
        two = method.fuse(method.read(batch, "entities"), batch)
        every = method.fuse(method.read(batch, "all"), batch)
    for kind, fused in every.items():
        assert fused.shape == (2, 20, 32)
        for row in range(2):
            for place, start in enumerate((batch.head_start, batch.tail_start)):
                torch.testing.assert_close(
                    two[kind][row, place], fused[row, start[row]], atol=1e-5, rtol=1e-5
                )


@pytest.mark.parametrize(
    ("grounded", "detected", "width"), [(4, 3, 4), (1, 0, 2), (0, 3, 2), (1, 1, 4), (0, 0, 2)]
)
def test_shapes_and_removed_kinds(tiny_model, grounded, detected, width):
    method = build(tiny_model, num_grounded=grounded, num_detected=detected)
    batch = some_batch(method)
    output = method(batch)
    assert output.logits.shape == (2, 3) and output.loss.isfinite()
    assert method.classifier[0].in_features == width * 32
    assert method.needs == ({"image", "region_boxes"} if grounded + detected else set())
    assert sum(method.region_slots.values()) == grounded + detected
    if not method.region_slots:
        text = method.read(batch, "entities").flatten(1)
        assert torch.equal(output.logits, method.classifier(text))


@pytest.mark.parametrize("gate", ["dim", "token", "image"])
def test_limits_of_the_gate(gate):
    torch.manual_seed(0)
    focus = FocalAttention(8, 6, gate=gate).eval()
    text, pictures = states()
    with torch.no_grad():
        seen = focus.look(text, pictures)
        for sign, expected in ((-1, text[:, None].expand_as(seen)), (1, seen)):
            focus.gate_text.weight.copy_((sign * 1e3 * text[0]).expand_as(focus.gate_text.weight))
            focus.gate_picture.weight.zero_()
            torch.testing.assert_close(focus(text, pictures), expected)


def test_gates_are_as_wide_as_they_say():
    text, pictures = states(positions=2)
    for gate, shape in (("dim", (1, 2, 2, 8)), ("token", (1, 2, 2, 1)), ("image", (1, 2, 1, 1))):
        focus = FocalAttention(8, 6, gate=gate).eval()
        assert focus.open(text[:, None], focus.look(text, pictures)).shape == shape


def test_ablations():
    """Without attention the mean patch or the class token; without gate sum, mean, or picture."""
    text, pictures = states(positions=2)
    torch.manual_seed(1)
    focus = FocalAttention(8, 6, attention="mean", gate="none").eval()
    mean = focus.value(pictures[:, :, 1:].mean(2))[:, :, None]
    torch.testing.assert_close(focus(text, pictures), text[:, None] + mean)
    focus.no_gate = "average"
    torch.testing.assert_close(focus(text, pictures), (text[:, None] + mean) / 2)
    focus.no_gate = "image"
    torch.testing.assert_close(focus(text, pictures), mean.expand(-1, -1, 2, -1))
    focus.attention = "cls"
    torch.testing.assert_close(focus(text, pictures)[:, :, 1], focus.value(pictures[:, :, 0]))
    names = {name for name, _ in focus.named_parameters()}
    assert names == {"value.weight", "value.bias"}


def test_attention_with_the_class_token_and_its_dropout():
    text, pictures = states()
    torch.manual_seed(1)
    focus = FocalAttention(8, 6, include_cls=True, gate="none", no_gate="image", dropout=0.5)
    weights = focus.weights(text, pictures)
    torch.testing.assert_close(weights.sum(-1), torch.ones(1, 2, 1))
    torch.testing.assert_close(
        focus.eval()(text, pictures), weights @ focus.value(pictures), atol=1e-6, rtol=1e-5
    )
    focus.train()
    focus.dropout_on = "output"
    torch.manual_seed(3)
    dropped = focus(text, pictures)
    whole = 2 * (weights @ focus.value(pictures))
    torch.testing.assert_close(dropped, torch.where(dropped == 0, 0, whole), atol=1e-6, rtol=1e-5)
    assert (dropped == 0).any() and (dropped != 0).any()


def test_regions_in_turn():
    mask = torch.tensor(
        [[1, 1, 0, 0, 1, 0, 0], [0, 0, 0, 0, 1, 1, 1], [1, 1, 1, 1, 0, 0, 0]]
    ).bool()
    places, there = repeated(mask, [4, 3])
    assert places[0].tolist() == [0, 1, 0, 1, 4, 4, 4]
    assert places[1, 4:].tolist() == [4, 5, 6] and places[2, :4].tolist() == [0, 1, 2, 3]
    assert there[0].all() and there[1].tolist() == [False] * 4 + [True] * 3
    gap = torch.tensor([[0, 1, 1, 0], [1, 0, 0, 0]]).bool()  # slots that a view emptied
    assert repeated(gap, [4])[0].tolist() == [[1, 1, 2, 2], [0, 0, 0, 0]]


def test_fill(tiny_model):
    settings = {"num_grounded": 2, "num_detected": 1, "style": "dim"}
    method = build(tiny_model, **settings)
    batch = with_mask(some_batch(method), "100", "001")
    plain = batch.pixel_values
    copies = method.pictures(batch)
    assert torch.equal(copies[0, 1], plain[0]) and not torch.equal(copies[0, 0], plain[0])
    assert torch.equal(copies[1, :2], plain[1].expand(2, -1, -1, -1))
    copies = build(tiny_model, fill="repeat", **settings).pictures(batch)
    assert torch.equal(copies[0, 1], copies[0, 0]) and not torch.equal(copies[0, 0], plain[0])
    assert torch.equal(copies[1, 0], plain[1])


def test_masked_slots_do_not_count(tiny_model):
    """Row 0 has one grounded region, which takes the weight of both; row 1 has none: text."""
    method = build(tiny_model, num_grounded=2, num_detected=0, fill="mask")
    batch = with_mask(some_batch(method), "10", "00")
    with torch.inference_mode():
        text = method.read(batch, "entities")
        fused = method.fuse(text, batch)["vg"]
        mixed = method.focus_of("vg")(text, method.encode(method.pictures(batch)))
        total = method.fusion["vg"].sum()
    torch.testing.assert_close(fused[0], total * mixed[0, 0])
    torch.testing.assert_close(fused[1], total * text[1])


@pytest.mark.parametrize("norm", ["free", "softmax"])
def test_a_row_without_picture_reads_its_text(tiny_model, norm):
    """The same as pictures switched off; its pixels do not matter."""
    method = build(tiny_model, fusion_norm=norm)
    batch = some_batch(method)
    half = dataclasses.replace(batch, image_mask=torch.tensor([True, False]))
    off = dataclasses.replace(batch, pixel_values=None, region_boxes=None, region_mask=None)
    with torch.inference_mode():
        found = method(half).logits
        torch.testing.assert_close(found[0], method(batch).logits[0])
        torch.testing.assert_close(found[1], method(off).logits[1])
        if norm == "softmax":
            torch.testing.assert_close(method.fusion_weights("vg").sum(), torch.tensor(1.0))
