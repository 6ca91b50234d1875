"""What the small multimodal baselines share: two towers, visual tokens, cross attention, one head.

B: rows, L: word pieces, V: visual tokens, D: hidden size of the text.
"""

from functools import partial
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor, nn

from finetune.inputs.batch import Batch
from finetune.methods.base import Method, MethodOutput, Source
from finetune.methods.config import VisualConfig
from finetune.methods.layers import RelationHead, TaggingHead, inside_bert
from finetune.methods.towers.pair import (
    Towers,
    load_towers,
    picture_states,
    picture_width,
    text_states,
)
from finetune.tasks.base import TaskInfo


class Multimodal(Method):
    """Text and picture towers and a head; a subclass says in `fuse` how the two meet."""

    Config: ClassVar[type] = VisualConfig
    kinds = frozenset({"relation", "entities"})
    sees: ClassVar[Literal["patches", "objects"]] = "patches"
    """patches: the whole picture's class token and patches. objects: the class token of the whole
    picture and of each grounded region."""
    reads_inside: ClassVar[bool] = False
    """Whether the picture enters the layers of the text, which are BERT's then."""
    encoder: Towers
    head: RelationHead | TaggingHead

    def __init__(self, encoder: Towers, task: TaskInfo, config: Any) -> None:
        super().__init__()
        self.encoder, self.config = encoder, config
        self.reads_captions = config.vision == "none"
        self.needs = frozenset({"caption" if self.reads_captions else "image"})
        if self.sees == "objects" and config.regions and not self.reads_captions:
            self.needs |= {"region_pixels"}
            self.region_slots = {"vg": config.regions}
        self.size: int = encoder.config.hidden_size
        self.visual = nn.Linear(picture_width(encoder), self.size)
        self.make(config)
        width = self.size * self.widening
        relation = task.kind == "relation"
        self.head = RelationHead(width, task, "mlp") if relation else TaggingHead(width, task)

    widening: ClassVar[int] = 1
    """What `fuse` gives is so many times D wide."""

    def make(self, config: Any) -> None:
        """The layers of `fuse`."""

    @classmethod
    def build(cls, config: Any, task: TaskInfo, source: Source) -> tuple[Self, Any]:
        """From a fusion model directory, or a BERT and a named picture tower."""
        encoder, tokenizer = load_towers(source, task, config.vision)
        if cls.reads_inside:
            inside_bert(encoder.text, source)
        return cls(encoder, task, config), tokenizer

    def fuse(self, text: Tensor, mask: Tensor, visual: Tensor, seen: Tensor) -> Tensor:
        """(B, L, D), (B, L) bool, (B, V, D), (B, V) bool -> (B, L, widening · D)."""
        raise NotImplementedError

    def read_text(self, batch: Batch, visual: Tensor, seen: Tensor) -> Tensor:
        """(B, L, D); most read it without looking at the picture."""
        return text_states(self.encoder, batch.input_ids, batch.attention_mask)

    def forward(self, batch: Batch) -> MethodOutput:
        """Logits of relations, or emissions of words."""
        visual, seen = self.visual_tokens(batch)
        text = self.read_text(batch, visual, seen)
        return self.head(self.fuse(text, batch.attention_mask.bool(), visual, seen), batch)

    def visual_tokens(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """(B, V, D), and which there are: of the picture, or the words of its caption; a single
        one, unseen, where vision is off."""
        if self.reads_captions:
            ids, mask = batch.require("caption_ids"), batch.require("caption_mask").bool()
            states = self.once(partial(text_states, self.encoder), ids, mask, name="caption")
            # An empty caption, [CLS] [SEP], says nothing.
            return self.visual(states), mask & (mask.sum(1, keepdim=True) > 2)
        if batch.pixel_values is None:
            nothing = batch.attention_mask.new_zeros(len(batch), 1, dtype=torch.bool)
            return self.visual.weight.new_zeros(len(batch), 1, self.size), nothing
        encode = partial(picture_states, self.encoder)
        states = self.once(encode, batch.pixel_values)  # (B, 1+K, …)
        seen = batch.require("image_mask")[:, None]
        if self.sees == "patches":
            return self.visual(states), seen.expand(states.shape[:2])
        states = states[:, :1]
        if batch.region_pixels is not None:
            pixels, there = batch.region_pixels, batch.require("region_mask")
            regions = self.once(encode, pixels.flatten(0, 1))[:, 0].unflatten(0, there.shape)
            states, seen = torch.cat([states, regions], dim=1), torch.cat([seen, there], dim=1)
        return self.visual(states), seen


class CrossLayer(nn.Module):
    """A transformer layer whose queries are of one sequence, keys and values of another."""

    def __init__(self, size: int, heads: int, dropout: float = 0.1) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(size, heads, dropout, batch_first=True)
        self.feed = nn.Sequential(nn.Linear(size, 4 * size), nn.GELU(), nn.Linear(4 * size, size))
        self.norms = nn.ModuleList(nn.LayerNorm(size) for _ in range(2))
        self.dropout = nn.Dropout(dropout)

    def forward(self, query: Tensor, keys: Tensor, mask: Tensor) -> Tensor:
        """(B, Q, D), (B, K, D), (B, K) bool -> (B, Q, D); a row without any key reads nothing."""
        has_key = mask.any(dim=1)[:, None]
        read, _ = self.attention(query, keys, keys, ~(mask | ~has_key), need_weights=False)
        states = self.norms[0](query + self.dropout(read) * has_key[..., None])
        return self.norms[1](states + self.dropout(self.feed(states)))


def heads_of(size: int) -> int:
    """As many as a BERT of this width has, 64 numbers each; at least one that divides it."""
    return max(1, size // 64) if size % 64 == 0 else 1
