"""CAMIM: captions that align pictures with the text, and mutual information kept between features.

Zhang et al., "Caption-Aware Multimodal Relation Extraction with Mutual Information Maximization"
(MM 2024), on TMR and on HVPNeT. The released code holds the first only; the second follows two
sentences of the paper and is **our construction** (`CamimHvpnet`). Profile `fixed` reads the module
as Eqs. 5 to 14 do, `legacy` as the released code. Fusion and head are TMR's, as in that code, or
with `fusion: cross_attention` those of Eqs. 15 to 19. Without pictures (`--images none`) captions
stand for them: a picture's positions become one learned vector, which the caption then informs.

B: rows, M: pictures of a source, P: positions of a picture, W: words, D: hidden size.
"""

from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from finetune.inputs.batch import Batch
from finetune.methods.base import MethodOutput, Source
from finetune.methods.camim.caption_aware import CaptionAware, pool_sentence
from finetune.methods.camim.caption_reading import (
    CAPTION_LENGTH,
    Description,
    caption_encoder,
    caption_needs,
    information_loss,
    read,
    read_caption,
)
from finetune.methods.camim.class_token import ClassTokenHead, relate_as_printed
from finetune.methods.camim.config import CamimHvpnetConfig, CamimTmrConfig
from finetune.methods.hvpnet import model as hvpnet
from finetune.methods.hvpnet.prefix import Prefix, encode_with_prefix
from finetune.methods.layers import RelationHead, load_text_encoder, marker_states
from finetune.methods.tmr import model as tmr
from finetune.methods.tmr.fusion import Look, Streams, pooled
from finetune.methods.towers.resnet import TOKENS, ResNetPyramid
from finetune.tasks.base import TaskInfo
from pretrain.model.bert import Bert

# ------------------------------------------------------------------ on TMR


