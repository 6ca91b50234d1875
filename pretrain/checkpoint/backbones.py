"""A picture backbone of timm, read with its weights, and written as timm reads it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from timm.models import create_model
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from pretrain.checkpoint.authors import Imported
from pretrain.checkpoint.strict import CONFIG_NAME, WEIGHTS_NAME, read_config
from pretrain.model.config import MODEL_TYPE, FusionEncoderConfig
from pretrain.model.library import LibraryVision, grid_of
from pretrain.model.vit import PlainViT
from shards.files import InputError
from shards.json_files import write_json

_BESIDE = ("vision_norm_eps", "vision_pool")
"""Settings of ours that timm's directories have no place for."""


@dataclass(frozen=True)
class Backbone:
    """A picture backbone of timm, with its weights."""

    net: Any
    config: dict[str, Any]
    """The fields of `FusionEncoderConfig` that it decides."""

    @property
    def is_plain(self) -> bool:
        """Our own ViT computes it (`pretrain.model.vit`)."""
        return not self.config["vision_config"]

    def state(self) -> dict[str, Tensor]:
        """Its tensors under the names of a fusion encoder."""
        if self.is_plain:
            state = self.net.state_dict()
            return {f"vision.{k}": v for k, v in state.items() if not k.startswith("head.")}
        return {f"vision.{k}": v for k, v in LibraryVision(self.net).state_dict().items()}


def read_backbone(source: str, image_size: int | None = None) -> Backbone:
    """A model of timm with its weights, in eval mode.

    Args:
        source: its name (weights from hub or cache), a hub id, or a directory in timm's layout,
            also written `local-dir:DIR`.
        image_size: pixels a side, where another than its own is wanted; timm resizes positions.
    """
    folder = source.removeprefix("local-dir:")
    is_folder = Path(folder).is_dir()
    name = f"local-dir:{folder}" if is_folder else source
    described = read_config(Path(folder)) if is_folder else {}
    arguments, ours = described.get("model_args") or {}, _ours(described, folder)
    net = _created(source, name)
    if type(net) is VisionTransformer and _has_our_tensors(net):
        # timm has no setting for it: `write_timm` has put ours beside.
        for norm in net.modules() if "vision_norm_eps" in ours else ():
            if isinstance(norm, nn.LayerNorm):
                norm.eps = ours["vision_norm_eps"]
        return Backbone(net, vit_architecture(net) | ours | {"vision_config": {}})
    embed: Any = getattr(net, "patch_embed", None)
    sized = getattr(embed, "img_size", None) is not None and hasattr(net, "set_input_size")
    if image_size and sized and image_size != embed.img_size[0]:
        if image_size % (patch := embed.patch_size[0]):
            raise InputError(f"--image-size {image_size} is no multiple of the patch size {patch}")
        net = _created(source, name, img_size=image_size)
    try:
        return Backbone(net, backbone_architecture(net, arguments, sized, image_size) | ours)
    except (ValueError, TypeError, AttributeError, RuntimeError, AssertionError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise InputError(f"--vision {source}: {type(net).__name__}: {reason}") from error


def _ours(described: dict[str, Any], folder: str) -> dict[str, Any]:
    """What `write_timm` says beside timm's own settings.

    Raises:
        InputError: changed to something that cannot be.
    """
    ours = described.get(MODEL_TYPE, {})
    try:
        if not isinstance(ours, dict) or ours.keys() - set(_BESIDE):
            raise ValueError(f"{MODEL_TYPE} cannot be {ours!r}")
        FusionEncoderConfig.from_dict({"model_type": MODEL_TYPE, **ours})
    except ValueError as error:
        raise InputError(f"{folder}/{CONFIG_NAME}: {error}") from None
    return ours


def _created(source: str, name: str, **options: Any) -> Any:
    try:
        return create_model(name, pretrained=True, num_classes=0, **options).eval()
    except Exception as error:  # timm passes on whatever hub, file and registry raise
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"--vision {source}: timm cannot load it ({reason})") from error


