"""FocalMRE: focal frames, focal attention, gating, focal fusion (ACM MM 2024 submission, §3).

For each grounded and each detected region there is a copy of the whole picture with a frame around
that region, drawn here from one picture and the boxes. The markers of the two entities look at the
patches of each copy, a gate mixes what they saw into their text states, a weighted mean over the
copies of each kind feeds the classifier. No code was published; README.md tells what the paper
leaves open. Only the two marker positions are computed: the others never reach the classifier.

B: rows, R: copies of a picture, S: side of a picture, L: word pieces, P: text positions (the two
markers), K: patches, D: hidden size, V: width of the picture's states.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from finetune.inputs.batch import Batch
from finetune.methods.base import Method, MethodOutput, Source
from finetune.methods.focalmre.attention import FocalAttention
from finetune.methods.focalmre.config import FocalMREConfig
from finetune.methods.focalmre.frames import draw, draw_together
from finetune.methods.layers import marker_states, relation_loss
from finetune.methods.towers.pair import (
    Towers,
    load_towers,
    picture_states,
    picture_width,
    text_states,
)
from finetune.tasks.base import TaskInfo


@dataclass(frozen=True)
class Glance:
    """Where the text looked in each copy of the picture, for pictures of attention (Figure 4)."""

    pictures: Tensor
    """(B, R, 3, S, S) uint8: the copies."""
    weights: Tensor
    """(B, R, P, K) attention of each text position; sums to 1 (with the class token, if it is
    included, which is left out here)."""
    gate: Tensor
    """(B, R, P) how much of the picture is let in, mean over dimensions."""
    fusion: dict[str, Tensor]
    """Kind -> its weights in equation 5, one a copy."""


class FocalMRE(Method):
    """Two towers, focal attention and gate, focal fusion, classifier."""

    Config = FocalMREConfig
    encoder: Towers
    colors: Tensor
    needs = frozenset({"image", "region_boxes"})

    def __init__(self, encoder: Towers, task: TaskInfo, config: FocalMREConfig) -> None:
        super().__init__()
        self.encoder, self.config = encoder, config
        size, width = encoder.config.hidden_size, picture_width(encoder)
        self.region_slots = slots = config.slots
        self.needs = inputs_of(config)
        modules = ("both",) if config.share_kinds and slots else tuple(slots)
        self.focus = nn.ModuleDict({name: attention(size, width, config) for name in modules})
        # Start as the mean; where both kinds read one picture there is nothing to weigh.
        start = 0.0 if config.fusion_norm == "softmax" else 1.0
        self.fusion = nn.ParameterDict(
            {
                kind: nn.Parameter(torch.full((copies,), start / copies))
                for kind, copies in self.copies.items()
                if not self.one_picture
            }
        )
        self.classifier = classifier(max(len(slots), 1) * 2 * size, size, task, config)
        colors = torch.tensor([config.color, config.color_detected], dtype=torch.uint8)
        numbers = torch.tensor([config.num_grounded, config.num_detected])
        self.register_buffer("colors", colors.repeat_interleave(numbers, dim=0), persistent=False)

    @classmethod
    def build(
        cls, config: FocalMREConfig, task: TaskInfo, source: Source
    ) -> tuple["FocalMRE", Any]:
        """From a fusion model directory, or a BERT and a named picture tower."""
        encoder, tokenizer = load_towers(source, task, config.vision)
        return cls(encoder, task, config), tokenizer

    @property
    def one_picture(self) -> bool:
        """Whether a row has one picture, which both kinds read."""
        return self.config.input == "original" or self.config.merge == "all"

    @property
    def copies(self) -> dict[str, int]:
        """Kind -> how many copies of the picture it reads."""
        single = self.one_picture or self.config.merge == "per_kind"
        return {kind: 1 if single else number for kind, number in self.region_slots.items()}

    def forward(self, batch: Batch) -> MethodOutput:
        """Logits (B, C)."""
        text = self.read(batch, "entities")
        features = list(self.fuse(text, batch).values()) or [text]
        logits = self.classifier(torch.cat([f.flatten(1) for f in features], dim=-1)).float()
        return MethodOutput(logits, relation_loss(logits, batch.labels))

    def read(self, batch: Batch, positions: Literal["entities", "all"]) -> Tensor:
        """Text states of the two opening markers (B, 2, D), head first, or of all positions."""
        states = text_states(self.encoder, batch.input_ids, batch.attention_mask)
        if positions == "all":
            return states
        return marker_states(states, batch).unflatten(-1, (2, -1))

    def fuse(self, text: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Equations 3 to 5 for each kind: (B, P, D) -> H̄ (B, P, D).

        A row without picture, or (fill mask) without regions of the kind, keeps its text states,
        weighed as if every gate were closed.
        """
        if batch.pixel_values is None or not self.region_slots:
            return {kind: text * self.fusion_weights(kind).sum() for kind in self.region_slots}
        fused = {}
        for kind, pictures in self.by_kind(self.encode(self.pictures(batch))):
            mixed = self.focus_of(kind)(text, pictures)  # (B, R, P, D)
            weights, counted = self.fusion_weights(kind), self.counted(batch, kind)  # (R,), (B, R)
            total, shares = weights.sum(), weights * counted
            has_any = counted.any(dim=1, keepdim=True)
            if self.config.fill == "mask":
                # Those that are there take over the others' weight: their number does not show.
                shares = shares * total / torch.where(has_any, shares.sum(dim=1, keepdim=True), 1)
            mean = torch.einsum("br,brpd->bpd", shares.to(mixed.dtype), mixed)
            fused[kind] = torch.where(has_any[..., None], mean, total * text)
        return fused

    def by_kind(self, encoded: Tensor) -> Iterator[tuple[str, Tensor]]:
        """The copies that each kind reads: (B, R, …) -> (B, R of the kind, …)."""
        start = 0
        for kind, copies in self.copies.items():
            yield kind, encoded[:, :1] if self.one_picture else encoded[:, start : start + copies]
            start += copies

    def focus_of(self, kind: str) -> FocalAttention:
        """Attention and gate of this kind of region."""
        return cast(FocalAttention, self.focus["both" if self.config.share_kinds else kind])

    def fusion_weights(self, kind: str) -> Tensor:
        """w of equation 5: (R,), float32."""
        if self.one_picture:
            return next(self.classifier.parameters()).new_ones(1)
        weights = self.fusion[kind]
        return weights.softmax(dim=0) if self.config.fusion_norm == "softmax" else weights

    def counted(self, batch: Batch, kind: str) -> Tensor:
        """(B, R) bool: the copies of this kind that count."""
        copies = self.copies[kind]
        seen = batch.require("image_mask")[:, None].expand(-1, copies)
        if self.config.fill != "mask" or self.config.input == "original":
            return seen
        start = 0 if kind == "vg" else self.region_slots.get("vg", 0)
        filled = batch.require("region_mask")[:, start : start + self.region_slots[kind]]
        return seen & (filled if copies == filled.shape[1] else filled.any(dim=1, keepdim=True))

    # ------------------------------------------------------------------ pictures

    def pictures(self, batch: Batch) -> Tensor:
        """The copies of each row's picture, both kinds after each other: (B, R, 3, S, S) uint8."""
        config, plain = self.config, batch.require("pixel_values")
        if config.input == "original":
            return plain[:, None]
        cropped = config.input == "cropped"
        regions = batch.require("region_pixels" if cropped else "region_boxes")
        filled = batch.require("region_mask")
        if config.fill == "repeat":
            places, filled = repeated(filled, list(self.region_slots.values()))
            regions = regions[torch.arange(len(regions), device=regions.device)[:, None], places]
        if cropped:  # in an empty slot the whole picture, as a copy without a frame shows it
            return torch.where(filled[:, :, None, None, None], regions, plain[:, None])
        style, width = config.style, config.frame_width
        if config.merge == "none":
            return draw(plain, regions, filled, self.colors, style=style, width=width)
        numbers = list(self.region_slots.values())
        numbers = [sum(numbers)] if config.merge == "all" else numbers
        boxes, marked = regions.split(numbers, dim=1), filled.split(numbers, dim=1)
        parts = zip(boxes, marked, self.colors.split(numbers), strict=True)
        copies = [draw_together(plain, *part, style=style, width=width) for part in parts]
        return torch.stack(copies, dim=1)

    def encode(self, pictures: Tensor) -> Tensor:
        """(B, R, 3, S, S) uint8 -> (B, R, 1+K, V)."""
        states = self.once(partial(picture_states, self.encoder), pictures.flatten(0, 1))
        return states.unflatten(0, pictures.shape[:2])

    @torch.inference_mode()
    def glance(self, batch: Batch, positions: Literal["entities", "all"] = "entities") -> Glance:
        """Attention weights, gates and pictures of a batch; in eval mode.

        For the plain picture give a batch with an all-False `region_mask`.

        Args:
            positions: the two markers (head, tail), or all word pieces.
        """
        if self.config.attention != "focal" or self.config.gate == "none":
            raise ValueError("a glance needs model.attention focal and a gate")
        text, pictures = self.read(batch, positions), self.pictures(batch)
        weights, gates = [], []
        for kind, states in self.by_kind(self.encode(pictures)):
            focus, first = self.focus_of(kind), int(not self.config.include_cls)
            weights.append(focus.weights(text, states[:, :, first:])[..., 1 - first :])
            gate = focus.open(text[:, None], focus.look(text, states)).mean(dim=-1)
            gates.append(gate.expand(-1, -1, text.shape[1]))
        fusion = {kind: self.fusion_weights(kind) for kind in self.region_slots}
        return Glance(pictures, torch.cat(weights, 1), torch.cat(gates, 1), fusion)


