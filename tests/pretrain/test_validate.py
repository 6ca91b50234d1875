"""Validation: the same figures on any number of ranks; each against another way to compute it."""

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

from pretrain import distributed, losses
from pretrain.data.config import DataConfig
from pretrain.data.pairs import PairDataset, open_reader
from pretrain.data.tokenizer import learn_tokenizer
from pretrain.model.config import FusionEncoderConfig
from pretrain.model.fusion_encoder import FusionEncoder
from pretrain.model.promu import HeadsConfig, Promu
from pretrain.panel import draw_panel
from pretrain.prompter.bank import PromptBank
from pretrain.validate import Validator, recall

PAIRS = 21
CPU = torch.device("cpu")


class Labelled(PairDataset):
    """With teacher features that depend on the pair alone."""

    def __getitems__(self, addresses):
        batch = super().__getitems__(addresses)
        angles = batch.ids.double() % 1009
        rows = torch.stack([(angles * (k + 1)).sin().sum(1) for k in range(8)], dim=1)
        feat = nn.functional.normalize(rows, dim=-1).half()
        return dataclasses.replace(batch, image_feat=feat, object_feat=feat.flip(1))


@pytest.fixture(scope="module")
def model() -> Promu:
    torch.manual_seed(0)
    config = FusionEncoderConfig(
        vocab_size=200, hidden_size=16, num_attention_heads=2, intermediate_size=24, text_layers=1,
        fusion_layers=1, max_position_embeddings=32, image_size=32, patch_size=8,
        vision_hidden_size=16, vision_layers=1, vision_heads=2, projection_size=8,
    )  # fmt: skip
    model = Promu(FusionEncoder(config), HeadsConfig(num_entities=5, num_relations=6))
    model.entity_bank = PromptBank(nn.functional.normalize(torch.randn(5, 8), dim=-1), 0.1)
    model.relation_bank = PromptBank(nn.functional.normalize(torch.randn(6, 8), dim=-1), 0.1)
    return model


@pytest.fixture(scope="module")
def validator(pair_shards) -> Validator:
    tokenizer = learn_tokenizer(["a dog sees the cat number 1 2 3 birds"], 200)
    data = DataConfig(train="", max_length=16)
    dataset = Labelled(
        open_reader(str(pair_shards), teacher=False), tokenizer, data, image_size=32, patch_size=8,
        seed=0, augment=False,
    )  # fmt: skip
    validator = Validator(dataset, PAIRS)
    validator.sources = np.array(["one", "two", "two"] * 7)
    return validator


@pytest.mark.parametrize("world", [2, 3, 5])
def test_the_number_of_ranks_does_not_matter(world, model, validator, monkeypatch):
    alone = validator.columns(model, CPU, "fp32")
    assert len({tuple(row) for row in alone["ids"].tolist()}) > 15
    monkeypatch.setattr(distributed, "world_size", lambda: world)
    parts = []
    for rank in range(world):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        monkeypatch.setattr(Validator, "_in_order", lambda _, mine: mine)
        parts.append(validator.columns(model, CPU, "fp32"))
    monkeypatch.undo()
    monkeypatch.setattr(distributed, "world_size", lambda: world)
    assert len({len(part["ids"]) for part in parts}) == 1  # or a rank would wait for ever
    for name, expected in alone.items():
        local = [part[name] for part in parts]
        monkeypatch.setattr(distributed, "gather", lambda _, local=local: torch.cat(local))
        torch.testing.assert_close(validator._in_order(local[0]), expected, msg=name)


def test_itm_reads_the_product_where_training_does(model, validator, monkeypatch):
    monkeypatch.setattr(
        model, "loss_config", dataclasses.replace(model.loss_config, itm_pool="product")
    )
    right = validator.columns(model, CPU, "fp32")["itm"]
    batch, encoder = validator.batch(np.arange(PAIRS)), model.eval().encoder
    with torch.no_grad():
        text = encoder.encode_text(batch.input_ids, batch.attention_mask)
        vision = encoder.encode_image(batch.pixel_values)
        fused = encoder.fuse(text, batch.attention_mask, vision)
        length = batch.input_ids.shape[1]
        for row, shown in enumerate(batch.attention_mask.bool()):
            read = fused[row, :length][shown].mean(0) * fused[row, length]
            label = int(batch.matched[row])
            assert bool(right[row]) == (model.heads["itm"](read).argmax().item() == label)


