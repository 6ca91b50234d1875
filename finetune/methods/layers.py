"""What methods share: encoders that know a task's special tokens, attention, and heads.

B: rows, L: positions, W: words, D: hidden size, C: labels.
"""

import logging
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from finetune.inputs.batch import Batch
from finetune.methods.base import MethodOutput, Source
from finetune.methods.crf import LinearChainCRF, PieceTags
from finetune.tasks.base import TaskInfo
from finetune.tasks.metrics import Entity
from pretrain import distributed
from pretrain.checkpoint.hub import load_fusion, load_text_tower
from pretrain.model.bert import Bert
from pretrain.model.config import BERT_KIN, MODEL_TYPE
from pretrain.model.fusion_encoder import FusionEncoder
from pretrain.model.library import LibraryText
from shards.files import InputError
from shards.redact import without_secrets

LOG = logging.getLogger(__name__)


def load_text_encoder(source: Source, task: TaskInfo, *, vision: bool = False) -> tuple[Bert, Any]:
    """A text-only BERT or its kin without pooler, with word rows for the task's special tokens: for
    methods whose mathematics sits inside BERT's attention.

    Args:
        vision: whether the method takes the source's vision tower by itself, for the log.

    Raises:
        InputError: a text encoder of another family.
    """
    encoder, tokenizer = load_any_text_encoder(source, task, vision=vision)
    return inside_bert(encoder, source), tokenizer


def inside_bert(encoder: Any, source: Source) -> Bert:
    """The text encoder of `source`, for a method that works inside its layers.

    Raises:
        InputError: it is of another family.
    """
    if not isinstance(encoder, Bert):
        raise InputError(
            f"{source.path}: its text encoder is a {encoder.config.model_type}; this method works "
            f"inside the attention of {', '.join(BERT_KIN)}: begin with one of these"
        )
    return encoder


def load_any_text_encoder(
    source: Source, task: TaskInfo, *, vision: bool = False
) -> tuple[Bert | LibraryText, Any]:
    """The same of any family, for methods that read its last states alone."""
    encoder, tokenizer = load_text_tower(source.directory, random_weights=source.random_weights)
    left = "" if vision else "vision, "
    if source.directory.kind != MODEL_TYPE:
        takes(source, f"the {encoder.config.model_type}")
    elif isinstance(encoder, Bert):
        takes(source, f"text and fusion layers; left: {left}bridge, projections")
    else:
        takes(source, f"text tower; left: fusion layers, {left}bridges, projections")
    if tokenizer.add_tokens(list(task.extra_tokens), special_tokens=True):
        encoder.resize_token_embeddings(len(tokenizer))
    return encoder, tokenizer


def load_fusion_encoder(
    source: Source, task: TaskInfo, *, projections: bool = False
) -> tuple[FusionEncoder, Any]:
    """A fusion encoder with word rows for the task's special tokens.

    Args:
        projections: whether the method reads them, for the log.
    """
    encoder, tokenizer = load_fusion(source.directory, random_weights=source.random_weights)
    parts = "text, fusion layers, vision, bridge"
    takes(source, f"{parts}, projections" if projections else f"{parts}; left: projections")
    if tokenizer.add_tokens(list(task.extra_tokens), special_tokens=True):
        encoder.resize_token_embeddings(len(tokenizer))
    return encoder, tokenizer


def takes(source: Source, parts: str) -> None:
    """The line of the log that says what a method took of `--init`, and what it left there."""
    tell(source, f"takes of --init {{}}: {parts}")


def tell(source: Source, line: str) -> None:
    """One line of the log: what came from where; {} stands for the source. A finished run's tensors
    are loaded afterwards, all of them."""
    if not source.finished and distributed.is_main():
        drawn = ", drawn at random" if source.random_weights else ""
        LOG.info("%s%s", without_secrets(line.format(source.path)), drawn)


