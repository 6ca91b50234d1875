"""What `pretrain convert` reads: a kind of checkpoint is recognised, and read into our names."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from pretrain.checkpoint import authors, hub, strict, towers
from pretrain.checkpoint.authors import Imported
from pretrain.checkpoint.backbones import read_backbone
from pretrain.checkpoint.card import checkpoint_card
from pretrain.checkpoint.convert_config import ConvertConfig
from pretrain.checkpoint.directory import ModelDirectory
from pretrain.checkpoint.open_clip import is_open_clip
from pretrain.checkpoint.remote import resolve
from pretrain.checkpoint.run import MARKER, RunCheckpoints, check_checkpoint
from pretrain.checkpoint.text import pools_by_mean
from pretrain.checkpoint.two_towers import read_two_towers
from pretrain.checkpoint.untrusted import load_pickle
from pretrain.checkpoint.zero import read_zero
from pretrain.model.config import BERT_KIN, FusionEncoderConfig
from pretrain.model.library import TEXT_FAMILIES
from shards.files import InputError


def detect(source: Path, name: str) -> str:
    """Which kind of checkpoint this is. Raises: InputError where none is recognised."""
    if source.is_file():
        with _about(source):
            keys = authors.unwrap(load_pickle(source))
        timesformer = any(key.startswith("visual_encoder.model.") for key in keys)
        return "alpro" if timesformer else "promu"
    if (source / "checkpoints").is_dir() or _is_step(source):
        return "deepspeed"
    if is_open_clip(source):
        return "two-tower"
    if source.suffix in (".pt", ".pth", ".bin"):
        raise InputError(f"{name}: no such file")
    kinds = {"fusion-mre": "model", "clip": "clip"}
    kinds |= dict.fromkeys((*BERT_KIN, *TEXT_FAMILIES, "siglip"), "text+vision")
    model_type = ModelDirectory.open(name).config.get("model_type")
    if str(model_type) not in kinds:
        raise InputError(f"{name}: model_type {model_type!r} is none of {list(kinds)}")
    return kinds[str(model_type)]


def _read_run(source: Path, config: ConvertConfig) -> tuple[Imported, Any]:
    if not _is_step(source):
        steps = RunCheckpoints(source, keep=1).complete_steps()
        if not steps:
            raise InputError(f"{source}: no complete checkpoint in {source / 'checkpoints'}")
        source = source / "checkpoints" / f"step-{steps[-1]}"
    architecture = source.resolve().parents[1] / "architecture"
    if not architecture.is_dir():
        raise InputError(f"{source}: no {architecture}: not a checkpoint of this trainer")
    if (source / MARKER).is_file():
        check_checkpoint(source)
    if (source / "state.pt").is_file():  # of one process; else of DeepSpeed, in pieces
        state = load_pickle(source / "state.pt")
        if not isinstance(state, dict) or "model" not in state:
            raise InputError(f"{source / 'state.pt'}: holds no `model`")
        state = state["model"]
    else:
        state = read_zero(source)
    imported = Imported(
        strict.read_config(architecture),
        hub.released_names(state),
        [f"checkpoint {source.name}"],
        checkpoint_card(source),
    )
    return imported, hub.load_tokenizer(architecture)


def _read_promu(source: Path, config: ConvertConfig) -> tuple[Imported, Any]:
    content = load_pickle(source)
    with _about(source):
        imported = authors.from_promu(content, text_layers=config.text_layers, part=config.part)
    return imported, _tokenizer(config, imported.config["vocab_size"])


def _read_alpro(source: Path, config: ConvertConfig) -> tuple[Imported, Any]:
    vit = read_backbone(_vision(config), config.image_size)
    content = load_pickle(source)
    with _about(source):
        text = authors.from_alpro(content, text_layers=config.text_layers)
    imported = towers.add_vision(text, vit, seed=config.seed)
    return imported, _tokenizer(config, imported.config["vocab_size"])


def _read_towers(source: Path, config: ConvertConfig) -> tuple[Imported, Any]:
    vision = read_backbone(_vision(config), config.image_size)
    directory = resolve(config.source)
    text, tokenizer = hub.read_text_encoder(directory)
    imported = towers.from_towers(
        text.eval(),
        vision,
        text_layers=config.text_layers,
        layout=config.encoder_layout,
        fusion_layers=config.fusion_layers,
        seed=config.seed,
    )
    if pools_by_mean(directory):
        architecture = FusionEncoderConfig.from_dict(imported.config)
        imported = replace(
            imported,
            config=replace(architecture, text_pool="avg").to_dict(),
            notes=[*imported.notes, "text_pool avg, as its 1_Pooling/config.json says"],
        )
    return imported, tokenizer


def _read_model(source: Path, config: ConvertConfig) -> tuple[Imported, Any]:
    directory = ModelDirectory.open(config.source)
    imported = Imported(directory.config, strict.read_weights(directory.path))
    return imported, hub.load_tokenizer(directory)


@contextmanager
def _about(source: Path) -> Iterator[None]:
    """Errors inside name the file."""
    try:
        yield
    except InputError as error:
        text = str(error)
        raise InputError(text if str(source) in text else f"{source}: {text}") from None


def _is_step(source: Path) -> bool:
    return (source / "state.pt").is_file() or any(source.glob("*model_states.pt"))


def _vision(config: ConvertConfig) -> str:
    if not config.vision:
        raise InputError(
            f"{config.source} has no picture tower of ours: give --vision, a timm model such as "
            "vit_base_patch16_224.orig_in21k, or a directory of one"
        )
    return config.vision


def _tokenizer(config: ConvertConfig, vocab_size: int) -> Any:
    tokenizer = hub.load_tokenizer(resolve(config.tokenizer))
    if len(tokenizer) > vocab_size:
        raise InputError(
            f"--tokenizer {config.tokenizer}: {len(tokenizer)} word pieces, the model {vocab_size}"
        )
    return tokenizer


READERS: dict[str, Callable[[Path, ConvertConfig], tuple[Imported, Any]]] = {
    "deepspeed": _read_run,
    "promu": _read_promu,
    "alpro": _read_alpro,
    "text+vision": _read_towers,
    "model": _read_model,
    "two-tower": read_two_towers,
}
"""Kind -> what reads it: (path, options) -> the checkpoint in our names, and its tokenizer."""
