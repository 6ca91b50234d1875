"""DGF-PT, seeing: one feature vector of a picture, and one of each object (§4.1.1).

Three ways: a frozen timm model such as VGG16, which sees everything once before the first step; a
timm model that is trained; the vision tower of a fusion model directory, trained or not.

B: rows, K: objects, N: pictures, S: their side, F: feature width.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from timm.data import resolve_data_config
from torch import Tensor, nn

from finetune.inputs.batch import Batch
from finetune.methods.base import Source
from finetune.methods.towers import timm_model
from finetune.methods.towers.timm_model import drawn_at_random
from pretrain import distributed
from pretrain.model.fusion_encoder import FusionEncoder
from shards.files import InputError, digest


class PixelTower(nn.Module):
    """A timm model without classifier; of VGG16, the 4,096 numbers before its last layer."""

    net: Any
    mean: Tensor
    std: Tensor

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        statistics = resolve_data_config({}, model=net)
        for name in ("mean", "std"):
            values = 255 * torch.tensor(statistics[name]).view(3, 1, 1)
            self.register_buffer(name, values, persistent=False)

    def forward(self, pixels: Tensor) -> Tensor:
        """(N, 3, S, S) uint8 -> (N, F)."""
        return self.net((pixels - self.mean) / self.std)


@dataclass(frozen=True)
class TimmTower:
    """A timm model by name (weights from hub or cache), or by directory in timm's layout."""

    name: str
    size: int
    """S; 0: what its weights were trained with."""
    random_weights: bool = False

    def build(self, *, random_weights: bool) -> PixelTower:
        """The network, with its weights or random ones.

        Raises:
            InputError: unknown, or not to be had.
        """
        return PixelTower(
            timm_model.create(self.name, random_weights=random_weights, num_classes=0)
        )

    @property
    def identity(self) -> str:
        """Changes with the weights: a name of timm's says which, a directory is asked."""
        weights = Path(self.name) / "model.safetensors"
        known = digest(weights) if weights.is_file() else f"{self.name} {self.random_weights}"
        return hashlib.sha256(known.encode()).hexdigest()[:16]

    def __call__(self) -> Callable[[np.ndarray], np.ndarray]:
        """The frozen tower at work: (N, 3, S, S) uint8 -> (N, F) float16."""
        with torch.random.fork_rng():
            torch.manual_seed(0)  # random weights are the same in every run that reads the cache
            tower = self.build(random_weights=self.random_weights)
        tower.eval().to(distributed.device())

        @torch.inference_mode()
        def see(pixels: np.ndarray) -> np.ndarray:
            batch = torch.from_numpy(np.array(pixels)).to(distributed.device())
            return tower(batch).half().cpu().numpy()

        return see

    def measure(self, net: Any) -> tuple[int, int]:
        """F and S."""
        return net.head_hidden_size, self.size or net.pretrained_cfg["input_size"][-1]


class Vision(nn.Module):
    """What the method asks of each way."""

    width: int
    """F"""
    size: int
    """S"""
    frozen: TimmTower | None = None
    """What sees the pictures before the first step."""

    def features(
        self, batch: Batch, encoder: nn.Module, once: Callable[..., Tensor]
    ) -> tuple[Tensor, Tensor | None] | None:
        """(B, F) of the pictures, (B, K, F) of the objects (None: there is no slot for one); None
        where vision is off. once: `Method.once`."""
        if batch.pixel_values is None:
            return None
        pixels = [batch.pixel_values[:, None]]
        if batch.region_pixels is not None:
            pixels.append(batch.region_pixels)
        seen = once(partial(self.see, encoder), torch.cat(pixels, dim=1).flatten(0, 1))
        seen = seen.unflatten(0, (len(batch), -1))
        return seen[:, 0], None if batch.region_pixels is None else seen[:, 1:]

    def see(self, encoder: nn.Module, pixels: Tensor) -> Tensor:
        """(N, 3, S, S) uint8 -> (N, F)."""
        raise NotImplementedError


class SeenBefore(Vision):
    """A frozen timm model. It is no part of the method, and so not saved with every run."""

    def __init__(self, tower: TimmTower) -> None:
        super().__init__()
        self.frozen = tower
        with torch.device("meta"):
            self.width, self.size = tower.measure(tower.build(random_weights=True).net)

    def features(
        self, batch: Batch, encoder: nn.Module, once: Callable[..., Tensor]
    ) -> tuple[Tensor, Tensor | None] | None:
        """The features that `finetune/inputs/frozen.py` has put in the place of pixels."""
        if batch.image_features is None:
            return None
        objects = batch.region_features
        return batch.image_features.float(), None if objects is None else objects.float()


class TimmTrained(Vision):
    """A timm model of the method's own."""

    def __init__(self, tower: TimmTower, *, random_weights: bool) -> None:
        super().__init__()
        self.tower = tower.build(random_weights=random_weights)
        self.width, self.size = tower.measure(self.tower.net)

    def see(self, encoder: nn.Module, pixels: Tensor) -> Tensor:
        """As `PixelTower`."""
        return self.tower(pixels)


class OfEncoder(Vision):
    """The vision tower of the fusion encoder; trained where its parameters are."""

    def __init__(self, encoder: FusionEncoder) -> None:
        super().__init__()
        self.width, self.size = encoder.config.vision_hidden_size, encoder.config.image_size
        self.pool = encoder.config.vision_pool

    def see(self, encoder: nn.Module, pixels: Tensor) -> Tensor:
        """Class token, or mean patch, as the encoder's own projection reads it."""
        tokens = cast(FusionEncoder, encoder).encode_image(pixels)
        return tokens[:, 0] if self.pool == "cls" else tokens[:, 1:].mean(1)


def load_vision(
    tower: TimmTower, source: Source, encoder: nn.Module, *, trained: bool
) -> Vision | None:
    """What `DgfptConfig.vision` names: a timm model, `init` or `none`.

    Raises:
        InputError: `init` without a vision tower there, or a timm model that cannot be had.
    """
    if isinstance(encoder, FusionEncoder):
        encoder.vision.requires_grad_(trained and tower.name == "init")
    if tower.name == "none":
        return None
    if tower.name == "init":
        if isinstance(encoder, FusionEncoder):
            return OfEncoder(encoder)
        raise InputError(
            f"--model.vision init: {source.path} has no vision tower; name one "
            "(--model.vision vgg16.tv_in1k), or --model.vision none"
        )
    if not trained:
        return SeenBefore(tower)
    return TimmTrained(tower, random_weights=drawn_at_random(source, tower.random_weights))
