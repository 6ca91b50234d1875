"""BERT-CRF: text only, emissions at first pieces, CRF over words. The baseline for entities."""

from typing import Any

from finetune.inputs.batch import Batch
from finetune.methods.base import Method, MethodOutput, Source
from finetune.methods.config import BertCrfConfig
from finetune.methods.layers import TaggingHead, load_any_text_encoder, word_states
from finetune.tasks.base import TaskInfo
from pretrain.model.bert import Bert
from pretrain.model.library import LibraryText


class BertCrf(Method):
    """BERT + tagging CRF."""

    Config = BertCrfConfig
    kinds = frozenset({"entities"})

    def __init__(self, encoder: Bert | LibraryText, task: TaskInfo, config: BertCrfConfig) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = TaggingHead(
            encoder.config.hidden_size, task, config.dropout, config.mask_illegal
        )

    @classmethod
    def build(cls, config: BertCrfConfig, task: TaskInfo, source: Source) -> tuple["BertCrf", Any]:
        """From the directory of a text encoder, or the text side of a fusion model."""
        encoder, tokenizer = load_any_text_encoder(source, task)
        return cls(encoder, task, config), tokenizer

    def forward(self, batch: Batch) -> MethodOutput:
        """Emissions (B, W, C)."""
        return self.head(word_states(self.encoder, batch.input_ids, batch.attention_mask), batch)
