"""The fusion encoder: a text tower, a vision tower, and fusion layers over both sequences.

B: pairs, L: word pieces of the padded text, K: patches, D: hidden size, E: projection size.
PROMU (MM'23) §4.1: BERT layers read the text, a ViT reads the picture, further BERT layers read the
concatenation [text ; picture] with plain self-attention. Neither position nor type embeddings are
added at the joint, and padding is masked as keys.
"""

import os
import re
import tempfile
from collections.abc import Collection
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from pretrain.model.bert import Bert
from pretrain.model.bert_layers import Layers, chosen, draw
from pretrain.model.config import FusionEncoderConfig
from pretrain.model.embedding import Embedder, refuse_raw
from pretrain.model.library import (
    READS_LAST,
    LibraryText,
    LibraryVision,
    family_config,
    last_state,
    possible,
)
from pretrain.model.vit import PlainViT

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass
class FusionOutput:
    """States of one forward pass; what was not computed is None."""

    text_embeds: Tensor
    """(B, L, D) text tower."""
    vision_embeds: Tensor | None
    """(B, 1+K, Dv) vision tower after its final LayerNorm, class token first."""
    fused_embeds: Tensor
    """(B, L+1+K, D): text positions, class token, patches row by row; (B, L, D) without picture."""


def vision_tower(config: FusionEncoderConfig) -> PlainViT | LibraryVision:
    """The vision tower of a configuration, with random weights."""
    if config.vision_config:
        with possible("vision_config"):
            return LibraryVision.of(config.vision_config, config.image_size)
    return PlainViT(
        config.image_size, config.patch_size, config.vision_hidden_size, config.vision_layers,
        config.vision_heads, config.vision_norm_eps,
    )  # fmt: skip


def bridge(tower: int, fusion: int, *, always: bool = False) -> nn.Module:
    """A tower's width to that of the fusion layers: a Linear where they differ, or `always`."""
    return nn.Linear(tower, fusion) if always or tower != fusion else nn.Identity()


