"""MEGA: the graph of the text and the graph of the objects, aligned (Zheng et al., ACM MM 2021).

Every word piece looks for its counterpart among the objects in two ways: by what they mean
(attention) and by how they stand in their graphs (nodes with alike neighbourhoods). The objects so
aligned, pooled, join the two entities' states. README.md says what stands in for what.
"""

from typing import Any

import torch
from torch import Tensor, nn

from finetune.inputs.batch import Batch
from finetune.methods.base import MethodOutput
from finetune.methods.config import MegaConfig
from finetune.methods.layers import attend, marker_states, relation_loss
from finetune.methods.multimodal import Multimodal
from finetune.methods.towers.pair import Towers
from finetune.tasks.base import TaskInfo

NEAR = 2
"""Words so far apart are neighbours."""


class Mega(Multimodal):
    """Structural and semantic alignment of two graphs, relations alone."""

    Config = MegaConfig
    kinds = frozenset({"relation"})
    sees = "objects"

    def __init__(self, encoder: Towers, task: TaskInfo, config: MegaConfig) -> None:
        super().__init__(encoder, task, config)
        if "region_pixels" in self.needs:
            self.needs |= {"region_boxes"}
        del self.head
        self.classifier = nn.Linear(3 * self.size, len(task.labels))

    def make(self, config: Any) -> None:
        """Queries of words, keys and values of objects."""
        self.query, self.key = (nn.Linear(self.size, self.size) for _ in range(2))
        self.value = nn.Linear(self.size, self.size)
        self.place = nn.Linear(4, self.size)

    def forward(self, batch: Batch) -> MethodOutput:
        """Logits (B, C) of [head ; tail ; aligned objects]."""
        visual, seen = self.visual_tokens(batch)
        visual = visual + self.place(corners(batch, visual))
        mask = batch.attention_mask.bool()
        text = self.read_text(batch, visual, seen)
        value = self.value(visual)
        meaning = attend(self.query(text), self.key(visual), value, seen[:, None])
        alike = structural(near_words(batch, mask), overlaps(batch, seen), mask, seen)
        share = self.config.structure
        aligned = ((1 - share) * meaning + share * alike.to(value.dtype) @ value) * mask[..., None]
        pooled = aligned.sum(1) / mask.sum(1, keepdim=True) * seen.any(1, keepdim=True)
        logits = self.classifier(torch.cat([marker_states(text, batch), pooled], dim=-1)).float()
        return MethodOutput(logits, relation_loss(logits, batch.labels))


def corners(batch: Batch, visual: Tensor) -> Tensor:
    """(B, V, 4) shares of the picture; the whole one, which comes first, is all of it."""
    boxes = visual.new_tensor([0.0, 0.0, 1.0, 1.0]).expand(len(visual), 1, 4)
    if batch.region_boxes is None or visual.shape[1] == 1:
        return boxes
    return torch.cat([boxes, batch.region_boxes.to(boxes.dtype)], dim=1)


def near_words(batch: Batch, mask: Tensor) -> Tensor:
    """(B, L, L) bool edges: pieces at most `NEAR` apart, and the two entities."""
    places = torch.arange(mask.shape[1], device=mask.device)
    edges = ((places[:, None] - places).abs() <= NEAR).expand(len(mask), -1, -1).clone()
    rows = torch.arange(len(mask), device=mask.device)
    head, tail = batch.require("head_start"), batch.require("tail_start")
    edges[rows, head, tail] = edges[rows, tail, head] = True
    return edges & mask[:, None] & mask[:, :, None]


def overlaps(batch: Batch, seen: Tensor) -> Tensor:
    """(B, V, V) bool edges: boxes that overlap; the whole picture, which comes first, with all."""
    edges = torch.eye(seen.shape[1], dtype=torch.bool, device=seen.device).expand(len(seen), -1, -1)
    if batch.region_boxes is not None and seen.shape[1] > 1:
        first, last = batch.region_boxes.chunk(2, dim=-1)  # (B, R, 2) each
        inner = torch.minimum(last[:, :, None], last[:, None]) - torch.maximum(
            first[:, :, None], first[:, None]
        )
        edges = edges.clone()
        edges[:, 1:, 1:] = (inner > 0).all(-1)
        edges[:, 0] = edges[:, :, 0] = True
    return edges & seen[:, None] & seen[:, :, None]


def structural(words: Tensor, objects: Tensor, mask: Tensor, seen: Tensor) -> Tensor:
    """(B, L, V) shares: how alike a word's degree and its neighbours' are to an object's."""

    def signature(edges: Tensor, there: Tensor) -> Tensor:
        """(B, N, 2): of each node its degree and the mean of its neighbours', relative to the most
        that the graph could have."""
        degree = edges.sum(-1).float()
        around = (edges * degree[:, None]).sum(-1) / degree.clamp(min=1)
        return torch.stack([degree, around], dim=-1) / there.sum(1).clamp(min=1)[:, None, None]

    distance = torch.cdist(signature(words, mask), signature(objects, seen))
    scores = (-distance).masked_fill(~seen[:, None], torch.finfo(distance.dtype).min)
    return scores.softmax(dim=-1)
