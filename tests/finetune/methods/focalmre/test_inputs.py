"""FocalMRE's ways of input, and copies that are encoded once."""

import dataclasses

import numpy as np
import pytest
import torch
from parts_focalmre import TASK, build, some_batch, with_mask

from finetune.inputs.load import load_split
from finetune.inputs.split import InputOptions
from finetune.methods.base import Source
from finetune.methods.focalmre.model import FocalMRE, FocalMREConfig
from finetune.methods.towers.encode_once import EncodeOnce, fingerprints
from finetune.run.evaluate import predict
from finetune.tasks.mnre import Mnre
from finetune.tasks.region_cache import Region, Regions, write_regions


def test_ways_of_input(tiny_model):
    numbers = {"num_grounded": 2, "num_detected": 1}
    batch = some_batch(build(tiny_model, **numbers))
    original = build(tiny_model, input="original", **numbers)
    assert original.needs == {"image"} and not original.fusion
    assert torch.equal(original.pictures(batch), batch.pixel_values[:, None])
    fused = original.fuse(original.read(batch, "entities"), batch)
    assert torch.equal(fused["vg"], fused["od"])
    assert original.classifier[0].in_features == 4 * 32
    cropped = build(tiny_model, input="cropped", **numbers)
    assert cropped.needs == {"image", "region_pixels"}
    less = with_mask(batch, "110", "111")
    copies = cropped.pictures(less)
    assert torch.equal(copies[:, :2], batch.region_pixels[:, :2])
    assert torch.equal(copies[0, 2], batch.pixel_values[0])
    assert cropped(less).loss.isfinite() and original(less).loss.isfinite()


@pytest.mark.parametrize(("merge", "copies"), [("per_kind", 2), ("all", 1)])
def test_several_frames_in_one_picture(tiny_model, merge, copies):
    method = build(tiny_model, merge=merge, color_detected=(0, 0, 255), num_grounded=2)
    batch = some_batch(method)
    shown = method.pictures(batch)
    assert shown.shape[:2] == (2, copies)
    single = build(tiny_model, color_detected=(0, 0, 255), num_grounded=2).pictures(batch)
    changed = (single != batch.pixel_values[:, None]).any(2)  # (B, R, S, S)
    groups = [slice(0, 2), slice(2, 5)] if merge == "per_kind" else [slice(0, 5)]
    for place, group in enumerate(groups):
        expected = changed[:, group].any(1)
        assert torch.equal((shown[:, place] != batch.pixel_values).any(1), expected)
    assert method(batch).logits.shape == (2, 3)


def test_settings_that_cannot_be():
    for settings in ({"merge": "all", "input": "cropped"}, {"color": (0, 0, 300)},
                     {"num_grounded": -1}, {"frame_width": 0}, {"dropout": 1.0}):  # fmt: skip
        with pytest.raises(ValueError, match=r"model\."):
            FocalMREConfig(**settings)


def test_every_distinct_copy_is_encoded_once(tiny_model):
    """Rows 0 and 1 show one picture and share five boxes; row 2 shows row 0's boxes elsewhere."""
    method = build(tiny_model)
    batch = some_batch(method, rows=3)
    pixels, boxes = batch.pixel_values.clone(), batch.region_boxes.clone()
    pixels[1] = pixels[0]
    boxes[1, :5] = boxes[0, :5]
    boxes[2] = boxes[0]
    batch = dataclasses.replace(batch, pixel_values=pixels, region_boxes=boxes)
    copies = method.pictures(batch).flatten(0, 1)
    distinct = len({copy.numpy().tobytes() for copy in copies})
    assert distinct == 7 + 2 + 7
    with torch.inference_mode():
        alone = method(batch).logits
        with method.one_pass():
            torch.testing.assert_close(method(batch).logits, alone, atol=1e-5, rtol=1e-5)
            assert method.memory.encoded == distinct
            torch.testing.assert_close(method(batch).logits, alone, atol=1e-5, rtol=1e-5)
            assert method.memory.encoded == distinct
    assert method.memory is None


