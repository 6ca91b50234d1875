"""A released model: one directory, local or on the Hugging Face hub, without pickle.

config.json               architecture, `model_type: fusion-mre`, format version, heads
model.safetensors         every tensor, float32
tokenizer.json …          what `AutoTokenizer.from_pretrained` reads
preprocessor_config.json  size, mean, std
README.md                 model card
"""

import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from safetensors.torch import save_file
from tokenizers.normalizers import Lowercase, Sequence
from tokenizers.pre_tokenizers import ByteLevel
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from pretrain.checkpoint import bertweet
from pretrain.checkpoint.card import encoder_card
from pretrain.checkpoint.checksums import check_member, require_readable, write_checksums
from pretrain.checkpoint.directory import ModelDirectory
from pretrain.checkpoint.foreign import check_tokenizer
from pretrain.checkpoint.remote import is_remote, store
from pretrain.checkpoint.strict import (
    CONFIG_NAME,
    WEIGHTS_NAME,
    check_size,
    load_strictly,
    read_weights,
)
from pretrain.checkpoint.text import read_text
from pretrain.model.bert import Bert
from pretrain.model.config import MODEL_TYPE, FusionEncoderConfig
from pretrain.model.fusion_encoder import FusionEncoder
from pretrain.model.library import LibraryText
from pretrain.model.promu import Promu
from shards.files import InputError, replace_folder
from shards.json_files import read_json, write_json
from shards.processors import as_filed

T = TypeVar("T")
Source = str | os.PathLike[str]
TOKENIZER_NAMES = ("tokenizer.json", "vocab.txt", "vocab.json", "spm.model", "spiece.model",
                   "sentencepiece.bpe.model")  # fmt: skip
"""What a tokenizer may lie in: WordPiece, byte-level BPE, SentencePiece."""


def load_tokenizer(source: Path | ModelDirectory) -> PreTrainedTokenizerBase:
    """The tokenizer that travels with a model directory, or lies in a folder without a model."""
    from transformers import AutoTokenizer

    directory = Path(source)
    require_readable(directory / "tokenizer.json")
    if not any((directory / name).exists() for name in TOKENIZER_NAMES):
        raise InputError(f"{directory}: no tokenizer ({', '.join(TOKENIZER_NAMES)})")
    for name in (
        *TOKENIZER_NAMES,
        "bpe.codes",
        "tokenizer_config.json",
        "preprocessor_config.json",
    ):
        check_member(directory / name)
    options: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    if not isinstance(source, ModelDirectory) and (directory / CONFIG_NAME).is_file():
        source = ModelDirectory.open(directory)
    if isinstance(source, ModelDirectory) and source.kind == MODEL_TYPE:
        options["config"] = PreTrainedConfig()  # `transformers` knows no model of ours, and warns
    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(directory, **options)
    except Exception as error:  # `tokenizers` raises no narrower kind on a damaged file
        reason = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
        raise InputError(f"{directory}: its tokenizer cannot be loaded ({reason})") from error
    if type(tokenizer).__name__ == "BertweetTokenizer":
        return bertweet.fast_form(tokenizer, directory)
    if not tokenizer.is_fast and not (directory / "tokenizer.json").is_file():
        raise InputError(
            f"{directory}: {type(tokenizer).__name__} is a tokenizer without a fast form, which "
            "alone tells where a piece lies in a text; take a model whose tokenizer.json there is"
        )
    check_tokenizer(tokenizer, directory)
    tokenizer = as_filed(tokenizer, directory)
    _begin_words_with_blanks(tokenizer)
    return tokenizer


