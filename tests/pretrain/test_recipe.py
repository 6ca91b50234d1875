"""Switches of the recipe: negatives, ignored labels, teachers, frozen towers, rates, memory."""

import itertools
import math
from dataclasses import replace

import pytest
import torch
from tiny_promu import CONFIG, batch, promu
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from pretrain import losses
from pretrain.config import PretrainConfig
from pretrain.flops import forward_flops
from pretrain.model.config import FusionEncoderConfig
from pretrain.model.promu import HeadsConfig, Promu
from pretrain.optim import layerwise_groups
from pretrain.prepare import _told_apart
from pretrain.prompter.bank import ENTITY_TEMPLATES, RELATION_TEMPLATES, PromptBank
from pretrain.prompter.load import Prompter
from pretrain.prompter.online import OnlineTeacher, erased, object_crops
from shards.files import InputError
from shards.options import parse_config
from shards.relations import relation_labels
from shards.sample.world import CUES
from shards.sample.write import SampleConfig, write_sample

# ------------------------------------------------------------------ hard negatives


def test_hard_negatives_follow_the_similarity_and_never_pair_what_belongs_together():
    torch.manual_seed(0)
    image, text = nn.functional.normalize(torch.randn(2, 4, 8), dim=-1)
    ids = torch.tensor([[0, 10], [1, 11], [2, 10], [3, 13]])  # pairs 0 and 2 share their picture
    counts = torch.zeros(2, 4, 4)
    for _ in range(4000):
        pictures, captions, usable = losses.hard_negatives(image, text, ids, torch.tensor([0.5]))
        counts[0, torch.arange(4), pictures] += 1
        counts[1, torch.arange(4), captions] += 1
    assert usable.all()
    for row in range(4):
        others = [c for c in range(4) if c != row and {row, c} != {0, 2}]
        for direction, (a, b) in enumerate(((text, image), (image, text))):
            weights = torch.tensor([math.exp(float(a[row] @ b[c]) / 0.5) for c in others])
            expected = torch.zeros(4).scatter(0, torch.tensor(others), weights / weights.sum())
            torch.testing.assert_close(counts[direction, row] / 4000, expected, rtol=0, atol=0.03)


def test_without_any_negative_the_draw_is_uniform_and_left_out():
    image = text = nn.functional.normalize(torch.randn(2, 8), dim=-1)
    ids = torch.tensor([[0, 7], [1, 7]])  # one picture, two captions
    *_, usable = losses.hard_negatives(image, text, ids, torch.tensor([0.001]))
    assert not usable.any()
    loss = losses.drawn_itm_loss(
        torch.zeros(2, 2), torch.full((4, 2), 9.0), torch.ones(2).bool(), usable, torch.ones(2)
    )
    assert loss.item() == pytest.approx(2 * math.log(2) / 6)


def test_drawn_itm_is_a_mean_over_given_and_drawn_rows():
    torch.manual_seed(1)
    logits, drawn = torch.randn(3, 2), torch.randn(6, 2)
    matched = torch.tensor([True, False, True])
    rows = [(logits[i], int(matched[i])) for i in range(3)]
    rows += [(drawn[i], 0) for i in (0, 2, 3, 5)]  # of the matched anchors
    expected = sum(nn.functional.cross_entropy(z, torch.tensor(y)) for z, y in rows) / 7
    usable = torch.ones(3).bool()
    found = losses.drawn_itm_loss(logits, drawn, matched, usable, matched)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("pool", ["cls", "product"])
@pytest.mark.parametrize("all_matched", [True, False])
def test_batch_negatives_pair_each_picture_with_the_next_caption(all_matched, pool):
    given = batch()
    given = replace(given, matched=given.matched | all_matched)
    model = promu(itm_batch_negatives=True, itm_pool=pool, coe=0.0, cir=0.0, cit=0.0).eval()
    encoder, size = model.encoder, len(given.matched)
    rows = [(i, i) for i in range(size)]
    for i in range(size):
        after = (i + 1) % size
        if given.matched[i] and not (given.ids[i] == given.ids[after]).any():
            rows.append((i, after))
    assert len(rows) > size
    expected = torch.zeros(())
    for picture, caption in rows:  # alone: nothing of the batch but the two is read
        alone = encoder(
            given.pixel_values[picture, None], given.input_ids[caption, None],
            given.attention_mask[caption, None],
        )  # fmt: skip
        label = given.matched[[picture]] & (picture == caption)
        fused, shown = alone.fused_embeds[0], given.attention_mask[caption].bool()
        read = fused[0] if pool == "cls" else fused[: len(shown)][shown].mean(0) * fused[len(shown)]
        logits = model.heads["itm"](read[None])
        expected = expected + nn.functional.cross_entropy(logits, label.long())
    counted = size + int(given.matched.sum())  # unusable rows count as ALBEF's do: as nothing
    torch.testing.assert_close(model(given)["itm_loss"], expected / counted)


