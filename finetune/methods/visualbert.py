"""VisualBERT: one stream, words and visual tokens through all layers together (Li et al., 2019).

PROMU with all of its layers fused would be the same, but a fusion model has at least one layer of
text alone; here its text layers read the picture, too. README.md says what stands in for what.
"""

from typing import Any

import torch
from torch import Tensor, nn

from finetune.inputs.batch import Batch
from finetune.methods.config import VisualConfig
from finetune.methods.multimodal import Multimodal
from finetune.methods.towers.pair import TwoTowers


class VisualBert(Multimodal):
    """[words ; class token and patches] through the layers of the text, then of the fusion."""

    Config = VisualConfig
    reads_inside = True

    def make(self, config: Any) -> None:
        """What tells a visual token from a word."""
        self.segment = nn.Parameter(torch.zeros(self.size))
        self.norm = nn.LayerNorm(self.size)

    def read_text(self, batch: Batch, visual: Tensor, seen: Tensor) -> Tensor:
        """The words' positions of the one stream."""
        text: Any = self.encoder.text
        words = text.embeddings(batch.input_ids)
        if hasattr(text, "embeddings_project"):
            words = text.embeddings_project(words)
        states = torch.cat([words, self.norm(visual + self.segment)], dim=1)
        mask = torch.cat([batch.attention_mask.bool(), seen], dim=1)[:, None, None]
        states = text.encoder(states, mask)
        fusion: Any = None if isinstance(self.encoder, TwoTowers) else self.encoder
        if hasattr(fusion, "fusion"):
            states = fusion.fusion(states, mask)
        return states[:, : words.shape[1]]

    def fuse(self, text: Tensor, mask: Tensor, visual: Tensor, seen: Tensor) -> Tensor:
        """They have met."""
        return text
