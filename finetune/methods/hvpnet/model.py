"""HVPNeT: a picture's pyramid as key and value prefixes of every BERT layer.

Chen et al., "Good Visual Guidance Makes A Better Extractor" (Findings of NAACL 2022), and the
released code, whose readings are the profile `legacy`. B: rows, M: pictures of a row (the whole
one, then its regions), C: channels of the pyramid's stages together, L: word pieces, D: hidden
size.
"""

from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import BertModel

from finetune.inputs.batch import Batch
from finetune.methods.base import Method, MethodOutput, Source
from finetune.methods.hvpnet.inputs import PROVIDERS
from finetune.methods.hvpnet.prefix import VisualPrefix, encode_with_prefix, prepare_for_prefix
from finetune.methods.layers import (
    PieceTaggingHead,
    RelationHead,
    TaggingHead,
    entity_states,
    load_text_encoder,
)
from finetune.methods.towers.resnet import (
    TOKENS,
    FrozenPyramid,
    ResNetPyramid,
    load_resnet,
    prompt_tokens,
)
from finetune.tasks.base import TaskInfo

PROFILES: dict[str, dict[str, Any]] = {
    "fixed": {
        "absent": "mask",
        "batch_statistics": False,
        "train_classifier": True,
        "decay_all": False,
        "tagging": "words",
        "markers": "whole",
    },
    "legacy": {
        "absent": "attend",
        "batch_statistics": True,
        "train_classifier": False,
        "decay_all": True,
        "tagging": "pieces",
        "markers": "released",
    },
}
"""What a switch that is not set means."""


@dataclass(frozen=True, kw_only=True)
class HvpnetConfig:
    """Settings of HVPNeT. The released code: `--model.profile legacy`."""

    profile: Literal["fixed", "legacy"] = "fixed"
    """legacy: the released code's readings. fixed: its defects corrected. Sets what is null."""
    absent: Literal["mask", "mask_slots", "attend"] | None = None
    """A picture or region that is not there. mask (fixed): unseen. mask_slots: its four places are
    masked in each head, which under prefix_head_split reshape are not where its numbers stand.
    attend (legacy): a picture of the mean colour is seen."""
    batch_statistics: bool | None = None
    """BatchNorm of the frozen ResNet uses each batch's statistics in training (legacy: true)."""
    train_classifier: bool | None = None
    """Relations: false leaves the classifier at its random start (legacy, by mistake; but without
    pictures it learned)."""
    decay_all: bool | None = None
    """Weight decay of biases and norms too (legacy: true; but for relations without pictures,
    false)."""
    tagging: Literal["words", "pieces"] | None = None
    """Entities. words (fixed): a CRF over words. pieces (legacy): over word pieces, with tags for
    later pieces, [CLS] and [SEP]."""
    markers: Literal["whole", "released"] | None = None
    """Relations. released (legacy): the closing marker of an entity at the text's end is lost, and
    between neighbours one opens before the other closes. whole (fixed): four markers, nested."""
    vision: str = "resnet50.tv_in1k"
    """A timm ResNet, or a directory in timm's layout."""
    vision_random: bool = False
    """Draw the ResNet's weights at random."""
    vision_width: int = 64
    """Channels of the ResNet's first stage; other than 64 with random weights only."""
    freeze: bool = True
    """The ResNet stays as it is, so each picture is looked at once. false: it learns at optim.lr,
    at optim.head_lr if drawn at random."""
    image_size: int = 224
    """Side of the square pictures; at least 64."""
    resize: Literal["center_crop", "squash"] = "center_crop"
    """center_crop, as released: shorter side to 256/224 of image_size, then the middle."""
    regions: int = 3
    """Grounded regions beside the whole picture; `--regions` says where they come from."""
    prompt_layout: Literal["channel_slab", "spatial"] = "channel_slab"
    """A picture's four tokens: a run of channels with their 2 × 2 grid, or a place of the grid."""
    prefix_head_split: Literal["reshape", "transpose"] = "reshape"
    """How prefix numbers become heads: in memory order, as released, or the usual way."""
    prompt_width: int = 800
    """Hidden width of the prompt encoder."""
    head_dropout: float = 0.0
    """Relations: dropout before the classifier (the released code makes one, unused)."""
    tag_dropout: float = 0.1
    """Entities: dropout before the emission layer."""

    def __post_init__(self) -> None:
        if self.image_size < 64:
            raise ValueError(
                "model.image_size must be at least 64: the last map is pooled to 2 × 2"
            )
        if self.regions < 0 or self.vision_width < 1 or self.prompt_width < 1:
            raise ValueError("model.regions, vision_width and prompt_width must be positive")

    @property
    def settled(self) -> "HvpnetConfig":
        """With the profile's value for every switch that is not set."""
        defaults = PROFILES[self.profile]
        return replace(self, **{k: v for k, v in defaults.items() if getattr(self, k) is None})


