"""HVPNeT's prefixes: tokens of pictures -> keys and values before the text's in every BERT layer.

B: rows, M: pictures of a row, T: tokens of a picture (4), C: channels of a token, N: layers,
H: heads, d: their width, D = H·d, P = T·M: slots of the prefix, J = 4: slices, L: word pieces.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from finetune.methods.towers.resnet import TOKENS
from pretrain.model.bert import Bert

SLICES = 4
"""The prompt encoder's output is cut into so many slices, which each layer's gates mix."""


@dataclass(frozen=True)
class Prefix:
    """Keys and values that stand before the text's in every layer."""

    keys: Tensor
    """(N, B, H, P, d)"""
    values: Tensor
    """(N, B, H, P, d)"""
    mask: Tensor
    """(B, H, P) bool: False = not attended"""


class VisualPrefix(nn.Module):
    """Prompt encoder and gates (§3.2 of the paper)."""

    def __init__(
        self,
        channels: int,
        *,
        layers: int,
        heads: int,
        size: int,
        width: int = 800,
        head_split: Literal["reshape", "transpose"] = "reshape",
        absent: Literal["mask", "mask_slots", "attend"] = "mask",
    ) -> None:
        """
        Args:
            channels: ΣC of the pyramid.
            layers, heads, size: N, H, D of the text encoder.
            width: of the prompt encoder's hidden layer.
            head_split: how (P, D) numbers become (H, P, d). reshape, as released: cut in the order
                they lie in memory, so a head mixes tokens. transpose: the usual way.
            absent: what an absent picture's numbers do. mask: nothing. mask_slots: the four slots
                of that picture's place are masked in every head; under `reshape` these are not its
                numbers. attend, as released: they are attended to.
        """
        super().__init__()
        self.layers, self.heads, self.size = layers, heads, size
        self.head_split, self.absent = head_split, absent
        self.encode = nn.Sequential(
            nn.Linear(channels, width), nn.Tanh(), nn.Linear(width, SLICES * 2 * size)
        )
        # Row 4·n + j scores slice j for layer n; one product for all layers.
        self.gates = nn.Linear(TOKENS * 2 * size, layers * SLICES)

    def forward(self, tokens: Tensor, present: Tensor) -> Prefix:
        """
        Args:
            tokens: (B, M, T, ΣC): the four of `resnet.prompt_tokens`, which set the gates, and
                whatever follows them.
            present: (B, M) bool, which pictures there are; or (B, M, T), which tokens are attended
                to, whatever `absent` is.
        """
        pictures, count = tokens.shape[1:3]
        slices = self.encode(tokens).unflatten(-1, (SLICES, 2 * self.size))  # (B, M, T, J, 2D)
        summary = slices[:, :, :TOKENS].mean(3).flatten(2)
        scores = self.gates(summary).unflatten(-1, (self.layers, SLICES))
        gates = nn.functional.leaky_relu(scores).softmax(-1)  # (B, M, N, J)
        mixed = torch.einsum("bmnj,bmtjc->nbmtc", gates.to(slices.dtype), slices)
        keys, values = mixed.flatten(2, 3).chunk(2, dim=-1)  # each (N, B, P, D)
        if present.dim() == 2:
            seen = torch.ones_like(present) if self.absent == "attend" else present
            present = seen[..., None].expand(-1, -1, count)
        mask = present.flatten(1)[:, self._owner(pictures * count, tokens.device)]
        return Prefix(self._split(keys), self._split(values), mask)

    def _split(self, numbers: Tensor) -> Tensor:
        """(N, B, P, D) -> (N, B, H, P, d)."""
        layers, batch, slots, _ = numbers.shape
        if self.head_split == "reshape":
            return numbers.reshape(layers, batch, self.heads, slots, -1)
        return numbers.unflatten(-1, (self.heads, -1)).transpose(2, 3)

    def _owner(self, slots: int, device: torch.device) -> Tensor:
        """(H, P): the token whose numbers stand in a head's slot."""
        if self.head_split == "reshape" and self.absent == "mask":
            # Slot t of head a begins at number (a·P + t)·d, which token (a·P + t)·d // D holds.
            token = torch.arange(self.heads * slots, device=device).view(self.heads, slots)
            return token // self.heads
        return torch.arange(slots, device=device).expand(self.heads, slots)


def encode_with_prefix(
    bert: Bert, input_ids: Tensor, attention_mask: Tensor, prefix: Prefix | None
) -> Tensor:
    """States of the text (B, L, D); keys and values of each layer are [prefix ; text].

    The prefix has no positions: the text's begin at 0.
    """
    if prefix is None:
        return bert(input_ids, attention_mask).last_hidden_state
    text = attention_mask.bool()[:, None].expand(-1, prefix.mask.shape[1], -1)  # (B, H, L)
    mask = torch.cat([prefix.mask, text], dim=-1)[:, :, None]  # (B, H, 1, P + L)
    before = list(zip(prefix.keys, prefix.values, strict=True))
    return bert(input_ids, mask, prefix=before).last_hidden_state
