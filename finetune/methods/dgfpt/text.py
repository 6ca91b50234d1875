"""DGF-PT, reading: language models of four families, text without markers, prefixes, one pass.

B: rows, L: text positions, S: all positions, D: hidden size.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from transformers import GPT2Model, OpenAIGPTModel

from finetune.methods.base import Source
from finetune.methods.layers import load_fusion_encoder, load_text_encoder
from finetune.tasks.base import TaskInfo
from pretrain.checkpoint.hub import load_tokenizer
from pretrain.checkpoint.strict import read_transformers
from pretrain.model.bert import Bert
from pretrain.model.config import BERT_KIN, MODEL_TYPE
from pretrain.model.fusion_encoder import FusionEncoder
from shards.files import InputError

CAUSAL = {"gpt2": GPT2Model, "openai-gpt": OpenAIGPTModel}


# ---- Language models -----------------------------------------------------------------------------


def load_plm(source: Source, task: TaskInfo) -> tuple[nn.Module, Any]:
    """GPT-2, GPT or BERT of a directory or hub id, or a whole fusion encoder; with its tokenizer.

    Raises:
        InputError: another family of models, or one whose directory is damaged.
    """
    family = source.directory.config.get("model_type")
    if family in CAUSAL:
        return _load_causal(source, CAUSAL[family], task)
    if family == MODEL_TYPE:
        encoder, tokenizer = load_fusion_encoder(source, task)
        if not isinstance(encoder.text, Bert):
            raise InputError(
                f"{source.path}: its text encoder is a {encoder.text.config.model_type}; DGF-PT "
                f"reads a fusion model's text with one of {', '.join(BERT_KIN)}"
            )
        return encoder, tokenizer
    if family in BERT_KIN:
        return load_text_encoder(source, task)
    raise InputError(
        f"{source.path}: model_type is {family!r}; DGF-PT reads text with one of "
        f"{', '.join([*CAUSAL, *BERT_KIN, MODEL_TYPE])}"
    )


def _load_causal(source: Source, model_class: Any, task: TaskInfo) -> tuple[nn.Module, Any]:
    """GPT or GPT-2. Words get a blank in front, as the models read them; padding is the end token
    under a mask, since neither vocabulary has one of its own."""
    path = source.directory.path
    config = model_class.config_class.from_pretrained(path)
    encoder = model_class(config) if source.random_weights else read_transformers(model_class, path)
    tokenizer: Any = load_tokenizer(source.directory)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    if tokenizer.add_tokens(list(task.extra_tokens), special_tokens=True):
        encoder.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    return encoder, tokenizer


def text_towers(encoder: nn.Module) -> list[Any]:
    """What reads text: one `transformers` model, and the fusion layers where they are its upper
    half."""
    if not isinstance(encoder, FusionEncoder):
        return [encoder]
    split = encoder.config.encoder_layout == "split" and encoder.config.fusion_layers
    return [encoder.text, encoder.fusion] if split else [encoder.text]


def top_layers(encoder: nn.Module, number: int) -> Sequence[nn.Module]:
    """The last layers of the language model, for a decoder to start from."""
    first, *rest = text_towers(encoder)
    layers = list(first.h if hasattr(first, "h") else first.encoder.layer)
    return [*layers, *(layer for tower in rest for layer in tower.layer)][-number:]


def read(encoder: nn.Module, embeds: Tensor, mask: Tensor, positions: Tensor) -> Tensor:
    """(B, S, D) input embeddings -> (B, S, D) last states.

    Args:
        mask: (B, S) bool; False is no key, wherever it stands.
        positions: (B, S) position ids.
    """
    first, *rest = text_towers(encoder)
    if isinstance(first, Bert):
        positions = positions + first.embeddings.first_position
    states = first(
        inputs_embeds=embeds, attention_mask=mask, position_ids=positions
    ).last_hidden_state
    return cast(FusionEncoder, encoder).fuse(states, mask, None) if rest else states


def first_and_last(tokenizer: Any) -> Tensor:
    """Ids of the first position, which nothing masks, and (BERT) of the last one."""
    if tokenizer.cls_token_id is not None:
        return torch.tensor([tokenizer.cls_token_id, tokenizer.sep_token_id])
    ids = (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id)
    return torch.tensor([next(number for number in ids if number is not None)])


def pieces(tokenizer: Any, text: str) -> list[int]:
    """Ids of a literal text, without special tokens."""
    return tokenizer(text, add_special_tokens=False)["input_ids"]


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
