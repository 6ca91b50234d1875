"""Attention of the BERT layers.

torch's fused kernels do it, except on a CPU while training with dropout on the attention weights:
there torch falls back to plain products and keeps five float32 matrices of scores for the backward
pass. Here one, in the training precision, and a mask of bytes are kept, in half the time in bf16.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

NAME = "fused_everywhere"
"""What `attn_implementation` of a `transformers` configuration is set to."""


def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """(B, H, L, d) query, key, value -> (B, L, H, d), as `transformers` calls an attention.

    attention_mask: bool, broadcast to (B, H, L, L), True = may be looked at; None: everything. One
    to be added, or causal attention, is left to torch.
    """
    plain = attention_mask.dtype == torch.bool if attention_mask is not None else True
    plain &= not (kwargs.get("is_causal") or getattr(module, "is_causal", False))
    if not (plain and dropout and query.device.type == "cpu") or torch.compiler.is_compiling():
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
    scale = scaling or 1 / math.sqrt(query.shape[-1])
    out = _DropoutAttention.apply(query, key, value, attention_mask, dropout, scale)
    return out.transpose(1, 2).contiguous(), None


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


AttentionInterface.register(NAME, attention)
AttentionMaskInterface.register(NAME, sdpa_mask)
