"""Late fusion: one feature of the whole picture joins the entities' text states through a gate."""

from dataclasses import dataclass

import torch
from torch import nn

from finetune.methods.base import Method
from finetune.methods.layers import RelationHead, entity_states, load_fusion_encoder


@dataclass(frozen=True, kw_only=True)
class LateFusionConfig:
    """Settings: `--model.gate false`."""

    gate: bool = True
    """Weigh the picture by a number learned from text and picture; false: it counts fully."""


class LateFusion(Method):
    Config = LateFusionConfig
    needs = frozenset({"image"})

    def __init__(self, encoder, task, config):
        super().__init__()
        self.encoder = encoder  # trains at optim.lr; everything else at optim.head_lr
        sizes = encoder.config
        width = 2 * sizes.hidden_size
        self.picture = nn.Linear(sizes.vision_hidden_size, width)
        self.gate = nn.Linear(2 * width, 1) if config.gate else None
        self.head = RelationHead(sizes.hidden_size, task, "mlp")

    @classmethod
    def build(cls, config, task, source):
        encoder, tokenizer = load_fusion_encoder(source, task)
        return cls(encoder, task, config), tokenizer

    def forward(self, batch):
        text = self.encoder.encode_text(batch.input_ids, batch.attention_mask)
        pair = entity_states(text, batch.head_start, batch.tail_start)  # (B, 2D)
        if batch.pixel_values is not None:  # None: --images none
            patches = self.encoder.encode_image(batch.pixel_values)
            picture = self.picture(patches.mean(dim=1)) * batch.image_mask[:, None]
            if self.gate is not None:
                picture = picture * self.gate(torch.cat([pair, picture], dim=-1)).sigmoid()
            pair = pair + picture
        return self.head.classify(pair, batch)
