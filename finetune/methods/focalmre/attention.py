"""FocalMRE's attention and gate (§3.4): what text positions take from copies of a picture.

B: rows, R: copies of a picture, P: text positions, K: patches, D: width of the text, V: of the
picture's states.
"""

from typing import Literal

import torch
from torch import Tensor, nn


class FocalAttention(nn.Module):
    """Equations 3 and 4: text positions and copies of the picture -> mixed states.

    Args:
        size: D. picture_width: V.
        attention: focal: equation 3. mean, cls (without it): the mean patch, or the class token,
            for all positions.
        include_cls: attention also sees the class token.
        dropout, dropout_on: on the attention weights, or on the output, what they gather.
        gate: dim, token, image: equation 4 with a gate for each dimension, text position, or
            picture. none: no_gate says what takes its place, the sum, the average, or the image.
    """

    def __init__(
        self,
        size: int,
        picture_width: int,
        *,
        attention: Literal["focal", "mean", "cls"] = "focal",
        include_cls: bool = False,
        dropout: float = 0.1,
        dropout_on: Literal["weights", "output"] = "weights",
        gate: Literal["dim", "token", "image", "none"] = "dim",
        no_gate: Literal["sum", "average", "image"] = "sum",
    ) -> None:
        super().__init__()
        self.attention, self.include_cls, self.dropout_on = attention, include_cls, dropout_on
        self.gate, self.no_gate = gate, no_gate
        if attention == "focal":
            self.query = nn.Linear(size, size)
            # A bias here adds the same to all scores of a query: the softmax would not see it.
            self.key = nn.Linear(picture_width, size, bias=False)
        self.value = nn.Linear(picture_width, size)
        self.dropout = nn.Dropout(dropout)
        if gate != "none":
            width = size if gate == "dim" else 1
            self.gate_text = nn.Linear(size, width, bias=False)  # U
            self.gate_picture = nn.Linear(size, width, bias=False)  # V

    def forward(self, text: Tensor, pictures: Tensor) -> Tensor:
        """(B, P, D) and (B, R, 1+K, V) -> h_out (B, R, P, D)."""
        seen = self.look(text, pictures)
        text = text[:, None]
        if self.gate != "none":
            share = self.open(text, seen)
            return (1 - share) * text + share * seen
        if self.no_gate == "image":
            return seen
        return text + seen if self.no_gate == "sum" else (text + seen) / 2

    def look(self, text: Tensor, pictures: Tensor) -> Tensor:
        """What each text position sees of each copy: (B, R, P, D)."""
        if self.attention == "focal":
            patches = pictures if self.include_cls else pictures[:, :, 1:]
            weights, drop = self.weights(text, patches), self.dropout_on == "weights"
            weights = self.dropout(weights) if drop else weights
            seen = weights @ self.value(patches)
            return seen if drop else self.dropout(seen)
        states = self.value(pictures)
        pooled = states[:, :, 0] if self.attention == "cls" else states[:, :, 1:].mean(dim=2)
        return pooled[:, :, None].expand(-1, -1, text.shape[1], -1)

    def weights(self, text: Tensor, patches: Tensor) -> Tensor:
        """softmax(Q Kᵀ / √D): (B, P, D) and (B, R, K, V) -> (B, R, P, K), softmax in float32."""
        query, key = self.query(text), self.key(patches)
        scores = query[:, None] @ key.transpose(-1, -2)
        return (scores.float() / query.shape[-1] ** 0.5).softmax(dim=-1).to(query.dtype)

    def open(self, text: Tensor, seen: Tensor) -> Tensor:
        """λ, which broadcasts to (B, R, P, D); one a picture: of the mean over the positions."""
        if self.gate == "image":
            text, seen = text.mean(dim=2, keepdim=True), seen.mean(dim=2, keepdim=True)
        return torch.sigmoid(self.gate_text(text) + self.gate_picture(seen))
