"""open_clip's own files -> the CLIP of `transformers` that computes the same.

open_clip_config.json       `model_cfg` (sizes, activation), `preprocess_cfg` (mean, std)
open_clip_model.safetensors or open_clip_pytorch_model.bin
"""

import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pretrain.checkpoint.strict import (
    Colours,
    check_fits,
    check_values,
    colours_of,
    member,
)
from pretrain.checkpoint.text import read_part
from pretrain.model.library import possible
from shards.files import InputError
from shards.json_files import read_json

OPEN_CLIP_CONFIG = "open_clip_config.json"
_WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
_SIZES = {
    "model_cfg": {
        "embed_dim", "quick_gelu", "custom_text", "vision_cfg", "text_cfg", "init_logit_scale",
    },
    "vision_cfg": {
        "image_size", "layers", "width", "head_width", "patch_size", "mlp_ratio", "patch_dropout",
    },
    "text_cfg": {
        "context_length", "vocab_size", "width", "heads", "layers", "mlp_ratio",
        "hf_tokenizer_name",
    },
}  # fmt: skip
"""Settings that are used, or that only training or a tokenizer of its own reads."""
_PLAIN = (None, False, "tok", "argmax", "linear", "learnable")
"""Values by which any other setting asks for a CLIP as OpenAI made it."""
_NAMES = (
    (r"^(?!visual\.|text\.|logit_scale)", "text."),  # the older layout: the text at the top
    (r"\.transformer\.resblocks\.", ".encoder.layers."),
    (r"\.ln_(\d)\.", r".layer_norm\1."),
    (r"\.mlp\.c_fc\.", ".mlp.fc1."),
    (r"\.mlp\.c_proj\.", ".mlp.fc2."),
    (r"\.attn\.", ".self_attn."),
    (r"\.ln_pre\.", ".pre_layrnorm."),
    (r"\.ln_post\.", ".post_layernorm."),
    (r"\.ln_final\.", ".final_layer_norm."),
    (r"\.conv1\.", ".embeddings.patch_embedding."),
    (r"\.class_embedding$", ".embeddings.class_embedding"),
    (r"\.token_embedding\.", ".embeddings.token_embedding."),
    (r"\.positional_embedding$", ".embeddings.position_embedding.weight"),
    (r"^visual\.proj$", "visual_projection.weight"),
    (r"^text\.text_projection$", "text_projection.weight"),
    (r"^visual\.", "vision_model."),
    (r"^text\.", "text_model."),
)
"""Patterns in open_clip's names -> what `transformers` says there."""


def is_open_clip(directory: Path) -> bool:
    """Whether a directory holds open_clip's files alone, or beside no weights of `transformers`."""
    others = (*directory.glob("model*.safetensors"), *directory.glob("pytorch_model*.bin"))
    return (directory / OPEN_CLIP_CONFIG).is_file() and not others


def read_open_clip(directory: Path) -> tuple[Any, Colours]:
    """A `CLIPModel`, and what its pictures are normalised by.

    Raises:
        InputError: towers that are not OpenAI's transformers, damaged files, or tensors that are
            missing, foreign, misshapen, not finite.
    """
    from transformers import CLIPConfig, CLIPModel  # two seconds to import

    path = member(directory, OPEN_CLIP_CONFIG)
    content = read_json(path)
    sizes = content.get("model_cfg")
    if not isinstance(sizes, dict):
        raise InputError(f"{path}: damaged: no `model_cfg`")
    vision, text = (_checked(sizes, name, path) for name in ("vision_cfg", "text_cfg"))
    _checked(content, "model_cfg", path)
    act = "quick_gelu" if sizes.get("quick_gelu") else "gelu"
    with possible(str(path)):
        config = CLIPConfig(
            projection_dim=sizes["embed_dim"],
            vision_config=_layers(vision, 768, act) | {
                "num_attention_heads": vision.get("width", 768) // vision.get("head_width", 64),
                "image_size": vision.get("image_size", 224),
                "patch_size": vision.get("patch_size", 16),
            },
            text_config=_layers(text, 512, act) | {
                "num_attention_heads": text.get("heads", 8),
                "vocab_size": text.get("vocab_size", 49408),
                "max_position_embeddings": text.get("context_length", 77),
            },
        )  # fmt: skip
        with torch.device("meta"):  # nothing is allocated before the file is known to fill it
            expected = CLIPModel(config).state_dict()
    names = [name for name in _WEIGHTS if (directory / name).is_file()]
    if not names:
        raise InputError(f"{directory}: neither {_WEIGHTS[0]} nor {_WEIGHTS[1]}")
    weights = member(directory, names[0])
    state = _in_transformers_names(read_part(weights))
    check_fits(expected, state, str(weights))
    check_values(state, str(weights))
    clip = CLIPModel(config)
    clip.load_state_dict(state)
    own = content.get("preprocess_cfg") or {}
    mean, std = colours_of(directory)
    return clip.eval(), (list(own.get("mean") or mean), list(own.get("std") or std))


def _checked(content: dict[str, Any], part: str, path: Path) -> dict[str, Any]:
    """The settings of a part. Raises: InputError: a setting of another kind of tower."""
    settings = content.get(part)
    if not isinstance(settings, dict):
        raise InputError(f"{path}: damaged: no `{part}`")
    for key, value in settings.items():
        if key not in _SIZES[part] and value not in _PLAIN:
            raise InputError(
                f"{path}: `{part}.{key}` is {str(value)[:60]!r}: only ViT and text towers as "
                "OpenAI's CLIP has them are read; such a model's vision tower is read by "
                "`convert TEXT OUT --vision VISION` where timm has it"
            )
    return settings


def _layers(settings: dict[str, Any], width: int, act: str) -> dict[str, Any]:
    width = settings.get("width", width)
    return {
        "hidden_size": width,
        "num_hidden_layers": settings.get("layers", 12),
        "intermediate_size": int(width * settings.get("mlp_ratio", 4.0)),
        "hidden_act": act,
    }


def _in_transformers_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    named: dict[str, Tensor] = {}
    for name, tensor in state.items():
        for pattern, theirs in _NAMES:
            name = re.sub(pattern, theirs, name)
        if name.endswith("_projection.weight"):
            named[name] = tensor.T
        elif match := re.search(r"in_proj_(weight|bias)$", name):
            for letter, third in zip("qkv", tensor.chunk(3), strict=True):
                named[f"{name[: match.start()]}{letter}_proj.{match[1]}"] = third
        else:
            named[name] = tensor.reshape(()) if name == "logit_scale" else tensor
    return named
