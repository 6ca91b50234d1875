"""MTB: text only, the states of the two opening entity markers (Baldini Soares et al., ACL 2019).

The baseline that every multimodal gain is measured against. `h = [e_[E1] ; e_[E2]]`, then a
classifier; the paper's variant (f), fine-tuned without its matching-the-blanks pre-training.

`--model.crop_count true` shows the leak in MNRE's community regions: it adds nothing but the number
of a row's crop files, no pixel, and the score jumps.
"""

from typing import Any

from torch import nn
from transformers import BertModel

from finetune.inputs.batch import Batch
from finetune.methods.base import Method, MethodOutput, Source
from finetune.methods.config import MTBConfig
from finetune.methods.layers import RelationHead, entity_states, load_text_encoder
from finetune.tasks.base import TaskInfo

MOST_CROPS = 4


class MTB(Method):
    """BERT + classifier on the two start-marker states."""

    Config = MTBConfig

    def __init__(self, encoder: BertModel, task: TaskInfo, config: MTBConfig) -> None:
        super().__init__()
        self.encoder = encoder
        size = encoder.config.hidden_size
        self.crop_count = None
        if config.crop_count:
            self.needs = frozenset({"crop_count"})
            self.crop_count = nn.Embedding(MOST_CROPS + 1, 2 * size)
        self.head = RelationHead(size, task, config.classifier)

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
        pair = entity_states(states, batch.head_start, batch.tail_start)
        if self.crop_count is not None:
            pair = pair + self.crop_count(batch.crop_count.clamp(max=MOST_CROPS))
        return self.head.classify(pair, batch)
