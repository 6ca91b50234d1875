"""BERT and its kin: BERT, RoBERTa (BERTweet), XLM-RoBERTa, ELECTRA.

Tensor names, the order of operations and the draws of first weights are those of `transformers`,
so that checkpoints load as they are and give the same states; its modelling code, which takes two
seconds to import, is not needed. B: texts, L: word pieces, H: heads, d: their width, D = H·d.
"""

import copy
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from pretrain.model.attention import Dropout, attention

ARCHITECTURES = {
    "bert": "BertModel",
    "roberta": "RobertaModel",
    "xlm-roberta": "XLMRobertaModel",
    "electra": "ElectraModel",
}
"""`model_type` -> the class of `transformers` that reads what `Bert.save_pretrained` writes."""
_FROM_PADDING = ("roberta", "xlm-roberta")
"""Families whose positions begin behind the padding id; padding itself stays there."""
_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": functional.gelu,
    "gelu_new": partial(functional.gelu, approximate="tanh"),
    "gelu_pytorch_tanh": partial(functional.gelu, approximate="tanh"),
    "relu": functional.relu,
    "silu": functional.silu,
    "swish": functional.silu,
    "tanh": torch.tanh,
}
KeysValues = tuple[Tensor, Tensor]
"""Two of (B, H, P, d) that stand before a layer's own."""


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


class Layers(nn.Module):
    """A stack of layers."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.layer = nn.ModuleList(Layer(config) for _ in range(config.num_hidden_layers))
        self.checkpointing = False
        """While training, keep the inputs of layers alone and compute the rest again backwards."""

    @property
    def layers(self) -> Iterator["Layer"]:
        """From below."""
        return cast(Iterator[Layer], iter(self.layer))

    def forward(
        self,
        states: Tensor,
        attention_mask: Tensor | None = None,
        prefix: Sequence[KeysValues] | None = None,
        every: list[Tensor] | None = None,
    ) -> Tensor:
        """(B, L, D) -> (B, L, D).

        Args:
            attention_mask: broadcasting to (B, H, L, keys); bool, True = may be looked at, or
                float, to be added to the scores.
            every: what each layer gives is appended to it.
        """
        again = self.checkpointing and self.training and torch.is_grad_enabled()
        for number, layer in enumerate(self.layer):
            before = None if prefix is None else prefix[number]
            states = (
                checkpoint(layer, states, attention_mask, before, use_reentrant=False)
                if again
                else layer(states, attention_mask, before)
            )
            if every is not None:
                every.append(states)
        return states


class Layer(nn.Module):
    """Self-attention and a feed-forward net, each added to its input and normed."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.attention = Attention(config)
        self.intermediate = Intermediate(config)
        self.output = Output(config.intermediate_size, config)

    def forward(
        self, states: Tensor, attention_mask: Tensor | None = None, prefix: KeysValues | None = None
    ) -> Tensor:
        """As `Layers.forward`."""
        states = self.attention(states, attention_mask, prefix)
        return self.output(self.intermediate(states), states)


class Attention(nn.Module):
    """Self-attention (`self`) and its output projection."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.self = SelfAttention(config)
        self.output = Output(config.hidden_size, config)

    def forward(
        self, states: Tensor, attention_mask: Tensor | None = None, prefix: KeysValues | None = None
    ) -> Tensor:
        """As `Layers.forward`."""
        return self.output(self.self(states, attention_mask, prefix), states)


class SelfAttention(nn.Module):
    """Queries, keys and values."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        width = config.hidden_size
        self.num_attention_heads = config.num_attention_heads
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.dropout = Dropout(config.attention_probs_dropout_prob)

    def forward(
        self, states: Tensor, attention_mask: Tensor | None = None, prefix: KeysValues | None = None
    ) -> Tensor:
        """(B, L, D) -> (B, L, D) heads side by side."""
        query, key, value = (
            projection(states).unflatten(-1, (self.num_attention_heads, -1)).transpose(1, 2)
            for projection in (self.query, self.key, self.value)
        )
        if prefix is not None:
            key, value = torch.cat([prefix[0], key], dim=2), torch.cat([prefix[1], value], dim=2)
        dropout = self.dropout.p if self.training else 0.0
        return attention(query, key, value, attention_mask, dropout).flatten(2)


class Intermediate(nn.Module):
    """The feed-forward net up to its activation."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.intermediate_size)
        if config.hidden_act not in _ACTIVATIONS:
            raise ValueError(f"hidden_act {config.hidden_act!r} is none of {list(_ACTIVATIONS)}")
        self.intermediate_act_fn = _ACTIVATIONS[config.hidden_act]

    def forward(self, states: Tensor) -> Tensor:
        """(B, L, D) -> (B, L, intermediate size)."""
        return self.intermediate_act_fn(self.dense(states))


class Output(nn.Module):
    """A projection back to D, dropout, and the norm of its sum with the layer's input."""

    def __init__(self, width: int, config: Any) -> None:
        super().__init__()
        self.dense = nn.Linear(width, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = Dropout(config.hidden_dropout_prob)

    def forward(self, states: Tensor, added: Tensor) -> Tensor:
        """(B, L, width), (B, L, D) -> (B, L, D)."""
        return self.LayerNorm(self.dropout(self.dense(states)) + added)


@torch.no_grad()
def draw(std: float, module: nn.Module) -> None:
    """First weights of one module: normal with standard deviation `std`; no bias."""
    if isinstance(module, nn.Linear | nn.Embedding):
        module.weight.normal_(0.0, std)
    if isinstance(module, nn.Linear):
        module.bias.zero_()
    elif isinstance(module, nn.Embedding) and module.padding_idx is not None:
        module.weight[module.padding_idx].zero_()
