"""A step cut into micro-batches and GradCache = one large batch: loss and every gradient."""

import pytest
import torch
import torch.distributed as dist
from ranks import free_port, spawn
from torch import nn

from pretrain import distributed
from pretrain.data.batch import PretrainBatch
from pretrain.gradcache import contrast_step
from pretrain.model.config import FusionEncoderConfig
from pretrain.model.fusion_encoder import FusionEncoder
from pretrain.model.promu import HeadsConfig, LossConfig, Promu
from pretrain.prompter.bank import PromptBank

PAIRS = 8


def promu(dropout: float = 0.0) -> Promu:
    torch.manual_seed(0)
    config = FusionEncoderConfig(
        vocab_size=40, hidden_size=16, num_attention_heads=2, intermediate_size=24, text_layers=1,
        fusion_layers=1, max_position_embeddings=16, hidden_dropout=dropout,
        attention_dropout=dropout, image_size=16, patch_size=8, vision_hidden_size=12,
        vision_layers=1, vision_heads=2, projection_size=8,
    )  # fmt: skip
    heads = HeadsConfig(num_entities=5, num_relations=6)
    model = Promu(FusionEncoder(config), heads, LossConfig(temperature_init=0.2))
    model.entity_bank = PromptBank(nn.functional.normalize(torch.randn(5, 8), dim=-1), 0.1)
    model.relation_bank = PromptBank(nn.functional.normalize(torch.randn(6, 8), dim=-1), 0.1)
    return model.train()


def batch(rows: slice) -> PretrainBatch:
    random = torch.Generator().manual_seed(3)
    weights = torch.rand(PAIRS, 4, generator=random)
    weights[1:4] = 0  # objects are spread unevenly over micro-batches
    ids = torch.arange(2 * PAIRS).view(PAIRS, 2)
    ids[6, 0] = ids[0, 0]  # one caption twice, in different micro-batches
    features = nn.functional.normalize(torch.randn(2, PAIRS, 8, generator=random), dim=-1).half()
    return PretrainBatch(
        pixel_values=torch.randint(0, 256, (PAIRS, 3, 16, 16), generator=random,
                                   dtype=torch.uint8)[rows],
        input_ids=torch.randint(5, 40, (PAIRS, 8), generator=random)[rows],
        attention_mask=torch.ones(PAIRS, 8, dtype=torch.int64)[rows],
        matched=torch.tensor([1, 0, 1, 1, 0, 1, 1, 0]).bool()[rows],
        ids=ids[rows], patch_weights=weights[rows],
        image_feat=features[0][rows], object_feat=features[1][rows],
    )  # fmt: skip


def results(model: Promu, losses: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {**losses, **{name: p.grad for name, p in model.named_parameters()}}


def cut(parts: list[slice], dropout: float = 0.0) -> dict[str, torch.Tensor]:
    """As an engine does it: each micro-batch's loss over their number, added up."""
    model = promu(dropout)
    batches, seeds = [batch(rows) for rows in parts], list(range(7, 7 + len(parts)))
    contrasts = contrast_step(model, batches, seeds, torch.autocast("cpu", enabled=False))
    total: dict[str, torch.Tensor] = {}
    for part, seed, contrast in zip(batches, seeds, contrasts, strict=True):
        torch.manual_seed(seed)
        losses = model(part, contrast)
        (losses["loss"] / len(parts)).backward()
        for name, value in losses.items():
            total[name] = total.get(name, 0) + value.detach() / len(parts)
    return results(model, total)


def whole() -> dict[str, torch.Tensor]:
    model = promu()
    losses = model(batch(slice(None)))
    losses["loss"].backward()
    return results(model, {name: value.detach() for name, value in losses.items()})


@pytest.mark.parametrize("size", [4, 2])
def test_micro_batches_equal_one_batch(size):
    one = whole()
    two = cut([slice(start, start + size) for start in range(0, PAIRS, size)])
    assert one.keys() == two.keys() and {"cit_loss", "coe_loss", "cir_loss"} < one.keys()
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-5, atol=1e-5, msg=name)


def test_dropout_falls_alike_in_both_passes():
    """With one micro-batch the step is the ordinary one, whatever dropout does."""
    model = promu(0.3)
    torch.manual_seed(7)
    losses = model(batch(slice(None)))
    losses["loss"].backward()
    one = results(model, {name: value.detach() for name, value in losses.items()})
    for name, value in cut([slice(None)], 0.3).items():
        torch.testing.assert_close(value, one[name], rtol=1e-5, atol=1e-6, msg=name)


def rank_main(rank: int, port: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    found = cut([slice(4 * rank, 4 * rank + 2), slice(4 * rank + 2, 4 * rank + 4)])
    found = {name: distributed.mean_over_ranks(value) for name, value in found.items()}
    if rank == 0:
        torch.save(found, f"{folder}/two.pt")
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_ranks_of_two_micro_batches_equal_one_batch(tmp_path, interpreter):
    spawn(interpreter, rank_main, free_port(), str(tmp_path), ranks=2)
    two = torch.load(tmp_path / "two.pt", weights_only=True)
    for name, value in whole().items():
        torch.testing.assert_close(two[name], value, rtol=1e-5, atol=1e-6, msg=name)
