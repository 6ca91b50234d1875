"""DGF-PT, the language model: which ones there are, and how vectors are read in the place of words.

B: rows, S: positions, D: hidden size.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import BertConfig, GPT2Model, OpenAIGPTModel

from finetune.methods.base import Source
from finetune.methods.layers import load_any_text_encoder, load_fusion_encoder
from finetune.tasks.base import TaskInfo
from pretrain.checkpoint.hub import load_tokenizer
from pretrain.checkpoint.strict import read_transformers
from pretrain.model.bert import Bert
from pretrain.model.bert_layers import Layers, draw
from pretrain.model.config import BERT_KIN, MODEL_TYPE
from pretrain.model.fusion_encoder import FusionEncoder
from pretrain.model.library import READS_LAST, TEXT_FAMILIES, LibraryText
from shards.files import InputError

CAUSAL = {"gpt2": GPT2Model, "openai-gpt": OpenAIGPTModel}


def load_plm(source: Source, task: TaskInfo, positions: str) -> tuple[nn.Module, Any]:
    """GPT-2, GPT, BERT or another text encoder of a directory or hub id, or a whole fusion encoder;
    with its tokenizer.

    Args:
        positions: of the settings, as `lay_out` has them.

    Raises:
        InputError: a model that reads no vectors in the place of words, whose words are of another
            width than its states, or that cannot be given the positions; a damaged directory.
    """
    family = source.directory.config.get("model_type")
    if family in CAUSAL:
        return _load_causal(source, CAUSAL[family], task)
    encoder: Any
    if family == MODEL_TYPE:
        encoder, tokenizer = load_fusion_encoder(source, task)
    elif family in (*BERT_KIN, *TEXT_FAMILIES):
        encoder, tokenizer = load_any_text_encoder(source, task)
    else:
        raise InputError(
            f"{source.path}: model_type is {family!r}; DGF-PT reads text with one of "
            f"{', '.join([*CAUSAL, *BERT_KIN, *TEXT_FAMILIES, MODEL_TYPE])}"
        )
    tower = text_towers(encoder)[0]
    kind = tower.config.model_type
    if kind in READS_LAST:
        raise InputError(
            f"{source.path}: its text encoder is a {kind}, which reads word pieces alone; DGF-PT "
            "gives it pictures and prefixes, too: begin with another family"
        )
    words = tower.get_input_embeddings().embedding_dim
    if words != tower.config.hidden_size:
        raise InputError(
            f"{source.path}: its words are {words} wide and its states {tower.config.hidden_size}; "
            "DGF-PT needs one width: begin with another model"
        )
    if positions != "continue" and isinstance(tower, LibraryText):
        raise InputError(
            f"model.positions {positions}: a {kind} counts positions for itself; leave it at "
            "continue"
        )
    return encoder, tokenizer


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
    config = encoder.config
    split = config.is_cut and config.encoder_layout == "split" and config.fusion_layers
    return [encoder.text, encoder.fusion] if split else [encoder.text]


def top_layers(encoder: nn.Module, number: int) -> Sequence[nn.Module]:
    """The last layers of the language model, for a decoder to start from; of a family whose layers
    take no causal mask new ones of BERT's kind."""
    first, *rest = text_towers(encoder)
    if isinstance(first, LibraryText):
        size, heads = first.config.hidden_size, first.config.num_attention_heads
        config = BertConfig(
            hidden_size=size, num_attention_heads=heads, intermediate_size=4 * size,
            num_hidden_layers=number,
        )  # fmt: skip
        return list(Layers(config).apply(partial(draw, config.initializer_range)).layer)
    layers = list(first.h if hasattr(first, "h") else first.encoder.layer)
    return [*layers, *(layer for tower in rest for layer in tower.layer)][-number:]


def read(encoder: nn.Module, embeds: Tensor, mask: Tensor, positions: Tensor) -> Tensor:
    """(B, S, D) input embeddings -> (B, S, D) last states.

    Args:
        mask: (B, S) bool; False is no key, wherever it stands.
        positions: (B, S) position ids; families other than BERT's and GPT's count for themselves,
            what the mask shows.
    """
    first, *rest = text_towers(encoder)
    if isinstance(first, LibraryText):  # what is shown side by side: distances count places
        order = (~mask).to(torch.uint8).argsort(dim=1, stable=True)
        shown = embeds.gather(1, order[..., None].expand_as(embeds))
        states = first(inputs_embeds=shown, attention_mask=mask.gather(1, order)).last_hidden_state
        return states.gather(1, order.argsort(dim=1)[..., None].expand_as(states))
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