def word_states(encoder: nn.Module, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
    """(B, L) ids and mask -> (B, L, D)."""
    return encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state


def entity_states(states: Tensor, head_start: Tensor, tail_start: Tensor) -> Tensor:
    """States of the two opening markers side by side: (B, L, D) -> (B, 2D), head first."""
    rows = torch.arange(len(states), device=states.device)
    return torch.cat([states[rows, head_start], states[rows, tail_start]], dim=-1)


def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
    """Single-head attention: (…, Q, D), (…, K, D) twice -> (…, Q, D); scale 1/√D, float32 softmax.

    Args:
        mask: broadcasts to (…, Q, K), True = attended to; None: everything is.
    """
    scores = (query @ key.transpose(-1, -2)).float() * query.shape[-1] ** -0.5
    if mask is not None:
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    return scores.softmax(dim=-1).to(value.dtype) @ value


def marker_states(states: Tensor, batch: Batch) -> Tensor:
    """The same at the places that the batch tells."""
    return entity_states(states, batch.require("head_start"), batch.require("tail_start"))


class RelationHead(nn.Module):
    """Classifier on the two opening-marker states."""

    classifier: nn.Module

    def __init__(
        self, hidden_size: int, task: TaskInfo, classifier: Literal["mlp", "linear"]
    ) -> None:
        super().__init__()
        labels = len(task.labels)
        if classifier == "linear":
            self.classifier = nn.Linear(2 * hidden_size, labels)
        else:
            self.classifier = nn.Sequential(
                nn.Linear(2 * hidden_size, hidden_size), nn.ReLU(), nn.Linear(hidden_size, labels)
            )

    def forward(self, states: Tensor, batch: Batch) -> MethodOutput:
        """(B, L, D) -> logits (B, C), mean cross-entropy."""
        return self.classify(marker_states(states, batch), batch)

    def classify(self, pair: Tensor, batch: Batch) -> MethodOutput:
        """The same from the two states: (B, 2D)."""
        logits = self.classifier(pair).float()
        return MethodOutput(logits, relation_loss(logits, batch.labels))


class TaggingHead(nn.Module):
    """Emissions at each word's first piece, and a conditional random field over the words."""

    def __init__(
        self, hidden_size: int, task: TaskInfo, dropout: float = 0.1, mask_illegal: bool = False
    ) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.emission = nn.Linear(hidden_size, len(task.labels))
        self.crf = LinearChainCRF(task.labels, mask_illegal=mask_illegal)

    def forward(self, states: Tensor, batch: Batch) -> MethodOutput:
        """(B, L, D) -> emissions (B, W, C), minus the mean log-likelihood of the sentences."""
        places = batch.require("word_starts")[:, :, None].expand(-1, -1, states.shape[-1])
        emissions = self.emission(self.dropout(states.gather(1, places))).float()
        loss = None
        if batch.labels is not None:
            mask = batch.require("word_mask")
            loss = -self.crf.log_likelihood(emissions, batch.labels, mask).mean()
        return MethodOutput(emissions, loss)

    def decode(self, output: MethodOutput, batch: Batch) -> list[list[int]]:
        """The likeliest tags (Viterbi)."""
        return self.crf.decode(output.logits, batch.require("word_mask"))

    def entity_scores(
        self, output: MethodOutput, batch: Batch, entities: Sequence[Sequence[Entity]]
    ) -> list[list[float]]:
        """The chain's posterior probability of each entity."""
        mask = batch.require("word_mask")
        places = torch.arange(mask.shape[1], device=mask.device).expand_as(mask)
        return self.crf.entity_probabilities(output.logits, mask, places, mask, entities)


class PieceTaggingHead(nn.Module):
    """HVPNeT's and TMR's way: one chain of tags over all word pieces (`crf.PieceTags`)."""

    def __init__(self, hidden_size: int, task: TaskInfo, dropout: float = 0.1) -> None:
        super().__init__()
        self.tags = PieceTags(task.labels)
        self.dropout = nn.Dropout(dropout)
        self.emission = nn.Linear(hidden_size, len(self.tags.names))
        self.crf = LinearChainCRF(self.tags.names)

    def forward(self, states: Tensor, batch: Batch) -> MethodOutput:
        """(B, L, D) -> emissions (B, L, C + 4), minus the mean log-likelihood of the sentences."""
        emissions = self.emission(self.dropout(states)).float()
        loss, mask = None, batch.attention_mask
        if batch.labels is not None:
            words = batch.require("word_starts"), batch.require("word_mask")
            tags = self.tags.from_words(batch.labels, *words, mask)
            loss = -self.crf.log_likelihood(emissions, tags, mask).mean()
        return MethodOutput(emissions, loss)

    def decode(self, output: MethodOutput, batch: Batch) -> list[list[int]]:
        """The likeliest tags (Viterbi), read at the words' first pieces."""
        paths = self.crf.decode(output.logits, batch.attention_mask)
        words = batch.require("word_starts"), batch.require("word_mask")
        return self.tags.to_words(paths, *words)

    def entity_scores(
        self, output: MethodOutput, batch: Batch, entities: Sequence[Sequence[Entity]]
    ) -> list[list[float]]:
        """The chain's posterior probability of each entity, whatever the words' later pieces."""
        words = batch.require("word_starts"), batch.require("word_mask")
        return self.crf.entity_probabilities(output.logits, batch.attention_mask, *words, entities)


TaskHead = RelationHead | TaggingHead | PieceTaggingHead


def relation_loss(logits: Tensor, labels: Tensor | None) -> Tensor | None:
    """Mean cross-entropy of (B, C) float32 logits; None without labels."""
    return None if labels is None else nn.functional.cross_entropy(logits, labels)
