"""The fusion encoder: a text tower, a vision tower, and fusion layers over both sequences.

B: pairs, L: word pieces of the padded text, K: patches, D: hidden size, E: projection size.
PROMU (MM'23) §4.1: BERT layers read the text, a ViT reads the picture, further BERT layers read the
concatenation [text ; picture] with plain self-attention. Neither position nor type embeddings are
added at the joint, and padding is masked as keys.
"""

import os
import re
import tempfile
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import BertConfig, BertModel, PreTrainedTokenizerBase
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.models.bert.modeling_bert import BertEncoder

from shards.schema import is_number

CONFIG_VERSION = 1
MODEL_TYPE = "fusion-mre"


@dataclass(frozen=True, kw_only=True)
class FusionEncoderConfig:
    """Architecture: what `config.json` of a model directory stores. Default: BERT- and ViT-base."""

    vocab_size: int = 30522
    """Word pieces of the tokenizer."""
    hidden_size: int = 768
    """Width D of text tower and fusion layers."""
    num_attention_heads: int = 12
    """Heads of text tower and fusion layers."""
    intermediate_size: int = 3072
    """Feed-forward width of text tower and fusion layers."""
    text_layers: int = 6
    """BERT layers that read the text alone."""
    fusion_layers: int = 6
    """BERT layers that read text and picture together; 0 = dual encoder (a prompter)."""
    encoder_layout: Literal["split", "two_bert", "shared_twice"] = "split"
    """split: one BERT cut in two (released code, pre-training). two_bert: two whole BERTs (the
    paper read literally). shared_twice: the text layers again as fusion (released MRE class)."""
    max_position_embeddings: int = 512
    """Longest text in word pieces."""
    hidden_dropout: float = 0.1
    """Dropout of text tower and fusion layers."""
    attention_dropout: float = 0.1
    """Dropout on attention weights of text tower and fusion layers."""
    layer_norm_eps: float = 1e-12
    """LayerNorm epsilon of text tower and fusion layers."""
    image_size: int = 224
    """Input pixels a side."""
    patch_size: int = 16
    """Patch pixels a side."""
    vision_hidden_size: int = 768
    """Width of the vision tower; bridged by a Linear where it differs from `hidden_size`."""
    vision_layers: int = 12
    """Layers of the vision tower."""
    vision_heads: int = 12
    """Heads of the vision tower."""
    vision_norm_eps: float = 1e-12
    """LayerNorm epsilon of the vision tower (Hugging Face ViT: 1e-12, timm: 1e-6)."""
    vision_pool: Literal["cls", "avg"] = "cls"
    """What the picture's projection reads: the class token, or the mean over patches."""
    projection_size: int = 256
    """Width E of the contrastive features."""
    image_mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    """RGB mean that pixels in 0..1 are normalised with, once, on the device."""
    image_std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    """RGB standard deviation, likewise."""

    def __post_init__(self) -> None:
        if self.image_size % self.patch_size:
            raise ValueError(
                f"model.image_size {self.image_size} is no multiple of patch_size {self.patch_size}"
            )
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"model.hidden_size {self.hidden_size} is no multiple of "
                f"num_attention_heads {self.num_attention_heads}"
            )
        shared = self.encoder_layout == "shared_twice"
        if shared and self.fusion_layers not in (0, self.text_layers):
            raise ValueError("model.encoder_layout shared_twice needs fusion_layers == text_layers")

    @property
    def grid(self) -> int:
        """Patches a side; K = grid²."""
        return self.image_size // self.patch_size

    def to_dict(self) -> dict[str, Any]:
        """The content of `config.json`."""
        return {"model_type": MODEL_TYPE, "format_version": CONFIG_VERSION, **asdict(self)}

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> "FusionEncoderConfig":
        """Inverse of `to_dict`; keys of other parts (`heads`) are theirs to read.

        Raises:
            ValueError: not a fusion-mre config, a newer format, or an unknown key.
        """
        if content.get("model_type") != MODEL_TYPE:
            raise ValueError(f"model_type is {content.get('model_type')!r}, not {MODEL_TYPE!r}")
        if content.get("format_version", 0) > CONFIG_VERSION:
            raise ValueError(
                f"format_version {content['format_version']} is newer than {CONFIG_VERSION}; "
                "update fusion-mre"
            )
        names = {field.name for field in fields(cls)}
        unknown = set(content) - names - {"model_type", "format_version", "heads"}
        if unknown:
            raise ValueError(f"unknown keys {sorted(unknown)}")
        values = {}
        for field in fields(cls):
            if field.name in content:
                values[field.name] = _checked(field.name, field.type, content[field.name])
        return cls(**values)

    @property
    def least_parameters(self) -> int:
        """A lower bound of the number of parameters, by arithmetic: nothing is built for it."""
        fusion = 0 if self.encoder_layout == "shared_twice" else self.fusion_layers
        bert = 4 * self.hidden_size**2 + 2 * self.hidden_size * self.intermediate_size
        vit = 12 * self.vision_hidden_size**2
        words = self.vocab_size + self.max_position_embeddings
        patches = self.grid**2 + 3 * self.patch_size**2
        return (
            words * self.hidden_size
            + (self.text_layers + fusion) * bert
            + patches * self.vision_hidden_size
            + self.vision_layers * vit
            + self.projection_size * (self.hidden_size + self.vision_hidden_size)
        )

    def bert_config(self, num_layers: int) -> BertConfig:
        """The `transformers` configuration of `num_layers` of our BERT layers."""
        return BertConfig(
            vocab_size=self.vocab_size,
            hidden_size=self.hidden_size,
            num_hidden_layers=num_layers,
            num_attention_heads=self.num_attention_heads,
            intermediate_size=self.intermediate_size,
            max_position_embeddings=self.max_position_embeddings,
            hidden_dropout_prob=self.hidden_dropout,
            attention_probs_dropout_prob=self.attention_dropout,
            layer_norm_eps=self.layer_norm_eps,
            attn_implementation="sdpa",
        )


