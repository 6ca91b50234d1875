"""A fine-tuned method on disk: a model directory and three files more.

config.json model.safetensors tokenizer …   the encoder: a valid `--init` for another run
head.safetensors                            every tensor outside the encoder
method.json                                 method, its settings, the task, how inputs are made
labels.json                                 label -> id
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_type_hints

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from finetune import registry
from finetune.config import TrainConfig
from finetune.methods.base import Method, Source
from finetune.methods.profiles import in_present_names
from finetune.tasks.base import TaskInfo
from finetune.tasks.reading import checked, damaged, read_object
from pretrain.checkpoint.card import card as card_of
from pretrain.checkpoint.card import hardware, table
from pretrain.checkpoint.checksums import check_member
from pretrain.checkpoint.hub import save_directory, save_model_directory
from pretrain.checkpoint.strict import check_values, load_strictly, member
from pretrain.model.fusion_encoder import FusionEncoder
from shards.files import InputError, digest
from shards.json_files import read_json, write_json
from shards.options import refuse_negative

FORMAT_VERSION = 1
HEAD_NAME = "head.safetensors"
TOKENIZER_NAMES = ("tokenizer.json", "vocab.txt")
INPUTS = {"images": Literal["required", "blank", "none"], "max_length": int}
OPTIONAL_INPUTS = {"regions": str | None, "captions": str | None, "types": str | None}
"""Of `InputOptions.remembered`; what came later is missing in old runs."""
REMEDY = "take a copy of the run, or train it again"


@dataclass(frozen=True)
class Description:
    """The content of `method.json`."""

    method: str
    """Its registered name."""
    config: Any
    """The method's `Config`."""
    task: TaskInfo
    inputs: dict[str, Any]
    """The options of `InputOptions` with which the weights were trained."""


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
    head = {
        key: value.detach().cpu().contiguous()
        for key, value in method.state_dict().items()
        if not key.startswith("encoder.")
    }

    def write(folder: Path) -> None:
        _save_encoder(folder, method, tokenizer, card)
        save_file(head, folder / HEAD_NAME, metadata={"format": "pt"})
        description = {
            "format": FORMAT_VERSION,
            "method": name,
            "config": asdict(config),
            "task": asdict(task),
            "inputs": inputs,
            "tokenizer": _tokenizer_hashes(folder),
        }
        write_json(folder / "method.json", description)
        # For other programs: ours reads the labels of `task`.
        write_json(folder / "labels.json", {label: i for i, label in enumerate(task.labels)})

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
        encoder_model: Any = method.encoder
        encoder_model.save_pretrained(directory)
        tokenizer.save_pretrained(directory)
        (directory / "README.md").write_text(card, encoding="utf-8")


def _tokenizer_hashes(directory: Path) -> dict[str, str]:
    paths = (directory / name for name in TOKENIZER_NAMES)
    return {path.name: digest(path) for path in paths if path.is_file()}


def load_method(directory: Path) -> tuple[Method, Any, Description]:
    """A trained method in eval mode, its tokenizer, and the content of `method.json`.

    Raises:
        InputError: no such directory, a damaged file, or tensors that do not fit.
    """
    described = read_description(directory)
    for path in sorted(directory.iterdir()):  # a setting, a word piece: another model
        check_member(path, strictly=True)
    method_class = registry.load("methods", described.method)
    source = Source(str(directory), finished=True)
    method, tokenizer = method_class.build(described.config, described.task, source)
    built = method.state_dict()
    encoder = {key: tensor for key, tensor in built.items() if key.startswith("encoder.")}
    load_strictly(method, encoder | _read_head(directory, built), str(directory))
    return method.eval(), tokenizer, described


