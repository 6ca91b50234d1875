"""FocalMRE against loops over its equations, limits of its gate, and counts of what is encoded."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from torch import nn

from finetune.inputs.batch import Batch
from finetune.inputs.load import InputOptions, load_split
from finetune.methods.base import Source
from finetune.methods.focalmre import model as focalmre
from finetune.methods.focalmre.attention import FocalAttention
from finetune.methods.focalmre.model import FocalMRE, FocalMREConfig, repeated
from finetune.methods.towers.encode_once import EncodeOnce, fingerprints
from finetune.methods.towers.pair import PictureTower, TwoTowers, named_tower, picture_states
from finetune.run.evaluate import predict
from finetune.tasks.base import TaskInfo
from finetune.tasks.mnre import MARKERS, Mnre
from finetune.tasks.region_cache import Region, Regions, write_regions
from shards.files import InputError

TASK = TaskInfo("mnre", "relation", ("None", "a", "b"), MARKERS)


def build(model, **settings) -> FocalMRE:
    torch.manual_seed(0)
    method, _ = FocalMRE.build(FocalMREConfig(**settings), TASK, Source(str(model)))
    for weights in method.fusion.values():  # apart from their even start
        nn.init.uniform_(weights, 0.2, 1.0)
    return method.eval()


def some_batch(method: FocalMRE, rows=2, length=20, seed=0) -> Batch:
    random = torch.Generator().manual_seed(seed)
    regions, size = sum(method.config.slots.values()), method.image_size
    corners = torch.rand(rows, regions, 2, generator=random) * 0.6
    sides = 0.1 + torch.rand(rows, regions, 2, generator=random) * 0.3
    mask = torch.ones(rows, regions, dtype=torch.bool)
    ids = torch.randint(5, 60, (rows, length), generator=random)

    def pictures(*shape):
        return torch.randint(0, 256, (*shape, 3, size, size), generator=random, dtype=torch.uint8)

    return Batch(
        rows=torch.arange(rows),
        input_ids=ids,
        attention_mask=torch.ones(rows, length, dtype=torch.bool),
        head_start=torch.arange(rows) + 1,
        tail_start=torch.arange(rows) + 7,
        labels=torch.arange(rows) % 3,
        pixel_values=pictures(rows),
        image_mask=torch.ones(rows, dtype=torch.bool),
        region_boxes=torch.cat([corners, corners + sides], -1),
        region_pixels=pictures(rows, regions),
        region_mask=mask,
    )


def with_mask(batch: Batch, *patterns: str) -> Batch:
    mask = torch.tensor([[letter == "1" for letter in pattern] for pattern in patterns])
    boxes = batch.region_boxes * mask[..., None]
    pixels = batch.region_pixels * mask[:, :, None, None, None]
    return dataclasses.replace(batch, region_mask=mask, region_boxes=boxes, region_pixels=pixels)


# ---------------------------------------------------------------------- the whole, by loops


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
    for kind, states in every.items():
        assert states.shape == (2, 20, 32)
        for row in range(2):
            for place, start in enumerate((batch.head_start, batch.tail_start)):
                torch.testing.assert_close(
                    two[kind][row, place], states[row, start[row]], atol=1e-5, rtol=1e-5
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


# ---------------------------------------------------------------------- attention and gate


def states(seed=0, positions=1):
    random = torch.Generator().manual_seed(seed)
    return (
        torch.randn(1, positions, 8, generator=random),
        torch.randn(1, 2, 5, 6, generator=random),
    )


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


# ---------------------------------------------------------------------- slots without a region


def test_regions_in_turn():
    mask = torch.tensor(
        [[1, 1, 0, 0, 1, 0, 0], [0, 0, 0, 0, 1, 1, 1], [1, 1, 1, 1, 0, 0, 0]]
    ).bool()
    places, there = repeated(mask, [4, 3])
    assert places[0].tolist() == [0, 1, 0, 1, 4, 4, 4]
    assert places[1, 4:].tolist() == [4, 5, 6] and places[2, :4].tolist() == [0, 1, 2, 3]
    assert there[0].all() and there[1].tolist() == [False] * 4 + [True] * 3


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


# ---------------------------------------------------------------------- ways of input


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


# ---------------------------------------------------------------------- once, and the same again


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
            assert method.once.encoded == distinct
            torch.testing.assert_close(method(batch).logits, alone, atol=1e-5, rtol=1e-5)
            assert method.once.encoded == distinct
    assert method.once is None


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
        def __init__(self, encode):
            super().__init__(encode)
            made.append(self)

    monkeypatch.setattr(focalmre, "EncodeOnce", Recorded)
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
    once = EncodeOnce(encode, capacity=3)
    for part in (pictures[:3], pictures[[0, 3, 3]], pictures[[0, 1]], pictures):
        assert torch.equal(once(part), part.float().flatten(1)[:, None])
    # 1 was the oldest when 3 came; the last call finds 3, 0 and 1 of six.
    assert calls == [3, 1, 1, 3] and once.encoded == 8
    keys = fingerprints(pictures)
    assert len(set(keys.tolist())) == 6
    assert torch.equal(keys, fingerprints(pictures.clone()))
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


# ---------------------------------------------------------------------- towers


@pytest.fixture(scope="module")
def bert(tmp_path_factory, tiny_model):
    """A tiny BERT directory."""
    from transformers import AutoTokenizer, BertConfig, BertModel, PreTrainedConfig

    tokenizer = AutoTokenizer.from_pretrained(tiny_model, config=PreTrainedConfig())
    folder = tmp_path_factory.mktemp("bert")
    torch.manual_seed(0)
    BertModel(
        BertConfig(vocab_size=len(tokenizer), hidden_size=24, num_hidden_layers=2,
                   num_attention_heads=2, intermediate_size=48, max_position_embeddings=64),
        add_pooling_layer=False,
    ).save_pretrained(folder)  # fmt: skip
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """The vision side of a tiny CLIP, as a directory."""
    from transformers import CLIPVisionConfig, CLIPVisionModel

    folder = tmp_path_factory.mktemp("clip")
    torch.manual_seed(0)
    CLIPVisionModel(
        CLIPVisionConfig(hidden_size=16, intermediate_size=32, num_hidden_layers=2,
                         num_attention_heads=2, image_size=16, patch_size=8)
    ).save_pretrained(folder)  # fmt: skip
    return folder


def test_text_of_a_fusion_encoder_is_its_whole_bert(tiny_model):
    """Text layers, then the fusion layers on the text alone = the BERT that was cut in two."""
    from pretrain.checkpoint.hub import load_text_tower

    method = build(tiny_model)
    batch = some_batch(method)
    mask = batch.attention_mask.clone()
    mask[1, 12:] = False
    batch = dataclasses.replace(batch, attention_mask=mask)
    bert, _ = load_text_tower(tiny_model)
    with torch.inference_mode():
        expected = bert.eval()(input_ids=batch.input_ids, attention_mask=mask).last_hidden_state
        torch.testing.assert_close(method.read(batch, "all"), expected, atol=1e-5, rtol=1e-5)


def test_clip_states_are_normed(clip):
    """`post_layernorm` on every token, by hand; the pooled output is the class token's."""
    from transformers import CLIPVisionModel

    model = CLIPVisionModel.from_pretrained(clip)
    pixels = torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8)
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073])[:, None, None]
    std = torch.tensor([0.26862954, 0.26130258, 0.27577711])[:, None, None]
    with torch.inference_mode():
        output = model((pixels / 255 - mean) / std)
        found = named_tower(str(clip)).eval()(pixels)
        expected = model.post_layernorm(output.last_hidden_state)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found[:, 0], output.pooler_output, atol=1e-5, rtol=1e-5)