def _begin_words_with_blanks(tokenizer: Any) -> None:
    """Byte-level pieces (RoBERTa, ModernBERT) tell a word's begin by the blank before it, which a
    text's first word and words that are given one by one would lack."""
    words = tokenizer.backend_tokenizer.pre_tokenizer
    if isinstance(words, ByteLevel):
        words.add_prefix_space = True
        after = tokenizer.backend_tokenizer.post_processor
        if hasattr(after, "add_prefix_space"):  # else it cuts a word's first letter off its place
            after.add_prefix_space = True
            tokenizer.backend_tokenizer.post_processor = after
        tokenizer.add_prefix_space = tokenizer.init_kwargs["add_prefix_space"] = True


def load_promu(source: Source) -> tuple[Promu, PreTrainedTokenizerBase]:
    """A pre-training checkpoint with its heads and temperature."""
    directory = ModelDirectory.open(source)
    state = read_weights(directory.path)
    check_size(directory.config, state, str(directory.path))
    model = _fusion_config(directory, Promu.from_config)
    load_strictly(model, {_training_name(key): state[key] for key in state}, str(directory.path))
    return model, load_tokenizer(directory)


def load_fusion(
    source: Source, *, random_weights: bool = False
) -> tuple[FusionEncoder, PreTrainedTokenizerBase]:
    """The encoder of a model directory, heads left aside, and its tokenizer.

    Args:
        random_weights: the same architecture and tokenizer, freshly initialised.
    """
    directory = ModelDirectory.open(source)
    if random_weights:
        return FusionEncoder(fusion_architecture(directory)), load_tokenizer(directory)
    state = read_weights(directory.path)
    check_size(directory.config, state, str(directory.path))
    encoder = FusionEncoder(fusion_architecture(directory))
    encoder_state = {key: state[key] for key in state if not key.startswith("heads.")}
    load_strictly(encoder, encoder_state, str(directory.path))
    return encoder, load_tokenizer(directory)


def fusion_architecture(directory: ModelDirectory) -> FusionEncoderConfig:
    """Sizes and layout from `config.json`. Raises: InputError: of another kind, or damaged."""
    return _fusion_config(directory, FusionEncoderConfig.from_dict)


def read_text_encoder(
    directory: Path, *, random_weights: bool = False
) -> tuple[Bert | LibraryText, PreTrainedTokenizerBase]:
    """A Hugging Face text encoder of a known family, and its tokenizer."""
    text, tokenizer = read_text(directory, random_weights=random_weights), load_tokenizer(directory)
    if text.config.model_type == "siglip_text_model":
        as_siglip(text, tokenizer)
    bertweet.copy_rows(text, tokenizer)
    return text, tokenizer


def as_siglip(text: Bert | LibraryText, tokenizer: PreTrainedTokenizerBase) -> None:
    """Pad texts, in lower case, as SigLIP was trained: SigLIP 2 publishes no `pad_token_id`, whose
    default is 1, and a tokenizer that pads with 0 and keeps capitals."""
    text.config.pad_token_id, tokenizer.padding_side = tokenizer.pad_token_id, "right"
    names = ["input_ids", "attention_mask"]  # its settings leave the mask out, which others read
    tokenizer.model_input_names = tokenizer.init_kwargs["model_input_names"] = names
    backend: Any = tokenizer.backend_tokenizer
    parts = [backend.normalizer] if backend.normalizer else []
    if Sequence(parts).normalize_str("A").lower() != Sequence(parts).normalize_str("A"):
        backend.normalizer = Sequence([Lowercase(), *parts])


def load_text_tower(
    source: Source, *, random_weights: bool = False
) -> tuple[Bert | LibraryText, PreTrainedTokenizerBase]:
    """A text encoder: of a fusion model directory, or any Hugging Face one of a known family.

    A fusion encoder of layout `split` is one BERT cut in two: its text and fusion layers are
    stacked again. Of the other layouts it is the text tower.
    """
    directory = ModelDirectory.open(source)
    if directory.kind != MODEL_TYPE:
        return read_text_encoder(directory.path, random_weights=random_weights)
    encoder, tokenizer = load_fusion(directory, random_weights=random_weights)
    return stack_text_layers(encoder), tokenizer


