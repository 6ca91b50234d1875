"""MTB: text only, the states of the two opening entity markers (Baldini Soares et al., ACL 2019).

The baseline that every multimodal gain is measured against. `h = [e_[E1] ; e_[E2]]`, then a
classifier; the paper's variant (f), fine-tuned without its matching-the-blanks pre-training.

`--model.crop_count true` shows the leak in MNRE's community regions: it adds nothing but the number
of a row's crop files, no pixel, and the score jumps.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import nn

from finetune.inputs.batch import Batch
from finetune.inputs.spec import Provider, Wanted
from finetune.inputs.split import LoadedSplit
from finetune.methods.base import Method, MethodOutput, Source
from finetune.methods.config import MTBConfig
from finetune.methods.layers import RelationHead, load_any_text_encoder, marker_states, word_states
from finetune.tasks import side_files
from finetune.tasks.base import TaskInfo
from pretrain.model.bert import Bert
from pretrain.model.library import LibraryText

MOST_CROPS = 4


def add_crop_count(loaded: LoadedSplit, wanted: Wanted) -> LoadedSplit:
    """Of MNRE's community region files: how many crops a row has. Tells the label."""
    path = side_files.find(wanted.task.folder, "txt/mre_{split}_dict.pth", wanted.split)
    source = side_files.read_crop_names(path)
    counts = [len(names) for names in source.of(loaded.rows)]
    loaded = loaded.with_column("crop_count", np.array(counts))
    return loaded.with_source(source, **{"crops: number": counts})


CROP_COUNT = Provider(
    add_crop_count, live="the number of a row's published crops, which tells the label"
)


class MTB(Method):
    """BERT + classifier on the two start-marker states."""

    Config = MTBConfig
    providers: Mapping[str, Provider] = {"crop_count": CROP_COUNT}

    def __init__(self, encoder: Bert | LibraryText, task: TaskInfo, config: MTBConfig) -> None:
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
        """From the directory of a text encoder, or the text side of a fusion model."""
        encoder, tokenizer = load_any_text_encoder(source, task)
        return cls(encoder, task, config), tokenizer

    def forward(self, batch: Batch) -> MethodOutput:
        """Logits (B, C)."""
        states = word_states(self.encoder, batch.input_ids, batch.attention_mask)
        pair = marker_states(states, batch)
        if self.crop_count is not None:
            pair = pair + self.crop_count(batch.require("crop_count").clamp(max=MOST_CROPS))
        return self.head.classify(pair, batch)
