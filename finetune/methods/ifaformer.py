"""IFAformer: dual transformers, objects as a prefix of every layer of the text (Li et al., 2023).

After "On Analyzing the Role of Image for Visual-enhanced Relation Extraction" (AAAI 2023 student
abstract): the picture's and the objects' states give keys and values that stand before the text's
in each layer, so that words align with objects inside the attention. README.md says what differs.
"""

from typing import Any

import torch
from torch import Tensor, nn

from finetune.inputs.batch import Batch
from finetune.methods.config import IfaformerConfig
from finetune.methods.multimodal import Multimodal
from finetune.methods.towers.pair import TwoTowers


class Ifaformer(Multimodal):
    """Text layers that attend to [objects ; words]."""

    Config = IfaformerConfig
    sees = "objects"
    reads_inside = True

    def make(self, config: Any) -> None:
        """A key and a value of each object for each layer."""
        encoder = self.encoder
        text = encoder.text.config
        self.heads = text.num_attention_heads
        self.depth = [text.num_hidden_layers]
        if not isinstance(encoder, TwoTowers) and hasattr(encoder, "fusion"):
            self.depth.append(encoder.config.fusion_layers)
        self.prefix = nn.Linear(self.size, sum(self.depth) * 2 * self.size)

    def read_text(self, batch: Batch, visual: Tensor, seen: Tensor) -> Tensor:
        """All layers of the text, those of the fusion included, with the objects before it."""
        numbers = self.prefix(visual).unflatten(-1, (sum(self.depth), 2, self.heads, -1))
        before = [
            (pair[:, :, 0].transpose(1, 2), pair[:, :, 1].transpose(1, 2))  # (B, H, V, d) each
            for pair in numbers.unbind(2)
        ]
        mask = torch.cat([seen, batch.attention_mask.bool()], dim=1)[:, None, None]
        text = self.encoder.text
        states = text(batch.input_ids, mask, prefix=before[: self.depth[0]]).last_hidden_state
        if len(self.depth) == 1:
            return states
        fusion: Any = self.encoder.fusion
        return fusion(states, mask, before[self.depth[0] :])

    def fuse(self, text: Tensor, mask: Tensor, visual: Tensor, seen: Tensor) -> Tensor:
        """They have met."""
        return text