class CamimTmr(tmr.Tmr):
    """TMR whose pictures have read their captions, generated ones the sentence."""

    Config = CamimTmrConfig
    kinds = frozenset({"relation"})
    towers: tuple[str, ...] = ("encoder.", "vision.", "caption_encoder.")
    config: CamimTmrConfig
    head: Any  # TmrHead or ClassTokenHead
    is_relation = True

    def __init__(
        self, encoder: Bert, vision: ResNetPyramid | None, task: TaskInfo, config: CamimTmrConfig
    ) -> None:
        if as_printed := config.fusion == "cross_attention":
            config = replace(config, phrases="sentence", scores="none")
        super().__init__(encoder, vision, task, config)
        config, size = self.config, encoder.config.hidden_size
        if as_printed:
            sources, labels = self.head.sources, len(task.labels)
            self.head = ClassTokenHead(size, labels, sources, config.dropout)
        self.needs |= caption_needs(config)
        self.longest_caption = None if config.mask_words else CAPTION_LENGTH
        self.caption_encoder = caption_encoder(encoder, config)
        self.aware = self.no_picture = None
        if config.use_cam:
            self.aware = CaptionAware(
                size, config.cam_levels, config.combine or "concat", bool(config.swap_words)
            )
            if vision is None:
                self.no_picture = nn.Parameter(0.02 * torch.randn(size))

    def relate(self, batch: Batch, looks: list[Look]) -> MethodOutput:
        """Logits from what the sources' [CLS] rows are told, or as TMR."""
        if not isinstance(self.head, ClassTokenHead):
            return super().relate(batch, looks)
        return relate_as_printed(self, self.head, batch, looks)

    def streams(self, batch: Batch, looks: list[Look], text: Tensor) -> list[Streams]:
        """What each source brings: its pictures, aligned with what describes them."""
        if self.aware is None:
            return super().streams(batch, looks, text)
        sources = self.sources(batch, looks, text)
        return [self.aligned(*source, batch, k) for k, source in enumerate(sources)]

    def sources(
        self, batch: Batch, looks: list[Look], text: Tensor
    ) -> list[tuple[Tensor, Look | None, Description]]:
        """Of each source its pictures (B, M, P, D), the whole one first, and their description."""
        described = self.descriptions(batch, text)
        if not looks:
            # Captions stand for pictures that nobody sees: one learned position each.
            return [(self.blank(batch), None, description) for description in described]
        sources: list[tuple[Tensor, Look | None, Description]] = []
        for look, description in zip(looks, described, strict=True):
            pictures = look.whole[:, None]
            if look.regions is not None:
                pictures = torch.cat([pictures, look.regions], dim=1)
            sources.append((self.reduce(pictures), look, description))
        return sources

    def blank(self, batch: Batch) -> Tensor:
        """(B, 1, 1, D): a vector that stands for a picture nobody sees."""
        vector = self.reduce.bias if self.no_picture is None else self.no_picture
        return vector.expand(len(batch), 1, 1, -1)

    def descriptions(self, batch: Batch, text: Tensor) -> list[Description]:
        """What `read` gives for the captions and, where there is a second source, the sentences."""
        config, encoder = self.config, self.caption_encoder or self.encoder
        described = [read_caption(encoder, batch, config, self.once)]
        if self.head.sources == 1:
            return described
        ids, mask = (field[:, :CAPTION_LENGTH] for field in (batch.input_ids, batch.attention_mask))
        if self.caption_encoder is None and config.mask_words:  # there already, with what follows
            words = text[:, : mask.shape[1]]
            vector = pool_sentence(words, mask, config.sentence or "mean_masked")
            return [*described, (vector, words, mask)]
        return [*described, read(encoder, ids, mask, config, self.once)]

    def aligned(
        self, pictures: Tensor, look: Look | None, description: Description, batch: Batch, k: int
    ) -> Streams:
        """Source k from its pictures (B, M, P, D), the whole one first, and its description."""
        config = self.config
        mean = config.pool == "mean"
        mask = description[2]
        assert self.aware is not None  # `streams` asks
        rows = self.aware(pictures, *description)  # (B, M, P+W, D), or P rows without words
        counted = None
        if mask is not None and rows.shape[2] > pictures.shape[2]:
            # Every position of a picture counts; of the words that joined it, the real ones.
            positions = mask.new_ones(len(rows), pictures.shape[2])
            counted = torch.cat([positions, mask], dim=1)
        whole = rows[:, 0]
        objects = objects_counted = for_objects = seen = None
        if look is not None and rows.shape[1] > 1:
            # Regions are summed over their rows first, so each asks the phrases once.
            of_rows = None if counted is None else counted[:, None].expand(rows.shape[:3])[:, 1:]
            objects = pooled(rows[:, 1:], of_rows, mean)
            objects_counted = look.regions_seen if config.mask_absent else None
            for_objects = torch.tanh(pooled(objects, objects_counted, mean=True))
        if look is not None and config.mask_absent:
            seen = look.seen
        shortcuts = torch.tanh(pooled(whole, counted, mean)), for_objects
        scores = tmr.source_scores(batch, k, seen)
        return Streams(whole, counted, objects, objects_counted, shortcuts, scores)

    def total_loss(
        self, loss: Tensor | None, batch: Batch, pair: Tensor, features: list[Tensor], final: Tensor
    ) -> Tensor | None:
        """Cross-entropy and mutual information; without pictures and captions the first alone."""
        if not features:
            return loss
        both = torch.cat(features, dim=-1)
        joined = {
            "og": (features[-1], features[0]),
            "ogf": (both, final),
            "tf": (pair, final),
            "ogt": (both, pair),
        }
        return information_loss(loss, self.config, batch, *joined[self.config.mi_pair])


# ------------------------------------------------------------------ on HVPNeT


class NoVision(ResNetPyramid):
    """Stands where a vision tower would: captions alone make the prefix."""

    def __init__(self, size: int) -> None:
        nn.Module.__init__(self)
        self.channels = (size,)


