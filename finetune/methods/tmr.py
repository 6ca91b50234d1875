"""TMR: the picture, and one generated from the sentence, weighted by how well they match it.

Zheng et al., "Rethinking Multimodal Entity and Relation Extraction from a Translation Point of
View" (ACL 2023), and the released code, whose readings are the profile `legacy`. Each of the two
sources gives a whole picture, which attends to the sentence, and regions, which attend to the
phrases that they were found by. Without pictures (`--images none`) the text and its phrases remain.

B: rows, L: word pieces, P: positions of a picture's last map, R: regions, C: its channels,
D: hidden size, K: sources (the original, then the generated one).
"""

from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from transformers import BertModel

from finetune.batch import Batch
from finetune.methods.base import Method, MethodOutput, Source
from finetune.methods.layers import entity_states, load_text_encoder, relation_loss
from finetune.methods.resnet import FrozenMaps, load_resnet
from finetune.methods.tmr_fusion import Look, Streams, TmrHead, look, look_up, pooled
from finetune.tasks.base import TaskInfo

PROFILES: dict[str, dict[str, Any]] = {
    "fixed": {
        "mask_padding": True,
        "mask_absent": True,
        "whole_norm": "imagenet",
        "phrase_encoding": "wordpiece",
        "one_pass": True,
    },
    "legacy": {
        "mask_padding": False,
        "mask_absent": False,
        "whole_norm": "bgr255",
        "phrase_encoding": "lookup6",
        "one_pass": False,
    },
}
"""What a switch that was not given means."""
LEGACY_LENGTH = 128
"""Word pieces that the released code pads every sentence to, and attends to."""


@dataclass(frozen=True, kw_only=True)
class TmrConfig:
    """Settings of TMR."""

    profiles: ClassVar[dict[str, dict[str, Any]]] = PROFILES
    profile: Literal["fixed", "legacy"] = "fixed"
    """legacy: each switch below that is not given is as in the released code."""
    version: Literal["v2", "v1"] = "v2"
    """v1: the upload of July 2023, without pooled shortcuts and the layers on top of them."""
    vision: str = "resnet50.a1_in1k"
    """timm ResNet, or a directory in timm's layout; none: no vision tower, for --images none."""
    vision_random: bool = False
    """Draw the vision tower's weights at random also where the text tower's are loaded."""
    vision_width: int = 64
    """Channels of the vision tower's first stage; other than 64 only with random weights."""
    freeze: bool = False
    """The vision tower stays as it is, batch statistics included, so each picture is looked at
    once. false: it learns at optim.lr, at optim.head_lr if drawn at random."""
    image_size: int = 224
    """Side of pictures and regions in pixels."""
    resize: Literal["squash", "center_crop"] = "squash"
    """How pictures and regions become squares (released: squash, and center_crop for regions)."""
    regions: int = 3
    """Regions a source, best first; 0: none."""
    generated: str = "diffusion_pic"
    """Folder in --data of generated pictures, {split}/<img_id>; none: without that source."""
    generated_boxes: Literal["none", "community"] = "none"
    """Regions of generated pictures. community: TMR's boxes, which leak the label."""
    phrases: Literal["entities", "community"] = "entities"
    """entities: the words of head and tail. community: TMR's file, which adds entity types that
    tell the label."""
    scores: str = "none"
    """Folder in --data of {split}_weight_{strong,weak}.txt and the same after dif_ (TMR's: txt);
    none: every score is a half."""
    pool: Literal["sum", "mean"] = "sum"
    """Over a picture's positions and over regions; sums of many may saturate the tanh behind."""
    dropout: float = 0.5
    """Before and after the last hidden layer."""
    mask_padding: bool | None = None
    """Leave padded word pieces out of the cross attention. legacy: attends to all 128."""
    mask_absent: bool | None = None
    """Leave absent pictures and regions out. legacy: squares of the mean colour."""
    whole_norm: Literal["imagenet", "bgr255"] | None = None
    """Whole pictures: as the vision tower was trained, or (legacy) blue-green-red, 0 to 255."""
    phrase_encoding: Literal["wordpiece", "lookup6"] | None = None
    """wordpiece: tokenised. lookup6 (legacy): six whole words by vocabulary, no mask; mostly
    unknown ones."""
    one_pass: bool | None = None
    """All pictures of a batch through the vision tower at once; legacy: four passes, each with its
    own batch statistics."""

    @property
    def settled(self) -> "TmrConfig":
        """With the profile's choice for each switch that was not given."""
        chosen = self.profiles[self.profile].items()
        return replace(self, **{name: v for name, v in chosen if getattr(self, name) is None})


