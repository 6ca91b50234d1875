"""CAMIM's networks against naive ones."""

import dataclasses

import pytest
import torch
from parts_camim import TINY, naive
from transformers import BertConfig

from finetune.inputs.batch import Batch
from finetune.methods.camim import model as camim
from finetune.methods.camim.caption_aware import (
    attend,
)
from finetune.methods.camim.model import CamimHvpnet, CamimTmr
from finetune.methods.hvpnet.model import Hvpnet, HvpnetConfig
from finetune.methods.tmr.fusion import Look
from finetune.methods.towers.resnet import load_resnet
from finetune.tasks.base import TaskInfo
from finetune.tasks.mnre import MARKERS
from pretrain.model.bert import Bert

INFO = TaskInfo("mnre", "relation", ("None", "a", "b"), MARKERS)


def texts(rows=3, length=46) -> Batch:
    """Texts of different length, one beyond 40 pieces; captions, phrases, scores."""
    generator = torch.Generator().manual_seed(1)

    def text(name, width, lengths):
        ids = torch.randint(1, 60, (rows, width), generator=generator)
        mask = torch.arange(width) < torch.tensor(lengths)[:, None]
        ids = torch.where(mask, ids, 0)
        return {f"{name}_ids": ids, "attention_mask" if name == "input" else f"{name}_mask": mask}

    return Batch(
        rows=torch.arange(rows),
        labels=torch.arange(rows) % 3,
        head_start=torch.full((rows,), 1),
        tail_start=torch.full((rows,), 4),
        scores=torch.rand(rows, 2, 2, generator=generator),
        **text("input", length, [46, 9, 20]),
        **text("caption", 7, [7, 3, 2]),
        **text("phrase", 5, [4, 5, 3]),
    )


def small_bert():
    config = BertConfig(
        vocab_size=60, hidden_size=12, num_hidden_layers=2, num_attention_heads=3,
        intermediate_size=24, max_position_embeddings=48,
    )  # fmt: skip
    return Bert(config)


def read_one(encoder, ids, mask, at_most=None):
    """States of one text's real word pieces."""
    return encoder(input_ids=ids[mask][None, :at_most]).last_hidden_state[0]


def naive_tmr(method, batch, looks, row):
    """Logits and features of one row, from its real words, regions and pictures alone: tmr.md
    §3.3 to 3.5 with the rows of camim.md §3.2."""
    head, mean = method.head, method.config.pool == "mean"
    text = read_one(method.encoder, batch.input_ids[row], batch.attention_mask[row])
    phrases = read_one(method.encoder, batch.phrase_ids[row], batch.phrase_mask[row])
    ids, mask = batch.caption_ids[row], batch.caption_mask[row]
    told = [
        read_one(method.caption_encoder, ids, mask),
        read_one(method.caption_encoder, batch.input_ids[row], batch.attention_mask[row], 40),
    ]

    def pool(rows):
        return rows.mean(0) if mean else rows.sum(0)

    def ask(module, rows, context):
        found = attend(module.query(rows), module.key(context), module.value(context))
        return pool(found.tanh())

    features = []
    for words, look, (weak, strong) in zip(told, looks, batch.scores[row], strict=True):

        def align(maps, words=words):
            return naive(method.aware, method.reduce(maps), words.mean(0), words)

        mixed = torch.zeros(12)
        if look.seen[row]:
            rows = align(look.whole[row])
            mixed = (ask(head.fine, rows, text) + pool(rows).tanh()) * strong
            regions = [] if look.regions is None else look.regions[row][look.regions_seen[row]]
            if len(regions):
                rows = torch.stack([pool(align(maps)) for maps in regions])
                mixed = mixed + (ask(head.coarse, rows, phrases) + rows.mean(0).tanh()) * weak
        features.append(head.extend(mixed).tanh())
    parts = [text[1], text[4], head.phrase(phrases.sum(0)), *features]
    return head.classifier(head.final(torch.cat(parts))), features


