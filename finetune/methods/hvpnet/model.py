"""HVPNeT: a picture's pyramid as key and value prefixes of every BERT layer.

Chen et al., "Good Visual Guidance Makes A Better Extractor" (Findings of NAACL 2022), and the
released code, whose readings are the profile `legacy`. B: rows, M: pictures of a row (the whole
one, then its regions), C: channels of the pyramid's stages together, L: word pieces, D: hidden
size.
"""

from typing import Any

import torch
from torch import Tensor, nn

from finetune.inputs.batch import Batch
from finetune.methods.base import Method, MethodOutput, Source
from finetune.methods.hvpnet.config import HvpnetConfig
from finetune.methods.hvpnet.inputs import PROVIDERS
from finetune.methods.hvpnet.prefix import VisualPrefix, encode_with_prefix
from finetune.methods.hvpnet.released import Recipe
from finetune.methods.layers import (
    PieceTaggingHead,
    RelationHead,
    TaggingHead,
    TaskHead,
    load_text_encoder,
    marker_states,
)
from finetune.methods.towers.grid import load_pyramid
from finetune.methods.towers.resnet import TOKENS, FrozenPyramid, ResNetPyramid, prompt_tokens
from finetune.tasks.base import TaskInfo
from pretrain.model.bert import Bert


