"""Published towers in a run: slower rates, rest and thaw, states kept, pooling of sentences."""

import json
from dataclasses import replace

import pytest
import torch
from tiny_promu import CONFIG, batch, promu

from pretrain.checkpoint.text import pools_by_mean
from pretrain.config import DataConfig, OptimConfig
from pretrain.model.config import FusionEncoderConfig
from pretrain.model.fusion_encoder import FusionEncoder
from pretrain.model.stored import VisionStore
from pretrain.optim import adamw, layerwise_groups, linear_schedule


def grouped(model, **options):
    """(groups, name -> its group)."""
    encoder = model.encoder
    groups = layerwise_groups(
        model.named_parameters(), lr=1.0, weight_decay=0.1, layer_decay=1.0,
        above=lambda name: 0,
        tower=lambda name: encoder.tower_of(name.removeprefix("encoder.")), **options,
    )  # fmt: skip
    at = {id(p): group for group in groups for p in group["params"]}
    return groups, {name: at[id(p)] for name, p in model.named_parameters()}


def test_towers_learn_slower_and_nothing_else():
    groups, of = grouped(promu(), tower_scale=0.1)
    for name, group in of.items():
        in_tower = name.startswith(("encoder.text.", "encoder.vision."))
        assert group["lr"] == (0.1 if in_tower else 1.0), name
    assert groups[0]["lr"] == 1  # whose rate is logged
    assert len(grouped(promu())[0]) == 2  # as before: old checkpoints have these groups


def test_a_tower_at_rest_keeps_its_bits_and_then_learns():
    model = promu()
    groups, of = grouped(model, rests=("vision",))
    optimizer = adamw(groups)
    schedule = linear_schedule(optimizer, warmup_steps=2, total_steps=10, rest_steps=4)
    first = {name: p.clone() for name, p in model.named_parameters()}
    rates = []
    for step in range(1, 11):
        model.encoder.resting = ("vision",) if step <= 4 else ()
        rates.append((of["encoder.fusion.layer.0.output.dense.weight"]["lr"],
                      of["encoder.vision.blocks.0.mlp.fc1.weight"]["lr"]))  # fmt: skip
        optimizer.zero_grad()
        model(batch())["loss"].backward()
        optimizer.step()
        schedule.step()
        still = {n for n, p in model.named_parameters() if torch.equal(p, first[n])}
        vision = {n for n in first if n.startswith("encoder.vision.")}
        assert (still == vision) if step <= 4 else not still & vision, step
    assert [rate for rate, _ in rates] == pytest.approx(
        [0.5, 1, *(n / 8 for n in range(7, -1, -1))]
    )
    expected = [0, 0, 0, 0, 0.5 * 5 / 8, *(n / 8 for n in range(4, -1, -1))]
    assert [rate for _, rate in rates] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("section", "values", "message"),
    [
        (
            OptimConfig,
            {"tower_lr_scale": 0.0},
            "must be positive, not 0.0; towers that are to stay",
        ),
        (OptimConfig, {"freeze_steps": 5}, "name the towers in optim.freeze"),
        (
            OptimConfig,
            {"freeze_steps": 9, "freeze": ("text",), "steps": 9},
            "1 to 8 of the 9",
        ),
        (DataConfig, {"fixed_views": True, "keep_patches": 0.5, "train": "a"}, "whole pictures"),
    ],
)
def test_what_cannot_be_is_one_line(section, values, message):
    with pytest.raises(ValueError, match=message):
        section(**values)


def test_states_are_computed_once_a_picture_and_are_the_same():
    model, given = promu(), batch()
    given = replace(given, ids=torch.tensor([[n, n // 2] for n in range(6)]))
    given.pixel_values[1::2] = given.pixel_values[::2]  # two captions a picture
    expected = model(given)["loss"]
    model.vision_store, model.encoder.resting = VisionStore(), ("vision",)
    seen = []
    model.encoder.vision.register_forward_pre_hook(lambda net, inputs: seen.append(len(inputs[0])))
    for _ in range(3):
        loss = model(given)["loss"]
        torch.testing.assert_close(loss, expected)
        loss.backward()
    assert seen == [3]
    model.encoder.resting = ()
    model(given)
    assert seen == [3, 6]


def test_a_text_may_be_the_mean_of_its_pieces():
    torch.manual_seed(0)
    config = replace(CONFIG, text_pool="avg")
    encoder = FusionEncoder(config).eval()
    ids = torch.randint(5, 60, (2, 8))
    mask = torch.tensor([[1] * 8, [1] * 3 + [0] * 5])
    states = encoder.encode_text(ids, mask)
    for row, length in ((0, 8), (1, 3)):
        alone = encoder.encode_text(ids[row : row + 1, :length], mask[row : row + 1, :length])
        expected = torch.nn.functional.normalize(encoder.text_proj(alone[0].mean(dim=0)), dim=-1)
        torch.testing.assert_close(encoder.text_feat(states, mask)[row], expected)
        torch.testing.assert_close(encoder.text_feat(alone)[0], expected)
    content = config.to_dict()
    assert content["format_version"] == 3
    assert FusionEncoderConfig.from_dict(content) == config
    assert "text_pool" not in CONFIG.to_dict() and CONFIG.to_dict()["format_version"] == 1


@pytest.mark.parametrize("mean", [True, False])
def test_pooling_is_read_as_sentence_transformers_write_it(mean, tmp_path):
    assert not pools_by_mean(tmp_path)
    (tmp_path / "1_Pooling").mkdir()
    content = {"pooling_mode_cls_token": not mean, "pooling_mode_mean_tokens": mean}
    (tmp_path / "1_Pooling" / "config.json").write_text(json.dumps(content))
    assert pools_by_mean(tmp_path) is mean