def stack_text_layers(encoder: FusionEncoder) -> Bert | LibraryText:
    """All BERT layers of an encoder as one text-only BERT (weights shared, not copied); where the
    text tower is of another family, that alone."""
    config = encoder.config
    if not isinstance(encoder.text, Bert):
        return encoder.text
    layers = list(encoder.text.encoder.layer)
    if config.encoder_layout == "split" and config.fusion_layers:
        layers += list(encoder.fusion.layer)
    bert = encoder.text
    bert.encoder.layer = nn.ModuleList(layers)
    bert.config.num_hidden_layers = len(layers)
    return bert


def save_model_directory(
    out: Source,
    *,
    config: dict[str, Any],
    state: dict[str, Tensor],
    tokenizer: PreTrainedTokenizerBase,
    card: str,
) -> None:
    """Write a model directory, whole or not at all; at an fsspec URL, upload and verify it.

    Raises:
        InputError: `out` holds something that is no model directory; it is left as it is.
    """

    def write(folder: Path) -> None:
        (folder / CONFIG_NAME).write_text(json.dumps(config, indent=2) + "\n")
        tensors = {key: value.detach().cpu().contiguous() for key, value in state.items()}
        save_file(tensors, folder / WEIGHTS_NAME, metadata={"format": "pt"})
        tokenizer.save_pretrained(folder)
        path = folder / "tokenizer_config.json"
        longest = {"model_max_length": config["max_position_embeddings"]}
        write_json(path, read_json(path) | longest)
        write_json(folder / "preprocessor_config.json", preprocessing(config))
        (folder / "README.md").write_text(card, encoding="utf-8")

    save_directory(out, write)


def preprocessing(config: dict[str, Any]) -> dict[str, Any]:
    """`preprocessor_config.json`, in the words of a `transformers` image processor that resizes,
    scales and normalises as `FusionProcessor` and the encoder do."""
    return {
        "image_processor_type": "ViTImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"height": config["image_size"], "width": config["image_size"]},
        "resample": 3,  # PIL's number for bicubic
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(config["image_mean"]),
        "image_std": list(config["image_std"]),
    }


def save_directory(out: Source, write: Callable[[Path], None]) -> None:
    """Let `write` fill a folder that then replaces `out`; at an fsspec URL, an upload."""
    if is_remote(str(out)):
        with tempfile.TemporaryDirectory() as folder:
            write(Path(folder))
            write_checksums(Path(folder))
            store(Path(folder), str(out))
        return
    out = Path(out)
    if out.exists() and not (out / CONFIG_NAME).is_file() and (out.is_file() or any(out.iterdir())):
        raise InputError(f"{out}: exists and is no model directory; choose another place")
    with replace_folder(out) as temporary:
        write(temporary)
        write_checksums(temporary)


def save_encoder(out: Source, encoder: FusionEncoder, tokenizer: PreTrainedTokenizerBase) -> None:
    """A model directory of an encoder without pre-training heads."""
    save_model_directory(
        out,
        config=encoder.config.to_dict(),
        state=encoder.state_dict(),
        tokenizer=tokenizer,
        card=encoder_card("Saved from a running program; how it was trained is not recorded."),
    )


def released_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A training state dict (`Promu`) under the names of `model.safetensors`."""
    return {
        "heads.temperature" if key == "temperature" else key.removeprefix("encoder."): value
        for key, value in state.items()
    }


def _training_name(key: str) -> str:
    if key == "heads.temperature":
        return "temperature"
    return key if key.startswith("heads.") else f"encoder.{key}"


def _fusion_config(directory: ModelDirectory, build: Callable[[dict[str, Any]], T]) -> T:
    try:
        return build(directory.config)
    except InputError:
        raise
    except (ValueError, TypeError) as error:
        raise InputError(f"{directory.path / CONFIG_NAME}: {error}") from error
