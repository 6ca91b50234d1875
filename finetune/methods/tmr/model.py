"""TMR: the picture, and one generated from the sentence, weighted by how well they match it.

Zheng et al., "Rethinking Multimodal Entity and Relation Extraction from a Translation Point of
View" (ACL 2023), and the released code, whose readings are the profile `legacy`. Each of the two
sources gives a whole picture, which attends to the sentence, and regions, which attend to the
phrases that they were found by. Without pictures (`--images none`) the text and its phrases remain.

For entities (`tmr_tagging.py`) regions attend to the whole sentence unless TMR's phrases are asked
for: nothing that was made from the tags goes in. `legacy` is the released network; of its training
are not reproduced: layers in no optimizer group, selection on the test split, a loss summed over
the batch, and the order in which its ResNet sees pictures (running statistics alone).

B: rows, L: word pieces, P: positions of a picture's last map, R: regions, C: its channels,
D: hidden size, K: sources (the original, then the generated one).
"""

from dataclasses import replace
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from finetune.inputs.batch import Batch
from finetune.methods.base import Method, MethodOutput, Source
from finetune.methods.layers import load_text_encoder, marker_states, relation_loss, word_states
from finetune.methods.tmr import tagging as tmr_tagging
from finetune.methods.tmr.config import TmrConfig
from finetune.methods.tmr.fusion import Look, Streams, TmrHead, look, look_up, pooled
from finetune.methods.tmr.inputs import providers
from finetune.methods.tmr.released import LENGTHS, empty_regions
from finetune.methods.towers.grid import load_pyramid
from finetune.methods.towers.resnet import FrozenMaps, ResNetPyramid
from finetune.tasks.base import TaskInfo
from pretrain.model.bert import Bert