class CamimHvpnet(hvpnet.Hvpnet):
    """HVPNeT whose prompt tokens have read the caption (README.md, On HVPNeT: our
    construction).

    The mutual information joins the aligned visual tokens and the final feature; the paper says no
    more than that.
    """

    Config = CamimHvpnetConfig
    kinds = frozenset({"relation"})
    towers: tuple[str, ...] = ("encoder.", "caption_encoder.")
    config: CamimHvpnetConfig
    head: RelationHead

    def __init__(
        self, encoder: Bert, vision: ResNetPyramid, task: TaskInfo, config: CamimHvpnetConfig
    ) -> None:
        second = caption_encoder(encoder, config)
        super().__init__(encoder, vision, task, config)
        config, size = self.config, encoder.config.hidden_size
        if "vision." in self.towers:
            self.towers = (*self.towers, "caption_encoder.")
        blind = isinstance(vision, NoVision)
        if blind:
            self.needs -= {"image", "region_pixels", "visual_features"}
            self.region_slots = {}
        self.needs |= caption_needs(config)
        self.longest_caption = None if config.mask_words else CAPTION_LENGTH
        self.caption_encoder = second
        channels = sum(vision.channels)
        self.aware = self.no_picture = self.reduce = None
        if config.use_cam:
            self.aware = CaptionAware(
                size, config.cam_levels, config.combine or "concat", bool(config.swap_words),
                word_rows=config.hvp_cam_mode == "all_rows",
            )  # fmt: skip
            self.restore = nn.Linear(size, channels)
            if config.hvp_cam_mode == "residual":
                # Nothing is added at first: training begins with HVPNeT's pictures.
                nn.init.zeros_(self.restore.weight)
                nn.init.zeros_(self.restore.bias)
        if blind and config.use_cam:
            self.no_picture = nn.Parameter(0.02 * torch.randn(TOKENS, size))
        elif not blind and (config.use_cam or config.use_mi):
            self.reduce = nn.Linear(channels, size)
        joined = config.use_mi and (config.use_cam or not blind)
        self.final = nn.Linear(2 * size, size) if joined else None

    @classmethod
    def build(cls, config: Any, task: TaskInfo, source: Source) -> tuple[hvpnet.Hvpnet, Any]:
        """As HVPNeT; `vision: none` for captions without pictures."""
        if config.vision != "none":
            return super().build(config, task, source)
        encoder, tokenizer = load_text_encoder(source, task)
        return cls(encoder, NoVision(encoder.config.hidden_size), task, config), tokenizer

    def forward(self, batch: Batch) -> MethodOutput:
        """Logits (B, C)."""
        prefix, visual = self.read_pictures(batch)
        states = encode_with_prefix(self.encoder, batch.input_ids, batch.attention_mask, prefix)
        pair = marker_states(states, batch)
        output = self.head.classify(self.dropout(pair), batch)
        if visual is None or self.final is None:
            return output
        loss = information_loss(output.loss, self.config, batch, visual, self.final(pair))
        return MethodOutput(output.logits, loss)

    def read_pictures(self, batch: Batch) -> tuple[Prefix | None, Tensor | None]:
        """The prefix, and the pictures as the loss sees them (B, D), absent ones left out; None
        where nothing is seen and no caption read."""
        visual = self.visual_tokens(batch)
        if self.aware is None:
            if visual is None:
                return None, None
            tokens, present = visual
            seen = None if self.reduce is None else self.reduce(tokens)
            seen = None if seen is None else pooled(seen.mean(2), present, mean=True)
            return self.prefix(tokens, present), seen
        if visual is None:  # one picture that nobody sees: its caption is all there is
            blank = self.no_picture if self.reduce is None else self.reduce.bias
            positions = cast(Tensor, blank).expand(len(batch), 1, TOKENS, -1)
            present = batch.require("caption_mask").new_ones(len(batch), 1)
        else:
            tokens, present = visual
            positions = cast(nn.Linear, self.reduce)(tokens)
        encoder = self.caption_encoder or self.encoder
        sentence, words, mask = read_caption(encoder, batch, self.config, self.once)
        rows = self.aware(positions, sentence, words, mask)  # (B, M, 4, D), all_rows: 4 + W
        restored = self.restore(rows)
        if visual is not None and self.config.hvp_cam_mode == "residual":
            # `restore` begins at zero, so training begins at plain HVPNeT.
            restored = tokens + restored
        seen, slots_filled = pooled(rows[:, :, :TOKENS].mean(2), present, mean=True), present
        if rows.shape[2] > TOKENS and mask is not None:
            # Words of a caption fill slots only where its picture does.
            slots_read = present if self.config.absent != "attend" else torch.ones_like(present)
            of_picture = slots_read[..., None].expand(-1, -1, TOKENS)
            slots_filled = torch.cat([of_picture, slots_read[..., None] & mask[:, None]], dim=2)
        return self.prefix(restored, slots_filled), seen
