"""An input of one's own: marks that readers left at a row, from a file; of a new post, its own."""

import numpy as np
from torch import nn

from finetune.inputs.spec import Provider
from finetune.methods.base import Method
from finetune.methods.layers import RelationHead, entity_states, load_fusion_encoder
from finetune.tasks import side_files

KINDS = {"!": 1, "?": 2}


def read_marks(loaded, wanted):
    """Of a data set: `marks_{split}.jsonl`, a line `{"row": 0, "feature": [1, 2, 1]}` a row."""
    path = side_files.find(wanted.task.folder, "marks_{split}.jsonl", wanted.split)
    source = side_files.read_features(path)
    marks = source.of(loaded.rows)
    numbers = list(map(len, marks))
    return with_marks(loaded, marks).with_source(source, **{"marks: number": numbers})


def find_marks(loaded, wanted):
    """Of new posts: those in the text."""
    return with_marks(loaded, [[KINDS[t] for t in r.tokens if t in KINDS] for r in loaded.rows])


def with_marks(loaded, marks):
    """`marks` (B, M) of `marks_mask`, and `count` (B,)."""
    loaded = loaded.with_column("count", np.array(list(map(len, marks))))
    ragged = [np.array(row, dtype=np.int64) for row in marks]
    return loaded.with_column("marks", ragged, mask="marks_mask")


class Marked(Method):
    needs = frozenset({"marks"})
    providers = {"marks": Provider(read_marks, live=find_marks)}  # noqa: RUF012

    def __init__(self, encoder, task):
        super().__init__()
        self.encoder = encoder
        size = encoder.config.hidden_size
        self.kind, self.number = nn.Embedding(3, 2 * size), nn.Embedding(4, 2 * size)
        self.head = RelationHead(size, task, "mlp")

    @classmethod
    def build(cls, config, task, source):
        encoder, tokenizer = load_fusion_encoder(source, task)
        return cls(encoder, task), tokenizer

    def forward(self, batch):
        text = self.encoder.encode_text(batch.input_ids, batch.attention_mask)
        pair = entity_states(text, batch.require("head_start"), batch.require("tail_start"))
        there = batch.require("marks_mask")[..., None]
        pair = pair + (self.kind(batch.require("marks")) * there).sum(dim=1)
        pair = pair + self.number(batch.require("count").clamp(max=3))
        return self.head.classify(pair, batch)