class Tmr(Method):
    """BERT, ResNet, cross attention between them, and a classifier or a CRF."""

    Config = TmrConfig
    kinds = frozenset({"relation", "entities"})
    towers: tuple[str, ...] = ("encoder.", "vision.")
    encoder: Bert
    vision: ResNetPyramid | None
    config: TmrConfig
    head: TmrHead | tmr_tagging.TmrTaggingHead

    def __init__(
        self, encoder: Bert, vision: ResNetPyramid | None, task: TaskInfo, config: TmrConfig
    ) -> None:
        super().__init__()
        self.config = config = config.settled(task.kind)
        size = encoder.config.hidden_size
        self.encoder, self.vision = encoder, vision
        self.image_resize = config.resize
        needs = set() if config.phrases == "sentence" else {"phrases"}
        needs |= {"masked_entities"} if config.mask_entity else set()
        if vision is not None:
            vision.requires_grad_(not config.freeze)
            # What starts at random learns at the rate of the head, not at that of loaded weights.
            if config.vision_random:
                self.towers = tuple(name for name in self.towers if name != "vision.")
            needs |= self.visual_needs(config)
            self.region_slots = {"vg": config.regions} if config.regions else {}
            self.reduce = nn.Linear(vision.channels[-1], size)
        self.needs = frozenset(needs)
        self.providers = providers(config)
        shared: dict[str, Any] = {
            "sources": 1 if config.generated == "none" else 2,
            "regions": vision is not None and config.regions > 0,
            "mean": config.pool == "mean",
        }
        if task.kind == "relation":
            self.head = TmrHead(
                size,
                len(task.labels),
                extended=config.version == "v2",
                dropout=config.dropout,
                **shared,
            )
            return
        positions = config.token_features == "positions"
        # Each of these positions has a layer of its own; there is none for a word piece beyond.
        self.longest_text = LENGTHS["entities"] if positions else None
        self.head = tmr_tagging.TmrTaggingHead(
            size,
            task,
            positions=positions,
            pieces=config.tagging == "pieces",
            dropout=config.tag_dropout,
            **shared,
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
    def build(cls, config: Any, task: TaskInfo, source: Source) -> tuple["Tmr", Any]:
        """BERT from `source` (a fusion model's text side, or a BERT), the ResNet from timm."""
        encoder, tokenizer = load_text_encoder(source, task, vision=config.vision == "init")
        vision = None if config.vision == "none" else load_pyramid(config, source, encoder)
        return cls(encoder, vision, task, config), tokenizer

    @property
    def image_size(self) -> int:
        """As configured: a ResNet takes any; else the vision tower's own."""
        own = None if self.vision is None else self.vision.image_size
        return own or self.config.image_size

    @property
    def frozen_vision(self) -> FrozenMaps | None:
        """What sees every picture once, where nothing in the vision tower changes."""
        return None if self.vision is None else FrozenMaps(self.vision)

    def train(self, mode: bool = True) -> "Tmr":
        """A vision tower that is not trained keeps its batch statistics."""
        super().train(mode)
        if self.vision is not None and self.config.freeze:
            self.vision.eval()
        return self

    def forward(self, batch: Batch) -> MethodOutput:
        """Logits (B, C) of relations, or emissions."""
        looks = [] if batch.image_mask is None else self.look(batch)
        return self.relate(batch, looks) if self.is_relation else self.tag(batch, looks)

    def last_map(self, pixels: Tensor) -> Tensor:
        """Normalised (N, 3, S, S) -> (N, C, S / 32, S / 32)."""
        return cast(ResNetPyramid, self.vision)(pixels)[-1]

    @property
    def is_relation(self) -> bool:
        """Whether the labels are relations, not the tags of words."""
        return isinstance(self.head, TmrHead)

    def look(self, batch: Batch) -> list[Look]:
        """What the sources show."""
        config = self.config
        generated = config.generated != "none"
        assert self.vision is not None  # only it makes pictures a need
        if batch.image_features is not None:
            return look_up(batch, self.vision.channels[-1], generated=generated)
        looks = look(
            self.vision,
            batch,
            partial(self.once, self.last_map),
            generated=generated,
            bgr255=config.whole_norm == "bgr255",
            one_pass=bool(config.one_pass),
        )
        if generated and config.regions and not (self.is_relation or config.mask_absent):
            # As released: it loses the regions of generated pictures, and sees empty squares.
            empty = empty_regions(self.vision, self.image_size, len(batch), config.regions)
            looks[1] = replace(looks[1], regions=empty)
        return looks

    def relate(self, batch: Batch, looks: list[Look]) -> MethodOutput:
        """Logits from the texts and what the sources show (README.md, Model of relations)."""
        texts = self.read(batch)
        text, _, phrases, phrase_mask = texts
        pair, head = marker_states(text, batch), cast(TmrHead, self.head)
        features = head.features(self.streams(batch, looks, text), *texts)
        final = head.final_feature(pair, pooled(phrases, phrase_mask), features)
        logits = head.classify(final)
        loss = relation_loss(logits, batch.labels)
        return MethodOutput(logits, self.total_loss(loss, batch, pair, features, final))

    def tag(self, batch: Batch, looks: list[Look]) -> MethodOutput:
        """Emissions from the texts and what the sources show (README.md, Model of entities)."""
        texts = self.read(batch)
        streams = self.streams(batch, looks, texts[0])
        return self.head(self.head.fused(streams, *texts) if streams else [], texts[0], batch)

    def read(self, batch: Batch) -> tuple[Tensor, Tensor | None, Tensor, Tensor | None]:
        """Sentence (B, L, D), its mask, phrases (B, Lp, D), their mask: what is attended to and
        what of it counts (None: all of it)."""
        length = None
        if not self.config.mask_padding:
            length = LENGTHS["relation" if self.is_relation else "entities"]
        text, text_mask = encode_text(self.encoder, batch, length)
        if self.config.phrases == "sentence":
            return text, text_mask, text, text_mask
        ids, phrase_mask = batch.require("phrase_ids"), batch.require("phrase_mask")
        phrases = self.once(partial(word_states, self.encoder), ids, phrase_mask, name="phrases")
        attended = None if self.config.phrase_encoding == "wordpiece5" else phrase_mask
        return text, text_mask, phrases, attended

    def streams(self, batch: Batch, looks: list[Look], text: Tensor) -> list[Streams]:
        """What each source brings to the fusion."""
        config = self.config
        mean = config.pool == "mean"
        streams = []
        for k, source in enumerate(looks):
            whole, objects, counted = self.reduce(source.whole), None, None
            if source.regions is not None:
                positions = source.regions.mean(2) if mean else source.regions.sum(2)
                objects = self.reduce(positions)
                counted = source.regions_seen if config.mask_absent else None
            scores = source_scores(batch, k, source.seen if config.mask_absent else None)
            shortcuts: tuple[Tensor | None, Tensor | None] = (None, None)
            if config.version == "v2":
                shortcuts = (
                    pooled(whole, mean=mean),
                    None if objects is None else pooled(objects, counted, mean),
                )
            streams.append(Streams(whole, None, objects, counted, shortcuts, scores))
        return streams

    def learning_rate(self, name: str, optim: Any, above: int) -> float:
        """As everywhere, but the emission layer learns with the CRF above it, as released."""
        if name.startswith("head.tags.emission."):
            return optim.crf_lr
        return super().learning_rate(name, optim, above)

    def total_loss(
        self, loss: Tensor | None, batch: Batch, pair: Tensor, features: list[Tensor], final: Tensor
    ) -> Tensor | None:
        """The cross-entropy; a method built on this one may add to it."""
        return loss


def source_scores(batch: Batch, k: int, seen: Tensor | None) -> Tensor:
    """(B, 2) [weak, strong] of source k, halves where there are none; 0 where `seen` is False."""
    if batch.scores is None:
        scores = torch.full((len(batch), 2), 0.5, device=batch.input_ids.device)
    else:
        scores = batch.scores[:, k]
    return scores if seen is None else scores * seen[:, None]


def encode_text(encoder: Bert, batch: Batch, length: int | None) -> tuple[Tensor, Tensor | None]:
    """The sentence (B, L, D), and the mask of what is attended to (None: all of it).

    Args:
        length: pad to so many positions, all of which are attended to, as released.
    """
    ids, mask = batch.input_ids, batch.attention_mask
    if length is not None:
        missing = max(0, length - ids.shape[1])
        ids = nn.functional.pad(ids, (0, missing), value=encoder.config.pad_token_id or 0)
        mask = nn.functional.pad(mask, (0, missing))
    states = word_states(encoder, ids, mask)
    if length is not None and ids.shape[1] > length:  # on a GPU, padded to a round number
        mask = mask | (torch.arange(ids.shape[1], device=ids.device) < length)
    return states, None if ids.shape[1] == length else mask
