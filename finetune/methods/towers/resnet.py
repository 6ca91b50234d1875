"""A ResNet (He et al. 2016) that shows all its stages: what HVPNeT, TMR and CAMIM look at.

N: pictures, S: their side, C_i: channels of stage i (256, 512, 1024, 2048 of a ResNet-50).
"""

import hashlib
import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from torch import Tensor, nn

from finetune.methods.towers import timm_model
from pretrain import distributed
from shards.files import InputError

LOG = logging.getLogger(__name__)
STAGES = (1, 2, 3, 4)
TOKENS = 4
"""A picture gives so many prompt tokens: a 2 × 2 grid."""


class ResNetPyramid(nn.Module):
    """Pixels -> the maps of the four stages."""

    mean: Tensor
    std: Tensor
    image_size: int | None = None
    """S, where the net takes no other."""

    def __init__(self, net: Any, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        """
        Args:
            net: timm's, made with `features_only`; its parameter names are torchvision's.
            mean, std: of the three colours, on the scale 0…1.
        """
        super().__init__()
        self.net = net
        self.channels: tuple[int, ...] = tuple(net.feature_info.channels())
        self.register_buffer("mean", 255 * torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", 255 * torch.tensor(std).view(3, 1, 1), persistent=False)

    def normalise(self, pixels: Tensor, present: Tensor | None = None) -> Tensor:
        """(…, 3, S, S) uint8 -> float; where `present` (…) is False, zeros: the mean colour."""
        values = (pixels - self.mean) / self.std
        return values if present is None else values * present[..., None, None, None]

    def forward(self, pixels: Tensor) -> list[Tensor]:
        """Normalised (N, 3, S, S) -> four maps (N, C_i, S / 2^(i+1), S / 2^(i+1))."""
        return self.net(pixels)


def prompt_tokens(maps: list[Tensor], layout: str = "channel_slab") -> Tensor:
    """HVPNeT's four tokens of a picture, each stage pooled to 2 × 2.

    The pooling windows have half a map's side, so of 7 × 7 the last row and column are unseen.

    Args:
        maps: of the stages, (N, C_i, H_i, H_i) with H_i >= 2.
        layout: channel_slab, as released: the (ΣC, 2, 2) numbers cut into four runs, so a token is
            a quarter of the channels with their whole grid. spatial: token p is all channels at
            grid position p, row by row.

    Returns:
        (N, 4, ΣC)
    """
    pooled = []
    for stage in maps:
        half = stage.shape[-1] // 2
        seen = stage[..., : 2 * half, : 2 * half]
        pooled.append(nn.functional.avg_pool2d(seen, half))
    grid = torch.cat(pooled, dim=1)  # (N, ΣC, 2, 2)
    if layout == "spatial":
        return grid.flatten(2).transpose(1, 2)
    return grid.reshape(len(grid), TOKENS, -1)


@dataclass(frozen=True)
class FrozenPyramid:
    """A pyramid that never learns, as `finetune/inputs/frozen.py` wants a tower."""

    pyramid: ResNetPyramid
    layout: str

    @property
    def identity(self) -> str:
        """Changes with the weights and with how tokens are made of maps."""
        digest = hashlib.sha256(self.layout.encode())
        for tensor in (*self.pyramid.state_dict().values(), self.pyramid.mean, self.pyramid.std):
            digest.update(tensor.cpu().contiguous().numpy())
        return digest.hexdigest()[:16]

    def tokens(self, maps: list[Tensor]) -> Tensor:
        """What is kept of a picture's maps: (N, 4, ΣC)."""
        return prompt_tokens(maps, self.layout)

    def __call__(self) -> Callable[[np.ndarray], np.ndarray]:
        """The tower at work: (N, 3, S, S) uint8 -> (N, 4·ΣC) float16."""
        pyramid = self.pyramid.to(distributed.device()).eval()

        @torch.inference_mode()
        def see(pixels: np.ndarray) -> np.ndarray:
            batch = torch.from_numpy(np.array(pixels)).to(distributed.device())
            tokens = self.tokens(pyramid(pyramid.normalise(batch)))
            return tokens.flatten(1).half().cpu().numpy()

        return see


@dataclass(frozen=True)
class FrozenMaps(FrozenPyramid):
    """The same that gives the positions of the last map: (N, 3, S, S) uint8 -> (N, P·C)."""

    layout: str = "last map"

    def tokens(self, maps: list[Tensor]) -> Tensor:
        """(N, P, C)"""
        return maps[-1].flatten(2).transpose(1, 2)


def load_resnet(name: str, *, random_weights: bool, width: int = 64) -> ResNetPyramid:
    """A pyramid from timm.

    Args:
        name: a timm model (`resnet50.tv_in1k`: weights from hub or cache), or a directory in timm's
            hub layout (`config.json`, `model.safetensors`).
        random_weights: the architecture only; the log says so.
        width: channels of the first stage; other than 64 makes a smaller or larger network, for
            which there are no published weights.

    Raises:
        InputError: unknown, not to be had, or no ResNet.
    """
    if not random_weights and width != 64:
        raise InputError(
            f"--model.vision_width {width}: no published weights have it; add "
            "--model.vision_random true, or leave it at 64"
        )
    local = Path(name).is_dir()
    channels = tuple(width * 2**i for i in range(4))
    # Said only where asked for: it would overrule the sizes that a directory states.
    options: dict[str, Any] = (
        {} if width == 64 else {"channels": channels, "stem_width": max(width // 2, 4)}
    )
    net = timm_model.create(
        name, random_weights=random_weights, features_only=True, out_indices=STAGES, **options
    )
    # Other families have four stages, too: the name tells a ResNet.
    if len(net.feature_info.channels()) != len(STAGES) or "layer4.0.conv1.weight" not in dict(
        net.named_parameters()
    ):
        raise InputError(f"--model.vision {name}: not a ResNet")
    mean, std = _colours(name, local)
    if distributed.is_main():
        count = sum(parameter.numel() for parameter in net.parameters())
        how = "drawn at random" if random_weights else "loaded, its classifier left out"
        LOG.info("vision %s: %.1f M parameters %s", name, count / 1e6, how)
    return ResNetPyramid(net, mean, std)


def _colours(name: str, local: bool) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation that the weights were trained with."""
    if local:
        content = json.loads((Path(name) / "config.json").read_text(encoding="utf-8"))
        weights = content.get("pretrained_cfg", {})
    else:
        config = timm.get_pretrained_cfg(name)
        weights = {} if config is None else {"mean": config.mean, "std": config.std}
    return (
        tuple(weights.get("mean", timm.data.IMAGENET_DEFAULT_MEAN)),
        tuple(weights.get("std", timm.data.IMAGENET_DEFAULT_STD)),
    )
