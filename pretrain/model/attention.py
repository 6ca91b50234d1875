"""Dropout, and attention of the BERT and ViT layers, on a CPU that trains.

Elsewhere torch's own kernels do both. On a CPU torch draws a dropout mask three times as slowly as
here, falls back to plain products for attention with dropout and keeps five float32 matrices of
scores, and its fused kernel is slow backwards in bf16. Here one matrix in the training precision is
kept; masks are drawn again in the backward pass, from a number.
"""

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

_INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}
_IN_CACHE = 2**20
"""Bytes of scores worked on at a time."""


class KeepBits:
    """Masks of dropout, the same ones for the same number: all bits set, or none."""

    def __init__(self, seed: int, dropout: float, dtype: torch.dtype) -> None:
        self.dtype = _INTEGERS[dtype.itemsize]
        levels = 2 ** (8 * dtype.itemsize)
        dropped = min(round(dropout * levels), levels - 1)
        self.threshold = dropped - levels // 2
        self.rest = levels / (levels - dropped)
        """What is left is multiplied by it."""
        self.random = torch.Generator().manual_seed(seed)

    def draw(self, shape: torch.Size) -> Tensor:
        """Integers of the next mask, as wide as the numbers that they are for."""
        words = -(-shape.numel() * self.dtype.itemsize // 8)
        bits = torch.empty(words, dtype=torch.int64).random_(-(2**63), None, generator=self.random)
        return bits.view(self.dtype)[: shape.numel()].view(shape).ge_(self.threshold).neg_()

    def drop_(self, tensor: Tensor) -> Tensor:
        """Zeros where the next mask says so, in place; what is left is not scaled."""
        tensor.view(self.dtype).bitwise_and_(self.draw(tensor.shape))
        return tensor


def _new_seed() -> int:
    return int(torch.empty((), dtype=torch.int64).random_())


class Dropout(nn.Dropout):
    """`nn.Dropout` with the draws of this module on a CPU."""

    def forward(self, input: Tensor) -> Tensor:
        """Any shape; the same shape."""
        if not self.training:  # torch's own, 10 µs a call, is seen in a single post
            return input
        by_torch = input.device.type != "cpu" or torch.compiler.is_compiling()
        if not 0 < self.p < 1 or by_torch:
            return super().forward(input)
        return _Dropout.apply(input, self.p, _new_seed())


class _Dropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx, states, dropout, seed):
        ctx.given = seed, dropout, states.dtype
        bits = KeepBits(*ctx.given)
        return bits.drop_(states * bits.rest)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        bits = KeepBits(*ctx.given)
        return bits.drop_(grad * bits.rest), None, None


def attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, dropout: float = 0.0
) -> Tensor:
    """(B, H, L, d), (B, H, K, d) twice -> (B, L, H, d); scale 1/√d.

    Args:
        mask: broadcasting to (B, H, L, K); bool, True = may be looked at, or float, to be added to
            the scores, which is left to torch; None: everything.
        dropout: of the attention weights.
    """
    left_to_torch = query.device.type != "cpu" or (mask is not None and mask.dtype != torch.bool)
    slow_in_torch = dropout or (query.dtype == torch.bfloat16 and query.requires_grad)
    if left_to_torch or not slow_in_torch or torch.compiler.is_compiling():
        out = functional.scaled_dot_product_attention(query, key, value, mask, dropout)
    else:
        out = _Attention.apply(query, key, value, mask, dropout, _new_seed() if dropout else 0)
    return out.transpose(1, 2).contiguous()


class _Attention(torch.autograd.Function):
    """softmax(q kᵀ/√d) with dropout, times v; the softmax in float32."""

    @staticmethod
    @torch.amp.custom_fwd(device_type="cpu")
    def forward(ctx, query, key, value, mask, dropout, seed):
        ctx.scale = 1 / math.sqrt(query.shape[-1])
        ctx.given = (seed, dropout, query.dtype) if dropout else None
        bits = KeepBits(*ctx.given) if dropout else None
        weights = query.new_empty(*query.shape[:3], key.shape[2])
        out = torch.empty_like(query)
        for rows in _in_cache(weights):
            scores = (query[rows] * ctx.scale @ key[rows].transpose(-1, -2)).float()
            if mask is not None:
                seen = mask[rows] if len(mask) > 1 else mask
                scores.masked_fill_(~seen, torch.finfo(scores.dtype).min)
            torch.softmax(scores, dim=-1, out=scores)
            weights[rows] = scores
            if bits:
                left = bits.drop_(scores.to(query.dtype))
                out[rows] = (left @ value[rows]).mul_(bits.rest)
            else:
                out[rows] = weights[rows] @ value[rows]
        ctx.save_for_backward(query, key, value, weights, out)
        return out

    @staticmethod
    @torch.amp.custom_bwd(device_type="cpu")
    @once_differentiable
    def backward(ctx, grad):
        query, key, value, weights, out = ctx.saved_tensors
        bits = KeepBits(*ctx.given) if ctx.given else None
        grads = torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)
        inner = (grad * out).sum(dim=-1, keepdim=True)
        grad = grad * bits.rest if bits else grad
        for rows in _in_cache(weights):
            scores_grad = grad[rows] @ value[rows].transpose(-1, -2)
            left = weights[rows]
            if bits:
                mask = bits.draw(left.shape)
                scores_grad.view(bits.dtype).bitwise_and_(mask)
                left = left.view(bits.dtype).bitwise_and(mask).view(left.dtype)
            grads[2][rows] = left.transpose(-1, -2) @ grad[rows]
            scores_grad.sub_(inner[rows]).mul_(weights[rows]).mul_(ctx.scale)
            grads[0][rows] = scores_grad @ key[rows]
            grads[1][rows] = scores_grad.transpose(-1, -2) @ query[rows]
        return *grads, None, None, None


def _in_cache(scores: Tensor) -> Iterator[slice]:
    """The rows of (B, …), a few at a time."""
    step = max(1, _IN_CACHE // max(1, scores[:1].numel() * scores.itemsize))
    return (slice(start, start + step) for start in range(0, len(scores), step))
