"""A fine-tuned method on disk: a model directory (DESIGN.md §4.4) and three files more.

config.json model.safetensors tokenizer …   the encoder: a valid `--init` for another run
head.safetensors                            every tensor outside the encoder
method.json                                 method, its settings, the task, how inputs are made
labels.json                                 label -> id
"""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from finetune import registry
from finetune.methods.base import Method, Source
from finetune.methods.profiles import in_present_names
from finetune.tasks.base import TaskInfo
from pretrain.checkpoint.hub import load_strictly, save_directory, save_model_directory
from pretrain.model.fusion_encoder import FusionEncoder
from shards.files import InputError

FORMAT_VERSION = 1


def save_method(
    directory: Path,
    method: Method,
    tokenizer: Any,
    *,
    name: str,
    config: Any,
    task: TaskInfo,
    inputs: dict[str, Any],
    card: str,
) -> None:
    """Write the directory, whole or not at all.

    Args:
        name: the method's registered name. config: its `Config`.
        inputs: the options of `InputOptions` with which the weights were trained.
        card: README.md.
    """
    description = {
        "format": FORMAT_VERSION,
        "method": name,
        "config": asdict(config),
        "task": asdict(task),
        "inputs": inputs,
    }
    head = {
        key: value.detach().cpu().contiguous()
        for key, value in method.state_dict().items()
        if not key.startswith("encoder.")
    }

    def write(folder: Path) -> None:
        _save_encoder(folder, method, tokenizer, card)
        save_file(head, folder / "head.safetensors", metadata={"format": "pt"})
        _write(folder / "method.json", description)
        _write(folder / "labels.json", {label: i for i, label in enumerate(task.labels)})
        for path in folder.iterdir():  # safetensors writes for the owner alone
            path.chmod(0o644)

    save_directory(directory, write)


def _save_encoder(directory: Path, method: Method, tokenizer: Any, card: str) -> None:
    if isinstance(method.encoder, FusionEncoder):
        encoder = method.encoder
        save_model_directory(
            directory,
            config=encoder.config.to_dict(),
            state=encoder.state_dict(),
            tokenizer=tokenizer,
            card=card,
        )
    else:  # a `transformers` model
        method.encoder.save_pretrained(directory)
        tokenizer.save_pretrained(directory)
        (directory / "README.md").write_text(card, encoding="utf-8")


def load_method(directory: Path) -> tuple[Method, Any, dict[str, Any]]:
    """A trained method in eval mode, its tokenizer, and the content of `method.json`.

    Raises:
        InputError: no such directory, a damaged file, or tensors that do not fit.
    """
    path = directory / "method.json"
    try:
        description = json.loads(path.read_text(encoding="utf-8"))
        method_class = registry.load("methods", description["method"])
        config = method_class.Config(**in_present_names(method_class.Config, description["config"]))
        fields = description["task"]
        lists = {key: tuple(fields[key]) for key in ("labels", "extra_tokens")}
        task = TaskInfo(fields["name"], fields["kind"], **lists)
    except FileNotFoundError:
        raise InputError(f"{directory}: no method.json; not the model of a finished run") from None
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: damaged ({error!r})") from None
    method, tokenizer = method_class.build(config, task, Source(str(directory), finished=True))
    load_strictly(method, _encoder_state(method) | _read_head(directory), str(directory))
    return method.eval(), tokenizer, description


def _encoder_state(method: Method) -> dict[str, torch.Tensor]:
    state = method.state_dict()
    return {key: value for key, value in state.items() if key.startswith("encoder.")}


def _read_head(directory: Path) -> dict[str, torch.Tensor]:
    path = directory / "head.safetensors"
    try:
        return load_file(path)
    except FileNotFoundError:
        raise InputError(f"{path}: missing") from None
    except SafetensorError as error:
        raise InputError(f"{path}: damaged ({error})") from None


def _write(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
