"""Layers of BERT and its kin: attention, a feed-forward net, norms; names as in `transformers`.

B: texts, L: word pieces, H: heads, d: their width, D = H·d.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from pretrain.model.attention import Dropout, attention

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
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
        wanted: int | Tensor | None = None,
    ) -> Tensor:
        """(B, L, D) -> (B, L, D), or (B, M, D).

        Args:
            attention_mask: broadcasting to (B, H, L, keys); bool, True = may be looked at, or
                float, to be added to the scores.
            every: what each layer gives is appended to it.
            wanted: the only states that are wanted, the first M or those at (B, M) places; the last
                layer makes no others.
        """
        again = self.checkpointing and self.training and torch.is_grad_enabled()
        for number, layer in enumerate(self.layer):
            before = None if prefix is None else prefix[number]
            inputs = (
                states,
                attention_mask,
                before,
                wanted if number + 1 == len(self.layer) else None,
            )
            states = checkpoint(layer, *inputs, use_reentrant=False) if again else layer(*inputs)
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
        self,
        states: Tensor,
        attention_mask: Tensor | None = None,
        prefix: KeysValues | None = None,
        wanted: int | Tensor | None = None,
    ) -> Tensor:
        """As `Layers.forward`."""
        states = self.attention(states, attention_mask, prefix, wanted)
        return self.output(self.intermediate(states), states)


class Attention(nn.Module):
    """Self-attention (`self`) and its output projection."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.self = SelfAttention(config)
        self.output = Output(config.hidden_size, config)

    def forward(
        self,
        states: Tensor,
        attention_mask: Tensor | None = None,
        prefix: KeysValues | None = None,
        wanted: int | Tensor | None = None,
    ) -> Tensor:
        """As `Layers.forward`."""
        # Where all are wanted not one slice for both: gradients are summed in the usual order.
        queries = states if wanted is None else chosen(states, wanted)
        return self.output(self.self(states, attention_mask, prefix, queries), queries)


class SelfAttention(nn.Module):
    """Queries, keys and values."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        width = config.hidden_size
        if width % config.num_attention_heads:
            raise ValueError(f"hidden_size {width}: {config.num_attention_heads} heads do not fit")
        self.num_attention_heads = config.num_attention_heads
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.dropout = Dropout(config.attention_probs_dropout_prob)

    def forward(
        self,
        states: Tensor,
        attention_mask: Tensor | None = None,
        prefix: KeysValues | None = None,
        queries: Tensor | None = None,
    ) -> Tensor:
        """(B, L, D) -> (B, L, D) heads side by side; of `queries` (B, M, D) alone -> (B, M, D)."""
        query, key, value = (
            projection(inputs).unflatten(-1, (self.num_attention_heads, -1)).transpose(1, 2)
            for projection, inputs in (
                (self.query, states if queries is None else queries),
                (self.key, states),
                (self.value, states),
            )
        )  # fmt: skip
        if prefix is not None:
            key, value = torch.cat([prefix[0], key], dim=2), torch.cat([prefix[1], value], dim=2)
        dropout = self.dropout.p if self.training else 0.0
        return attention(query, key, value, attention_mask, dropout).flatten(2)


class Intermediate(nn.Module):
    """The feed-forward net up to its activation."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.intermediate_size)
        if config.hidden_act not in ACTIVATIONS:
            raise ValueError(f"hidden_act {config.hidden_act!r} is none of {list(ACTIVATIONS)}")
        self.intermediate_act_fn = ACTIVATIONS[config.hidden_act]

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


def chosen(states: Tensor, wanted: int | Tensor | None) -> Tensor:
    """(B, L, D) -> the first `wanted`, or those at `wanted` (B, M) places; None: all."""
    if isinstance(wanted, Tensor):
        return states.take_along_dim(wanted[..., None], dim=1)
    return states[:, :wanted]


@torch.no_grad()
def draw(std: float, module: nn.Module) -> None:
    """First weights of one module: normal with standard deviation `std`; no bias."""
    if isinstance(module, nn.Linear | nn.Embedding):
        module.weight.normal_(0.0, std)
    if isinstance(module, nn.Linear):
        module.bias.zero_()
    elif isinstance(module, nn.Embedding) and module.padding_idx is not None:
        module.weight[module.padding_idx].zero_()
