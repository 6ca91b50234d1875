"""A vision tower of CLIP's blocks over patches of regions, with weights of CLIP or of a fusion ViT.

B: rows, R: regions of a row, S: side of a picture, K: visual tokens, D: hidden size.
Token order: [class | whole picture, where wanted | grounded regions | detected regions]; patches of
a region row by row. README.md, Pictures.
"""

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers import BertConfig, CLIPModel, CLIPVisionConfig, CLIPVisionModel
from transformers.models.clip.modeling_clip import CLIPEncoderLayer

from finetune.methods.mkgformer.names import CLIP
from pretrain.checkpoint.directory import ModelDirectory
from pretrain.checkpoint.hub import load_fusion, resolve
from pretrain.checkpoint.strict import check_fits, read_config, read_transformers
from pretrain.checkpoint.tables import rename
from pretrain.model.fusion_encoder import MODEL_TYPE, FusionEncoder
from shards.files import InputError

LOG = logging.getLogger(__name__)
STORED = "vision_tower"
"""Key of the text tower's config.json that holds the vision tower's sizes in a finished run."""
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True)
class Layout:
    """What the tower's sequence is made of."""

    vg: int
    """Grounded regions a row."""
    vg_size: int
    """Their side in pixels."""
    od: int
    """Detected regions a row."""
    od_size: int
    """Their side in pixels."""
    whole: bool
    """Also the patches of the whole picture."""


