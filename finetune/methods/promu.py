"""PROMU fine-tuned: fused text and picture states (ACM MM 2023, §4.4).

Relations: `h = [e_[E1] ; e_[E2]]` from the fusion layers, Linear(2D, D)–ReLU–Linear(D, C); the
paper leaves its classifier unspecified, this is the released code's. Entities: emissions from the
fused state of each word's first piece, and a CRF over words (Eqs. 12–13). No auxiliary loss and no
detected objects.
"""

from typing import Any

import torch

from finetune.inputs.batch import Batch
from finetune.methods.base import Method, MethodOutput, Source
from finetune.methods.config import PromuConfig
from finetune.methods.layers import (
    PieceTaggingHead,
    RelationHead,
    TaggingHead,
    TaskHead,
    load_fusion_encoder,
)
from finetune.tasks.base import TaskInfo
from pretrain.model.fusion_encoder import FusionEncoder


class Promu(Method):
    """Fusion encoder + relation classifier or tagging CRF."""

    Config = PromuConfig
    encoder: FusionEncoder
    head: TaskHead
    needs = frozenset({"image"})
    kinds = frozenset({"relation", "entities"})

    def __init__(self, encoder: FusionEncoder, task: TaskInfo, config: PromuConfig) -> None:
        super().__init__()
        self.encoder = encoder
        size = encoder.config.hidden_size
        if task.kind == "relation":
            self.head = RelationHead(size, task, config.classifier)
        elif config.tagging == "words":
            self.head = TaggingHead(size, task, config.dropout, config.mask_illegal)
        else:
            self.head = PieceTaggingHead(size, task, config.dropout)

    @classmethod
    def build(cls, config: PromuConfig, task: TaskInfo, source: Source) -> tuple["Promu", Any]:
        """From a fusion model directory."""
        encoder, tokenizer = load_fusion_encoder(source, task)
        return cls(encoder, task, config), tokenizer

    def forward(self, batch: Batch) -> MethodOutput:
        """Logits of relations or words; without pictures the fusion layers read the text alone."""
        encoder, text_mask, picture = self.encoder, batch.attention_mask, None
        text = encoder.encode_text(batch.input_ids, text_mask)
        if batch.pixel_values is not None:
            picture = self.once(encoder.encode_image, batch.pixel_values)
        joint = text, text_mask, picture, batch.image_mask
        if self.training or not isinstance(self.head, RelationHead):
            return self.head(encoder.fuse(*joint, wanted=text.shape[1]), batch)
        # The classifier reads two states: the last layer makes no others.
        places = torch.stack([batch.require("head_start"), batch.require("tail_start")], dim=1)
        return self.head.classify(encoder.fuse(*joint, wanted=places).flatten(1), batch)
