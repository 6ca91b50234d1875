"""Attention of the BERT layers.

torch's fused kernels do it, except on a CPU while training with dropout on the attention weights:
there torch falls back to plain products and keeps five float32 matrices of scores for the backward
pass. Here one, in the training precision, and a mask of bytes are kept, in half the time in bf16.
"""

import math

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import scaled_dot_product_attention


def attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, dropout: float = 0.0
) -> Tensor:
    """(B, H, L, d), (B, H, K, d) twice -> (B, L, H, d); scale 1/√d.

    Args:
        mask: broadcasting to (B, H, L, K); bool, True = may be looked at, or float, to be added to
            the scores, which is left to torch; None: everything.
        dropout: of the attention weights.
    """
    added = mask is not None and mask.dtype != torch.bool
    if added or not dropout or query.device.type != "cpu" or torch.compiler.is_compiling():
        out = scaled_dot_product_attention(query, key, value, mask, dropout)
    else:
        scale = 1 / math.sqrt(query.shape[-1])
        out = _DropoutAttention.apply(query, key, value, mask, dropout, scale)
    return out.transpose(1, 2).contiguous()


class _DropoutAttention(torch.autograd.Function):
    """softmax(q kᵀ · scale) with dropout, times v; the softmax in float32."""

    @staticmethod
    @torch.amp.custom_fwd(device_type="cpu")
    def forward(ctx, query, key, value, mask, dropout, scale):
        scores = (query * scale @ key.transpose(-1, -2)).float()
        if mask is not None:
            scores.masked_fill_(~mask, torch.finfo(scores.dtype).min)
        weights = scores.softmax(dim=-1).to(query.dtype)
        keep_mask = torch.empty_like(weights, dtype=torch.bool).bernoulli_(1 - dropout)
        ctx.save_for_backward(query, key, value, weights, keep_mask)
        ctx.dropout, ctx.scale = dropout, scale
        return (weights * keep_mask).mul_(1 / (1 - dropout)) @ value

    @staticmethod
    @torch.amp.custom_bwd(device_type="cpu")
    @once_differentiable
    def backward(ctx, grad):
        query, key, value, weights, keep_mask = ctx.saved_tensors
        rest = 1 / (1 - ctx.dropout)
        value_grad = (weights * keep_mask).mul_(rest).transpose(-1, -2) @ grad
        weights_grad = (grad @ value.transpose(-1, -2)).mul_(rest).mul_(keep_mask)
        inner = (weights_grad * weights).sum(dim=-1, keepdim=True)
        scores_grad = weights_grad.sub_(inner).mul_(weights).mul_(ctx.scale)
        return (
            scores_grad @ key,
            scores_grad.transpose(-1, -2) @ query,
            value_grad,
            None,
            None,
            None,
        )