def test_figures_against_loops(model, validator):
    columns = validator.columns(model, CPU, "fp32")
    figures = validator.metrics(columns, model.clamped_temperature().detach())
    batch = validator.batch(np.arange(PAIRS))
    model.eval()
    with torch.no_grad():
        found = model(batch)  # with all pairs in one batch, the training loss is the validation's
        text = model.encoder.encode_text(batch.input_ids, batch.attention_mask)
        vision = model.encoder.encode_image(batch.pixel_values)
        fused = model.encoder.fuse(text, batch.attention_mask, vision)
        predicted = model.heads["itm"](fused[:, 0]).argmax(1)
        p = model.heads["relation"](fused[:, 0]).softmax(1)
        bank = model.relation_bank
        q = losses.soft_labels(batch.image_feat, bank.features, bank.temperature)
    assert figures["val_cit_loss"] == pytest.approx(found["cit_loss"].item(), rel=1e-5)
    right = (predicted == batch.matched.long()).numpy()
    assert figures["val_itm_accuracy"] == pytest.approx(100 * right.mean())
    for source in ("one", "two"):
        mean = 100 * right[validator.sources == source].mean()
        assert figures[f"val_itm_accuracy/{source}"] == pytest.approx(mean)
    kl = torch.nn.functional.kl_div(p.log(), q, reduction="batchmean").item()
    assert figures["val_relation_kl"] == pytest.approx(kl, rel=1e-4)
    # The loss is the divergence above the labels' own entropy.
    entropy = -(q * q.log()).sum(1).mean().item()
    assert found["cir_loss"].item() == pytest.approx(kl + entropy, rel=1e-4)
    top = 100 * (p.argmax(1) == q.argmax(1)).float().mean().item()
    assert figures["val_relation_agreement"] == pytest.approx(top)
    assert "val_object_kl" in figures and "val_text_to_image_recall@5" in figures


def test_recall_by_hand():
    image = torch.eye(3)
    text = torch.tensor([[0.9, 0.1, 0.0], [0.8, 0.2, 0.1], [0.0, 0.3, 0.7]])
    ids = torch.arange(6).view(3, 2)
    found = recall(image, text, ids, ks=(1, 2))
    # image to text: rows of the transpose's columns: 0 -> 0.9 (right), 1 -> 0.3 (wrong), 2 -> right
    assert found["image_to_text_recall@1"] == pytest.approx(200 / 3)
    assert found["text_to_image_recall@1"] == pytest.approx(200 / 3)
    assert found["recall@1"] == pytest.approx(200 / 3)
    assert found["text_to_image_recall@2"] == pytest.approx(100)
    shared = recall(image, text, torch.tensor([[0, 0], [1, 0], [2, 5]]), ks=(1,))
    assert shared["text_to_image_recall@1"] == pytest.approx(100)  # captions of one picture


def test_the_panel_shows_box_and_classes(model, validator):
    columns = validator.columns(model, CPU, "fp32")
    batch = validator.batch(np.arange(3))
    names = {"object": [f"thing {n}" for n in range(5)], "relation": list("abcdef")}
    pixels = draw_panel(batch, columns, names)
    assert pixels.shape == (3 * 224, 524, 3) and pixels.dtype == np.uint8
    for number in range(3):
        x1, y1 = (int(v * 7) for v in batch.box[number, :2])
        red = (pixels[number * 224 + min(y1, 220), min(x1, 220)] == [255, 0, 0]).all()
        assert red == bool(batch.patch_weights[number].any())
        assert (pixels[number * 224 : (number + 1) * 224, 230:] == 0).any()  # text
