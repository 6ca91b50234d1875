"""The vision tower of a fusion model where a ResNet stood: HVPNeT's, TMR's and CAMIM's pictures.

N: pictures, S: their side, V: width of a ViT, G: patches a side.
"""

from typing import Any, cast

import torch
from torch import Tensor, nn

from finetune.methods.base import Source
from finetune.methods.layers import takes
from finetune.methods.towers.resnet import STAGES, ResNetPyramid, load_resnet
from finetune.methods.towers.timm_model import drawn_at_random
from pretrain.checkpoint.hub import load_fusion
from pretrain.model.config import MODEL_TYPE, FusionEncoderConfig
from pretrain.model.fusion_encoder import vision_tower
from pretrain.model.library import LibraryVision, possible
from pretrain.model.vit import PlainViT
from shards.files import InputError

STORED = "fusion_vision"
"""Key of the text encoder's config.json that holds the tower's settings in a finished run."""


class GridPyramid(ResNetPyramid):
    """Pixels -> the states of four layers, evenly spaced up to the last, as maps; of a net with
    stages their maps."""

    net: PlainViT | LibraryVision

    def __init__(self, net: PlainViT | LibraryVision, config: FusionEncoderConfig) -> None:
        """config: of the fusion encoder that `net` is the vision tower of."""
        nn.Module.__init__(self)
        self.net, self.image_size = net, config.image_size
        for name, values in (("mean", config.image_mean), ("std", config.image_std)):
            self.register_buffer(name, 255 * torch.tensor(values).view(3, 1, 1), persistent=False)
        with torch.no_grad():
            maps = self.eval()(torch.zeros(1, 3, self.image_size, self.image_size))
        self.channels = tuple(stage.shape[1] for stage in maps)
        if min(stage.shape[-1] for stage in maps) < 2:
            raise InputError("--model.vision init: its grid has a single patch; 2 x 2 are needed")

    def forward(self, pixels: Tensor) -> list[Tensor]:
        """Normalised (N, 3, S, S) -> four maps, of a ViT (N, V, G, G)."""
        if isinstance(self.net, PlainViT):
            states = self.net.embed(pixels)
            side = pixels.shape[-1] // self.net.patch_embed.proj.kernel_size[0]
            maps = []
            for block in self.net.blocks:
                states = block(states)
                maps.append(states[:, 1:].transpose(1, 2).unflatten(2, (side, side)))
            return [maps[place] for place in spaced(len(maps))]
        net = cast(Any, self.net.net)
        stages = len(net.feature_info)
        of_vit = hasattr(net, "num_prefix_tokens")
        places = spaced(stages) if of_vit else list(range(stages - len(STAGES), stages))
        different = sorted(set(places))  # timm answers each once
        with possible("--model.vision init"):
            maps = net.forward_intermediates(
                pixels, indices=different, output_fmt="NCHW", intermediates_only=True
            )
        return [maps[different.index(place)] for place in places]


def spaced(layers: int) -> list[int]:
    """Four places among `layers`, evenly spaced up to the last; of fewer layers some twice."""
    return [max(round(layers * stage / len(STAGES)) - 1, 0) for stage in STAGES]


def load_pyramid(config: Any, source: Source, encoder: Any) -> ResNetPyramid:
    """What `config.vision` names: a ResNet of timm, or `init`, the vision tower of a fusion model.

    Args:
        config: with `vision`, `vision_random` and `vision_width`.
        encoder: the text encoder, whose directory will name the tower's settings.

    Raises:
        InputError: `init` without a fusion model, or a ResNet that cannot be had.
    """
    if config.vision != "init":
        at_random = drawn_at_random(source, config.vision_random)
        return load_resnet(config.vision, random_weights=at_random, width=config.vision_width)
    directory = source.directory
    if source.finished and STORED in directory.config:
        sizes = FusionEncoderConfig.from_dict(directory.config[STORED])
        tower = vision_tower(sizes)
    elif directory.kind == MODEL_TYPE:
        at_random = source.random_weights or config.vision_random
        fusion, _ = load_fusion(directory, random_weights=at_random)
        sizes, tower = fusion.config, fusion.vision
        takes(source, "vision, without its pooled state")
    else:
        raise InputError(
            f"--model.vision init: {source.path} is no fusion model directory; name a ResNet"
        )
    setattr(encoder.config, STORED, sizes.to_dict())
    return GridPyramid(tower, sizes)