class FusionEncoder(Embedder):
    """Text tower, vision tower, fusion layers, and the two contrastive projections."""

    def __init__(self, config: FusionEncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.resting: Collection[str] = ()
        """Towers, `text` or `vision`, through which no gradient goes for now."""
        self.text: Bert | LibraryText
        # A seed draws the weights in the order of these lines: another order is another start.
        if config.is_cut:
            with possible("text_config"):
                self.text = Bert(config.bert_config(config.text_layers))
        else:
            with possible("text_config"):
                self.text = LibraryText.of(family_config(config.text_config))
            self.text_bridge = bridge(self.text.config.hidden_size, config.hidden_size)
        self.vision = vision_tower(config)
        aligned = config.bridge == "aligned"  # its first values: `aligned_bridge`
        self.bridge = bridge(config.vision_hidden_size, config.hidden_size, always=aligned)
        if config.fusion_layers and config.encoder_layout != "shared_twice":
            layers = config.bert_config(config.fusion_layers)
            self.fusion = Layers(layers)
            self.fusion.apply(partial(draw, layers.initializer_range))
        self.text_proj = nn.Linear(config.hidden_size, config.projection_size)
        self.vision_proj = nn.Linear(config.vision_hidden_size, config.projection_size)
        statistics = torch.tensor([config.image_mean, config.image_std]) * 255
        self.register_buffer("pixel_statistics", statistics.view(2, 3, 1, 1), persistent=False)

    @staticmethod
    def tower_of(name: str) -> str:
        """`text`, `vision`, or "" of a parameter that is in neither tower."""
        tower = name.partition(".")[0]
        return tower if tower in ("text", "vision") else ""

    def layers_above(self, name: str) -> int:
        """How many layers stand between a parameter and the encoder's output, for learning rates
        that fall with depth. name: as in `named_parameters`."""
        fusion = self.config.fusion_layers
        if match := re.match(r"(text|vision|fusion)\b.*?\.(?:layers?|blocks)\.(\d+)\.", name):
            tower, number = match[1], int(match[2])
            if tower == "fusion":
                return fusion - number
            layers = self.config.vision_layers if tower == "vision" else self.config.text_layers
            return fusion + layers - number
        if name.startswith("text.") and "embed" in name:
            return fusion + self.config.text_layers + 1
        if re.match(r"vision\.(net\.)?(patch_embed|cls_token|pos_embed|reg_token|stem)", name):
            return fusion + self.config.vision_layers + 1
        return fusion if name.startswith("vision.norm.") else 0

    def checkpoint_activations(self) -> None:
        """While training, keep the inputs of layers alone and compute the rest again backwards."""
        for stack in self.modules():
            if isinstance(stack, Layers | PlainViT):
                stack.checkpointing = True
            elif isinstance(stack, LibraryText | LibraryVision):
                stack.checkpoint_activations()

    def compile_layers(self) -> None:
        """`torch.compile` the stacks of layers: for the first length of captions, and once more,
        for every other length, when it changes."""
        text = self.text.encoder if isinstance(self.text, Bert) else self.text
        for stack in (text, self.vision, getattr(self, "fusion", None)):
            if stack is not None:
                stack.compile()

    # ------------------------------------------------------------------ the two towers

    def encode_text(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """(B, L) ids and mask -> (B, L, D)."""
        with self._gradient("text"):
            states = self.text(input_ids, attention_mask).last_hidden_state
        return states if self.config.is_cut else self.text_bridge(states)

    def encode_image(
        self, pixel_values: Tensor, kept_patches: Tensor | None = None, *, normalized: bool = False
    ) -> Tensor:
        """(B, 3, H, W) -> (B, 1+K, Dv). uint8 is normalised here, the one place.

        Args:
            kept_patches: (B, M) int64, the patches to look at -> (B, 1+M, Dv); None: all.
            normalized: `pixel_values` are floats, normalised already.

        Raises:
            InputError: undeclared floats that look like pixels in 0…1 or 0…255, or integers.
        """
        if pixel_values.dtype == torch.uint8:
            mean, std = self.pixel_statistics
            pixel_values = (pixel_values.to(mean.dtype) - mean) / std
        elif not normalized:
            refuse_raw(pixel_values)
        with self._gradient("vision"):
            return self.vision(pixel_values, kept_patches)

    def _gradient(self, tower: str) -> torch.set_grad_enabled:
        return torch.set_grad_enabled(torch.is_grad_enabled() and tower not in self.resting)

    def fuse(
        self,
        text_embeds: Tensor,
        attention_mask: Tensor,
        vision_embeds: Tensor | None,
        image_mask: Tensor | None = None,
        *,
        wanted: int | Tensor | None = None,
    ) -> Tensor:
        """Fusion layers over [text ; picture].

        Args:
            text_embeds: (B, L, D). attention_mask: (B, L), nonzero = real word piece.
            vision_embeds: (B, 1+K, Dv), or None: the fusion layers read the text alone.
            image_mask: (B,) bool, False hides the picture of that row; None shows all.
            wanted: the only states wanted, the first M or those at (B, M) places, which saves
                most of the last layer. Not while training: dropout would draw others than before.

        Returns:
            (B, L+1+K, D), or (B, L, D) without picture, or (B, M, D).
        """
        states, mask = text_embeds, attention_mask.bool()
        if vision_embeds is not None:
            states = torch.cat([states, self.bridge(vision_embeds).to(states.dtype)], dim=1)
            seen = mask.new_ones(vision_embeds.shape[:2])
            if image_mask is not None:
                seen &= image_mask.bool()[:, None]
            mask = torch.cat([mask, seen], dim=1)
        shared = self.config.encoder_layout == "shared_twice"
        layers = self.text.encoder if shared and isinstance(self.text, Bert) else self.fusion
        made = layers(states, mask[:, None, None, :], wanted=None if self.training else wanted)
        return chosen(made, wanted) if self.training else made

    # ------------------------------------------------------------------ contrastive features

    def text_feat(self, text_embeds: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """(B, L, D) -> (B, E) unit vectors, float32, of the class token (of families that read the
        last one, of the last word piece that the (B, L) mask shows), or of the mean."""
        if self.config.text_pool == "avg":
            shown = text_embeds.new_ones(text_embeds.shape[:2])
            if attention_mask is not None:
                shown = attention_mask.to(text_embeds.dtype)
            total = (text_embeds * shown[..., None]).sum(dim=1)
            return self._unit(self.text_proj, total / shown.sum(dim=1, keepdim=True))
        reads_last = self.config.text_config.get("model_type") in READS_LAST
        pooled = last_state(text_embeds, attention_mask) if reads_last else text_embeds[:, 0]
        return self._unit(self.text_proj, pooled)

    def image_feat(self, vision_embeds: Tensor) -> Tensor:
        """(B, 1+K, Dv) -> (B, E) unit vectors, float32."""
        is_cls = self.config.vision_pool == "cls"
        pooled = vision_embeds[:, 0] if is_cls else vision_embeds[:, 1:].mean(dim=1)
        return self._unit(self.vision_proj, pooled)

    @staticmethod
    def _unit(projection: nn.Linear, pooled: Tensor) -> Tensor:
        # bfloat16 unit vectors are off by up to 0.5 %, which the temperature multiplies: normalise
        # and compare in float32.
        return nn.functional.normalize(projection(pooled).float(), dim=-1)

    # ------------------------------------------------------------------ whole

    def forward(
        self,
        pixel_values: Tensor | None,
        input_ids: Tensor,
        attention_mask: Tensor,
        image_mask: Tensor | None = None,
        *,
        normalized: bool = False,
    ) -> FusionOutput:
        """See `FusionOutput`. pixel_values: as in `encode_image`, or None for text alone."""
        text_embeds = self.encode_text(input_ids, attention_mask)
        vision_embeds = None
        if pixel_values is not None:
            vision_embeds = self.encode_image(pixel_values, normalized=normalized)
        fused = self.fuse(text_embeds, attention_mask, vision_embeds, image_mask)
        return FusionOutput(text_embeds, vision_embeds, fused)

    def resize_token_embeddings(self, num_tokens: int) -> None:
        """Grow or cut the word table; new rows are drawn like BERT's."""
        self.text.resize_token_embeddings(num_tokens)
        changed: dict[str, Any] = {"vocab_size": num_tokens}
        if not self.config.is_cut:
            changed["text_config"] = self.config.text_config | changed
        self.config = FusionEncoderConfig(**asdict(self.config) | changed)

    @classmethod
    def from_pretrained(
        cls,
        source: str | os.PathLike[str],
        *,
        revision: str | None = None,
        local_files_only: bool = False,
    ) -> "FusionEncoder":
        """Load a model directory, hub id or fsspec URL, with its processor, in eval mode.

        Args:
            revision: branch, tag or commit of a hub id.
            local_files_only: never reach for the network (HF_HUB_OFFLINE=1 does the same).

        Raises:
            InputError: with the list of what is wrong.
        """
        from pretrain.checkpoint.directory import ModelDirectory
        from pretrain.checkpoint.hub import load_fusion
        from pretrain.processor import FusionProcessor

        directory = ModelDirectory.open(
            source, revision=revision, local_files_only=local_files_only
        )
        encoder, tokenizer = load_fusion(directory)
        encoder.processor = FusionProcessor(tokenizer, encoder.config)
        return encoder.eval()

    def save_pretrained(
        self, out: str | os.PathLike[str], tokenizer: "PreTrainedTokenizerBase"
    ) -> None:
        """Write a model directory (or, at an fsspec URL, upload one) with a minimal card."""
        from pretrain.checkpoint.hub import save_encoder

        save_encoder(out, self, tokenizer)

    def push_to_hub(
        self, repo_id: str, tokenizer: "PreTrainedTokenizerBase", *, private: bool = False
    ) -> str:
        """Upload as a model directory; returns the URL of the commit."""
        from pretrain.checkpoint.hub import save_encoder
        from pretrain.checkpoint.remote import push_to_hub

        with tempfile.TemporaryDirectory() as folder:
            directory = Path(folder) / "model"
            save_encoder(directory, self, tokenizer)
            return push_to_hub(directory, repo_id, private=private)
