"""MTB: text only, the states of the two opening entity markers (Baldini Soares et al., ACL 2019).

The baseline that every multimodal gain is measured against. `h = [e_[E1] ; e_[E2]]`, then a
classifier; the paper's variant (f), fine-tuned without its matching-the-blanks pre-training.
"""

from dataclasses import dataclass
from typing import Any, Literal

from transformers import BertModel

from finetune.batch import Batch
from finetune.methods.base import Method, MethodOutput, Source
from finetune.methods.layers import RelationHead, load_text_encoder
from finetune.tasks.base import TaskInfo


@dataclass(frozen=True, kw_only=True)
class MTBConfig:
    """Settings of MTB."""

    classifier: Literal["mlp", "linear"] = "linear"
    """linear: one layer. mlp: Linear–ReLU–Linear, as PROMU's."""


class MTB(Method):
    """BERT + classifier on the two start-marker states."""

    Config = MTBConfig

    def __init__(self, encoder: BertModel, task: TaskInfo, config: MTBConfig) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = RelationHead(encoder.config.hidden_size, task, config.classifier)

    @classmethod
    def build(cls, config: MTBConfig, task: TaskInfo, source: Source) -> tuple["MTB", Any]:
        """From a BERT directory or the text side of a fusion model."""
        encoder, tokenizer = load_text_encoder(source, task)
        return cls(encoder, task, config), tokenizer

    def forward(self, batch: Batch) -> MethodOutput:
        """Logits (B, C)."""
        states = self.encoder(
            input_ids=batch.input_ids, attention_mask=batch.attention_mask
        ).last_hidden_state  # (B, L, D)
        return self.head(states, batch)
