"""BERT and its kin: BERT, RoBERTa (BERTweet), XLM-RoBERTa, ELECTRA.

Tensor names, the order of operations and the draws of first weights are those of `transformers`,
so that checkpoints load as they are and give the same states; its modelling code, which takes two
seconds to import, is not needed. B: texts, L: word pieces, H: heads, d: their width, D = H·d.
"""

import copy
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from pretrain.model.attention import Dropout
from pretrain.model.bert_layers import KeysValues, Layers, draw

ARCHITECTURES = {
    "bert": "BertModel",
    "roberta": "RobertaModel",
    "xlm-roberta": "XLMRobertaModel",
    "electra": "ElectraModel",
}
"""`model_type` -> the class of `transformers` that reads what `Bert.save_pretrained` writes."""
_FROM_PADDING = ("roberta", "xlm-roberta")
"""Families whose positions begin behind the padding id; padding itself stays there."""


@dataclass
class TextStates:
    """What a text encoder gives."""

    last_hidden_state: Tensor
    """(B, L, D)"""
    hidden_states: tuple[Tensor, ...] | None = None
    """The embeddings, and what every layer gives, where they were asked for."""


class Bert(nn.Module):
    """Embeddings and layers; no pooler."""

    def __init__(self, config: Any) -> None:
        """
        Args:
            config: the family's configuration class of `transformers`.

        Raises:
            ValueError: another family, or an activation that is not known.
        """
        super().__init__()
        if config.model_type not in ARCHITECTURES:
            raise ValueError(f"model_type {config.model_type!r} is no BERT")
        self.config = config
        self.embeddings = Embeddings(config)
        width = self.embeddings.word_embeddings.embedding_dim
        if width != config.hidden_size:  # ELECTRA
            self.embeddings_project = nn.Linear(width, config.hidden_size)
        self.encoder = Layers(config)
        self.apply(partial(draw, config.initializer_range))

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        *,
        prefix: Sequence[KeysValues] | None = None,
        output_hidden_states: bool = False,
    ) -> TextStates:
        """
        Args:
            input_ids: (B, L); or inputs_embeds: (B, L, width of the word table).
            attention_mask: nonzero = may be looked at; (B, L), or broadcasting to (B, H, L, keys).
            prefix: keys and values for every layer, seen as the mask says; they have no positions.
        """
        states = self.embeddings(input_ids, token_type_ids, position_ids, inputs_embeds)
        if hasattr(self, "embeddings_project"):
            states = self.embeddings_project(states)
        mask = None if attention_mask is None else attention_mask.bool()
        if mask is not None and mask.dim() == 2:
            mask = mask[:, None, None]
        every: list[Tensor] | None = [states] if output_hidden_states else None
        states = self.encoder(states, mask, prefix, every)
        return TextStates(states, None if every is None else tuple(every))

    @property
    def longest_text(self) -> int:
        """Most word pieces that have a position."""
        return self.config.max_position_embeddings - self.embeddings.first_position

    def get_input_embeddings(self) -> nn.Embedding:
        """The word table."""
        return self.embeddings.word_embeddings

    def resize_token_embeddings(self, num_tokens: int) -> None:
        """Grow or cut the word table; new rows are drawn like the first ones."""
        table = self.embeddings.word_embeddings
        old, width = table.weight.shape
        if num_tokens == old:
            return
        # Drawn twice, and all rows: as `transformers` does, whose draws follow these.
        options: Any = {"device": table.weight.device, "dtype": table.weight.dtype}
        fresh = nn.Embedding(num_tokens, width, **options)
        if num_tokens > old:
            draw(self.config.initializer_range, fresh)
        both = min(old, num_tokens)
        fresh.weight.data[:both] = table.weight.data[:both]
        table.weight.data, table.num_embeddings = fresh.weight.data, num_tokens
        if table.padding_idx is not None and table.padding_idx >= num_tokens:
            table.padding_idx = None
        self.config.vocab_size = num_tokens

    def save_pretrained(self, directory: str | os.PathLike[str]) -> None:
        """Write `config.json` and `model.safetensors`, which `transformers.AutoModel` reads."""
        config = copy.deepcopy(self.config)
        config.architectures = [ARCHITECTURES[config.model_type]]
        config.dtype = str(next(self.parameters()).dtype).removeprefix("torch.")
        Path(directory).mkdir(parents=True, exist_ok=True)
        config.save_pretrained(directory)
        state = {
            name: value.detach().cpu().contiguous() for name, value in self.state_dict().items()
        }
        save_file(state, Path(directory) / "model.safetensors", metadata={"format": "pt"})


class Embeddings(nn.Module):
    """Words, positions and token types, summed and normed."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        width = getattr(config, "embedding_size", config.hidden_size)
        counted = config.model_type in _FROM_PADDING
        self.pad_id = config.pad_token_id if counted else None
        self.first_position = config.pad_token_id + 1 if counted else 0
        self.word_embeddings = nn.Embedding(
            config.vocab_size, width, padding_idx=config.pad_token_id
        )
        self.position_embeddings = nn.Embedding(
            config.max_position_embeddings, width, padding_idx=self.pad_id
        )
        self.token_type_embeddings = nn.Embedding(config.type_vocab_size, width)
        self.LayerNorm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.dropout = Dropout(config.hidden_dropout_prob)

    def forward(
        self,
        input_ids: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
    ) -> Tensor:
        """As `Bert.forward` -> (B, L, width of the word table)."""
        if position_ids is None:
            position_ids = self.positions(input_ids, inputs_embeds)
        if inputs_embeds is None:
            inputs_embeds = self.word_embeddings(input_ids)
        if token_type_ids is None:
            token_type_ids = torch.zeros_like(position_ids).expand(inputs_embeds.shape[:2])
        states = inputs_embeds + self.token_type_embeddings(token_type_ids)
        states = states + self.position_embeddings(position_ids)
        return self.dropout(self.LayerNorm(states))

    def positions(self, input_ids: Tensor | None, inputs_embeds: Tensor | None) -> Tensor:
        """(1, L), or (B, L) where padding has its own."""
        if self.pad_id is not None and input_ids is not None:
            real = input_ids.ne(self.pad_id)
            return real.cumsum(dim=1) * real + self.pad_id
        given = inputs_embeds if input_ids is None else input_ids
        assert given is not None
        first = self.first_position
        return torch.arange(first, first + given.shape[1], device=given.device)[None]
