"""A published text encoder, strictly: a BERT, RoBERTa, XLM-R or ELECTRA -> our layers; of other
families the model of `transformers`."""

import re
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from pretrain.checkpoint.foreign import WRAPPED, check_settings, check_shards, unwrapped
from pretrain.checkpoint.strict import (
    CONFIG_NAME,
    WEIGHTS_NAME,
    check_fits,
    check_values,
    member,
    read_config,
)
from pretrain.checkpoint.untrusted import load_pickle
from pretrain.model.bert import ARCHITECTURES, Bert
from pretrain.model.library import TEXT_FAMILIES, LibraryText, family_config, possible
from shards.files import InputError
from shards.json_files import read_json

_LEFT = re.compile(r"embeddings\.(position_ids|token_type_ids)$|(?!embeddings|encoder\.)")
"""Tensors of a checkpoint that no layer of ours has: buffers, poolers and heads."""


def read_bert(directory: Path, *, random_weights: bool = False) -> Bert:
    """The model of a local directory without pooler and heads, float32.

    Args:
        random_weights: its sizes alone, freshly drawn.

    Raises:
        InputError: another kind of model, a pickle that would run code, or tensors that are
            missing, foreign, misshapen, not finite.
    """
    from transformers import AutoConfig

    content = read_config(directory)
    family = content.get("model_type")
    if family not in ARCHITECTURES:
        raise InputError(f"{directory}: model_type is {family!r}, none of {list(ARCHITECTURES)}")
    settings = AutoConfig.for_model(family)
    check_settings(content, type(settings), str(directory / CONFIG_NAME))
    with possible(str(directory / CONFIG_NAME)):
        config = type(settings).from_dict(content)
        if random_weights:
            return Bert(config)
        # Nothing is drawn that the checkpoint overwrites: `assign` below puts its tensors in.
        with torch.device("meta"):
            bert = Bert(config)
    state = read_tensors(directory)
    named = {_present_name(name, family): tensor for name, tensor in state.items()}
    state = {name: tensor for name, tensor in named.items() if not _LEFT.match(name)}
    expected = bert.state_dict()
    if missing := sorted(expected.keys() - state.keys()):
        raise InputError(f"{directory}: {len(missing)} tensors missing, for example {missing[0]}")
    check_fits(expected, state, str(directory))
    check_values(state, str(directory))
    bert.load_state_dict({name: tensor.float() for name, tensor in state.items()}, assign=True)
    return bert


def read_text(directory: Path, *, random_weights: bool = False) -> Bert | LibraryText:
    """`read_bert`, or a text encoder of another family (of a whole CLIP or SigLIP its text side).

    Raises:
        InputError: likewise; a family that is not known, or one that needs code of its own.
    """
    content = read_config(directory)
    family = content.get("model_type")
    if not isinstance(family, str):
        raise InputError(f"{directory / CONFIG_NAME}: `model_type` is missing or no text")
    if family in ARCHITECTURES:
        return read_bert(directory, random_weights=random_weights)
    if content.get("auto_map"):
        raise InputError(
            f"{directory}: `auto_map`: this model needs code of its own (trust_remote_code), and "
            "no code of a model is ever run; take one that `transformers` itself knows"
        )
    if family in ("clip", "siglip") and isinstance(content.get("text_config"), dict):
        family = f"{family}_text_model"
        content = {**content["text_config"], "model_type": family}
    if family not in TEXT_FAMILIES:
        raise InputError(
            f"{directory}: model_type is {family!r}; text encoders are "
            f"{', '.join([*ARCHITECTURES, *TEXT_FAMILIES])}"
        )
    with possible(str(directory / CONFIG_NAME)):
        config = family_config(content)
        text = LibraryText.of(config)
    if random_weights:
        return text
    from transformers.utils import logging

    tensors = read_tensors(directory)  # no pickle that would run code comes further
    check_values({n: t for n, t in tensors.items() if t.is_floating_point()}, str(directory))
    logging.set_verbosity_error()
    net, report = type(text.net).from_pretrained(
        directory, config=config, output_loading_info=True, dtype=torch.float32,
        local_files_only=True, key_mapping={WRAPPED: ""},
    )  # fmt: skip
    if missing := sorted(key for key in report["missing_keys"] if "pooler" not in key):
        raise InputError(f"{directory}: {len(missing)} tensors missing, for example {missing[0]}")
    if mismatched := list(report.get("mismatched_keys") or ()):
        raise InputError(f"{directory}: tensors of another size: {mismatched[0]}")
    return LibraryText(net)


def pools_by_mean(directory: Path) -> bool:
    """Whether a sentence-transformers directory says that a text is the mean of its pieces."""
    path = directory / "1_Pooling" / CONFIG_NAME
    return path.is_file() and read_json(path).get("pooling_mode_mean_tokens") is True


def read_tensors(directory: Path) -> dict[str, Tensor]:
    """All tensors of a local directory, names as there: safetensors, in parts or whole, or a pickle
    that holds nothing but tensors."""
    check_shards(directory)
    for names in (WEIGHTS_NAME, "pytorch_model.bin"):
        index = directory / f"{names}.index.json"
        if (directory / names).is_file():
            parts = [names]
        elif index.is_file():
            parts = sorted(set(read_json(index)["weight_map"].values()))
        else:
            continue
        state: dict[str, Tensor] = {}
        for part in parts:
            state |= read_part(member(directory, part))
        return state
    raise InputError(f"{directory}: no {WEIGHTS_NAME} and no pytorch_model.bin")


def read_part(path: Path) -> dict[str, Tensor]:
    """All tensors of one file of safetensors, or of a pickle that holds nothing else."""
    if path.suffix != ".safetensors":
        content: Any = load_pickle(path)
        if not isinstance(content, dict):
            raise InputError(f"{path}: not a state dict")
        tensors = {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
        return {name: tensor.clone() for name, tensor in tensors.items()}  # off the mapped file
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path}: damaged or unknown safetensors file ({error})") from error


def _present_name(name: str, family: str) -> str:
    """Without wrappers and the model's own prefix; TensorFlow's `gamma` and `beta` as of today."""
    name = unwrapped(name).removeprefix(f"{family.replace('xlm-', '')}.")
    return re.sub(r"LayerNorm\.(gamma|beta)$", _norm_name, name)


def _norm_name(match: re.Match[str]) -> str:
    return "LayerNorm." + {"gamma": "weight", "beta": "bias"}[match[1]]
