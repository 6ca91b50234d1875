"""A vision tower of CLIP's blocks over patches of regions, with weights of CLIP or of a fusion ViT.

B: rows, R: regions of a row, S: side of a picture, K: visual tokens, D: hidden size.
Token order: [class | whole picture, where wanted | grounded regions | detected regions]; patches of
a region row by row. README.md, Pictures.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Tensor, nn
from transformers import CLIPVisionConfig
from transformers.models.clip.modeling_clip import CLIPEncoderLayer

from pretrain.checkpoint.strict import check_fits
from shards.files import InputError


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
    rounded: bool = False
    """Sides that are no whole patches are rounded up to them, where else they are refused."""

    def cut_into(self, patch: int) -> "Layout":
        """This one, for patches of so many pixels a side.

        Raises:
            InputError: a side that is none of whole patches, and not to be rounded.
        """
        sides = {name: getattr(self, name) for name in ("vg_size", "od_size")}
        if self.rounded:
            return replace(self, **{name: -(-px // patch) * patch for name, px in sides.items()})
        for name, pixels in sides.items():
            if pixels % patch:
                raise InputError(
                    f"--model.{name} {pixels} is no multiple of the vision tower's patches of "
                    f"{patch} pixels"
                )
        return self


class VisionTower(nn.Module):
    """Patch embedding, positions for each kind of slot, pre-norm, and CLIP's layers.

    The class token has no position; CLIP's last norm is left out. The layers are run by the caller,
    who mixes in the text.
    """

    pixel_statistics: Tensor

    def __init__(self, config: CLIPVisionConfig, layout: Layout) -> None:
        super().__init__()
        self.config = config
        width, patch = config.hidden_size, self.patch
        self.layout = layout = layout.cut_into(patch)
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
