"""PROMU fine-tuned: fused text and picture states (ACM MM 2023, §4.4; promu.md §6.3).

`h = [e_[E1] ; e_[E2]]` from the fusion layers, Linear(2D, D)–ReLU–Linear(D, C). The paper leaves
its classifier unspecified; this is the released code's. No auxiliary loss, no detected objects.
"""

from dataclasses import dataclass
from typing import Any, Literal

from finetune.batch import Batch
from finetune.methods.base import Method, MethodOutput, Source
from finetune.methods.layers import (
    entity_states,
    load_fusion_encoder,
    relation_head,
    relation_loss,
)
from finetune.tasks.base import TaskInfo
from pretrain.model.fusion_encoder import FusionEncoder


@dataclass(frozen=True, kw_only=True)
class PromuConfig:
    """Settings of PROMU's head."""

    classifier: Literal["mlp", "linear"] = "mlp"
    """mlp: as in the released code. linear: one layer."""


class Promu(Method):
    """Fusion encoder + classifier on the two start-marker states."""

    Config = PromuConfig
    needs = frozenset({"image"})

    def __init__(self, encoder: FusionEncoder, task: TaskInfo, config: PromuConfig) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = relation_head(encoder.config.hidden_size, len(task.labels), config.classifier)

    @classmethod
    def build(cls, config: PromuConfig, task: TaskInfo, source: Source) -> tuple["Promu", Any]:
        """From a fusion model directory."""
        encoder, tokenizer = load_fusion_encoder(source, task)
        return cls(encoder, task, config), tokenizer

    def forward(self, batch: Batch) -> MethodOutput:
        """Logits (B, C); without pictures the fusion layers read the text alone."""
        fused = self.encoder(
            batch.pixel_values, batch.input_ids, batch.attention_mask, batch.image_mask
        ).fused_embeds  # (B, L+1+K, D), text first
        logits = self.head(entity_states(fused, batch.head_start, batch.tail_start)).float()
        return MethodOutput(logits, relation_loss(logits, batch.labels))