def read_description(directory: Path) -> Description:
    """`method.json`, every value checked.

    Raises:
        InputError: none there, or damaged: a setting, label or option that cannot be; another
            tokenizer than the one it was saved with.
    """
    path = directory / "method.json"
    if not path.is_file():
        raise InputError(f"{directory}: no method.json; not the model of a finished run")
    task = {"name": str, "kind": str, "labels": list[str], "extra_tokens": list[str]}
    expected = {"method": str, "config": dict, "task": task, "inputs": INPUTS}
    content = read_object(path, expected, REMEDY)
    if content.get("format", FORMAT_VERSION) != FORMAT_VERSION:
        raise InputError(f"{path}: of format {content['format']}; this code reads {FORMAT_VERSION}")
    try:
        inputs, info = content["inputs"], TaskInfo(**_as_tuples(content["task"]))
        checked({**dict.fromkeys(OPTIONAL_INPUTS), **inputs}, OPTIONAL_INPUTS, "inputs")
        if not info.labels or len(set(info.labels)) < len(info.labels):
            raise InputError("task: labels: none, or one of them twice")
        if unknown := inputs.keys() - {*INPUTS, *OPTIONAL_INPUTS, "max_caption_length"}:
            raise InputError(f"inputs: {min(unknown)} is unknown")
        config = _settings(registry.load("methods", content["method"]).Config, content["config"])
        if type(config).__module__.startswith("finetune."):  # another package's means what it means
            refuse_negative(config)
        if info.kind not in registry.load("methods", content["method"]).kinds:
            raise InputError(f"{content['method']} does no tasks of kind {info.kind!r}")
        registry.load("tasks", info.name)
    except (InputError, TypeError, ValueError) as error:
        raise damaged(path, error, REMEDY) from None
    # Another tokenizer gives other ids to the same words: wrong answers without an error.
    for name, saved in checked(content.get("tokenizer", {}), dict, f"{path}: tokenizer").items():
        if _tokenizer_hashes(directory).get(name) != saved:
            raise InputError(
                f"{directory / name}: not the tokenizer that the model was saved with; {REMEDY}"
            )
    # After the values: what is wrong with one says more than that the file is another.
    check_member(path, strictly=True)
    if (labels := directory / "labels.json").is_file():
        expected_labels = {label: i for i, label in enumerate(info.labels)}
        if read_json(labels, REMEDY) != expected_labels:
            raise InputError(f"{labels}: not the labels of {path.name}; {REMEDY}")
    return Description(content["method"], config, info, inputs)


def _as_tuples(content: Mapping[str, Any]) -> dict[str, Any]:
    return {key: tuple(v) if isinstance(v, list) else v for key, v in content.items()}


def _settings(config_class: type, content: Mapping[str, Any]) -> Any:
    """A method's `Config` of its JSON form; settings that came later have their defaults."""
    content, hints = in_present_names(config_class, content), get_type_hints(config_class)
    for key, value in content.items():
        checked(value, hints.get(key, Any), f"config: {key}")
    return config_class(**_as_tuples(content))


def _read_head(directory: Path, built: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """`head.safetensors`: finite floats; BatchNorm's counters are whole numbers as `built`."""
    try:
        path = member(directory, HEAD_NAME)
        state = load_file(path)
    except SafetensorError as error:
        raise InputError(f"{directory / HEAD_NAME}: damaged ({error}); {REMEDY}") from None
    counters = {key for key, tensor in built.items() if not tensor.is_floating_point()}
    check_values({key: state[key] for key in state.keys() - counters}, str(path))
    for key in counters & state.keys():
        if state[key].dtype != built[key].dtype:
            raise InputError(f"{path}: tensor {key} is {state[key].dtype}; {REMEDY}")
    return state


def model_card(config: TrainConfig, seed: int, *, epoch: int, steps: int, dev_f1: float) -> str:
    """README.md: what the weights are, how they came about, and what chose them.

    Args:
        epoch: the chosen one. steps: optimiser steps up to it. dev_f1: its score, in percent.
    """
    random_start = f"random weights, architecture of `{config.architecture}`"
    drawn = ", drawn with replacement" if config.bootstrap else ""
    settings = {
        "data": f"`{config.data}`, {config.fraction:.0%} of the training rows{drawn}",
        "initialised from": f"`{config.init}`" if config.architecture is None else random_start,
        "images": config.images,
        "views": config.view or "none",
        "protocol": f"{config.protocol}; the epoch is chosen on dev, test is read once",
        "seed": seed,
        "epoch": f"{epoch}, after {steps} steps",
        "hardware": hardware(),
    }
    return card_of(
        f"{config.method} on {config.task}, fine-tuned with Fusion-MRE",
        {
            "Training": table(settings),
            "Validation": f"dev F1 {dev_f1:.2f} %; this figure chose the epoch.",
        },
        loading="`python -m finetune evaluate RUN --data DIR`, with this directory inside its run; "
        "or `python -m finetune train … --init THIS`, to go on from its encoder.",
    )
