"""A text tower and a picture tower as one encoder, for methods that read both side by side.

Either both are those of a fusion model directory, or the picture tower is named: a timm ViT, or the
vision side of a `transformers` CLIP. In the second case a finished run holds, beside the BERT that
any other run can start from, `vision.json` and `vision.safetensors`.

N: pictures, B: rows, L: word pieces, K: patches, D: width of the text, V: of the picture tower.
"""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from finetune.methods.base import Source
from finetune.methods.layers import load_any_text_encoder, load_fusion_encoder, tell
from finetune.tasks.base import TaskInfo
from pretrain.checkpoint.remote import resolve
from pretrain.checkpoint.strict import colours_of, load_strictly, read_config, read_transformers
from pretrain.model.bert import Bert
from pretrain.model.config import MODEL_TYPE
from pretrain.model.fusion_encoder import FusionEncoder
from pretrain.model.library import LibraryText
from shards.files import InputError
from shards.json_files import write_json

DESCRIPTION, WEIGHTS = "vision.json", "vision.safetensors"


class PictureTower(nn.Module):
    """A ViT with its normalisation: uint8 pictures in, states after its last norm out."""

    net: Any
    pixel_statistics: Tensor

    def __init__(self, net: nn.Module, description: dict[str, Any]) -> None:
        super().__init__()
        self.net, self.description = net, description
        statistics = torch.tensor([description["mean"], description["std"]]) * 255
        self.register_buffer("pixel_statistics", statistics.view(2, 3, 1, 1), persistent=False)

    @property
    def width(self) -> int:
        """V"""
        return self.net.embed_dim if self.is_timm else self.net.config.hidden_size

    @property
    def is_timm(self) -> bool:
        """Else it is of `transformers`."""
        return self.description["library"] == "timm"

    def forward(self, pixels: Tensor) -> Tensor:
        """(N, 3, S, S) uint8 -> (N, 1+K, V), class token first."""
        mean, std = self.pixel_statistics
        pixels = (pixels.to(mean.dtype) - mean) / std
        if self.is_timm:
            states = self.net.forward_features(pixels)
            patches = states[:, self.net.num_prefix_tokens :]  # registers are left out
            return torch.cat([states[:, :1], patches], dim=1)
        # `transformers` norms the class token alone, and only for its pooled output.
        return self.net.post_layernorm(self.net(pixels).last_hidden_state)


class TwoTowers(nn.Module):
    """A BERT and a picture tower of different origin; none where captions stand for pictures."""

    def __init__(self, text: Bert | LibraryText, vision: PictureTower | None) -> None:
        super().__init__()
        self.text, self.vision = text, vision

    @property
    def config(self) -> SimpleNamespace:
        """The sizes that inputs depend on."""
        return SimpleNamespace(
            hidden_size=self.text.config.hidden_size,
            max_position_embeddings=self.text.longest_text,
            image_size=self.vision.description["image_size"] if self.vision else None,
        )

    def save_pretrained(self, directory: Path) -> None:
        """The BERT as a model directory, and the two files of the picture tower in it."""
        self.text.save_pretrained(directory)
        if self.vision is None:
            return
        write_json(directory / DESCRIPTION, self.vision.description)
        state = {k: v.detach().cpu().contiguous() for k, v in self.vision.state_dict().items()}
        save_file(state, directory / WEIGHTS, metadata={"format": "pt"})


Towers = FusionEncoder | TwoTowers


def load_towers(source: Source, task: TaskInfo, vision: str) -> tuple[Towers, Any]:
    """The two towers, with word rows for the task's special tokens, and the tokenizer.

    Args:
        vision: "init": that of `source`, a fusion model directory or a run of two towers; "none":
            no tower; else what `named_tower` takes, beside the text tower of `source`.

    Raises:
        InputError: `source` has no picture tower, or the named one cannot be loaded.
    """
    directory = source.directory
    described = read_description(directory.path)
    if vision == "init" and directory.kind == MODEL_TYPE:
        return load_fusion_encoder(source, task)
    text, tokenizer = load_any_text_encoder(source, task)
    if vision == "none":
        return TwoTowers(text, None), tokenizer
    if described is not None and (source.finished or vision in ("init", described["source"])):
        tower = stored_tower(directory.path, described, source.random_weights)
        vision = described["source"]
    elif vision == "init":
        raise InputError(
            f"{source.path}: has no picture tower; name one with --model.vision, for example "
            "vit_base_patch32_clip_quickgelu_224.openai"
        )
    else:
        tower = named_tower(vision, source.random_weights)
    tell(source, f"beside it: picture tower {vision}")
    return TwoTowers(text, tower), tokenizer


