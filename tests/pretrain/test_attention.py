"""Attention with dropout on a CPU, against the formula written out with torch's own gradients."""

import math

import pytest
import torch
from torch import Tensor, nn

from pretrain.model.attention import attention
from pretrain.model.fusion_encoder import FusionEncoder, FusionEncoderConfig

B, H, L, D, DROPOUT = 3, 2, 7, 4, 0.3


def given(dtype: torch.dtype) -> tuple[list[Tensor], Tensor, Tensor]:
    """Query, key, value; which keys may be looked at; a gradient to send back."""
    random = torch.Generator().manual_seed(0)
    qkv = [torch.randn(B, H, L, D, generator=random).to(dtype).requires_grad_() for _ in range(3)]
    mask = torch.ones(B, 1, 1, L, dtype=torch.bool)
    mask[1, ..., 4:] = False
    return qkv, mask, torch.randn(B, L, H, D, generator=random).to(dtype)


def written_out(qkv: list[Tensor], mask: Tensor) -> Tensor:
    query, key, value = qkv
    scores = (query @ key.transpose(2, 3) / math.sqrt(D)).masked_fill(~mask, -torch.inf)
    kept = torch.empty(B, H, L, L, dtype=torch.bool).bernoulli_(1 - DROPOUT)
    return ((scores.softmax(-1) * kept / (1 - DROPOUT)) @ value).transpose(1, 2)


def results(function, dtype: torch.dtype) -> list[Tensor]:
    qkv, mask, gradient = given(dtype)
    torch.manual_seed(5)
    out = function(qkv, mask)
    out.backward(gradient)
    return [tensor.double() for tensor in (out.detach(), *(part.grad for part in qkv))]


def ours(qkv: list[Tensor], mask: Tensor) -> Tensor:
    return attention(*qkv, mask, DROPOUT)


def test_values_and_gradients_are_those_of_the_formula():
    found = zip(results(ours, torch.float32), results(written_out, torch.float32), strict=True)
    for mine, right in found:
        torch.testing.assert_close(mine, right, rtol=1e-5, atol=1e-6)


def test_bfloat16_points_where_float32_does():
    found = zip(results(ours, torch.bfloat16), results(written_out, torch.float32), strict=True)
    for mine, right in found:
        cosine = nn.functional.cosine_similarity(mine.flatten(), right.flatten(), dim=0).item()
        assert 0.999 <= cosine < 1


def test_what_is_masked_gets_neither_weight_nor_gradient():
    qkv, mask, gradient = given(torch.float32)
    ours(qkv, mask).backward(gradient)
    assert all((part.grad[1, :, 4:] == 0).all() for part in qkv[1:])


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_training_keeps_no_float32_scores_beyond_one(precision):
    """What a layer of the encoder saves for its backward pass, in elements of B x H x L x L."""
    config = FusionEncoderConfig(
        vocab_size=40, hidden_size=16, num_attention_heads=H, intermediate_size=16, text_layers=1,
        fusion_layers=1, image_size=8, patch_size=8, vision_hidden_size=16, vision_layers=1,
        vision_heads=2, projection_size=8,
    )  # fmt: skip
    encoder, length = FusionEncoder(config).train(), 61
    ids, kept = torch.randint(5, 40, (B, length)), {}

    def note(tensor: Tensor) -> Tensor:
        if tensor.numel() == B * H * length * length:
            kept[tensor.untyped_storage().data_ptr()] = tensor.dtype
        return tensor

    with (
        torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16, enabled=precision == torch.bfloat16),
    ):
        states = encoder.encode_text(ids, torch.ones(B, length, dtype=torch.int64))
    assert states.requires_grad
    assert sorted(map(str, kept.values())) == sorted(map(str, (precision, torch.bool)))