class Hvpnet(Method):
    """Frozen ResNet pyramid + prefix-guided BERT + classifier or CRF."""

    Config = HvpnetConfig
    providers = PROVIDERS
    kinds = frozenset({"relation", "entities"})
    encoder: Bert
    vision: ResNetPyramid
    config: HvpnetConfig
    head: TaskHead

    def __init__(
        self, encoder: Bert, vision: ResNetPyramid, task: TaskInfo, config: HvpnetConfig
    ) -> None:
        super().__init__()
        self.recipe, self.given = Recipe.of(config, task.kind), config
        self.config = config = config.settled(task.kind)
        self.needs = frozenset({"image"} | ({"region_pixels"} if config.regions else set()))
        # With a batch's own statistics a picture looks otherwise in every batch.
        if config.freeze and not config.batch_statistics:
            self.needs |= {"visual_features"}
        self.region_slots = {"vg": config.regions} if config.regions else {}
        self.image_resize = config.resize
        self.encoder = encoder
        sizes = encoder.config
        self.vision = vision.requires_grad_(not config.freeze)
        # What starts at random learns at the rate of the head, not at that of loaded weights.
        if not config.freeze and not config.vision_random:
            self.towers = ("encoder.", "vision.")
        self.prefix = VisualPrefix(
            sum(vision.channels),
            layers=sizes.num_hidden_layers,
            heads=sizes.num_attention_heads,
            size=sizes.hidden_size,
            width=config.prompt_width,
            head_split=config.prefix_head_split,
            absent=config.absent or "mask",
        )
        self.dropout = nn.Dropout(config.head_dropout)
        if task.kind == "relation":
            self.head = RelationHead(sizes.hidden_size, task, "linear")
            self.head.requires_grad_(bool(self.recipe.train_classifier))
            if config.markers == "released":
                self.needs |= {"released_markers"}
        elif config.tagging == "words":
            self.head = TaggingHead(sizes.hidden_size, task, config.tag_dropout)
        else:
            self.head = PieceTaggingHead(sizes.hidden_size, task, config.tag_dropout)
        self.train()

    @classmethod
    def build(cls, config: Any, task: TaskInfo, source: Source) -> tuple["Hvpnet", Any]:
        """From a BERT directory or the text side of a fusion model, and a ResNet."""
        encoder, tokenizer = load_text_encoder(source, task, vision=config.vision == "init")
        return cls(encoder, load_pyramid(config, source, encoder), task, config), tokenizer

    @property
    def image_size(self) -> int:
        """Side of the pictures."""
        return self.vision.image_size or self.config.image_size

    def train(self, mode: bool = True) -> "Hvpnet":
        """As everywhere, but a frozen ResNet keeps its BatchNorm's running statistics."""
        super().train(mode)
        self.vision.train(mode and (bool(self.config.batch_statistics) or not self.config.freeze))
        return self

    def forward(self, batch: Batch) -> MethodOutput:
        """Logits of relations, or emissions; without pictures a plain BERT reads the text."""
        visual = self.visual_tokens(batch)
        prefix = None if visual is None else self.prefix(*visual)
        states = encode_with_prefix(self.encoder, batch.input_ids, batch.attention_mask, prefix)
        if isinstance(self.head, RelationHead):
            return self.head.classify(self.dropout(marker_states(states, batch)), batch)
        return self.head(states, batch)

    def visual_tokens(self, batch: Batch) -> tuple[Tensor, Tensor] | None:
        """(B, M, 4, C) and which pictures there are, (B, M) bool; None where vision is off."""
        if batch.image_mask is None:
            return None
        present = batch.image_mask[:, None]
        if batch.region_mask is not None:
            present = torch.cat([present, batch.region_mask], dim=1)
        if batch.image_features is not None:
            # Not float16 any more before they are joined: bf16 autocast refuses to mix the two.
            whole, regions = batch.image_features.float(), batch.region_features
            tokens = joined(whole, None if regions is None else regions.float())
            tokens = tokens.unflatten(-1, (TOKENS, -1)).to(self.prefix.encode[0].weight.dtype)
            if self.config.absent == "attend":
                tokens = torch.where(present[..., None, None], tokens, self._nothing())
            return tokens, present
        pixels = joined(batch.require("pixel_values"), batch.region_pixels)
        pixels = self.vision.normalise(pixels, present)
        if self.vision.training and self.config.freeze:
            # As released: the whole pictures, the first crops, … each with their own statistics.
            return torch.stack([self._tokens(part) for part in pixels.unbind(1)], dim=1), present
        tokens = self.once(self._tokens, pixels.flatten(0, 1))
        return tokens.unflatten(0, present.shape), present

    @property
    def frozen_vision(self) -> "FrozenPyramid":
        """What sees every picture once; asked for where nothing in the ResNet changes."""
        return FrozenPyramid(self.vision, self.config.prompt_layout)

    def _tokens(self, pixels: Tensor) -> Tensor:
        """Normalised (n, 3, S, S) -> (n, 4, C)."""
        return prompt_tokens(self.vision(pixels), self.config.prompt_layout)

    def _nothing(self) -> Tensor:
        """(1, 4, C): what the ResNet sees in a picture of the mean colour."""
        size = self.image_size
        return self._tokens(self.vision.mean.new_zeros(1, 3, size, size))

    def before_training(self, run: Any) -> None:
        """The recipe of the profile, which asks whether the run has pictures."""
        is_relation = isinstance(self.head, RelationHead)
        kind = "relation" if is_relation else "entities"
        self.recipe = Recipe.of(self.given, kind, pictures=run.images != "none")
        if is_relation:
            self.head.requires_grad_(bool(self.recipe.train_classifier))

    def parameter_groups(self, optim: Any) -> list[dict]:
        """AdamW groups, as everywhere; with `decay_all` everything decays."""
        groups = super().parameter_groups(optim)
        if self.recipe.decay_all:
            groups = [group | {"weight_decay": optim.weight_decay} for group in groups]
        return groups

    def learning_rate(self, name: str, optim: Any, above: int) -> float:
        """As everywhere, but the emission layer learns with the CRF above it, as released."""
        if self.recipe.one_rate:
            return optim.lr
        if name.startswith("head.emission."):
            return optim.crf_lr
        return super().learning_rate(name, optim, above)


def joined(whole: Tensor, regions: Tensor | None) -> Tensor:
    """(B, …) and (B, R, …) -> (B, 1 + R, …)."""
    whole = whole[:, None]
    return whole if regions is None else torch.cat([whole, regions], dim=1)