def text_states(encoder: Towers, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
    """(B, L) -> (B, L, D): all BERT layers, in a fusion encoder those of the fusion too."""
    if isinstance(encoder, TwoTowers):
        return encoder.text(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
    states = encoder.encode_text(input_ids, attention_mask)
    if encoder.config.fusion_layers and encoder.config.encoder_layout == "split":
        states = encoder.fuse(states, attention_mask, None)
    return states


def picture_states(encoder: Towers, pixels: Tensor) -> Tensor:
    """(N, 3, S, S) uint8 -> (N, 1+K, `picture_width`), class token first."""
    if isinstance(encoder, TwoTowers):
        assert encoder.vision is not None  # else no picture is asked for
        return encoder.vision(pixels)
    return encoder.bridge(encoder.encode_image(pixels))


def picture_width(encoder: Towers) -> int:
    """Width of `picture_states`; of the text's where captions stand for pictures."""
    if isinstance(encoder, TwoTowers) and encoder.vision is not None:
        return encoder.vision.width
    return encoder.config.hidden_size


def named_tower(name: str, random_weights: bool = False) -> PictureTower:
    """A timm name, or hub id or directory of timm's or of a CLIP of `transformers`.

    Raises:
        InputError: not to be had, or no ViT with a class token.
    """
    is_folder, is_id = Path(name).is_dir(), "/" in name and not name.startswith("timm/")
    if is_folder or is_id:
        directory = resolve(name)
        content = read_config(directory)
        if content.get("model_type") in ("clip", "clip_vision_model"):
            return _clip_tower(name, directory, random_weights)
        if "architecture" not in content:
            raise InputError(f"--model.vision {name}: neither timm's nor a CLIP of transformers")
        arguments = content.get("model_args", {})
        return _timm_tower(name, f"local-dir:{directory}", arguments, random_weights)
    return _timm_tower(name, f"hf-hub:{name}" if "/" in name else name, {}, random_weights)


def read_description(directory: Path) -> dict[str, Any] | None:
    """`vision.json` of a finished run of two towers; None: it is something else."""
    path = directory / DESCRIPTION
    try:
        described = dict(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError) as error:
        raise InputError(f"{path}: damaged ({error})") from None
    needed = {"source", "library", "image_size", "mean", "std"}
    if missing := needed - described.keys():
        raise InputError(f"{path}: damaged (no {', '.join(sorted(missing))})")
    return described


def stored_tower(directory: Path, described: dict[str, Any], random_weights: bool) -> PictureTower:
    """The picture tower of a finished run."""
    path = directory / WEIGHTS
    try:
        if described["library"] == "timm":
            from timm.models import create_model  # takes two seconds to import, as the next

            name, arguments = described["architecture"], described["model_args"]
            net = create_model(name, pretrained=False, num_classes=0, **arguments)
        else:
            from transformers import CLIPVisionConfig, CLIPVisionModel

            net = CLIPVisionModel(CLIPVisionConfig(**described["config"]))
        tower = PictureTower(net, described)
        if not random_weights:
            load_strictly(tower, load_file(path), str(path))
    except (KeyError, TypeError, RuntimeError, FileNotFoundError, SafetensorError) as error:
        reason = str(error).partition("\n")[0]
        raise InputError(f"{directory}: its picture tower cannot be loaded ({reason})") from None
    return tower


def _timm_tower(
    source: str, name: str, arguments: dict[str, Any], random_weights: bool
) -> PictureTower:
    from timm.models.vision_transformer import VisionTransformer

    from finetune.methods.towers import timm_model

    net = timm_model.create(
        source, random_weights=random_weights, name=name, can_be_random=False, num_classes=0
    )
    if not isinstance(net, VisionTransformer) or net.cls_token is None:
        kind = type(net).__name__
        raise InputError(f"--model.vision {source}: a {kind}, not a ViT with a class token")
    settings: Any = net.pretrained_cfg
    grid: Any = net.patch_embed
    return PictureTower(
        net,
        {
            "library": "timm",
            "source": source,
            "architecture": settings["architecture"],
            "model_args": arguments,
            "image_size": grid.img_size[0],
            "mean": list(settings["mean"]),
            "std": list(settings["std"]),
        },
    )


def _clip_tower(source: str, directory: Path, random_weights: bool) -> PictureTower:
    from transformers import CLIPModel, CLIPVisionConfig, CLIPVisionModel

    whole = read_config(directory)["model_type"] == "clip"
    if random_weights:
        net = CLIPVisionModel(CLIPVisionConfig.from_pretrained(directory))
    elif whole:
        net = read_transformers(CLIPModel, directory).vision_model
    else:
        net = read_transformers(CLIPVisionModel, directory)
    mean, std = colours_of(directory)
    return PictureTower(
        net,
        {
            "library": "transformers",
            "source": source,
            "config": net.config.to_diff_dict(),
            "image_size": net.config.image_size,
            "mean": mean,
            "std": std,
        },
    )
