"""What methods share: encoders that know a task's special tokens, and heads.

B: rows, L: positions, D: hidden size, C: labels.
"""

from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import BertModel

from finetune.methods.base import Source
from finetune.tasks.base import TaskInfo
from pretrain.checkpoint.hub import load_fusion, load_text_tower
from pretrain.model.fusion_encoder import FusionEncoder


def load_text_encoder(source: Source, task: TaskInfo) -> tuple[BertModel, Any]:
    """A text-only BERT without pooler, with word rows for the task's special tokens."""
    encoder, tokenizer = load_text_tower(source.path, random_weights=source.random_weights)
    if tokenizer.add_tokens(list(task.extra_tokens), special_tokens=True):
        encoder.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    return encoder, tokenizer


def load_fusion_encoder(source: Source, task: TaskInfo) -> tuple[FusionEncoder, Any]:
    """A fusion encoder with word rows for the task's special tokens."""
    encoder, tokenizer = load_fusion(source.path, random_weights=source.random_weights)
    if tokenizer.add_tokens(list(task.extra_tokens), special_tokens=True):
        encoder.resize_token_embeddings(len(tokenizer))
    return encoder, tokenizer


def entity_states(states: Tensor, head_start: Tensor, tail_start: Tensor) -> Tensor:
    """States of the two opening markers side by side: (B, L, D) -> (B, 2D), head first."""
    rows = torch.arange(len(states), device=states.device)
    return torch.cat([states[rows, head_start], states[rows, tail_start]], dim=-1)


def relation_head(
    hidden_size: int, labels: int, kind: Literal["mlp", "linear"] = "linear"
) -> nn.Module:
    """(B, 2D) -> (B, C): one Linear, or Linear(2D, D)–ReLU–Linear(D, C)."""
    if kind == "linear":
        return nn.Linear(2 * hidden_size, labels)
    return nn.Sequential(
        nn.Linear(2 * hidden_size, hidden_size), nn.ReLU(), nn.Linear(hidden_size, labels)
    )


def relation_loss(logits: Tensor, labels: Tensor | None) -> Tensor | None:
    """Mean cross-entropy of (B, C) float32 logits; None without labels."""
    return None if labels is None else nn.functional.cross_entropy(logits, labels)