def test_next_captions_share_neither_caption_nor_picture():
    ids = torch.tensor([[0, 10], [1, 11], [2, 11], [3, 13], [0, 14]])
    captions, usable = losses.next_captions(ids)
    assert captions.tolist() == [1, 2, 3, 4, 0]
    assert usable.tolist() == [True, False, True, True, False]
    assert not losses.next_captions(ids[:1])[1].any()


# ------------------------------------------------------------------ labels


def test_ignored_rows_take_no_part_in_coe_and_cir():
    given = batch()
    model = promu(ignore_first_class=True, coe_pairs="matched", ignore_below=0.3)
    for bank, feature, name in (
        (model.entity_bank, given.object_feat, "coe"),
        (model.relation_bank, given.image_feat, "cir"),
    ):
        q = losses.soft_labels(feature, bank.features, bank.temperature)
        expected = (q.argmax(1) != 0) & (q.max(1).values >= 0.3)
        if name == "coe":
            expected &= given.matched
        assert torch.equal(model._targets(given)[name][1], expected)
        assert 0 < expected.sum() < len(expected)
        column = 3 if name == "coe" else 4
        assert torch.equal(model.table(given)[:, column].bool(), expected)


def test_every_ablation_of_table_1_and_prompt_of_table_3_is_a_switch():
    required = ["--run_dir=x", "--data.train=y", "--prompter.source=p", "--prompter.entities=e"]
    paper = ["--config", "pretrain/configs/paper.yaml", *required]
    ablations = [["--loss.coe=0"], ["--loss.cir=0"], ["--loss.label_kind=hard"]]
    prompts = itertools.product(ENTITY_TEMPLATES, RELATION_TEMPLATES)
    ablations += [
        [f'--prompter.entity_prompts=["{e}"]', f'--prompter.relation_prompts=["{r}"]']
        for e, r in prompts
    ]
    assert len(ablations) == 3 + 6
    configs = [
        parse_config(PretrainConfig, [*paper, *options], prog="p", description="", example="")
        for options in ablations
    ]
    found = {
        (c.loss.coe, c.loss.cir, c.loss.label_kind, *c.prompter.entity_prompts,
         *c.prompter.relation_prompts)
        for c in configs
    }  # fmt: skip
    assert len(found) == 3 + 6


def test_prompts_that_all_read_alike_are_refused():
    """Labels would be uniform: what R0, R1, … instead of words once did, unseen."""
    bank = PromptBank(nn.functional.normalize(torch.randn(1, 8), dim=-1).repeat(3, 1), 0.1)
    with pytest.raises(InputError, match="R0, R1, R2 … are all the same to the prompter"):
        _told_apart(bank, ["R0", "R1", "R2"])
    distinct = promu().relation_bank
    assert _told_apart(distinct, list("abcdef")) is distinct


def test_the_samples_relations_are_read_as_the_words_of_its_captions(tmp_path):
    write_sample(SampleConfig(out=tmp_path / "sample", pairs=240, rows=(8, 4, 4), size=32))
    words = [word for cues in CUES.values() for _, word in cues.values()]
    assert relation_labels(tmp_path / "sample/relations.tsv") == words


# ------------------------------------------------------------------ online teachers


def test_object_crops_and_erased_boxes_are_where_the_box_is():
    pixels = torch.zeros(1, 3, 32, 32, dtype=torch.uint8)
    pixels[:, :, 8:24, 0:16] = 200
    box = torch.tensor([[0.0, 8, 16, 24]])
    assert (erased(pixels, box) == 0).all()
    assert (object_crops(pixels, box)[..., 2:-2, 2:-2] == 200).all()
    gradient = torch.arange(32, dtype=torch.uint8).expand(1, 3, 32, 32).contiguous()
    crop = object_crops(gradient, box)[0, 0, 16].float()
    expected = (torch.arange(32) + 0.5) * 16 / 32 - 0.5  # the box's columns, scaled by two
    assert (crop - expected.clamp(min=0)).abs().max() <= 1