def test_timm_states(tiny_model):
    """`forward_features` of the normalised picture; registers are left out."""
    from timm.models import create_model

    tower = named_tower("test_vit", random_weights=True).eval()
    size = tower.description["image_size"]
    pixels = torch.randint(0, 256, (1, 3, size, size), dtype=torch.uint8)
    mean, std = (torch.tensor(tower.description[key])[:, None, None] for key in ("mean", "std"))
    with torch.inference_mode():
        expected = tower.net.forward_features((pixels / 255 - mean) / std)
        torch.testing.assert_close(tower(pixels), expected, atol=1e-5, rtol=1e-5)
        net = create_model("test_vit", num_classes=0, reg_tokens=3).eval()
        states = PictureTower(net, tower.description).eval()(pixels)
        every = net.forward_features((pixels / 255 - mean) / std)
    torch.testing.assert_close(states, every[:, [0, *range(4, every.shape[1])]])


def test_a_bert_and_a_clip_saved_and_loaded(tmp_path, bert, clip):
    """The run stands on its own: the CLIP folder may be gone; its picture tower can go on."""
    import shutil

    from finetune.run.checkpoint import load_method, save_method

    here = tmp_path / "clip"
    shutil.copytree(clip, here)
    config = FocalMREConfig(vision=str(here), num_grounded=2, num_detected=1)
    torch.manual_seed(0)
    method, tokenizer = FocalMRE.build(config, TASK, Source(str(bert)))
    assert isinstance(method.encoder, TwoTowers) and method.image_size == 16
    batch = some_batch(method)
    save_method(tmp_path / "run", method, tokenizer, name="focalmre", config=config, task=TASK,
                inputs={}, card="# card\n")  # fmt: skip
    shutil.rmtree(here)
    loaded, _, _ = load_method(tmp_path / "run")
    with torch.inference_mode():
        assert torch.equal(method.eval()(batch).logits, loaded(batch).logits)
    again, _ = FocalMRE.build(FocalMREConfig(), TASK, Source(str(tmp_path / "run")))
    with torch.inference_mode():
        torch.testing.assert_close(
            picture_states(again.eval().encoder, batch.pixel_values),
            picture_states(method.encoder, batch.pixel_values),
        )
    (tmp_path / "run" / "vision.safetensors").write_bytes(b"cut")
    with pytest.raises(InputError, match=r"its picture tower cannot be loaded"):
        FocalMRE.build(FocalMREConfig(), TASK, Source(str(tmp_path / "run")))
    (tmp_path / "run" / "vision.json").write_text("{}")
    with pytest.raises(InputError, match=r"vision\.json: damaged \(no image_size"):
        FocalMRE.build(FocalMREConfig(), TASK, Source(str(tmp_path / "run")))


def test_towers_that_cannot_be_had(tmp_path, bert, clip):
    with pytest.raises(InputError, match=r"no picture tower.*--model\.vision"):
        FocalMRE.build(FocalMREConfig(), TASK, Source(str(bert)))
    with pytest.raises(InputError, match=r"--model\.vision no_such_vit: timm cannot load it"):
        named_tower("no_such_vit", random_weights=True)
    with pytest.raises(InputError, match="not a ViT with a class token"):
        named_tower("test_vit4", random_weights=True)  # pools its patches
    (tmp_path / "config.json").write_text('{"model_type": "t5"}')
    with pytest.raises(InputError, match=r"neither timm's nor a CLIP"):
        named_tower(str(tmp_path))
