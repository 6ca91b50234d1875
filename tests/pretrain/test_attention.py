"""Attention and dropout on a CPU, against the formulas written out with torch's own gradients."""

import math
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from pretrain.model.attention import Dropout, KeepBits, attention
from pretrain.model.config import FusionEncoderConfig
from pretrain.model.fusion_encoder import FusionEncoder

B, H, L, D, DROPOUT = 3, 2, 7, 4, 0.3


def given(dtype: torch.dtype) -> tuple[list[Tensor], Tensor, Tensor]:
    """Query, key, value; which keys may be looked at; a gradient to send back."""
    random = torch.Generator().manual_seed(0)
    qkv = [torch.randn(B, H, L, D, generator=random).to(dtype).requires_grad_() for _ in range(3)]
    mask = torch.ones(B, 1, 1, L, dtype=torch.bool)
    mask[1, ..., 4:] = False
    return qkv, mask, torch.randn(B, L, H, D, generator=random).to(dtype)


def written_out(qkv: list[Tensor], mask: Tensor, drawn_as: torch.dtype = torch.float32) -> Tensor:
    """drawn_as: the precision whose dropout mask is taken."""
    query, key, value = qkv
    scores = (query @ key.transpose(2, 3) / math.sqrt(D)).masked_fill(~mask, -torch.inf)
    seed = int(torch.empty((), dtype=torch.int64).random_())
    kept = KeepBits(seed, DROPOUT, drawn_as).draw(torch.Size((B, H, L, L))) != 0
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
    formula = results(partial(written_out, drawn_as=torch.bfloat16), torch.float32)
    for mine, right in zip(results(ours, torch.bfloat16), formula, strict=True):
        cosine = nn.functional.cosine_similarity(mine.flatten(), right.flatten(), dim=0).item()
        assert 0.999 <= cosine < 1


def test_bfloat16_without_dropout_is_the_fused_kernels_result():
    qkv, mask, gradient = given(torch.bfloat16)
    attention(*qkv, mask).backward(gradient)
    again, _, _ = given(torch.float32)
    fused = nn.functional.scaled_dot_product_attention(*again, mask).transpose(1, 2)
    fused.backward(gradient.float())
    for mine, right in zip(qkv, again, strict=True):
        torch.testing.assert_close(mine.grad.float(), right.grad, rtol=0.02, atol=0.02)


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_dropout_drops_its_share_and_keeps_the_mean(share, precision):
    torch.manual_seed(3)
    states = torch.ones(500, 400, dtype=precision, requires_grad=True)
    dropped = Dropout(share)(states)
    dropped.backward(torch.ones_like(dropped))
    assert (dropped == 0).float().mean().item() == pytest.approx(share, abs=0.005)
    assert dropped.float().mean().item() == pytest.approx(1, abs=0.02)
    assert torch.equal(states.grad, dropped)  # the same mask backwards
    rows, columns = (dropped == 0).float().mean(1), (dropped == 0).float().mean(0)
    spread = math.sqrt(share * (1 - share))  # of independent draws
    assert rows.std() * math.sqrt(400) == pytest.approx(spread, rel=0.15)
    assert columns.std() * math.sqrt(500) == pytest.approx(spread, rel=0.15)
    assert not torch.equal(Dropout(share)(states), dropped)
    assert Dropout(share).eval()(states) is states


def test_what_is_masked_gets_neither_weight_nor_gradient():
    qkv, mask, gradient = given(torch.float32)
    ours(qkv, mask).backward(gradient)
    assert all((part.grad[1, :, 4:] == 0).all() for part in qkv[1:])


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_training_keeps_one_matrix_of_scores(precision):
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
    assert list(kept.values()) == [precision]


def test_wanted_states_of_a_fusion_are_those_of_the_whole():
    """To rounding where the last layer makes no others; while training, to the bit."""
    torch.manual_seed(0)
    config = FusionEncoderConfig(
        vocab_size=100, hidden_size=64, num_attention_heads=4, intermediate_size=128,
        text_layers=1, fusion_layers=2, max_position_embeddings=32, image_size=32, patch_size=8,
        vision_hidden_size=48, vision_layers=1, vision_heads=4, projection_size=32,
    )  # fmt: skip
    encoder = FusionEncoder(config).eval()
    text, picture = torch.randn(3, 9, 64), torch.randn(3, 17, 48)
    mask = torch.ones(3, 9, dtype=torch.int64)
    mask[1, 5:] = 0
    shown = torch.tensor([True, True, False])
    rows, places = torch.arange(3)[:, None], torch.tensor([[1, 8], [4, 0], [3, 3]])
    for given in ((text, mask, picture, shown), (text, mask, None)):
        whole = encoder.fuse(*given)
        for wanted, states in ((9, whole[:, :9]), (places, whole[rows, places])):
            made = encoder.fuse(*given, wanted=wanted)
            torch.testing.assert_close(made, states, rtol=0, atol=1e-6)
    encoder.train()
    made = []
    for wanted in (None, 9, places):
        torch.manual_seed(1)
        made.append(encoder.fuse(text, mask, picture, shown, wanted=wanted))
    assert torch.equal(made[1], made[0][:, :9])
    assert torch.equal(made[2], made[0][rows, places])