def _has_our_tensors(net: VisionTransformer) -> bool:
    """Class token, learned positions, biases and exact GELU, nothing more: our ViT."""
    sizes = vit_architecture(net)
    with torch.device("meta"):
        ours = PlainViT(
            *(sizes[name] for name in ("image_size", "patch_size", "vision_hidden_size",
              "vision_layers", "vision_heads", "vision_norm_eps"))
        )  # fmt: skip
    shapes = {name: tensor.shape for name, tensor in ours.state_dict().items()}
    theirs = {k: v.shape for k, v in net.state_dict().items() if not k.startswith("head.")}
    block: Any = net.blocks[0]
    act = block.mlp.act
    exact = isinstance(act, nn.GELU) and act.approximate == "none"
    return exact and shapes == theirs and not isinstance(net.norm, nn.Identity)


def backbone_architecture(
    net: Any, arguments: dict[str, Any], sized: bool, image_size: int | None
) -> dict[str, Any]:
    """The fields of `FusionEncoderConfig` that any other backbone decides."""
    preset: Any = net.pretrained_cfg
    side = net.patch_embed.img_size[0] if sized else image_size or preset["input_size"][-1]
    vision = LibraryVision(net)
    _, patch = grid_of(vision, side)
    blocks = getattr(net, "blocks", None) or getattr(net, "stages", None) or [None]
    described = {
        "architecture": preset["architecture"],
        "model_args": {key: arguments[key] for key in arguments if key != "img_size"},
        "sized": sized,
    }
    return {
        "image_size": side,
        "patch_size": patch,
        "vision_hidden_size": vision.width,
        "vision_layers": len(blocks),  # by which learning rates fall; 1 where nobody can tell
        "vision_heads": getattr(getattr(blocks[0], "attn", None), "num_heads", 1),
        "image_mean": tuple(preset["mean"]),
        "image_std": tuple(preset["std"]),
        "vision_config": described,
    }


def vit_architecture(vit: VisionTransformer) -> dict[str, Any]:
    """The fields of `FusionEncoderConfig` that a timm ViT decides."""
    height, width = vit.patch_embed.img_size
    if height != width:
        raise InputError(
            f"a ViT for pictures of {height}x{width} pixels; only squares are supported"
        )
    block: Any = vit.blocks[0]  # timm declares no attributes of its modules
    preset: Any = vit.pretrained_cfg
    return {
        "image_size": height,
        "patch_size": vit.patch_embed.patch_size[0],
        "vision_hidden_size": vit.embed_dim,
        "vision_layers": len(vit.blocks),
        "vision_heads": block.attn.num_heads,
        "vision_norm_eps": getattr(vit.norm, "eps", 1e-6),
        "image_mean": tuple(preset["mean"]),
        "image_std": tuple(preset["std"]),
    }


def write_timm(folder: Path, imported: Imported) -> None:
    """The picture tower as `timm.create_model("local-dir:…", pretrained=True)` reads it.

    timm has no place for the LayerNorm epsilon (its 1e-6 is used there) and for what the projection
    reads: they stand beside, for `read_backbone`.
    """
    config = imported.config
    size = config["image_size"]
    described = config.get("vision_config")
    content: dict[str, Any] = {
        "architecture": "vit_base_patch16_224",  # any plain ViT: `model_args` say its sizes
        "num_classes": 0,
        "model_args": {
            "img_size": size,
            "patch_size": config["patch_size"],
            "embed_dim": config["vision_hidden_size"],
            "depth": config["vision_layers"],
            "num_heads": config["vision_heads"],
        },
        "pretrained_cfg": {
            "input_size": [3, size, size],
            "mean": list(config["image_mean"]),
            "std": list(config["image_std"]),
            "num_classes": 0,
            "first_conv": "patch_embed.proj",
            "classifier": "head",
        },
        MODEL_TYPE: {name: config[name] for name in _BESIDE if name in config},
    }
    if described:
        sized = {"img_size": size} if described["sized"] else {}
        content["architecture"] = described["architecture"]
        content["model_args"] = described["model_args"] | sized
        for key in ("first_conv", "classifier"):  # a ViT's names; timm knows those of the others
            del content["pretrained_cfg"][key]
    write_json(folder / CONFIG_NAME, content)
    state = {
        name.removeprefix("vision.").removeprefix("net."): tensor.contiguous()
        for name, tensor in imported.state.items()
        if name.startswith("vision.")
    }
    save_file(state, folder / WEIGHTS_NAME, metadata={"format": "pt"})
