"""A model that reads pictures and writes text, and its processor, as an encoder."""

import copy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from torch import nn

from finetune.methods.base import Source
from shards.files import InputError
from shards.processors import load_processor


class Speaker(nn.Module):
    """The model and its processor, as an encoder that is saved and loaded as one folder."""

    def __init__(self, net: nn.Module, processor: Any) -> None:
        super().__init__()
        self.net, self.processor = net, processor

    @property
    def config(self) -> SimpleNamespace:
        """The side of the square pictures; the processor cuts them to what the model takes."""
        sizes: Any = self.net.config
        size = getattr(getattr(sizes, "vision_config", None), "image_size", None)
        return SimpleNamespace(image_size=size if isinstance(size, int) else 224)

    def save_pretrained(self, directory: Path) -> None:
        """Adapters are merged into the weights."""
        net: Any = self.net
        if hasattr(net, "merge_and_unload"):
            net = copy.deepcopy(net).merge_and_unload()
        net.save_pretrained(directory)
        self.processor.save_pretrained(directory)


def load_speaker(source: Source) -> tuple[Any, Any]:
    """(model, processor) of a folder.

    Raises:
        InputError: none there, of another kind, or one whose text side is no plain decoder.
    """
    from transformers import AutoConfig, AutoModelForImageTextToText

    path = source.directory.path
    own: dict[str, Any] = {"trust_remote_code": False, "local_files_only": True}
    try:
        processor = load_processor(path, local_files_only=True)
        if source.random_weights:
            config = AutoConfig.from_pretrained(path, **own)
            net: Any = AutoModelForImageTextToText.from_config(config)
        else:
            net = AutoModelForImageTextToText.from_pretrained(path, use_safetensors=True, **own)
    except (OSError, ValueError, KeyError, ImportError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(
            f"{source.path}: no model that reads pictures and writes text can be loaded "
            f"({reason}); --init takes a folder that AutoModelForImageTextToText reads"
        ) from error
    if net.config.is_encoder_decoder or getattr(processor, "tokenizer", None) is None:
        raise InputError(
            f"{source.path}: {type(net).__name__} does not score a text that it is given; take a "
            "model whose text side is a decoder (LLaVA, Qwen-VL, SmolVLM, BLIP)"
        )
    # A question and its answer are compared from their first pieces on (`generative.same_start`).
    processor.tokenizer.padding_side = "right"
    if processor.tokenizer.pad_token_id is None:
        processor.tokenizer.pad_token = processor.tokenizer.eos_token
    return net, processor


def linear_layers(net: nn.Module) -> list[str]:
    """Names of all linear layers but those that share the word table: an adapter that is merged
    there would change the words' vectors, too."""
    tables = {id(m.weight) for m in net.modules() if isinstance(m, nn.Embedding)}
    return [
        name
        for name, module in net.named_modules()
        if isinstance(module, nn.Linear) and id(module.weight) not in tables
    ]
