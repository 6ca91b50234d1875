"""TMR for entities: what the sources show goes to every word piece, and a CRF tags the words.

The paper's network of relations (`tmr_fusion.py`) without its entity pair and phrase vector: per
piece ReLU(W [T_i; p_o,i; p_g,i]), then emissions. In the released code p_i = tanh(E_i p) with a
matrix for each of 70 positions: 73.5 million numbers at D = 1024 that know the place of a piece but
not the word there, and texts that cannot be longer. By default one matrix serves all positions.

B: rows, L: word pieces, D: hidden size, K: sources.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from finetune.inputs.batch import Batch
from finetune.methods.base import MethodOutput
from finetune.methods.layers import PieceTaggingHead, TaggingHead
from finetune.methods.tmr.fusion import SourceFusion
from finetune.methods.tmr.released import LENGTHS
from finetune.tasks.base import TaskInfo
from finetune.tasks.metrics import Entity

COMBINED = 1000
"""Width of the layer that a piece and its pictures meet in."""


class TmrTaggingHead(SourceFusion):
    """Fuses the sources by their scores and tags words with what they show."""

    def __init__(
        self,
        size: int,
        task: TaskInfo,
        *,
        sources: int,
        regions: bool,
        mean: bool,
        positions: bool,
        pieces: bool,
        dropout: float,
    ) -> None:
        """
        Args:
            regions, mean: as for `SourceFusion`.
            positions: each of the released code's positions has a layer of its own.
            pieces: the CRF runs over word pieces, not words.
            dropout: before the emission layer.
        """
        super().__init__(size, regions=regions, mean=mean)
        self.sources = sources
        self.extend = nn.Linear(size, size * (LENGTHS["entities"] if positions else 1))
        self.combine = nn.Linear((1 + sources) * size, COMBINED)
        self.tags = (PieceTaggingHead if pieces else TaggingHead)(COMBINED, task, dropout)

    def forward(self, features: list[Tensor], text: Tensor, batch: Batch) -> MethodOutput:
        """Emissions and loss.

        Args:
            features: `fused` of the sources, (B, D) each; none: vision is off.
            text: (B, L', D), L' >= L.
        """
        size, length = text.shape[-1], batch.input_ids.shape[1]
        visual = text.new_zeros(len(text), 1, self.sources * size)
        if features:
            parts = [torch.tanh(self.extend(one)).unflatten(-1, (-1, size)) for one in features]
            visual = torch.cat(parts, dim=-1)  # (B, 70 or 1, KD)
            if visual.shape[1] > 1:  # cut to the batch, which may be padded beyond them on a GPU
                visual = nn.functional.pad(visual, (0, 0, 0, length - visual.shape[1]))
        visual = visual.expand(-1, length, -1)
        combined = self.combine(torch.cat([text[:, :length], visual], dim=-1))
        return self.tags(combined.relu(), batch)

    def decode(self, output: MethodOutput, batch: Batch) -> list[Any]:
        """The tag ids of each sentence's words."""
        return self.tags.decode(output, batch)

    def entity_scores(
        self, output: MethodOutput, batch: Batch, entities: Sequence[Sequence[Entity]]
    ) -> list[list[float]]:
        """The chain's posterior probability of each entity."""
        return self.tags.entity_scores(output, batch, entities)
