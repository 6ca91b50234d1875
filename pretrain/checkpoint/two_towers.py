"""A CLIP of `transformers` -> an aligned start: both towers and both projections as they are."""

import math
from pathlib import Path
from typing import Any

import torch
from timm.models import create_model
from torch import Tensor

from pretrain.checkpoint import hub, towers
from pretrain.checkpoint.authors import Imported
from pretrain.checkpoint.backbones import Backbone, backbone_architecture
from pretrain.checkpoint.convert_config import ConvertConfig
from pretrain.checkpoint.remote import resolve
from pretrain.checkpoint.strict import clip_colours, read_config, read_transformers
from pretrain.checkpoint.text import read_text
from pretrain.model.library import LibraryText
from shards.files import InputError

_ARCHITECTURES = {
    "quick_gelu": "vit_base_patch32_clip_quickgelu_224",
    "gelu": "vit_base_patch32_clip_224",
}
"""Activation -> the model of timm that has it, of whatever sizes."""
_LAYER = {
    "layer_norm1": "norm1", "layer_norm2": "norm2", "self_attn.out_proj": "attn.proj",
    "mlp.fc1": "mlp.fc1", "mlp.fc2": "mlp.fc2",
}  # fmt: skip
"""Names inside a layer, there and in timm."""


def read_two_towers(source: Path, config: ConvertConfig) -> tuple[Imported, Any]:
    """A fusion encoder whose similarities are the CLIP's; fusion layers and bridge are new.

    Raises:
        InputError: no CLIP of `transformers`, or a vision tower that no CLIP ViT of timm computes.
    """
    from transformers import CLIPModel  # its modelling code takes two seconds to import

    directory = resolve(config.source)
    if (kind := read_config(directory).get("model_type")) != "clip":
        raise InputError(
            f"{config.source}: --from two-tower reads a CLIP of transformers, not model_type "
            f"{kind!r}; towers of other families: `convert TEXT OUT --vision VISION`"
        )
    clip = read_transformers(CLIPModel, directory).eval()
    text = read_text(directory).eval()
    assert isinstance(text, LibraryText)
    vision = _backbone(clip, directory)
    imported = towers.from_towers(
        text, vision, fusion_layers=config.fusion_layers, seed=config.seed,
        projection_size=clip.config.projection_dim,
    )  # fmt: skip
    state = dict(imported.state)
    for ours, theirs in (("text", clip.text_projection), ("vision", clip.visual_projection)):
        state[f"{ours}_proj.weight"] = theirs.weight.detach().clone()
        state[f"{ours}_proj.bias"] = torch.zeros(theirs.out_features)
    temperature = math.exp(-clip.logit_scale.item())
    fresh = [f"{name}." for name in ("fusion", "bridge") if any(k.startswith(name) for k in state)]
    notes = [
        f"text, vision and both projections of {config.source}; drawn at random: "
        f"{', '.join(name.rstrip('.') for name in fresh)}",
        f"its temperature: --loss.temperature_init {temperature:.4g}",
    ]
    return Imported(imported.config, state, notes), hub.load_tokenizer(directory)


def _backbone(clip: Any, directory: Path) -> Backbone:
    """The vision tower as a model of timm."""
    sizes = clip.config.vision_config
    if sizes.hidden_act not in _ARCHITECTURES or sizes.layer_norm_eps != 1e-5:
        raise InputError(
            f"{directory}: vision tower with {sizes.hidden_act} and layer_norm_eps "
            f"{sizes.layer_norm_eps}; timm's CLIP ViTs have quick_gelu or gelu and 1e-05"
        )
    arguments = {
        "patch_size": sizes.patch_size,
        "embed_dim": sizes.hidden_size,
        "depth": sizes.num_hidden_layers,
        "num_heads": sizes.num_attention_heads,
        "mlp_ratio": sizes.intermediate_size / sizes.hidden_size,
    }
    architecture = _ARCHITECTURES[sizes.hidden_act]
    net: Any = create_model(
        architecture, num_classes=0, img_size=sizes.image_size, **arguments
    ).eval()
    net.load_state_dict(_in_timms_names(clip.vision_model.state_dict(), arguments["depth"]))
    # The colours that the CLIP was trained with, which need not be those of timm's namesake.
    mean, std = clip_colours(directory)
    net.pretrained_cfg = {
        "architecture": architecture,
        "input_size": (3, sizes.image_size, sizes.image_size),
        "mean": mean,
        "std": std,
    }
    return Backbone(net, backbone_architecture(net, arguments, True, None))


def _in_timms_names(state: dict[str, Tensor], layers: int) -> dict[str, Tensor]:
    named = {
        "cls_token": state["embeddings.class_embedding"][None, None],
        "patch_embed.proj.weight": state["embeddings.patch_embedding.weight"],
        "pos_embed": state["embeddings.position_embedding.weight"][None],
    }
    for end in ("weight", "bias"):
        named[f"norm_pre.{end}"] = state[f"pre_layrnorm.{end}"]
        named[f"norm.{end}"] = state[f"post_layernorm.{end}"]
        for i in range(layers):
            theirs = f"encoder.layers.{i}"
            for name, ours in _LAYER.items():
                named[f"blocks.{i}.{ours}.{end}"] = state[f"{theirs}.{name}.{end}"]
            thirds = [state[f"{theirs}.self_attn.{letter}_proj.{end}"] for letter in "qkv"]
            named[f"blocks.{i}.attn.qkv.{end}"] = torch.cat(thirds)
    return named