@pytest.mark.parametrize("view", ["clean", "student"])
def test_the_online_teacher_encodes_the_views_it_is_to_look_at(view):
    given, encoder = batch(), promu().encoder
    teacher = OnlineTeacher(Prompter(encoder, None, 0.1), view, False, torch.device("cpu"), "fp32")
    seen = teacher(given)
    views = (given.image_view, given.object_view)
    if view == "student":
        views = given.pixel_values, object_crops(given.pixel_values, given.box)
    with torch.no_grad():
        for pixels, found in zip(views, (seen.image_feat, seen.object_feat), strict=True):
            expected = encoder.image_feat(encoder.encode_image(pixels)).half()
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-3)
    assert not any(p.requires_grad for p in encoder.parameters())
    assert given.image_feat is not seen.image_feat  # the batch it was given stays as it was


def test_the_released_teacher_sees_neither_object_nor_whole_picture():
    teacher = OnlineTeacher(
        Prompter(promu().encoder, None, 0.1), "student", True, torch.device("cpu"), "fp32"
    )
    seen = teacher(batch())
    assert torch.equal(seen.image_feat, seen.object_feat)


def test_the_teacher_gets_no_gradient_and_is_no_parameter():
    model, encoder = promu(), promu().encoder.requires_grad_(True)
    prompter = Prompter(encoder, None, 0.1)
    seen = OnlineTeacher(prompter, "clean", False, torch.device("cpu"), "fp32")(batch())
    model(seen)["loss"].backward()
    assert all(parameter.grad is None for parameter in encoder.parameters())
    assert not seen.image_feat.requires_grad and not seen.object_feat.requires_grad
    bank = {id(model.relation_bank.features), id(model.entity_bank.features)}
    assert bank.isdisjoint(id(parameter) for parameter in model.parameters())
    assert not any("bank" in name for name in model.state_dict())


# ------------------------------------------------------------------ learning


def test_all_four_losses_fall_and_matching_is_learnt_by_heart():
    """One batch of 32 pairs, 150 steps."""
    model, given = promu().train(), batch(32)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    first = model(given)
    for _ in range(150):
        optimizer.zero_grad()
        found = model(given)
        found["loss"].backward()
        optimizer.step()
    for name in ("cit_loss", "itm_loss", "coe_loss", "cir_loss"):
        assert found[name] < first[name], name
    with torch.no_grad():
        text = model.encoder.encode_text(given.input_ids, given.attention_mask)
        fused = model.encoder.fuse(
            text, given.attention_mask, model.encoder.encode_image(given.pixel_values)
        )
        answers = model.heads["itm"](fused[:, 0]).argmax(dim=1).bool()
    assert torch.equal(answers, given.matched)


# ------------------------------------------------------------------ rates, memory, operations


def test_rates_fall_with_depth_and_nothing_is_lost():
    model = promu()
    groups = layerwise_groups(
        model.named_parameters(), lr=1.0, weight_decay=0.1, layer_decay=0.5,
        above=lambda name: model.encoder.layers_above(name.removeprefix("encoder.")),
    )  # fmt: skip
    rates = {id(p): (g["lr"], g["weight_decay"]) for g in groups for p in g["params"]}
    assert rates.keys() == {id(p) for p in model.parameters()}
    found = {name: rates[id(p)] for name, p in model.named_parameters()}
    expected = {  # fusion 2 layers, text 3, vision 4
        "heads.itm.weight": (1, 0.1), "temperature": (1, 0), "encoder.text_proj.weight": (1, 0.1),
        "encoder.fusion.layer.1.output.dense.weight": (0.5, 0.1),
        "encoder.fusion.layer.0.output.dense.bias": (0.25, 0),
        "encoder.text.encoder.layer.2.output.dense.weight": (0.125, 0.1),
        "encoder.text.encoder.layer.0.output.dense.weight": (0.5**5, 0.1),
        "encoder.text.embeddings.word_embeddings.weight": (0.5**6, 0.1),
        "encoder.vision.norm.weight": (0.25, 0), "encoder.vision.blocks.3.mlp.fc1.bias": (0.125, 0),
        "encoder.vision.blocks.0.attn.qkv.weight": (0.5**6, 0.1),
        "encoder.vision.pos_embed": (0.5**7, 0),
    }  # fmt: skip
    assert {name: found[name] for name in expected} == expected
    assert groups[0]["lr"] == 1  # whose rate is logged