def test_a_pass_over_a_split(tmp_path, mnre_folder, tiny_model, monkeypatch):
    """In several batches, too, each distinct copy once; the answers are those without memory."""
    task = Mnre(mnre_folder)
    rows = task.read("val")
    rows = [dataclasses.replace(row, image_id=rows[row.row // 2].image_id) for row in rows]
    monkeypatch.setattr(task, "read", lambda split: rows)
    boxes = [(2.0, 1.0, 9.0, 12.0), (8.0, 3.0, 19.0, 15.0)]
    grounded = {
        row.row: Regions(row.image_id, (20, 16), (Region(boxes[row.row % 3 % 2], 0.5, "x"),))
        for row in rows
    }
    write_regions(tmp_path / "regions_vg_val.jsonl", {"leaky": False}, grounded)
    method = build(tiny_model, num_grounded=2, num_detected=0)
    options = InputOptions(
        images="required", max_length=40, cache=tmp_path / "cache", regions=str(tmp_path)
    )
    _, tokenizer = FocalMRE.build(FocalMREConfig(), TASK, Source(str(tiny_model)))
    split = load_split(task, "val", tokenizer, method, options)
    whole = split.dataset.collate(np.arange(len(split)))
    copies = method.pictures(whole).flatten(0, 1)
    distinct = len({copy.numpy().tobytes() for copy in copies})
    made = []

    class Recorded(EncodeOnce):
        def __init__(self):
            super().__init__()
            made.append(self)

    monkeypatch.setattr("finetune.methods.base.EncodeOnce", Recorded)
    found = predict(method, task, split, "fp32", micro_batch_size=7)
    assert [once.encoded for once in made] == [distinct] and distinct < len(copies) / 1.5
    with torch.inference_mode():
        expected = method(whole).logits.softmax(-1)
    torch.testing.assert_close(torch.tensor(found.probabilities), expected, atol=2e-5, rtol=0)


def test_encode_once_forgets_the_oldest():
    calls = []

    def encode(pictures):
        calls.append(len(pictures))
        return pictures.float().flatten(1)[:, None]

    pictures = torch.randint(0, 256, (6, 3, 4, 4), dtype=torch.uint8)
    once = EncodeOnce(capacity=3 * pictures[0].numel() * 4)  # of float32
    for part in (pictures[:3], pictures[[0, 3, 3]], pictures[[0, 1]], pictures):
        assert torch.equal(once(encode, part), part.float().flatten(1)[:, None])
    # 1 was the oldest when 3 came; the last call finds 3, 0 and 1 of six.
    assert calls == [3, 1, 1, 3] and once.encoded == 8
    # What is kept is its own: a part would keep the states of its whole batch.
    held = sum(state.untyped_storage().nbytes() for state in once.known.values())
    assert held == once.bytes <= once.capacity
    keys = fingerprints(pictures)
    assert len(set(keys)) == 6
    assert keys == fingerprints(pictures.clone())
    pictures[0, 0, 0, 0] ^= 1
    assert fingerprints(pictures)[0] != keys[0]


def test_one_seed_gives_one_model(tiny_model):
    def train():
        method = build(tiny_model).train()
        torch.manual_seed(5)
        optimizer = torch.optim.AdamW(method.parameters(), lr=1e-3)
        for seed in range(2):
            method(some_batch(method, seed=seed)).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        return method.eval()(some_batch(method, seed=9)).logits

    assert torch.equal(train(), train())


def test_every_new_weight_learns(tiny_model):
    method = build(tiny_model).train()
    method(some_batch(method)).loss.backward()
    still = {name for name, p in method.named_parameters() if p.grad is None or not p.grad.any()}
    assert not {name for name in still if not name.startswith("encoder.")}
    assert not {name for name in still if "blocks" in name}


def test_glance(tiny_model):
    method = build(tiny_model, num_grounded=2, num_detected=1)
    batch = some_batch(method)
    glance = method.glance(batch)
    assert torch.equal(glance.pictures, method.pictures(batch))
    assert glance.weights.shape == (2, 3, 2, 4) and glance.gate.shape == (2, 3, 2)
    torch.testing.assert_close(glance.weights.sum(-1), torch.ones(2, 3, 2))
    assert glance.gate.min() > 0 and glance.gate.max() < 1
    every = method.glance(batch, "all")
    for row in range(2):
        torch.testing.assert_close(
            every.weights[row, :, batch.tail_start[row]], glance.weights[row, :, 1]
        )
    with pytest.raises(ValueError, match="focal"):
        build(tiny_model, attention="mean").glance(batch)