def inputs_of(config: FocalMREConfig) -> frozenset[str]:
    """What the settings need beyond the text."""
    if not config.slots:
        return frozenset()
    regions = {"focal": ["region_boxes"], "cropped": ["region_pixels"], "original": []}
    return frozenset(["image", *regions[config.input]])


def repeated(filled: Tensor, numbers: list[int]) -> tuple[Tensor, Tensor]:
    """Filled slots as they are; empty ones take the regions of their kind in turn.

    Args:
        filled: (B, R) bool, which are filled. numbers: slots of each kind.

    Returns:
        (B, R) int64, the slot whose region each slot shows; (B, R) bool, whether there is any.
    """
    places, parts, start = [], [], 0
    for part in filled.split(numbers, dim=1):
        count = part.sum(dim=1, keepdim=True).clamp(min=1)
        own = torch.arange(part.shape[1], device=filled.device).expand_as(part)
        regions = (~part).to(torch.uint8).argsort(dim=1, stable=True)  # filled slots, then others
        places.append(start + torch.where(part, own, regions.gather(1, own % count)))
        parts.append(part.any(dim=1, keepdim=True).expand_as(part))
        start += part.shape[1]
    return torch.cat(places, dim=1), torch.cat(parts, dim=1)


def attention(size: int, width: int, config: FocalMREConfig) -> FocalAttention:
    """Equations 3 and 4 as the settings have them."""
    return FocalAttention(
        size,
        width,
        attention=config.attention,
        include_cls=config.include_cls,
        dropout=config.attention_dropout,
        dropout_on=config.dropout_on,
        gate=config.gate,
        no_gate=config.no_gate,
    )


def classifier(width: int, size: int, task: TaskInfo, config: FocalMREConfig) -> nn.Sequential:
    """z of equation 6 -> logits."""
    last = nn.Linear(size if config.classifier == "mlp" else width, len(task.labels))
    if config.classifier == "linear":
        return nn.Sequential(last)
    return nn.Sequential(nn.Linear(width, size), nn.GELU(), nn.Dropout(config.dropout), last)