def gradients(model: Promu) -> dict[str, torch.Tensor]:
    model.train()(batch())["loss"].backward()
    return {name: p.grad for name, p in model.named_parameters()}


def test_activation_checkpointing_keeps_gradients_and_saves_activations():
    kept = {}

    def size(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    def saved_bytes(model: Promu) -> int:
        kept.clear()
        with torch.autograd.graph.saved_tensors_hooks(size, lambda tensor: tensor):
            loss = model.train()(batch())["loss"]
        del loss
        return sum(kept.values())

    plain, checkpointed = promu(), promu()
    checkpointed.encoder.checkpoint_activations()
    assert saved_bytes(checkpointed) < 0.6 * saved_bytes(plain)
    one, two = gradients(promu()), gradients(checkpointed)
    assert one.keys() == two.keys()
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, msg=name)


@pytest.mark.parametrize("padded", [False, True])
def test_a_step_never_waits_for_the_device(padded):
    """No value is read back to the host between a batch and its gradients."""

    class Reads(TorchDispatchMode):
        found = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            self.found += func is torch.ops.aten._local_scalar_dense.default
            return func(*args, **(kwargs or {}))

    given, model = batch(), promu()
    given.attention_mask[0, 5:] = not padded
    with Reads() as reads:
        model(given)["loss"].backward()
    assert reads.found == 0


def test_attention_is_fused():
    """Neither vision tower nor fusion layers write out attention scores (text, and dropout on a
    CPU: test_attention.py)."""
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(kept.append, lambda tensor: tensor):
        model, given = promu().train(), batch()
        model(given)
    scores = {(length, length) for length in (1 + 16, 8 + 1 + 16)}
    assert kept and not any(tuple(tensor.shape[-2:]) in scores for tensor in kept)


def test_counted_operations_are_those_of_torch():
    model, given = promu().eval(), batch(1)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(given)
    # torch also counts the small products of losses and patch pooling.
    expected = forward_flops(CONFIG, model.heads_config, 8)
    assert expected == pytest.approx(counter.get_total_flops(), rel=0.02)


def test_patches_that_are_dropped_change_nothing():
    """FLIP: losses of the kept ones alone; with all kept, those of a step without dropping."""
    model, given = promu().eval(), batch()
    everything = torch.arange(16).expand(6, 16)
    assert model(replace(given, kept_patches=everything)) == model(given)
    kept = torch.tensor([0, 4, 7, 9, 12, 15]).expand(6, 6)
    half = replace(given, kept_patches=kept)
    losses_of_half = model(half)
    assert losses_of_half["loss"] != model(given)["loss"]
    hidden = half.pixel_values.unfold(2, 8, 8).unfold(3, 8, 8).clone()  # (6, 3, 4, 4, 8, 8)
    dropped = torch.ones(16, dtype=torch.bool).index_fill(0, kept[0], False).view(4, 4)
    hidden[:, :, dropped] = 255
    repainted = hidden.permute(0, 1, 2, 4, 3, 5).reshape(6, 3, 32, 32)
    assert model(replace(half, pixel_values=repainted)) == losses_of_half
    # COE reads the object's kept patches; an object with none of them takes no part.
    assert half.seen_weights.sum(dim=1).eq(2).all()  # of 4, 5, 8, 9
    assert model.table(half)[:, 3].all()
    none = replace(given, kept_patches=torch.tensor([[0, 1, 15]]).expand(6, 3))
    assert not model.table(none)[:, 3].any() and model(none)["coe_loss"] == 0


def test_operations_of_dropped_patches_do_not_count():
    model, given = promu().eval(), replace(batch(1), kept_patches=torch.tensor([[1, 5, 6, 9]]))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(given)
    expected = forward_flops(CONFIG, model.heads_config, 8, patches=4)
    assert expected == pytest.approx(counter.get_total_flops(), rel=0.02)


def test_operations_of_the_base_model_are_those_of_the_specification():
    """ViT 35, text 7, fusion 25 at 80 word pieces: 67 GFLOP a pair (spec §7.4)."""
    heads = HeadsConfig(num_entities=1000, num_relations=1000)
    assert forward_flops(FusionEncoderConfig(), heads, 80) / 1e9 == pytest.approx(67, rel=0.03)