@torch.no_grad()
@pytest.mark.parametrize(
    "settings",
    [{}, {"pool": "mean"}, {"combine": "add", "swap_words": True}, {"cam_levels": "s"}],
    ids=str,
)
def test_on_tmr_against_loops(settings):
    """Row by row, picture by picture, without any mask: what is padded or absent is left out."""
    torch.manual_seed(0)
    vision = load_resnet("resnet10t", random_weights=True, width=4)
    method = CamimTmr(small_bert(), vision, INFO, camim.CamimTmrConfig(**settings)).eval()
    for parameter in (*method.aware.parameters(), *method.head.parameters()):
        parameter.mul_(2)  # so that every part counts
    batch = texts()
    seen = torch.tensor([[True, True, True], [True, False, True]])
    region = torch.tensor([[True, True], [True, False], [False, False]])
    looks = [
        Look(torch.randn(3, 4, 32), seen[0], torch.randn(3, 2, 4, 32), region),
        Look(torch.randn(3, 4, 32), seen[1], None, None),  # generated: no boxes
    ]
    output = method.relate(batch, looks)
    rows = [naive_tmr(method, batch, looks, row) for row in range(3)]
    expected = torch.stack([logits for logits, _ in rows])
    torch.testing.assert_close(output.logits, expected, atol=1e-5, rtol=1e-4)
    original, generated = (torch.stack(found) for found in zip(*[f for _, f in rows], strict=True))
    cosines = torch.cosine_similarity(generated[:, None], original[None], dim=-1)
    information = torch.nn.functional.cross_entropy(cosines, torch.arange(3))
    plain = torch.nn.functional.cross_entropy(expected, batch.labels)
    assert output.loss.item() == pytest.approx((plain + 0.1 * information).item(), abs=1e-5)


def naive_as_printed(method, batch, looks, row):
    """Logits, O_final and G_final of one row by Eqs. 15 to 19: pictures that are there alone."""
    head = method.head
    text = read_one(method.encoder, batch.input_ids[row], batch.attention_mask[row])
    told = [
        read_one(method.caption_encoder, batch.caption_ids[row], batch.caption_mask[row]),
        read_one(method.caption_encoder, batch.input_ids[row], batch.attention_mask[row], 40),
    ]
    features = []
    for words, look in zip(told, looks, strict=True):
        pictures = [look.whole[row]] * bool(look.seen[row])
        if look.regions is not None:
            pictures += list(look.regions[row][look.regions_seen[row]])
        answers = []
        for picture in pictures:
            aligned = naive(method.aware, method.reduce(picture), words.mean(0), words)
            query = head.query(aligned[-len(words)])  # of the description's rows the first: [CLS]
            weights = [torch.exp(query @ head.key(word) / 12**0.5) for word in text]
            values = [head.value(word) for word in text]
            answers.append(sum(w * v for w, v in zip(weights, values, strict=True)) / sum(weights))
        features.append(sum(answers) / len(answers) if answers else torch.zeros(12))
    return head.classifier(head.final(torch.cat(features))), features


@torch.no_grad()
@pytest.mark.parametrize("settings", [{}, {"cam_levels": "w"}, {"mi_pair": "ogf"}], ids=str)
def test_fusion_as_printed_against_loops(settings):
    """Row by row, word by word; the loss joins O_final and G_final, or both and F_final."""
    torch.manual_seed(0)
    vision = load_resnet("resnet10t", random_weights=True, width=4)
    config = camim.CamimTmrConfig(fusion="cross_attention", **settings)
    method = CamimTmr(small_bert(), vision, INFO, config).eval()
    assert not {"phrases", "scores"} & method.needs
    for parameter in (*method.aware.parameters(), *method.head.parameters()):
        parameter.mul_(3)
    batch = dataclasses.replace(texts(), phrase_ids=None, phrase_mask=None, scores=None)
    region = torch.tensor([[True, True], [True, False], [False, False]])
    looks = [
        Look(torch.randn(3, 4, 32), torch.ones(3).bool(), torch.randn(3, 2, 4, 32), region),
        Look(torch.randn(3, 4, 32), torch.tensor([True, False, True])),
    ]
    output = method.relate(batch, looks)
    rows = [naive_as_printed(method, batch, looks, row) for row in range(3)]
    expected = torch.stack([logits for logits, _ in rows])
    assert expected.std(0).min() > 1e-3  # rows differ
    torch.testing.assert_close(output.logits, expected, atol=1e-5, rtol=1e-4)
    original, generated = (torch.stack(parts) for parts in zip(*[f for _, f in rows], strict=True))
    if settings.get("mi_pair") == "ogf":
        generated = torch.cat([original, generated], dim=-1)
        original = method.head.final(generated)
    cosines = torch.cosine_similarity(generated[:, None], original[None], dim=-1)
    information = torch.nn.functional.cross_entropy(cosines, torch.arange(3))
    plain = torch.nn.functional.cross_entropy(expected, batch.labels)
    assert output.loss.item() == pytest.approx((plain + 0.1 * information).item(), abs=1e-5)
    with pytest.raises(ValueError, match="wants use_cam true and cam_levels ws or w"):
        camim.CamimTmrConfig(fusion="cross_attention", cam_levels="s")


