"""Where the vision tower's weights come from: CLIP, a fusion ViT, a finished run, or chance."""

import logging
from collections.abc import Sequence
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import BertConfig, CLIPModel, CLIPVisionConfig, CLIPVisionModel
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from finetune.methods.mkgformer.names import CLIP
from finetune.methods.mkgformer.vision import Layout, VisionTower
from pretrain.checkpoint.directory import ModelDirectory
from pretrain.checkpoint.hub import load_fusion
from pretrain.checkpoint.remote import resolve
from pretrain.checkpoint.strict import check_fits, colours_of, read_config, read_transformers
from pretrain.checkpoint.tables import rename
from pretrain.model.config import MODEL_TYPE
from pretrain.model.fusion_encoder import FusionEncoder
from pretrain.model.vit import PlainViT
from shards.files import InputError

LOG = logging.getLogger(__name__)
STORED = "vision_tower"
"""Key of the text tower's config.json that holds the vision tower's sizes in a finished run."""


def drawn(text: BertConfig, patch: int) -> tuple[CLIPVisionConfig, dict[str, Tensor]]:
    """A tower of the text tower's sizes with CLIP's initialisation; pictures of 7 x 7 patches."""
    config = CLIPVisionConfig(
        hidden_size=text.hidden_size,
        num_hidden_layers=text.num_hidden_layers,
        num_attention_heads=text.num_attention_heads,
        intermediate_size=text.intermediate_size,
        patch_size=patch,
        image_size=7 * patch,
        **_ours(True, OPENAI_CLIP_MEAN, OPENAI_CLIP_STD),
    )
    return config, rename(CLIPVisionModel(config).state_dict(), CLIP, "CLIP")


def read_clip(source: str) -> tuple[CLIPVisionConfig, dict[str, Tensor]]:
    """The vision tower of a `transformers` CLIP, by hub id or directory."""
    directory = resolve(source)
    if read_config(directory).get("model_type") == "clip":
        model = read_transformers(CLIPModel, directory).vision_model
    else:
        model = read_transformers(CLIPVisionModel, directory)
    state = {name.removeprefix("vision_model."): t for name, t in model.state_dict().items()}
    config = CLIPVisionConfig(**model.config.to_dict() | _ours(True, *colours_of(directory)))
    return config, rename(state, CLIP, f"CLIP's vision tower ({directory})")


def fusion_vit(encoder: FusionEncoder) -> tuple[CLIPVisionConfig, dict[str, Tensor]]:
    """The ViT of a fusion encoder: CLIP's blocks with exact GELU and without the norm before them.

    Its patch bias goes into the positions; its last norm is left out, like CLIP's.
    """
    theirs = encoder.config
    if not isinstance(encoder.vision, PlainViT):
        name = theirs.vision_config["architecture"]
        raise InputError(f"--model.vision init: {name} is no plain ViT; name a CLIP instead")
    config = CLIPVisionConfig(
        hidden_size=theirs.vision_hidden_size,
        num_hidden_layers=theirs.vision_layers,
        num_attention_heads=theirs.vision_heads,
        intermediate_size=len(encoder.vision.state_dict()["blocks.0.mlp.fc1.bias"]),
        patch_size=theirs.patch_size,
        image_size=theirs.image_size,
        hidden_act="gelu",
        layer_norm_eps=theirs.vision_norm_eps,
        **_ours(False, theirs.image_mean, theirs.image_std),
    )
    vision = encoder.vision.state_dict()
    state = {
        "class_embedding": vision["cls_token"].flatten(),
        "patch_embedding.weight": vision["patch_embed.proj.weight"],
        "position_embedding": vision["pos_embed"][0] + vision["patch_embed.proj.bias"],
    }
    renamed = {"norm1": "layer_norm1", "norm2": "layer_norm2", "attn.proj": "self_attn.out_proj"}
    renamed |= {"mlp.fc1": "mlp.fc1", "mlp.fc2": "mlp.fc2"}
    for i in range(theirs.vision_layers):
        for end in ("weight", "bias"):
            for name, ours in renamed.items():
                state[f"layer.{i}.{ours}.{end}"] = vision[f"blocks.{i}.{name}.{end}"]
            # timm computes queries, keys and values by one matrix, CLIP by three.
            thirds = vision[f"blocks.{i}.attn.qkv.{end}"].chunk(3)
            for letter, part in zip("qkv", thirds, strict=True):
                state[f"layer.{i}.self_attn.{letter}_proj.{end}"] = part
    return config, state


def _ours(pre_norm: bool, mean: Sequence[float], std: Sequence[float]) -> dict[str, Any]:
    return {"pre_norm": pre_norm, "image_mean": list(mean), "image_std": list(std)}


def saved_tower(source: ModelDirectory, layout: Layout, announce: bool) -> VisionTower | None:
    """The tower of a finished run's model directory; None where `source` is something else.

    Position tables of other slots than ours are left out.

    Args:
        announce: log what was taken and what was left (not where all of the run is loaded again).
    """
    stored, path = source.config.get(STORED), source.path / "head.safetensors"
    if stored is None or not path.is_file():
        return None
    try:
        with safe_open(path, "pt") as tensors:
            names = [name for name in tensors.keys() if name.startswith("vision.")]  # noqa: SIM118
            state = {name.removeprefix("vision."): tensors.get_tensor(name) for name in names}
    except SafetensorError as error:
        raise InputError(f"{path}: damaged ({error})") from None
    if not state:
        return None
    tower = VisionTower(CLIPVisionConfig.from_dict(stored), layout)
    ours = tower.state_dict()
    # Slots are a setting, which another run may have otherwise; all else must fit.
    tables = [name for name in state if name.endswith("position_embeddings")]
    left = [name for name in tables if name not in ours or state[name].shape != ours[name].shape]
    fitting = {name: ours[name] for name in ours if name.endswith("position_embeddings")}
    fitting |= {name: tensor for name, tensor in state.items() if name not in left}
    check_fits(ours, fitting, str(path))
    tower.load_state_dict(fitting)
    if announce:
        left = ["its fusion layers and head", *left]
        LOG.info("vision: the tower of the finished run %s; left: %s", source, ", ".join(left))
    return tower


def find_tower(
    vision: str, patch: int, source: ModelDirectory, random_weights: bool, text: BertConfig
) -> tuple[CLIPVisionConfig, dict[str, Tensor], str]:
    """Sizes and weights of the tower that the settings name, and a line that says which.

    Args:
        vision: hub id or directory of a CLIP; "init": the ViT of the fusion model `source`;
            "random": as wide and deep as the text tower. patch: of "random".
    """
    if vision == "init" and source.kind != MODEL_TYPE:
        raise InputError(f"--model.vision init: {source} is no fusion model; name a CLIP instead")
    if vision == "init":
        encoder, _ = load_fusion(source, random_weights=random_weights)
        left = "last norm, bridge and projections"
        line = f"vision: the ViT of {source}{' drawn at random' * random_weights}; left: {left}"
        return (*fusion_vit(encoder), line)
    if random_weights or vision == "random":
        line = "vision: drawn at random, of the text tower's sizes"
        return (*drawn(text, patch), line)
    return (*read_clip(vision), f"vision: {vision}; left: last norm, projection")