class Hvpnet(Method):
    """Frozen ResNet pyramid + prefix-guided BERT + classifier or CRF."""

    Config = HvpnetConfig
    providers = PROVIDERS
    kinds = frozenset({"relation", "entities"})

    def __init__(
        self, encoder: BertModel, vision: ResNetPyramid, task: TaskInfo, config: HvpnetConfig
    ) -> None:
        super().__init__()
        self.given, self.settings = config, config.settled
        config = self.settings
        self.one_rate = False
        self.needs = frozenset({"image"} | ({"region_pixels"} if config.regions else set()))
        if config.freeze and not config.batch_statistics:
            self.needs |= {"visual_features"}
        self.region_slots = {"vg": config.regions} if config.regions else {}
        self.image_resize = config.resize
        self.encoder = encoder
        prepare_for_prefix(encoder)
        sizes = encoder.config
        self.vision = vision.requires_grad_(not config.freeze)
        if not config.freeze and not config.vision_random:
            self.towers = ("encoder.", "vision.")
        self.prefix = VisualPrefix(
            sum(vision.channels),
            layers=sizes.num_hidden_layers,
            heads=sizes.num_attention_heads,
            size=sizes.hidden_size,
            width=config.prompt_width,
            head_split=config.prefix_head_split,
            absent=config.absent,
        )
        self.dropout = nn.Dropout(config.head_dropout)
        if task.kind == "relation":
            self.head = RelationHead(sizes.hidden_size, task, "linear")
            self.head.requires_grad_(config.train_classifier)
            if config.markers == "released":
                self.needs |= {"released_markers"}
        elif config.tagging == "words":
            self.head = TaggingHead(sizes.hidden_size, task, config.tag_dropout)
        else:
            self.head = PieceTaggingHead(sizes.hidden_size, task, config.tag_dropout)
        self.train()

    @classmethod
    def build(cls, config: HvpnetConfig, task: TaskInfo, source: Source) -> tuple["Hvpnet", Any]:
        """From a BERT directory or the text side of a fusion model, and a ResNet."""
        encoder, tokenizer = load_text_encoder(source, task)
        random_weights = source.random_weights or source.finished or config.vision_random
        vision = load_resnet(
            config.vision, random_weights=random_weights, width=config.vision_width
        )
        return cls(encoder, vision, task, config), tokenizer

    @property
    def image_size(self) -> int:
        """Side of the pictures."""
        return self.settings.image_size

    def train(self, mode: bool = True) -> "Hvpnet":
        """As everywhere, but a frozen ResNet keeps its BatchNorm's running statistics."""
        super().train(mode)
        self.vision.train(mode and (self.settings.batch_statistics or not self.settings.freeze))
        return self

    def forward(self, batch: Batch) -> MethodOutput:
        """Logits of relations, or emissions; without pictures a plain BERT reads the text."""
        visual = self.visual_tokens(batch)
        prefix = None if visual is None else self.prefix(*visual)
        states = encode_with_prefix(self.encoder, batch.input_ids, batch.attention_mask, prefix)
        if isinstance(self.head, RelationHead):
            pair = entity_states(states, batch.head_start, batch.tail_start)
            return self.head.classify(self.dropout(pair), batch)
        return self.head(states, batch)

    def decode(self, output: MethodOutput, batch: Batch) -> list[Any]:
        """Relation ids, or the tag ids of each sentence's words."""
        return self.head.decode(output, batch)

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
            if self.settings.absent == "attend":
                tokens = torch.where(present[..., None, None], tokens, self._nothing())
            return tokens, present
        pixels = joined(batch.pixel_values, batch.region_pixels)
        pixels = self.vision.normalise(pixels, present)
        if self.vision.training and self.settings.freeze:
            # As released: the whole pictures, the first crops, … each with their own statistics.
            return torch.stack([self._tokens(part) for part in pixels.unbind(1)], dim=1), present
        return self._tokens(pixels.flatten(0, 1)).unflatten(0, present.shape), present

    @property
    def frozen_vision(self) -> "FrozenPyramid":
        """What sees every picture once; asked for where nothing in the ResNet changes."""
        return FrozenPyramid(self.vision, self.settings.prompt_layout)

    def _tokens(self, pixels: Tensor) -> Tensor:
        """Normalised (n, 3, S, S) -> (n, 4, C)."""
        return prompt_tokens(self.vision(pixels), self.settings.prompt_layout)

    def _nothing(self) -> Tensor:
        """(1, 4, C): what the ResNet sees in a picture of the mean colour."""
        size = self.settings.image_size
        return self._tokens(self.vision.mean.new_zeros(1, 3, size, size))

    def without_pictures(self) -> None:
        """The released code trains text alone otherwise: the classifier too, without decay of
        biases and norms; for entities everything decays and learns at one rate."""
        if isinstance(self.head, RelationHead):
            trained = self.given.train_classifier is not False
            decayed = bool(self.given.decay_all)
            self.settings = replace(self.settings, train_classifier=trained, decay_all=decayed)
            self.head.requires_grad_(trained)
        else:
            self.one_rate = self.settings.profile == "legacy"

    def parameter_groups(self, optim: Any) -> list[dict]:
        """AdamW groups, as everywhere; with `decay_all` everything decays."""
        groups = super().parameter_groups(optim)
        if self.settings.decay_all:
            groups = [group | {"weight_decay": optim.weight_decay} for group in groups]
        return groups

    def learning_rate(self, name: str, optim: Any, above: int) -> float:
        """As everywhere, but the emission layer learns with the CRF above it, as released."""
        if self.one_rate:
            return optim.lr
        if name.startswith("head.emission."):
            return optim.crf_lr
        return super().learning_rate(name, optim, above)


def joined(whole: Tensor, regions: Tensor | None) -> Tensor:
    """(B, …) and (B, R, …) -> (B, 1 + R, …)."""
    whole = whole[:, None]
    return whole if regions is None else torch.cat([whole, regions], dim=1)
