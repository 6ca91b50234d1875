"""Settings, tokenizers and tensor names of other people's models: known and used, known and
harmless, or refused in one line."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from shards.files import InputError
from shards.json_files import read_json

CHECKED = ("bert", "roberta", "xlm-roberta", "electra", "vit", "clip", "clip_text_model",
           "clip_vision_model", "siglip", "siglip_text_model", "siglip_vision_model")  # fmt: skip
"""Kinds of which every field of `config.json` is accounted for."""
_ONLY: dict[str, tuple[Any, ...]] = {
    "position_embedding_type": ("absolute", None),  # transformers 5 drops the tables of the others
    "is_decoder": (False, None),
    "add_cross_attention": (False, None),
    "pruned_heads": ({}, None),
    "quantization_config": (None,),
    "auto_map": ({}, None),
}
"""Fields that change what is computed, and the values under which they do not."""
_NO_MATTER = """
_attn_implementation_autoset _commit_hash _num_labels attn_implementation bad_words_ids
begin_suppress_tokens classifier_dropout_prob cls_token_id cross_attention_hidden_size
decoder_start_token_id directionality diversity_penalty do_sample dropout early_stopping
encoder_no_repeat_ngram_size eos_token_ids exponential_decay_length_penalty finetuning_task
forced_bos_token_id forced_eos_token_id fusion_vision gradient_checkpointing language length_penalty
logit_scale_init_value mask_token_id max_length min_length model_type name no_repeat_ngram_size
num_beam_groups num_beams num_labels num_return_sequences output_past output_scores
pooler_fc_size pooler_num_attention_heads pooler_num_fc_layers pooler_size_per_head pooler_type
prefix remove_invalid_values repetition_penalty return_dict_in_generate sep_token_id
suppress_tokens task_specific_params temperature text_config_dict tf_legacy_loss
tie_encoder_decoder tie_word_embeddings tokenizer_class top_k top_p torch_dtype torchscript
typical_p use_bfloat16 use_cache vision_config_dict vision_tower
vocab_size_or_config_json_file xla_device
"""  # where it comes from, how it was trained, what a head or a text generator would read;
# `vision_tower` and `fusion_vision` are of fine-tuned runs of ours, whose methods read it
_HARMLESS = frozenset(_NO_MATTER.split())
WRAPPED = r"^(module\.|_orig_mod\.)+|(?<=\.)_orig_mod\."
"""What DDP and `torch.compile` put into names."""


def check_settings(content: Mapping[str, Any], config: type[PreTrainedConfig], name: str) -> None:
    """Account for every field of a foreign `config.json`.

    Args:
        config: the class of `transformers` that reads it. name: the file, for messages.

    Raises:
        InputError: a field that changes what is computed and would be passed over.
    """
    if config.model_type not in CHECKED:
        return
    known = set(config().to_dict()) | set(config.attribute_map) | _HARMLESS
    for key, value in content.items():
        if key in _ONLY:
            if value not in _ONLY[key]:
                raise InputError(
                    f"{name}: `{key}` is {json.dumps(value)[:60]}: a model of that kind is not "
                    f"computed here, only {json.dumps(_ONLY[key][0])}"
                )
        elif key not in known and value is not None:
            raise InputError(
                f"{name}: unknown field `{key}` ({json.dumps(value)[:60]}): it may change what the "
                "model computes; remove it from the file if it does not"
            )
    for key, part in config.sub_configs.items():
        if isinstance(content.get(key), Mapping):
            check_settings(content[key], part, f"{name}: {key}")


def check_rows(pieces: Mapping[str, int], directory: Path) -> None:
    """Raises: InputError: more word pieces than the model has rows."""
    path = directory / "config.json"
    content = read_json(path) if path.is_file() else {}
    text = content.get("text_config")
    rows = content.get("vocab_size", text.get("vocab_size") if isinstance(text, dict) else None)
    last = max(pieces, key=pieces.__getitem__)
    if isinstance(rows, int) and pieces[last] >= rows:
        raise InputError(
            f"{directory}: its tokenizer numbers {pieces[last] + 1} word pieces (the last is "
            f"{last!r}), its model has rows for {rows}; give the tokenizer of this model, or "
            "resize the model's word table"
        )


def check_tokenizer(tokenizer: PreTrainedTokenizerBase, directory: Path) -> None:
    """Raises: InputError: more word pieces than the model has rows, or capitals in the vocabulary
    where nothing says that they count."""
    pieces = tokenizer.get_vocab()
    check_rows(pieces, directory)
    # A bare vocab.txt does not say; `transformers` then lower-cases, and no name is known.
    settings = directory / "tokenizer_config.json"
    if (directory / "tokenizer.json").is_file() or not (directory / "vocab.txt").is_file():
        return
    if settings.is_file() and "do_lower_case" in read_json(settings):
        return
    capitals = [piece for piece in pieces if piece[:1].isupper() and piece.isalpha()]
    if len(capitals) > len(pieces) / 100 and getattr(tokenizer, "do_lower_case", True):
        raise InputError(
            f"{directory}: vocab.txt holds capitals ({', '.join(sorted(capitals)[:3])}, …), yet "
            "`transformers` would lower-case every text; write tokenizer_config.json with "
            '{"do_lower_case": false} for a cased model, true for an uncased one'
        )


def unwrapped(name: str) -> str:
    """A tensor's name without `WRAPPED`."""
    return re.sub(WRAPPED, "", name)


def check_shards(directory: Path) -> None:
    """Raises: InputError: an index of sharded weights that names files elsewhere, or missing."""
    for index in directory.glob("*.index.json"):
        files = read_json(index).get("weight_map")
        if not isinstance(files, dict):
            raise InputError(f"{index}: damaged: no `weight_map`")
        for file in sorted(set(map(str, files.values()))):
            if "/" in file or "\\" in file:
                raise InputError(f"{index}: {file!r} leads out of the directory")
            if not (directory / file).is_file():
                raise InputError(f"{index}: {file} is missing; copy all parts of the model")
