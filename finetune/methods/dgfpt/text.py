"""DGF-PT, what the language model reads: text without markers, prefixes, one pass.

B: rows, L: text positions, S: all positions, D: hidden size.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from finetune.tasks.base import TaskInfo

# ---- Text ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Text:
    """The words of the posts, special tokens gone."""

    ids: Tensor
    """(B, L) int64"""
    mask: Tensor
    """(B, L) bool"""
    head: Tensor
    """(B, L) bool: the pieces of the head; at least one a row"""
    tail: Tensor
    """(B, L) bool"""


class Unmarker(nn.Module):
    """Takes markers, [CLS] and [SEP] out of the encoded posts and keeps what the markers enclose.

    The task marks entities in the text; the paper does not (§4.1.1). Done on the device, so that
    one encoding serves all methods.
    """

    markers: Tensor
    dropped: Tensor

    def __init__(self, tokenizer: Any, task: TaskInfo, keep_markers: bool) -> None:
        super().__init__()
        markers = tokenizer.convert_tokens_to_ids(list(task.extra_tokens))
        ends = [i for i in (tokenizer.cls_token_id, tokenizer.sep_token_id) if i is not None]
        dropped = ends + ([] if keep_markers else markers)
        self.width = len(dropped)
        """Every row holds each of these once, so rows shrink by so many."""
        self.register_buffer("markers", torch.tensor(markers), persistent=False)
        self.register_buffer("dropped", torch.tensor(dropped), persistent=False)

    def forward(self, ids: Tensor, mask: Tensor) -> Text:
        """(B, L) ids and bool mask -> what is left, from position 0 on."""
        keep = mask & ~torch.isin(ids, self.dropped)
        order = (~keep).to(torch.uint8).argsort(dim=1, stable=True)
        order = order[:, : ids.shape[1] - self.width]
        inside = keep & ~torch.isin(ids, self.markers)
        mask = keep.gather(1, order)
        spans = []
        for opening, closing in self.markers.view(2, 2):
            opened = (ids == opening).cumsum(1) > (ids == closing).cumsum(1)
            span = (opened & inside).gather(1, order)
            spans.append(span | self._nearest(ids == opening, keep, mask, span))
        return Text(ids.gather(1, order) * mask, mask, *spans)

    @staticmethod
    def _nearest(opening: Tensor, keep: Tensor, mask: Tensor, span: Tensor) -> Tensor:
        """For an entity that the tokenizer made nothing of: the piece that follows its place."""
        place = (keep.cumsum(1) * opening).amax(1)  # pieces kept before the opening marker
        place = torch.minimum(place, mask.sum(1) - 1).clamp(min=0)
        here = torch.arange(mask.shape[1], device=mask.device) == place[:, None]
        return here & ~span.any(1, keepdim=True)


def masked_mean(states: Tensor, mask: Tensor) -> Tensor:
    """(B, L, D), (B, L) bool -> (B, D); zero where nothing is shown."""
    weights = mask.to(states.dtype)
    return (states * weights[..., None]).sum(1) / weights.sum(1, keepdim=True).clamp(min=1)


def last_state(states: Tensor, mask: Tensor) -> Tensor:
    """(B, L, D), (B, L) bool -> (B, D) at each row's last True."""
    places = torch.arange(1, mask.shape[1] + 1, device=mask.device)
    last = (mask * places).argmax(1)
    return states.gather(1, last[:, None, None].expand(-1, 1, states.shape[-1])).squeeze(1)


# ---- Prefixes ------------------------------------------------------------------------------------


class Prefix(nn.Module):
    """Literal words around two slots, as rows of the word table (§4.1.2), trained or fixed."""

    words: Tensor

    def __init__(self, parts: Sequence[Sequence[int]], words: Tensor, trained: bool) -> None:
        """
        Args:
            parts: ids before, between and after the two slots.
            words: (V, D) the word table.
        """
        super().__init__()
        before, between, _ = map(len, parts)
        self.first, self.second = before, before + between
        rows = words[[number for part in parts for number in part]].detach().clone()
        if trained:
            self.words = nn.Parameter(rows)
        else:
            self.register_buffer("words", rows)

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """Two (B, D) -> (B, n + 2, D)."""
        words = self.words.to(first.dtype).expand(len(first), -1, -1)
        parts = [words[:, : self.first], first[:, None], words[:, self.first : self.second]]
        return torch.cat([*parts, second[:, None], words[:, self.second :]], dim=1)

    def mask(self, filled: Tensor) -> Tensor:
        """(B,) bool, whether the slots hold something -> (B, n + 2) bool."""
        mask = filled.new_ones(len(filled), len(self.words) + 2)
        mask[:, self.first] = filled
        mask[:, self.second + 1] = filled
        return mask


# ---- One pass ------------------------------------------------------------------------------------

Part = tuple[Tensor, Tensor]
"""(B, n, D) embeddings, (B, n) bool mask"""


def unmasked(embeds: Tensor) -> Part:
    """(B, n, D) with nothing masked."""
    return embeds, torch.ones(embeds.shape[:2], dtype=torch.bool, device=embeds.device)


@dataclass(frozen=True)
class Layout:
    """Segments side by side."""

    embeds: Tensor
    """(B, S, D)"""
    mask: Tensor
    """(B, S) bool"""
    positions: Tensor
    """(B, S) int64"""
    places: Mapping[str, slice]
    """Segment -> where it lies."""


def lay_out(parts: Mapping[str, Part], positions: Literal["continue", "restart_text"]) -> Layout:
    """The segments in the order of `parts`, masked positions counting for nothing.

    For a causal model this one sequence equals the paper's stages (eqs. 1–3), each of which reads
    what lies before it through the keys and values of every layer.

    Args:
        positions: restart_text: the text's positions begin at 1 again, whatever lies before it.
    """
    places, start = {}, 0
    for name, (embeds, _) in parts.items():
        places[name] = slice(start, start := start + embeds.shape[1])
    mask = torch.cat([mask for _, mask in parts.values()], dim=1)
    ids = (mask.cumsum(1) - 1).clamp(min=0)
    if positions == "restart_text":
        text = parts["T"][1].cumsum(1)
        before, after = ids[:, : places["T"].start], ids[:, places["T"].stop :]
        ids = torch.cat([before, text, after], dim=1)
    embeds = torch.cat([embeds for embeds, _ in parts.values()], dim=1)
    return Layout(embeds, mask, ids, places)