class Tmr(Method):
    """BERT, ResNet, cross attention between them, and a classifier."""

    Config = TmrConfig
    towers = ("encoder.", "vision.")

    def __init__(
        self, encoder: BertModel, vision: nn.Module | None, task: TaskInfo, config: TmrConfig
    ) -> None:
        super().__init__()
        self.settings = config = config.settled
        size = encoder.config.hidden_size
        self.encoder, self.vision = encoder, vision
        self.image_resize = config.resize
        needs = {"phrases"}
        if vision is not None:
            vision.requires_grad_(not config.freeze)
            if config.vision_random:
                self.towers = tuple(name for name in self.towers if name != "vision.")
            needs |= self.visual_needs(config)
            self.region_slots = {"vg": config.regions} if config.regions else {}
            self.reduce = nn.Linear(vision.channels[-1], size)
        self.needs = frozenset(needs)
        self.head = TmrHead(
            size,
            len(task.labels),
            sources=1 if config.generated == "none" else 2,
            regions=vision is not None and config.regions > 0,
            mean=config.pool == "mean",
            extended=config.version == "v2",
            dropout=config.dropout,
        )

    @staticmethod
    def visual_needs(config: TmrConfig) -> set[str]:
        """Pictures, and what tells how far to trust them."""
        needs = {"image"}
        needs |= {"region_pixels"} if config.regions else set()
        needs |= {"generated"} if config.generated != "none" else set()
        needs |= {"scores"} if config.scores != "none" else set()
        seen_once = config.freeze and config.mask_absent and config.whole_norm == "imagenet"
        return needs | ({"visual_features"} if seen_once else set())

    @classmethod
    def build(cls, config: TmrConfig, task: TaskInfo, source: Source) -> tuple["Tmr", Any]:
        """BERT from `source` (a fusion model's text side, or a BERT), the ResNet from timm."""
        encoder, tokenizer = load_text_encoder(source, task)
        return cls(encoder, build_vision(config, source), task, config), tokenizer

    @property
    def image_size(self) -> int:
        """As configured: the vision tower takes any."""
        return self.settings.image_size

    @property
    def frozen_vision(self) -> FrozenMaps:
        """What sees every picture once, where nothing in the vision tower changes."""
        return FrozenMaps(self.vision)

    def train(self, mode: bool = True) -> "Tmr":
        """A vision tower that is not trained keeps its batch statistics."""
        super().train(mode)
        if self.vision is not None and self.settings.freeze:
            self.vision.eval()
        return self

    def forward(self, batch: Batch) -> MethodOutput:
        """Logits (B, C)."""
        return self.relate(batch, [] if batch.image_mask is None else self.look(batch))

    def look(self, batch: Batch) -> list[Look]:
        """What the sources show."""
        settings = self.settings
        if batch.image_features is not None:
            return look_up(batch, self.vision.channels[-1], generated=settings.generated != "none")
        return look(
            self.vision,
            batch,
            generated=settings.generated != "none",
            bgr255=settings.whole_norm == "bgr255",
            one_pass=settings.one_pass,
        )

    def relate(self, batch: Batch, looks: list[Look]) -> MethodOutput:
        """Logits from the texts and what the sources show (§3.3 to 3.5 of tmr.md)."""
        text, text_mask = encode_text(self.encoder, batch, self.settings)
        phrases, phrase_mask = encode_phrases(self.encoder, batch)
        pair = entity_states(text, batch.head_start, batch.tail_start)
        streams = self.streams(batch, looks, text)
        features = self.head.features(streams, text, text_mask, phrases, phrase_mask)
        final = self.head.final_feature(pair, pooled(phrases, phrase_mask), features)
        logits = self.head.classify(final)
        loss = relation_loss(logits, batch.labels)
        return MethodOutput(logits, self.total_loss(loss, batch, pair, features, final))

    def streams(self, batch: Batch, looks: list[Look], text: Tensor) -> list[Streams]:
        """What each source brings to the fusion."""
        settings = self.settings
        mean = settings.pool == "mean"
        found = []
        for k, shown in enumerate(looks):
            whole, objects, counted = self.reduce(shown.whole), None, None
            if shown.regions is not None:
                positions = shown.regions.mean(2) if mean else shown.regions.sum(2)
                objects = self.reduce(positions)
                counted = shown.regions_seen if settings.mask_absent else None
            scores = source_scores(batch, k, shown.seen if settings.mask_absent else None)
            shortcuts = (None, None)
            if settings.version == "v2":
                shortcuts = (
                    pooled(whole, mean=mean),
                    None if objects is None else pooled(objects, counted, mean),
                )
            found.append(Streams(whole, None, objects, counted, shortcuts, scores))
        return found

    def total_loss(
        self,
        loss: Tensor | None,
        batch: Batch,
        pair: Tensor,
        features: list[Tensor],
        final: Tensor,
    ) -> Tensor | None:
        """The cross-entropy; a method built on this one may add to it."""
        return loss


def build_vision(config: TmrConfig, source: Source) -> nn.Module | None:
    """The ResNet, or None where there is none."""
    if config.vision == "none":
        return None
    at_random = source.random_weights or source.finished or config.vision_random
    return load_resnet(config.vision, random_weights=at_random, width=config.vision_width)


def source_scores(batch: Batch, k: int, seen: Tensor | None) -> Tensor:
    """(B, 2) [weak, strong] of source k, halves where there are none; 0 where `seen` is False."""
    if batch.scores is None:
        scores = torch.full((len(batch), 2), 0.5, device=batch.input_ids.device)
    else:
        scores = batch.scores[:, k]
    return scores if seen is None else scores * seen[:, None]


def encode_text(
    encoder: BertModel, batch: Batch, config: TmrConfig
) -> tuple[Tensor, Tensor | None]:
    """The sentence (B, L, D), and the mask of what is attended to (None: all, 128 positions)."""
    ids, mask = batch.input_ids, batch.attention_mask
    if not config.mask_padding:
        missing = max(0, LEGACY_LENGTH - ids.shape[1])
        ids = nn.functional.pad(ids, (0, missing), value=encoder.config.pad_token_id or 0)
        mask = nn.functional.pad(mask, (0, missing))
    states = encoder(input_ids=ids, attention_mask=mask).last_hidden_state
    return states, mask if config.mask_padding else None


def encode_phrases(encoder: BertModel, batch: Batch) -> tuple[Tensor, Tensor]:
    """The phrases (B, Lp, D) and their mask, which is all True for `lookup6`."""
    ids, mask = batch.phrase_ids, batch.phrase_mask
    return encoder(input_ids=ids, attention_mask=mask).last_hidden_state, mask