def _checked(name: str, kind: Any, value: Any) -> Any:
    """A value from `config.json`, if it is of its field's kind."""
    if get_origin(kind) is Literal:
        good = value in get_args(kind)
    elif get_origin(kind) is tuple:
        good = isinstance(value, list | tuple) and len(value) == 3 and all(map(is_number, value))
        value = tuple(value) if good else value
    elif kind is int:
        good = type(value) is int and value >= (0 if name == "fusion_layers" else 1)
    else:
        good = is_number(value) and value >= 0
    if not good:
        raise ValueError(f"{name} cannot be {value!r}")
    return value


@dataclass
class FusionOutput:
    """States of one forward pass; what was not computed is None."""

    text_embeds: Tensor
    """(B, L, D) text tower."""
    vision_embeds: Tensor | None
    """(B, 1+K, Dv) vision tower after its final LayerNorm, class token first."""
    fused_embeds: Tensor
    """(B, L+1+K, D): text positions, class token, patches row by row; (B, L, D) without picture."""


class _Vision(VisionTransformer):
    """The tower is called, not its method: ZeRO-3 gathers `cls_token` and `pos_embed` on calls."""

    def forward(self, pixel_values: Tensor) -> Tensor:
        return self.forward_features(pixel_values)


class FusionEncoder(nn.Module):
    """Text tower, vision tower, fusion layers, and the two contrastive projections."""

    def __init__(self, config: FusionEncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.text = BertModel(config.bert_config(config.text_layers), add_pooling_layer=False)
        self.vision = _Vision(
            img_size=config.image_size,
            patch_size=config.patch_size,
            embed_dim=config.vision_hidden_size,
            depth=config.vision_layers,
            num_heads=config.vision_heads,
            num_classes=0,
            norm_layer=partial(nn.LayerNorm, eps=config.vision_norm_eps),
        )
        widths = config.vision_hidden_size, config.hidden_size
        self.bridge = nn.Identity() if widths[0] == widths[1] else nn.Linear(*widths)
        if config.fusion_layers and config.encoder_layout != "shared_twice":
            self.fusion = BertEncoder(config.bert_config(config.fusion_layers))
            self.fusion.apply(self.text._init_weights)
        self.text_proj = nn.Linear(config.hidden_size, config.projection_size)
        self.vision_proj = nn.Linear(config.vision_hidden_size, config.projection_size)
        statistics = torch.tensor([config.image_mean, config.image_std]) * 255
        self.register_buffer("pixel_statistics", statistics.view(2, 3, 1, 1), persistent=False)

    def layers_above(self, name: str) -> int:
        """How many layers stand between a parameter and the encoder's output, for learning rates
        that fall with depth. name: as in `named_parameters`."""
        fusion = self.config.fusion_layers
        if found := re.search(r"(text\.encoder|vision|fusion)\.(?:layer|blocks)\.(\d+)\.", name):
            tower, number = found[1], int(found[2])
            if tower == "fusion":
                return fusion - number
            layers = self.config.vision_layers if tower == "vision" else self.config.text_layers
            return fusion + layers - number
        if name.startswith("text.embeddings."):
            return fusion + self.config.text_layers + 1
        if name.startswith(("vision.patch_embed.", "vision.cls_token", "vision.pos_embed")):
            return fusion + self.config.vision_layers + 1
        return fusion if name.startswith("vision.norm.") else 0

    def checkpoint_activations(self) -> None:
        """While training, keep the inputs of layers alone and compute the rest again backwards."""
        self.vision.set_grad_checkpointing()
        for layer in self.modules():
            if isinstance(layer, GradientCheckpointingLayer):
                layer.gradient_checkpointing = True
                layer._gradient_checkpointing_func = partial(checkpoint, use_reentrant=False)

    # ------------------------------------------------------------------ the two towers

    def encode_text(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """(B, L) ids and mask -> (B, L, D)."""
        return self.text(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state

    def encode_image(self, pixel_values: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, 1+K, Dv). uint8 is normalised here, the one place; floats are taken
        as normalised already."""
        if pixel_values.dtype == torch.uint8:
            mean, std = self.pixel_statistics
            pixel_values = (pixel_values.to(mean.dtype) - mean) / std
        return self.vision(pixel_values)

    def fuse(
        self,
        text_embeds: Tensor,
        attention_mask: Tensor,
        vision_embeds: Tensor | None,
        image_mask: Tensor | None = None,
    ) -> Tensor:
        """Fusion layers over [text ; picture].

        Args:
            text_embeds: (B, L, D). attention_mask: (B, L), nonzero = real word piece.
            vision_embeds: (B, 1+K, Dv), or None: the fusion layers read the text alone.
            image_mask: (B,) bool, False hides the picture of that row; None shows all.

        Returns:
            (B, L+1+K, D), or (B, L, D) without picture.
        """
        states, mask = text_embeds, attention_mask.bool()
        if vision_embeds is not None:
            states = torch.cat([states, self.bridge(vision_embeds).to(states.dtype)], dim=1)
            seen = mask.new_ones(vision_embeds.shape[:2])
            if image_mask is not None:
                seen &= image_mask.bool()[:, None]
            mask = torch.cat([mask, seen], dim=1)
        shared = self.config.encoder_layout == "shared_twice"
        layers = self.text.encoder if shared else self.fusion
        return layers(states, attention_mask=mask[:, None, None, :]).last_hidden_state

    # ------------------------------------------------------------------ contrastive features

    def text_feat(self, text_embeds: Tensor) -> Tensor:
        """(B, L, D) -> (B, E) unit vectors, float32, of the class token."""
        return self._unit(self.text_proj, text_embeds[:, 0])

    def image_feat(self, vision_embeds: Tensor) -> Tensor:
        """(B, 1+K, Dv) -> (B, E) unit vectors, float32."""
        pooled = (
            vision_embeds[:, 0]
            if self.config.vision_pool == "cls"
            else vision_embeds[:, 1:].mean(dim=1)
        )
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
    ) -> FusionOutput:
        """See `FusionOutput`. pixel_values: (B, 3, H, W) uint8, or None for text alone."""
        text_embeds = self.encode_text(input_ids, attention_mask)
        vision_embeds = None if pixel_values is None else self.encode_image(pixel_values)
        fused = self.fuse(text_embeds, attention_mask, vision_embeds, image_mask)
        return FusionOutput(text_embeds, vision_embeds, fused)

    def resize_token_embeddings(self, num_tokens: int) -> None:
        """Grow or cut the word table; new rows are drawn like BERT's."""
        self.text.resize_token_embeddings(num_tokens, mean_resizing=False)
        self.config = FusionEncoderConfig(**asdict(self.config) | {"vocab_size": num_tokens})

    @classmethod
    def from_pretrained(
        cls,
        source: str | os.PathLike[str],
        *,
        revision: str | None = None,
        local_files_only: bool = False,
    ) -> "FusionEncoder":
        """Load a model directory, hub id or fsspec URL; its tokenizer: `AutoTokenizer` on the same.

        Args:
            revision: branch, tag or commit of a hub id.
            local_files_only: never reach for the network (HF_HUB_OFFLINE=1 does the same).

        Raises:
            InputError: with the list of what is wrong.
        """
        from pretrain.checkpoint.hub import load_fusion, resolve

        directory = resolve(source, revision=revision, local_files_only=local_files_only)
        return load_fusion(directory)[0]

    def save_pretrained(
        self, out: str | os.PathLike[str], tokenizer: PreTrainedTokenizerBase
    ) -> None:
        """Write a model directory (or, at an fsspec URL, upload one) with a minimal card."""
        from pretrain.checkpoint.hub import save_encoder

        save_encoder(out, self, tokenizer)

    def push_to_hub(
        self, repo_id: str, tokenizer: PreTrainedTokenizerBase, *, private: bool = False
    ) -> str:
        """Upload as a model directory; returns the URL of the commit."""
        from pretrain.checkpoint.hub import push_to_hub, save_encoder

        with tempfile.TemporaryDirectory() as folder:
            directory = Path(folder) / "model"
            save_encoder(directory, self, tokenizer)
            return push_to_hub(directory, repo_id, private=private)
