"""Any known checkpoint -> model directory, and back out: what `python -m pretrain convert` does."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers.utils import logging

from pretrain.checkpoint import authors, hub, strict, towers
from pretrain.checkpoint.authors import Imported
from pretrain.checkpoint.backbones import write_timm
from pretrain.checkpoint.card import conversion_card
from pretrain.checkpoint.convert_config import ConvertConfig, fine_tuned
from pretrain.checkpoint.remote import fetch, is_remote
from pretrain.checkpoint.sources import READERS, detect
from pretrain.model.config import FusionEncoderConfig
from pretrain.model.promu import Promu
from pretrain.prompter.load import write_clip
from shards.files import InputError, atomic_path, digest

State = Mapping[str, torch.Tensor]
"""What was written."""


def convert(config: ConvertConfig) -> None:
    """Convert and report."""
    logging.set_verbosity_error()  # its load reports; what they say is checked and printed here
    logging.disable_progress_bar()
    source = fetch(config.source) if is_remote(config.source) else Path(config.source)
    kind = detect(source, config.source) if config.kind == "auto" else config.kind
    if kind == "clip":  # stays a CLIP: our text tower is a BERT
        print(f"{write_clip(config.out, config.source)} -> {config.out}")
        return report_digest(config.out)
    if kind in fine_tuned():
        print(f"{fine_tuned()[kind].load()(source, config)} -> {config.out}")
        return report_digest(config.out)
    imported, tokenizer = READERS[kind](source, config)
    if config.image_size:
        imported = towers.resize_positions(imported, config.image_size)
    check(imported, config.source)
    facts = {
        "source": f"`{config.source}` ({kind})",
        "tensors": f"{len(imported.state)}, float32",
        "parameters": f"{sum(tensor.numel() for tensor in imported.state.values()):,}",
    }
    state = _WRITERS[config.target](config.out, imported, tokenizer, facts)
    for note in [*imported.notes, *_left(config.target, imported)]:
        print(note)
    parameters = sum(tensor.numel() for tensor in state.values())
    print(f"{len(state)} tensors, float32, {parameters:,} parameters -> {config.out}")
    report_digest(config.out)


def _left(target: str, imported: Imported) -> list[str]:
    """A line on what a tower alone does not take along."""
    if target not in ("bert", "timm"):
        return []
    config = FusionEncoderConfig.from_dict(imported.config)
    kept = {"vision"} if target == "timm" else {"text"}
    if target == "bert" and config.is_cut and config.encoder_layout == "split":
        kept.add("fusion")
    left = {name.partition(".")[0] for name in imported.state} - kept
    return [f"left: {', '.join(sorted(left))} (projection_size {config.projection_size})"]


def report_digest(out: str) -> None:
    """Print the SHA-256 of what was written (of an upload it was compared already)."""
    if not is_remote(out):
        path = Path(out) / strict.WEIGHTS_NAME if Path(out).is_dir() else Path(out)
        print(f"sha256 {digest(path)}  {path}")


def check(imported: Imported, name: str) -> None:
    """Raises: InputError unless the tensors are finite and exactly those of the configuration."""
    strict.check_values(imported.state, name)
    strict.check_size(imported.config, imported.state, name)
    try:
        with torch.device("meta"):  # shapes only: the model is not built a second time
            expected = Promu.from_config(imported.config).released_state()
    except (ValueError, TypeError) as error:
        raise InputError(
            f"{name}: its configuration describes no model of ours: {error}"
        ) from error
    if "heads.temperature" not in imported.state:
        del expected["heads.temperature"]
    strict.check_fits(expected, imported.state, name)


def _write_model(out: str, imported: Imported, tokenizer: Any, facts: dict[str, Any]) -> State:
    card = imported.card or conversion_card(facts, imported.notes)
    hub.save_model_directory(
        out, config=imported.config, state=imported.state, tokenizer=tokenizer, card=card
    )
    return imported.state


def _write_promu(out: str, imported: Imported, tokenizer: Any, facts: dict[str, Any]) -> State:
    state = authors.to_promu(imported.config, imported.state)
    with atomic_path(out) as temporary:
        torch.save(state, temporary)
    return state


def _write_bert(out: str, imported: Imported, tokenizer: Any, facts: dict[str, Any]) -> State:
    text = hub.stack_text_layers(towers.encoder_of(imported))

    def write(folder: Path) -> None:
        text.save_pretrained(folder)
        tokenizer.save_pretrained(folder)

    hub.save_directory(out, write)
    return text.state_dict()


def _write_timm(out: str, imported: Imported, tokenizer: Any, facts: dict[str, Any]) -> State:
    hub.save_directory(out, partial(write_timm, imported=imported))
    return {name: t for name, t in imported.state.items() if name.startswith("vision.")}


_WRITERS: dict[str, Callable[[str, Imported, Any, dict[str, Any]], State]] = {
    "model": _write_model,
    "promu": _write_promu,
    "bert": _write_bert,
    "timm": _write_timm,
}
