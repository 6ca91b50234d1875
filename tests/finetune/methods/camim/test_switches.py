"""CAMIM as methods: switches, pairs of the loss, captions alone."""

import dataclasses

import numpy as np
import pytest
import torch
from parts_camim import METHODS, TINY, load

from finetune.config import parse_train
from finetune.methods.camim import model as camim
from finetune.methods.hvpnet.model import Hvpnet, HvpnetConfig
from finetune.tasks.mnre import Mnre
from shards.files import InputError


@pytest.mark.parametrize("on", METHODS)
@pytest.mark.parametrize(
    "settings",
    [{}, {"use_mi": False}, {"use_cam": False}, {"use_cam": False, "use_mi": False},
     {"cam_levels": "s"}, {"cam_levels": "w"}, {"share_bert": True}, {"profile": "legacy"},
     {"mi_mask_same_image": True, "mi_direction": "symmetric"}, {"vision": "none"},
     {"fusion": "cross_attention"}, {"fusion": "cross_attention", "vision": "none"}],
    ids=str,
)  # fmt: skip
def test_switches(folder, tiny_model, tmp_path, on, settings):
    """Table 1, Figure 4b, and text with captions alone: each runs with and without pictures."""
    if on == "hvpnet" and "fusion" in settings:
        return
    for images in ("required", "none"):
        if images == "required" and settings.get("vision") == "none":
            continue
        method, split, _ = load(folder, tiny_model, tmp_path, on, images, **settings)
        assert split.images is None if images == "none" else split.images["found"] == 30
        batch = split.dataset.collate(np.arange(6))
        output = method.train()(batch)
        output.loss.backward()
        plain = torch.nn.functional.cross_entropy(output.logits, batch.labels)
        seen = images == "required" or settings.get("use_cam", True)
        added = settings.get("use_mi", True) and seen
        assert (output.loss > plain + 1e-3).item() == added
        gradients = {name.split(".")[0] for name, p in method.named_parameters()
                     if p.grad is not None and p.grad.any()}  # fmt: skip
        assert ("aware" in gradients) == settings.get("use_cam", True) or on == "hvpnet"
        second = settings.get("use_cam", True) and not settings.get("share_bert")
        assert (method.caption_encoder is not None) == second


def test_pairs_of_the_loss(folder, tiny_model, tmp_path, monkeypatch):
    """Figure 4a: og, ogf, tf, ogt."""
    given = []
    monkeypatch.setattr(camim, "information_loss", lambda *found: given.append(found[-2:]))
    p_o, p_g = torch.zeros(2, 3), torch.ones(2, 3)
    pair, final = torch.full((2, 6), 2.0), torch.full((2, 6), 3.0)
    both = torch.cat([p_o, p_g], dim=-1)
    expected = {"og": (p_g, p_o), "ogf": (both, final), "tf": (pair, final), "ogt": (both, pair)}
    method, split, _ = load(folder, tiny_model, tmp_path, generated="x", mi_pair="og")
    batch = split.dataset.collate(np.arange(2))
    for name, wanted in expected.items():
        method.config = dataclasses.replace(method.config, mi_pair=name)
        method.total_loss(torch.zeros(()), batch, pair, [p_o, p_g], final)
        assert all(map(torch.equal, given[-1], wanted))
    with pytest.raises(ValueError, match=r"model\.generated none leaves one"):
        camim.CamimTmrConfig(generated="none")


@torch.inference_mode()
def test_begins_as_hvpnet(folder, tiny_model, tmp_path):
    """What captions add to the prefix ends in a layer of zeros: the first logits are plain."""
    method, split, _ = load(folder, tiny_model, tmp_path, "hvpnet", "required", regions=0)
    plain = Hvpnet(
        method.encoder, method.vision, Mnre(folder).info, HvpnetConfig(**TINY, regions=0)
    ).eval()
    own = {k: v for k, v in method.state_dict().items() if k in plain.state_dict()}
    plain.load_state_dict(own)
    batch = split.dataset.collate(np.arange(6))
    torch.testing.assert_close(method(batch).logits, plain(batch).logits)
    torch.nn.init.normal_(method.restore.weight)
    other = dataclasses.replace(batch, caption_ids=batch.caption_ids.flip(0),
                                caption_mask=batch.caption_mask.flip(0))  # fmt: skip
    assert not torch.allclose(method(batch).logits, method(other).logits, atol=1e-4)


@pytest.mark.parametrize("on", METHODS)
def test_bf16(folder, tiny_model, tmp_path, on):
    """Under autocast, with pictures and (HVPNeT: half-precision features of) regions."""
    method, split, _ = load(folder, tiny_model, tmp_path, on, "required")
    batch = split.dataset.collate(np.arange(6))
    exact = method(batch)
    with torch.autocast("cpu", torch.bfloat16):
        output = method(batch)
    assert output.logits.dtype == output.loss.dtype == torch.float32
    torch.testing.assert_close(output.logits, exact.logits, atol=0.05, rtol=0.05)
    output.loss.backward()


@pytest.mark.parametrize("on", METHODS)
def test_legacy_captions_are_all_equally_long(folder, tiny_model, tmp_path, on):
    """There padding counts: beyond its 40 pieces an answer would depend on the batch."""
    with pytest.raises(InputError, match=r"--max_caption_length 41: .* give 40"):
        load(folder, tiny_model, tmp_path, on, vision="none", mask_words=False, caption_length=41)
    load(folder, tiny_model, tmp_path, on, vision="none", mask_words=False, caption_length=40)


@torch.inference_mode()
@pytest.mark.parametrize("on", METHODS)
def test_captions_alone(folder, tiny_model, tmp_path, on):
    """Without pictures the caption still decides; longer padding does not."""
    method, split, _ = load(folder, tiny_model, tmp_path, on, vision="none")
    if on == "hvpnet":  # which begins with nothing from them
        torch.nn.init.normal_(method.restore.weight)
    batch = split.dataset.collate(np.arange(6))
    logits = method(batch).logits
    wider = dataclasses.replace(
        batch,
        caption_ids=torch.nn.functional.pad(batch.caption_ids, (0, 8)),
        caption_mask=torch.nn.functional.pad(batch.caption_mask, (0, 8)),
    )
    torch.testing.assert_close(method(wider).logits, logits, atol=1e-5, rtol=1e-4)
    other = dataclasses.replace(batch, caption_ids=batch.caption_ids.flip(0),
                                caption_mask=batch.caption_mask.flip(0))  # fmt: skip
    assert not torch.allclose(method(other).logits, logits, atol=1e-5)
    assert not any(name.startswith("vision.") for name in method.state_dict())


def test_a_second_bert_begins_as_the_first(folder, tiny_model, tmp_path):
    """It is a copy of its own, and learns at the rate of the first."""
    method = load(folder, tiny_model, tmp_path)[0]
    first, second = method.encoder.state_dict(), method.caption_encoder.state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    optim = parse_train(
        ["--task", "mnre", "--method", "camim_tmr", "--data", "d", "--out", "o", "--init", "m",
         "--optim.lr", "0.5", "--optim.head_lr", "0.25"]
    ).optim  # fmt: skip
    rates = {id(p): g["lr"] for g in method.parameter_groups(optim) for p in g["params"]}
    for name, parameter in method.named_parameters():
        tower = name.startswith(("encoder.", "caption_encoder."))
        assert rates[id(parameter)] == (0.5 if tower else 0.25), name
    assert first.keys() == second.keys()