@pytest.mark.parametrize("levels", ["ws", "s", "w"])
def test_pictures_learn_through_the_captions(levels):
    """Every picture that is there gets a gradient, whole ones and regions; no absent one does."""
    torch.manual_seed(0)
    vision = load_resnet("resnet10t", random_weights=True, width=4)
    config = camim.CamimTmrConfig(cam_levels=levels)
    method = CamimTmr(small_bert(), vision, INFO, config).train()
    region = torch.tensor([[True, True], [True, False], [False, False]])
    seen = [torch.tensor([True, True, True]), torch.tensor([True, False, True])]
    maps = [torch.randn(3, 4, 32, requires_grad=True) for _ in range(2)]
    cuts = torch.randn(3, 2, 4, 32, requires_grad=True)
    looks = [Look(maps[0], seen[0], cuts, region), Look(maps[1], seen[1])]
    method.relate(texts(), looks).loss.backward()
    for found, there in ((maps[0], seen[0]), (maps[1], seen[1]), (cuts, region)):
        assert torch.equal(found.grad.flatten(there.dim()).any(-1), there)


@torch.no_grad()
@pytest.mark.parametrize("mode", ["residual", "replace"])
def test_on_hvpnet_against_loops(monkeypatch, mode):
    """camim.md §3.6: tokens f + restore(z) of each picture by itself; the loss joins the mean of z
    over the pictures that are there with the final feature."""
    torch.manual_seed(0)
    settings = TINY | {"prompt_width": 8}
    vision = load_resnet("resnet10t", random_weights=True, width=4)
    config = camim.CamimHvpnetConfig(hvp_cam_mode=mode, **settings)
    method = CamimHvpnet(small_bert(), vision, INFO, config).eval()
    torch.nn.init.normal_(method.restore.weight)
    present = torch.tensor([[True, True, False], [True, False, False], [True, True, True]])
    features = torch.randn(3, 3, 4 * 60).half()
    batch = dataclasses.replace(
        texts(), image_features=features[:, 0], region_features=features[:, 1:],
        image_mask=present[:, 0], region_mask=present[:, 1:],
    )  # fmt: skip
    tokens = features.float().unflatten(-1, (4, 60))
    made, seen = torch.zeros_like(tokens), []
    for row in range(3):
        words = read_one(method.caption_encoder, batch.caption_ids[row], batch.caption_mask[row])
        rows = []
        for m in present[row].nonzero()[:, 0]:
            z = naive(method.aware, method.reduce(tokens[row, m]), words.mean(0), words)
            made[row, m] = method.restore(z) + (tokens[row, m] if mode == "residual" else 0)
            rows.append(z)
        seen.append(torch.cat(rows).mean(0))
    plain = Hvpnet(method.encoder, vision, INFO, HvpnetConfig(**settings)).eval()
    own = {k: v for k, v in method.state_dict().items() if k in plain.state_dict()}
    plain.load_state_dict(own)
    monkeypatch.setattr(plain, "visual_tokens", lambda batch: (made, present))
    pairs = []
    hook = plain.head.classifier.register_forward_hook(lambda *found: pairs.append(found[1][0]))
    expected, output = plain(batch), method(batch)
    hook.remove()
    torch.testing.assert_close(output.logits, expected.logits, atol=1e-5, rtol=1e-4)
    final = method.final(pairs[0])
    cosines = torch.cosine_similarity(torch.stack(seen)[:, None], final[None], dim=-1)
    information = torch.nn.functional.cross_entropy(cosines, torch.arange(3))
    wanted = (expected.loss + 0.1 * information).item()
    assert output.loss.item() == pytest.approx(wanted, abs=1e-5)
    # Table 1, without the module: the tokens as they are, and the loss on their mean.
    config = camim.CamimHvpnetConfig(use_cam=False, mi_alpha=0.5, **settings)
    method = CamimHvpnet(small_bert(), vision, INFO, config).eval()
    plain = Hvpnet(method.encoder, vision, INFO, HvpnetConfig(**settings)).eval()
    plain.load_state_dict({k: v for k, v in method.state_dict().items() if k in own})
    hook = plain.head.classifier.register_forward_hook(lambda *found: pairs.append(found[1][0]))
    expected, output = plain(batch), method(batch)
    means = [method.reduce(tokens[row][present[row]].flatten(0, 1).mean(0)) for row in range(3)]
    cosines = torch.cosine_similarity(
        torch.stack(means)[:, None], method.final(pairs[-1])[None], dim=-1
    )
    information = torch.nn.functional.cross_entropy(cosines, torch.arange(3))
    torch.testing.assert_close(output.logits, expected.logits)
    wanted = (expected.loss + 0.5 * information).item()
    assert output.loss.item() == pytest.approx(wanted, abs=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("levels", ["ws", "s"])
def test_words_in_the_prefix_against_loops(monkeypatch, levels):
    """all_rows: each row by itself, with the tokens of the pictures and words that it has."""
    torch.manual_seed(0)
    settings = TINY | {"prompt_width": 8, "prefix_head_split": "transpose"}
    vision = load_resnet("resnet10t", random_weights=True, width=4)
    config = camim.CamimHvpnetConfig(hvp_cam_mode="all_rows", cam_levels=levels, **settings)
    method = CamimHvpnet(small_bert(), vision, INFO, config).eval()
    torch.nn.init.normal_(method.restore.weight)
    present = torch.tensor([[True, True, False], [True, False, False], [False, True, True]])
    features = torch.randn(3, 3, 4 * 60).half()
    batch = dataclasses.replace(
        texts(), image_features=features[:, 0], region_features=features[:, 1:],
        image_mask=present[:, 0], region_mask=present[:, 1:],
    )  # fmt: skip
    plain = Hvpnet(method.encoder, vision, INFO, HvpnetConfig(**settings)).eval()
    own = plain.state_dict().keys()
    plain.load_state_dict({k: v for k, v in method.state_dict().items() if k in own})
    logits, joined = method(batch).logits, method.read_pictures(batch)[1]
    for row in range(3):
        words = read_one(method.caption_encoder, batch.caption_ids[row], batch.caption_mask[row])
        made, seen = [], []
        for m in present[row].nonzero()[:, 0]:
            tokens = features[row, m].float().view(4, 60)
            rows = naive(method.aware, method.reduce(tokens), words.mean(0), words)
            assert len(rows) == 4 + len(words) * (levels == "ws")
            seen.append(rows[:4])
            made.append(method.restore(rows))
        torch.testing.assert_close(joined[row], torch.cat(seen).mean(0), atol=1e-5, rtol=1e-4)
        there = torch.ones(1, len(made), dtype=torch.bool)
        found = (torch.stack(made)[None], there)
        monkeypatch.setattr(plain, "visual_tokens", lambda batch, found=found: found)
        length = batch.attention_mask[row].sum()
        alone = Batch(
            rows=batch.rows[:1], input_ids=batch.input_ids[row : row + 1, :length],
            attention_mask=torch.ones(1, length, dtype=torch.bool),
            head_start=batch.head_start[:1], tail_start=batch.tail_start[:1],
        )  # fmt: skip
        torch.testing.assert_close(logits[row], plain(alone).logits[0], atol=1e-5, rtol=1e-4)
    with pytest.raises(ValueError, match="choose prefix_head_split transpose"):
        camim.CamimHvpnetConfig(hvp_cam_mode="all_rows")
    assert camim.CamimHvpnetConfig(hvp_cam_mode="all_rows", profile="legacy").settled()
