"""The plain ViT: class token, learned positions, pre-norm layers, GELU, one norm at the end.

Tensor names, the order of operations and the draws of first weights are those of
`timm.models.vision_transformer`, whose import takes two seconds. N: pictures, K: patches, D: width,
H: heads.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from pretrain.model.attention import attention


class PlainViT(nn.Module):
    """Normalised pictures -> states after the last norm. It is called, not a method of it: ZeRO-3
    gathers `cls_token` and `pos_embed` on calls."""

    def __init__(
        self, image_size: int, patch_size: int, width: int, layers: int, heads: int, norm_eps: float
    ) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(torch.empty(1, 1, width))
        patches = (image_size // patch_size) ** 2
        self.pos_embed = nn.Parameter(torch.empty(1, 1 + patches, width))
        self.image_size = image_size
        self.patch_embed = PatchEmbed(patch_size, width)
        self.blocks = nn.Sequential(*(Block(width, heads, norm_eps) for _ in range(layers)))
        self.norm = nn.LayerNorm(width, eps=norm_eps)
        self.checkpointing = False
        """While training, keep the inputs of layers alone and compute the rest again backwards."""
        truncated_normal(self.pos_embed)
        nn.init.normal_(self.cls_token, std=1e-6)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                truncated_normal(module.weight)
                nn.init.zeros_(module.bias)

    def embed(self, pixel_values: Tensor) -> Tensor:
        """(N, 3, S, S) -> (N, 1+K, D) that the first layer reads.

        Raises:
            ValueError: S is not `image_size`.
        """
        if pixel_values.shape[2:] != (self.image_size, self.image_size):
            raise ValueError(
                f"pictures of {tuple(pixel_values.shape[2:])} pixels; the ViT reads "
                f"{self.image_size} a side"
            )
        patches = self.patch_embed(pixel_values)
        states = torch.cat([self.cls_token.expand(len(patches), -1, -1), patches], dim=1)
        return states + self.pos_embed

    def forward(self, pixel_values: Tensor, kept_patches: Tensor | None = None) -> Tensor:
        """(N, 3, S, S) -> (N, 1+K, D), class token first; (N, 1+M, D) of (N, M) patches.

        Raises:
            ValueError: as `embed`.
        """
        states = self.embed(pixel_values)
        if kept_patches is not None:
            places = functional.pad(kept_patches + 1, (1, 0))  # the class token stands at 0
            states = states.take_along_dim(places[..., None], dim=1)
        again = self.checkpointing and self.training and torch.is_grad_enabled()
        for block in self.blocks:
            states = checkpoint(block, states, use_reentrant=False) if again else block(states)
        return self.norm(states)


class PatchEmbed(nn.Module):
    """Patches to vectors."""

    def __init__(self, patch_size: int, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, kernel_size=patch_size, stride=patch_size)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """(N, 3, S, S) -> (N, K, D), row by row."""
        return self.proj(pixel_values).flatten(2).transpose(1, 2)


class Block(nn.Module):
    """One layer."""

    def __init__(self, width: int, heads: int, norm_eps: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=norm_eps)
        self.attn = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=norm_eps)
        self.mlp = Mlp(width)

    def forward(self, states: Tensor) -> Tensor:
        """(N, L, D) -> (N, L, D)."""
        states = states + self.attn(self.norm1(states))
        return states + self.mlp(self.norm2(states))


class Attention(nn.Module):
    """Self-attention with one projection for queries, keys and values."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, states: Tensor) -> Tensor:
        """(N, L, D) -> (N, L, D)."""
        parts = self.qkv(states).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        query, key, value = parts.unbind(0)
        return self.proj(attention(query, key, value, None).flatten(2))


class Mlp(nn.Module):
    """The feed-forward net, four times as wide inside."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, states: Tensor) -> Tensor:
        """(N, L, D) -> (N, L, D)."""
        return self.fc2(functional.gelu(self.fc1(states)))


@torch.no_grad()
def truncated_normal(tensor: Tensor, std: float = 0.02) -> None:
    """timm's draw, by the inverse of the distribution function; torch's own draws otherwise."""
    tensor.uniform_(-1, 1).erfinv_().mul_(std * math.sqrt(2.0)).clamp_(-2, 2)
