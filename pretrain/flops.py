"""Floating-point operations of a training step, for the achieved share of a device's peak (MFU).

Counted: matrix products alone, two operations a multiply-add, forward and twice as much backward;
recomputed activations, GradCache's first pass, norms and softmax do not count.
"""

import torch

from pretrain.model.config import FusionEncoderConfig
from pretrain.model.promu import HeadsConfig

# Dense bfloat16 tensor-core peaks from the makers' data sheets, operations a second.
_PEAKS = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "3090": 71e12, "4090": 165e12}


def transformer_flops(width: int, hidden: int, layers: int, length: int) -> float:
    """One forward pass of `layers` layers over `length` positions: projections 4·D², feed-forward
    2·D·H, attention 2·N·D multiply-adds a position."""
    return 2.0 * layers * length * (4 * width**2 + 2 * width * hidden + 2 * length * width)


def forward_flops(
    config: FusionEncoderConfig, heads: HeadsConfig, length: int, patches: int | None = None
) -> float:
    """One forward pass of one pair with `length` word pieces, padding included, and as many
    `patches`; None: all."""
    embedded = config.grid**2
    patches = patches or embedded
    wide = config.vision_hidden_size
    vision = 2.0 * embedded * 3 * config.patch_size**2 * wide
    vision += transformer_flops(wide, 4 * wide, config.vision_layers, patches + 1)
    bert = (config.hidden_size, config.intermediate_size)
    text = transformer_flops(*bert, config.text_layers, length)
    fusion = transformer_flops(*bert, config.fusion_layers, length + patches + 1)
    if wide != config.hidden_size and config.fusion_layers:
        fusion += 2.0 * (patches + 1) * wide * config.hidden_size
    total = vision + text + fusion + 2.0 * config.projection_size * (wide + config.hidden_size)
    for classes in (heads.num_entities, heads.num_relations):
        hidden = config.hidden_size * heads.hidden_mult
        total += 2.0 * hidden * (config.hidden_size + classes) if classes else 0.0
    return total


def peak_flops(device: torch.device) -> float | None:
    """Operations a second of this device in bfloat16, where it is a known one."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for key, peak in _PEAKS.items() if key in name), None)