class VisionTower(nn.Module):
    """Patch embedding, positions for each kind of slot, pre-norm, and CLIP's layers.

    The class token has no position; CLIP's last norm is left out. The layers are run by the caller,
    who mixes in the text.
    """

    pixel_statistics: Tensor

    def __init__(self, config: CLIPVisionConfig, layout: Layout) -> None:
        super().__init__()
        self.config, self.layout = config, layout
        width, patch = config.hidden_size, self.patch
        for name in ("vg_size", "od_size"):
            if getattr(layout, name) % patch:
                raise InputError(
                    f"--model.{name} {getattr(layout, name)} is no multiple of the vision tower's "
                    f"patches of {patch} pixels"
                )
        self.class_embedding = nn.Parameter(torch.empty(width).normal_(std=width**-0.5))
        self.patch_embedding = nn.Conv2d(3, width, patch, patch, bias=False)
        self.norm: nn.Module = nn.Identity()  # a timm ViT has none here
        if config.pre_norm:
            self.norm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.layer = nn.ModuleList(
            CLIPEncoderLayer(config) for _ in range(config.num_hidden_layers)
        )
        self.vg_position_embeddings = nn.Parameter(torch.empty(self.tokens("vg"), width).normal_())
        self.od_position_embeddings = nn.Parameter(torch.empty(self.tokens("od"), width).normal_())
        if layout.whole:
            whole = torch.empty((side(config.image_size) // patch) ** 2, width).normal_(std=0.02)
            self.image_position_embeddings = nn.Parameter(whole)
        statistics = torch.tensor([config.image_mean, config.image_std]) * 255
        self.register_buffer("pixel_statistics", statistics.view(2, 3, 1, 1), persistent=False)

    @property
    def patch(self) -> int:
        """Side of a patch in pixels."""
        return side(self.config.patch_size)

    @property
    def layers(self) -> Iterator[CLIPEncoderLayer]:
        """CLIP's blocks, from below."""
        return cast(Iterator[CLIPEncoderLayer], iter(self.layer))

    def tokens(self, kind: str) -> int:
        """Visual tokens of all slots of a kind (vg, od)."""
        grid = getattr(self.layout, f"{kind}_size") // self.patch
        return getattr(self.layout, kind) * grid**2

    def inputs(self, regions: Tensor, present: Tensor) -> tuple[Tensor, Tensor]:
        """Region pixels as the network takes them.

        Args:
            regions: (B, R, 3, S, S) uint8, `vg` slots first. present: (B, R) bool.

        Returns:
            (B, vg, 3, S, S) and (B, od, 3, s, s) normalised; an empty slot is zero, as with the
            authors, after normalisation.
        """
        mean, std = self.pixel_statistics
        pixels = (regions.to(mean.dtype) - mean) / std
        pixels = pixels * present[:, :, None, None, None]
        vg, od = pixels.split([self.layout.vg, self.layout.od], dim=1)
        if self.layout.od_size != od.shape[-1]:
            size = (self.layout.od_size,) * 2
            small = nn.functional.interpolate(od.flatten(0, 1), size, mode="area")
            od = small.unflatten(0, od.shape[:2])
        return vg, od

    def embed(self, vg: Tensor, od: Tensor, image: Tensor | None = None) -> Tensor:
        """Normalised regions (B, slots, 3, S, S), and picture (B, 3, S, S) or None -> (B, K, D)."""
        tokens = [self.class_embedding.expand(len(vg), 1, -1)]
        if image is not None:
            tokens.append(self._patches(image[:, None]) + self.image_position_embeddings)
        if self.layout.vg:
            tokens.append(self._patches(vg) + self.vg_position_embeddings)
        if self.layout.od:
            tokens.append(self._patches(od) + self.od_position_embeddings)
        return self.norm(torch.cat(tokens, dim=1))

    def _patches(self, pixels: Tensor) -> Tensor:
        maps = self.patch_embedding(pixels.flatten(0, 1))  # (B·slots, D, grid, grid)
        return maps.flatten(2).transpose(1, 2).reshape(len(pixels), -1, maps.shape[1])

    def token_mask(self, present: Tensor, image_mask: Tensor | None) -> Tensor:
        """(B, R) slots, and (B,) pictures where the whole picture is read -> (B, K) bool."""
        masks = [present.new_ones(len(present), 1)]
        if image_mask is not None:
            masks.append(image_mask[:, None].expand(-1, len(self.image_position_embeddings)))
        for kind, part in zip(
            ("vg", "od"), present.split([self.layout.vg, self.layout.od], dim=1), strict=True
        ):
            if slots := part.shape[1]:
                masks.append(part.repeat_interleave(self.tokens(kind) // slots, dim=1))
        return torch.cat(masks, dim=1)

    @torch.no_grad()
    def load(self, state: dict[str, Tensor], positions: str, source: str) -> None:
        """Take a tower's weights, its position table (1 + grid², D) resized to our grids.

        Args:
            state: under our names, with `position_embedding` for the table.
            positions: "clip" resizes; "normal" leaves the slots' tables at N(0, 1).
        """
        table = state.pop("position_embedding")[1:]
        ours = {k: v for k, v in self.state_dict().items() if "position_embeddings" not in k}
        check_fits(ours, state, source)
        self.load_state_dict(state, strict=False)
        if positions == "clip":
            for kind in ("vg", "od"):
                if slots := getattr(self.layout, kind):
                    grid = getattr(self.layout, f"{kind}_size") // self.patch
                    resized = resize_table(table, grid).repeat(slots, 1)
                    getattr(self, f"{kind}_position_embeddings").copy_(resized)
        if self.layout.whole:
            grid = side(self.config.image_size) // self.patch
            self.image_position_embeddings.copy_(resize_table(table, grid))


def side(size: object) -> int:
    """Of the squares of a CLIP configuration, whose type allows for others."""
    if not isinstance(size, int):
        raise InputError(f"a vision tower of squares is needed, not of {size}")
    return size


def resize_table(table: Tensor, side: int) -> Tensor:
    """Positions of a square grid (g², D) -> (side², D), bicubic."""
    grid = round(len(table) ** 0.5)
    if grid == side:
        return table
    square = table.T.unflatten(1, (grid, grid))[None]
    resized = nn.functional.interpolate(square, (side, side), mode="bicubic", align_corners=False)
    return resized[0].flatten(1).T


# ---------------------------------------------------------------------- where the weights come from


def drawn(text: BertConfig, patch: int) -> tuple[CLIPVisionConfig, dict[str, Tensor]]:
    """A tower of the text tower's sizes with CLIP's initialisation; pictures of 7 x 7 patches."""
    config = CLIPVisionConfig(
        hidden_size=text.hidden_size,
        num_hidden_layers=text.num_hidden_layers,
        num_attention_heads=text.num_attention_heads,
        intermediate_size=text.intermediate_size,
        patch_size=patch,
        image_size=7 * patch,
        **_ours(True, CLIP_MEAN, CLIP_STD),
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
    config = CLIPVisionConfig(**model.config.to_dict() | _ours(True, CLIP_MEAN, CLIP_STD))
    return config, rename(state, CLIP, f"CLIP's vision tower ({directory})")


def fusion_vit(encoder: FusionEncoder) -> tuple[CLIPVisionConfig, dict[str, Tensor]]:
    """The ViT of a fusion encoder: CLIP's blocks with exact GELU and without the norm before them.

    Its patch bias goes into the positions; its last norm is left out, like CLIP's.
    """
    theirs = encoder.config
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
            thirds = vision[f"blocks.{i}.attn.qkv.{end}"].chunk(3)
            for letter, part in zip("qkv", thirds, strict=True):
                state[f"layer.{i}.self_attn.{letter}_proj.{end}"] = part
    return config, state


def _ours(pre_norm: bool, mean: tuple[float, ...], std: tuple[float, ...]) -> dict[str, Any]:
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
    tables = [name for name in state if name.endswith("position_embeddings")]
    left = [name for name in tables if name not in ours or state[name].shape != ours[name].shape]
    fitting = {name: tensor for name, tensor in state.items() if name not in left}
    fresh = {name: ours[name] for name in ours if name.endswith("position_embeddings")}
    check_fits(ours, fresh | fitting, str(path))
    tower.load_state_dict(fresh | fitting)
    left = ["its fusion layers and head", *left]
    if announce:
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
