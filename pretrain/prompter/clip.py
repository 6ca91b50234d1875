"""A `transformers` CLIP behind the methods of `FusionEncoder` that a prompter needs.

An openly published CLIP can stand in for PROMU's own first stage (§4.3 leaves the prompter's
training open): it has seen far more pairs than NewsCLIPpings holds.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from pretrain.model.fusion_encoder import FusionEncoder
from shards.files import InputError

if TYPE_CHECKING:
    from transformers import CLIPModel


@dataclass(frozen=True)
class ClipSizes:
    """The part of `FusionEncoderConfig` that labelling reads."""

    image_size: int
    projection_size: int


class ClipEncoder(nn.Module):
    """Both towers of a CLIP. B: rows, L: tokens, D: widths of the towers, E: projection size."""

    pixel_statistics: Tensor

    def __init__(
        self, clip: "CLIPModel", *, image_mean: tuple[float, ...], image_std: tuple[float, ...]
    ) -> None:
        super().__init__()
        self.clip = clip
        side = clip.vision_model.config.image_size
        if not isinstance(side, int):
            raise InputError(f"a CLIP for pictures of {side} pixels; only squares are supported")
        self.config = ClipSizes(side, projection_size=clip.visual_projection.out_features)
        statistics = torch.tensor([image_mean, image_std]) * 255
        self.register_buffer("pixel_statistics", statistics.view(2, 3, 1, 1), persistent=False)

    @property
    def temperature(self) -> float:
        """CLIP multiplies similarities by exp(logit_scale); we divide by this."""
        return (-self.clip.logit_scale.float()).exp().item()

    def encode_text(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """(B, L) -> (B, D) state of the end-of-text token."""
        return self.clip.text_model(input_ids, attention_mask=attention_mask).pooler_output

    def encode_image(self, pixel_values: Tensor) -> Tensor:
        """(B, 3, H, W) uint8, or floats normalised already -> (B, D) class token."""
        if pixel_values.dtype == torch.uint8:
            mean, std = self.pixel_statistics
            pixel_values = (pixel_values.to(mean.dtype) - mean) / std
        return self.clip.vision_model(pixel_values).pooler_output

    def text_feat(self, pooled: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """(B, D) of `encode_text` -> (B, E) unit vectors, float32; needs no mask."""
        return normalize(self.clip.text_projection(pooled).float(), dim=-1)

    def image_feat(self, pooled: Tensor) -> Tensor:
        """(B, D) of `encode_image` -> (B, E) unit vectors, float32."""
        return normalize(self.clip.visual_projection(pooled).float(), dim=-1)


Encoder = FusionEncoder | ClipEncoder
"""A prompter: with `encode_image`, `image_feat`, `encode_text`, `text_feat` and `config`."""
