"""A CLIP or SigLIP -> an aligned start: both towers and both projections as they are."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from timm.models import create_model
from torch import Tensor

from pretrain.checkpoint import hub, towers
from pretrain.checkpoint.authors import Imported
from pretrain.checkpoint.backbones import Backbone, backbone_architecture
from pretrain.checkpoint.convert_config import ConvertConfig
from pretrain.checkpoint.initial import aligned_bridge
from pretrain.checkpoint.open_clip import is_open_clip, read_open_clip
from pretrain.checkpoint.remote import resolve
from pretrain.checkpoint.strict import Colours, colours_of, read_config, read_transformers
from pretrain.model.config import FusionEncoderConfig
from pretrain.model.library import LibraryText, possible
from shards.files import InputError

_ARCHITECTURES: dict[tuple[str, str, float], tuple[str, dict[str, Any]]] = {
    ("clip", "quick_gelu", 1e-5): ("vit_base_patch32_clip_quickgelu_224", {}),
    ("clip", "gelu", 1e-5): ("vit_base_patch32_clip_224", {}),
    ("siglip", "gelu", 1e-6): ("vit_base_patch16_siglip_224", {}),
    ("siglip", "gelu_pytorch_tanh", 1e-6): (
        "vit_base_patch16_siglip_224", {"act_layer": "gelu_tanh"}
    ),
}  # fmt: skip
"""Family, activation, LayerNorm epsilon -> the model of timm that has them, of whatever sizes."""
_LAYER = {
    "layer_norm1": "norm1", "layer_norm2": "norm2", "self_attn.out_proj": "attn.proj",
    "mlp.fc1": "mlp.fc1", "mlp.fc2": "mlp.fc2",
}  # fmt: skip
"""Names inside a layer, there and in timm."""
_POOL = {
    "attention.out_proj": "proj", "layernorm": "norm", "mlp.fc1": "mlp.fc1", "mlp.fc2": "mlp.fc2",
}  # fmt: skip
"""Names inside SigLIP's attention pooling, likewise."""


def read_two_towers(source: Path, config: ConvertConfig) -> tuple[Imported, Any]:
    """A fusion encoder whose similarities are the CLIP's; fusion layers are new, the bridge is
    `aligned_bridge`.

    Raises:
        InputError: no CLIP or SigLIP, a vision tower that no ViT of timm computes, or a tokenizer
            of another model.
    """
    directory = resolve(config.source)
    clip, colours = _read_clip(directory, config.source)
    text, tokenizer = LibraryText(clip.text_model), hub.load_tokenizer(directory)
    if len(tokenizer) > (rows := text.get_input_embeddings().num_embeddings):
        raise InputError(
            f"{config.source}: {len(tokenizer)} word pieces, its model has rows for {rows}"
        )
    *_, end = pieces = tokenizer("a")["input_ids"]
    if is_open_clip(directory) and end < max(pieces):
        raise InputError(
            f"{config.source}: a text ends with {tokenizer.convert_ids_to_tokens(end)}, which is "
            "not the piece of the highest number, where open_clip reads a text; give the tokenizer "
            "of this model"
        )
    notes = [f"its temperature: --loss.temperature_init {math.exp(-clip.logit_scale.item()):.4g}"]
    if is_siglip := clip.config.model_type == "siglip":
        hub.as_siglip(text, tokenizer)
        notes.append("left: its logit_bias, which is nothing to a softmax over candidates")
        notes.append("texts in lower case, as it was trained, whatever its tokenizer does")
    projections = _projections(clip, is_siglip)
    vision = _backbone(clip, colours, config.source)
    imported = towers.from_towers(
        text, vision, fusion_layers=config.fusion_layers, seed=config.seed,
        projection_size=len(projections["text_proj.bias"]),
    )  # fmt: skip
    state = imported.state | projections
    said = f"text, vision and both projections of {config.source}, which the bridge begins with"
    said += "; drawn at random: fusion" * (config.fusion_layers != 0)
    described = FusionEncoderConfig.from_dict(imported.config)
    described = replace(described, bridge="aligned")
    return Imported(described.to_dict(), state | aligned_bridge(state), [said, *notes]), tokenizer


def _read_clip(directory: Path, name: str) -> tuple[Any, Colours]:
    """A `CLIPModel` or `SiglipModel`, and what its pictures are normalised by."""
    if is_open_clip(directory):
        return read_open_clip(directory)
    from transformers import CLIPModel, PreTrainedModel, SiglipModel  # two seconds to import

    kind = read_config(directory).get("model_type")
    if kind == "siglip2":
        raise InputError(
            f"{name}: a NaFlex SigLIP 2 (pictures of any shape); take one of a fixed resolution, "
            "such as google/siglip2-base-patch16-224"
        )
    if kind not in ("clip", "siglip"):
        raise InputError(
            f"{name}: --from two-tower reads a CLIP or SigLIP of transformers, not model_type "
            f"{kind!r}; towers of other families: `convert TEXT OUT --vision VISION`"
        )
    classes: dict[str, type[PreTrainedModel]] = {"clip": CLIPModel, "siglip": SiglipModel}
    return read_transformers(classes[kind], directory).eval(), colours_of(directory, kind)


