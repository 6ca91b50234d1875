"""Relation extraction as retrieval: a marked post asks, the descriptions of relations answer.

After *Retrieval over Classification* (arXiv 2509.21151): a query of the two entities and their
types against an encoded description of each relation, one positive and all others negative. No
code of it was used; README.md says what differs. A relation that training never saw needs nothing
but a description: `predict --relations`.

B: rows, L: word pieces, C: relations, D: hidden size, E: width of the shared space.
"""

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from finetune.inputs.batch import Batch
from finetune.inputs.types import TYPES, types_of
from finetune.methods.base import Method, MethodOutput, Source
from finetune.methods.layers import (
    load_fusion_encoder,
    load_text_encoder,
    marker_states,
    word_states,
)
from finetune.methods.retrieval.config import RetrievalConfig
from finetune.methods.retrieval.descriptions import LENGTH, as_pieces, described, read_descriptions
from finetune.tasks.base import TaskInfo
from pretrain.model.bert import Bert
from pretrain.model.fusion_encoder import FusionEncoder


class Retrieval(Method):
    """A query tower over post and picture, and the same text tower over descriptions."""

    Config = RetrievalConfig
    encoder: FusionEncoder | Bert
    description_ids: Tensor
    label_types: Tensor

    def __init__(
        self, encoder: FusionEncoder | Bert, task: TaskInfo, config: RetrievalConfig
    ) -> None:
        super().__init__()
        self.encoder, self.config = encoder, config
        size = width = encoder.config.hidden_size
        if isinstance(encoder, FusionEncoder):
            self.needs = frozenset({"image"})
            width = encoder.config.projection_size
        else:
            self.describe = nn.Linear(size, width)
        self.types = nn.ModuleList(nn.Linear(size, len(TYPES) - 1) for _ in ("head", "tail"))
        self.query = nn.Linear(2 * size, width)
        self.scale = nn.Parameter(torch.tensor(1 / config.temperature).log())
        self.picture_share = nn.Parameter(torch.ones(()))
        self.register_buffer("description_ids", torch.full((len(task.labels), LENGTH), -1))
        self.register_buffer("label_types", type_ids(task.labels), persistent=False)

    @classmethod
    def build(cls, config: RetrievalConfig, task: TaskInfo, source: Source) -> tuple[Method, Any]:
        """From a fusion model directory, or with `pictures none` from a BERT."""
        encoder: FusionEncoder | Bert
        if config.pictures == "init":
            encoder, tokenizer = load_fusion_encoder(source, task, projections=True)
        else:
            encoder, tokenizer = load_text_encoder(source, task)
        method = cls(encoder, task, config)
        if not source.finished:  # else they come with the other tensors
            texts = described(
                read_descriptions(config.descriptions), task.labels, config.descriptions
            )
            method.description_ids = as_pieces(tokenizer, texts)
        return method, tokenizer

    def answer_with(self, relations: Mapping[str, str], tokenizer: Any) -> None:
        """Choose among these relations from now on, known by their descriptions alone."""
        device = self.description_ids.device
        self.description_ids = as_pieces(tokenizer, list(relations.values())).to(device)
        self.label_types = type_ids([*relations]).to(device)

    def description_states(self) -> Tensor:
        """(C, E) unit vectors."""
        mask = self.description_ids >= 0
        longest = int(mask.sum(1).max())
        mask, ids = mask[:, :longest], self.description_ids[:, :longest].clamp(min=0)
        if isinstance(self.encoder, FusionEncoder):
            return self.encoder.text_feat(self.encoder.encode_text(ids, mask))
        states = word_states(self.encoder, ids, mask)
        return functional.normalize(self.describe(states[:, 0]).float(), dim=-1)

    def forward(self, batch: Batch) -> MethodOutput:
        """Logits (B, C): cosines of query and descriptions, scaled, plus how likely the text makes
        the types that each relation's name says.

        The picture's own vector, which pre-training has laid into the space of texts, joins the
        query.
        """
        encoder, mask = self.encoder, batch.attention_mask
        picture: Tensor | float = 0.0
        if isinstance(encoder, FusionEncoder):
            text, seen = encoder.encode_text(batch.input_ids, mask), None
            if batch.pixel_values is not None:
                seen = self.once(encoder.encode_image, batch.pixel_values)
                picture = encoder.image_feat(seen) * batch.require("image_mask")[:, None]  # (B, E)
            states = encoder.fuse(text, mask, seen, batch.image_mask)
        else:
            states = text = word_states(encoder, batch.input_ids, mask)
        query = functional.normalize(self.query(marker_states(states, batch)).float(), dim=-1)
        cosines = (query + self.picture_share * picture) @ self.description_states().T
        logits = self.scale.exp().clamp(max=100) * cosines
        types = self.type_scores(marker_states(text, batch))
        logits = logits + types
        if batch.labels is None:
            return MethodOutput(logits, None)
        loss = functional.cross_entropy(logits, batch.labels)
        rows = torch.arange(len(types), device=types.device)
        return MethodOutput(logits, loss - types[rows, batch.labels].mean())

    def type_scores(self, pair: Tensor) -> Tensor:
        """(B, 2D) -> (B, C): log-probability of the types of head and tail that the names of the
        relations say; 0 for what says none."""
        scores: Tensor | float = 0.0
        for axis, state in enumerate(pair.chunk(2, dim=-1)):
            likely = self.types[axis](state).float().log_softmax(dim=-1)  # (B, types known)
            scores = scores + functional.pad(likely, (1, 0))[:, self.label_types[:, axis]]
        return cast(Tensor, scores)


def type_ids(labels: Sequence[str]) -> Tensor:
    """(C, 2) ids of the types of head and tail that the relations' names say."""
    return torch.tensor([[TYPES.index(name) for name in types_of(label)] for label in labels])