def _projections(clip: Any, is_siglip: bool) -> dict[str, Tensor]:
    """Weights and biases of both. SigLIP's picture has none: its pooled state is the feature."""
    if is_siglip:
        head, width = clip.text_model.head, clip.config.vision_config.hidden_size
        pairs = {"text": (head.weight, head.bias), "vision": (torch.eye(width), torch.zeros(width))}
    else:
        weights = {"text": clip.text_projection.weight, "vision": clip.visual_projection.weight}
        pairs = {side: (weight, torch.zeros(len(weight))) for side, weight in weights.items()}
    return {
        f"{side}_proj.{end}": tensor.detach().clone()
        for side, pair in pairs.items()
        for end, tensor in zip(("weight", "bias"), pair, strict=True)
    }


def _backbone(clip: Any, colours: Colours, name: str) -> Backbone:
    """The vision tower as a model of timm."""
    sizes, family = clip.config.vision_config, clip.config.model_type
    key = (family, sizes.hidden_act, sizes.layer_norm_eps)
    if key not in _ARCHITECTURES or not getattr(clip.vision_model, "use_head", True):
        raise InputError(
            f"{name}: {family} vision tower with {sizes.hidden_act} and layer_norm_eps "
            f"{sizes.layer_norm_eps}; timm's have "
            + ", ".join(f"{act} and {eps}" for kind, act, eps in _ARCHITECTURES if kind == family)
            + ", and SigLIP's a pooling head (vision_use_head)" * (family == "siglip")
        )
    architecture, arguments = _ARCHITECTURES[key]
    ratio = sizes.intermediate_size / sizes.hidden_size
    if int(ratio * sizes.hidden_size) != sizes.intermediate_size:  # as timm rounds it
        ratio = math.nextafter(ratio, math.inf)
    tower = {
        "patch_size": sizes.patch_size,
        "embed_dim": sizes.hidden_size,
        "depth": sizes.num_hidden_layers,
        "num_heads": sizes.num_attention_heads,
        "mlp_ratio": ratio,
    }
    state = _in_timms_names(clip.vision_model.state_dict(), sizes.num_hidden_layers)
    with possible(f"{name}: vision_config"):
        net: Any = create_model(
            architecture, num_classes=0, img_size=sizes.image_size, **tower, **arguments
        ).eval()
        net.load_state_dict(state)
        # The colours that it was trained with, which need not be those of timm's namesake.
        net.pretrained_cfg = {
            "architecture": architecture,
            "input_size": (3, sizes.image_size, sizes.image_size),
            "mean": colours[0],
            "std": colours[1],
        }
        return Backbone(net, backbone_architecture(net, tower | arguments, True, None))


def _in_timms_names(state: dict[str, Tensor], layers: int) -> dict[str, Tensor]:
    named = {
        "patch_embed.proj.weight": state["embeddings.patch_embedding.weight"],
        "pos_embed": state["embeddings.position_embedding.weight"][None],
    }
    is_siglip = "head.probe" in state
    if is_siglip:
        named["patch_embed.proj.bias"] = state["embeddings.patch_embedding.bias"]
        named["attn_pool.latent"] = state["head.probe"]
    else:
        named["cls_token"] = state["embeddings.class_embedding"][None, None]
    for end in ("weight", "bias"):
        named[f"norm.{end}"] = state[f"post_layernorm.{end}"]
        if is_siglip:
            query, *others = state[f"head.attention.in_proj_{end}"].chunk(3)
            named |= {f"attn_pool.q.{end}": query, f"attn_pool.kv.{end}": torch.cat(others)}
            for name, ours in _POOL.items():
                named[f"attn_pool.{ours}.{end}"] = state[f"head.{name}.{end}"]
        else:
            named[f"norm_pre.{end}"] = state[f"pre_layrnorm.{end}"]
        for i in range(layers):
            theirs = f"encoder.layers.{i}"
            for name, ours in _LAYER.items():
                named[f"blocks.{i}.{ours}.{end}"] = state[f"{theirs}.{name}.{end}"]
            thirds = [state[f"{theirs}.self_attn.{letter}_proj.{end}"] for letter in "qkv"]
            named[f"blocks.{i}.attn.qkv.{end}"] = torch.cat(thirds)
    return named
