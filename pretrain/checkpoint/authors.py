"""The authors' PROMU state dict <-> ours, and the part that an ALPRO state dict shares with it.

The names: `tables.py`. ALPRO, from which PROMU was forked, differs in its picture tower (a
TimeSformer) and in `mpm_head`.
"""

import math
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from pretrain.checkpoint.foreign import unwrapped
from pretrain.checkpoint.tables import HEADS, promu_table, to_ours, to_theirs
from pretrain.model.config import FusionEncoderConfig
from pretrain.model.promu import HeadsConfig
from shards.files import InputError

Part = Literal["student", "prompter", "prompter_image", "prompter_obj"]
HEAD_WIDTH = 64  # of every BERT and ViT: no shape tells it
# What their module holds and no forward pass of ours reads.
_UNUSED = re.compile(
    r"text_encoder\.bert\.embeddings\.position_ids"
    r"|text_encoder\.cls\.predictions\..*"
    r"|visual_encoder\.pooler\..*"
    r"|(image|video|relation)_prompt_feat"
)
_MRE_TEXT = re.compile(r"text_encoder\.(?=(embeddings|encoder)\.)")
_MRE_CLASSIFIER = re.compile(r"classifier\.[02]\.(weight|bias)")
_PROMPTERS = re.compile(r"(prompter|prompter_image|prompter_obj)\..*")
_ALPRO_ONLY = re.compile(r"visual_encoder\..*|mpm_head\..*|itc_token_type")


@dataclass
class Imported:
    """A foreign checkpoint in our names."""

    config: dict[str, Any]
    """Content of `config.json`."""
    state: dict[str, Tensor]
    """Tensors under the names of `model.safetensors`."""
    notes: list[str] = field(default_factory=list)
    """What was left out, resized or drawn at random: one printed line each."""
    card: str | None = None
    """README.md, where the source recorded how it was trained."""


def unwrap(content: Any) -> dict[str, Tensor]:
    """The flat state dict inside `restore.pt`'s, data-parallel and compiled wrappers."""
    state = content
    if isinstance(content, dict) and not _is_state(content):
        inside = {str(key): value for key, value in content.items() if _is_state(value)}
        if len(inside) > 1:
            raise InputError(
                f"several state dicts ({', '.join(sorted(inside))}); save the one to be read, for "
                "example the averaged (EMA) one, in a file of its own"
            )
        state = next(iter(inside.values()), None)
    if not _is_state(state):
        raise InputError("not a state dict (names and tensors, nothing else)")
    return {unwrapped(str(name)): value for name, value in state.items()}


def _is_state(content: Any) -> bool:
    return (
        isinstance(content, dict)
        and bool(content)
        and all(isinstance(value, Tensor) for value in content.values())
    )


def from_promu(
    content: dict[str, Any], *, text_layers: int | None = None, part: Part = "student"
) -> Imported:
    """A checkpoint of the authors' pre-training, or of their relation classifier.

    Args:
        content: `model_step_<n>.pt`, `restore.pt`, a stage-1 prompter's file, or that of the MRE
            class (its one BERT reads the text, then text and picture: `shared_twice`), as loaded.
        text_layers: BERT layers that read the text alone, None = half; the rest are fusion layers.
        part: `student`, or a dual encoder to be used as prompter: the file's own base block
            (`prompter`: a stage-1 file) or one of the two teachers inside a student's file.
    """
    state = unwrap(content)
    notes: list[str] = []
    if part in ("prompter_image", "prompter_obj"):
        state = _below(state, f"{part}.")
        if not state:
            raise InputError(f"no tensors under {part}. in this file")
    state = _leave_out(state, _PROMPTERS, "prompters (convert with --part)", notes)
    fine_tuned = any(_MRE_TEXT.match(name) for name in state)
    if fine_tuned:
        state = _leave_out(state, _MRE_CLASSIFIER, "relation classifier", notes)
        state = {_MRE_TEXT.sub("text_encoder.bert.", k, count=1): v for k, v in state.items()}
    state = _leave_out(state, _UNUSED, "unused by any objective", notes)
    layers = count_layers(state, "text_encoder.bert.encoder.layer.")
    # The one BERT of the fine-tuned class reads both ways: there is nothing to cut.
    text_layers = cut_after(layers, layers if fine_tuned and text_layers is None else text_layers)
    fusion_layers = layers - text_layers
    # A prompter reads text and picture apart: nothing above its two towers is used.
    if part != "student":
        unused = "|".join(str(text_layers + i) for i in range(fusion_layers)) or "none"
        above = re.compile(rf"text_encoder\.bert\.encoder\.layer\.({unused})\..*")
        state = _leave_out(state, above, "layers that a prompter never uses", notes)
        state = _leave_out(state, re.compile(r"(itm|cir|coe)_head\..*"), "heads", notes)
        fusion_layers = 0
    vision_layers = count_layers(state, "visual_encoder.encoder.layer.")
    present = [ours for ours, theirs in HEADS.items() if f"{theirs}.weight" in state]
    table = promu_table(
        text_layers=text_layers,
        fusion_layers=fusion_layers,
        vision_layers=vision_layers,
        heads=present,
    )
    ours = to_ours(state, table)
    config = describe(ours)
    if fine_tuned and not fusion_layers:
        config |= {"encoder_layout": "shared_twice", "fusion_layers": text_layers}
    return Imported(config, ours, notes)


def to_promu(config: dict[str, Any], state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A model directory's tensors in the authors' layout (their unused ones are not invented)."""
    layout = config["encoder_layout"]
    if layout != "split":
        raise InputError(f"encoder_layout {layout}: the authors' layout is one BERT cut in two")
    table = promu_table(
        text_layers=config["text_layers"],
        fusion_layers=config["fusion_layers"],
        vision_layers=config["vision_layers"],
        heads=[name for name in HEADS if f"{name}.weight" in state],
    )
    return to_theirs({"heads.temperature": torch.tensor([0.07])} | state, table)


def from_alpro(content: dict[str, Any], *, text_layers: int | None = None) -> Imported:
    """What an ALPRO checkpoint shares with PROMU: all but the picture tower.

    `pretrain.checkpoint.towers.add_vision` gives it one.
    """
    notes: list[str] = []
    state = _leave_out(unwrap(content), _PROMPTERS, "prompter", notes)
    state = _leave_out(state, _ALPRO_ONLY, "TimeSformer and mpm_head", notes)
    state = _leave_out(state, _UNUSED, "unused by any objective", notes)
    layers = count_layers(state, "text_encoder.bert.encoder.layer.")
    text_layers = cut_after(layers, text_layers)
    fusion_layers = layers - text_layers
    table = promu_table(
        text_layers=text_layers, fusion_layers=fusion_layers, vision_layers=0, heads=["heads.itm"]
    )
    table = {ours: names for ours, names in table.items() if not ours.startswith("vision.")}
    ours = to_ours(state, table)
    return Imported(describe(ours), ours, notes)


def describe(state: dict[str, Tensor]) -> dict[str, Any]:
    """`config.json` of tensors in our names: every size is read from a shape."""
    words, width = state["text.embeddings.word_embeddings.weight"].shape
    mlp = next((t for n, t in state.items() if re.fullmatch(r"heads\.\w+\.0\.weight", n)), None)
    heads = HeadsConfig(
        itm="heads.itm.weight" in state,
        num_entities=_rows(state, "heads.entity.2.weight"),
        num_relations=_rows(state, "heads.relation.2.weight"),
        hidden_mult=HeadsConfig.hidden_mult if mlp is None else len(mlp) // width,
    )
    config = FusionEncoderConfig(
        vocab_size=words,
        hidden_size=width,
        num_attention_heads=max(1, width // HEAD_WIDTH),
        intermediate_size=len(state["text.encoder.layer.0.intermediate.dense.weight"]),
        text_layers=count_layers(state, "text.encoder.layer."),
        fusion_layers=count_layers(state, "fusion.layer."),
        max_position_embeddings=len(state["text.embeddings.position_embeddings.weight"]),
        projection_size=len(state["text_proj.weight"]),
        **(_describe_vision(state) if "vision.pos_embed" in state else {}),
    )
    return {**config.to_dict(), "heads": asdict(heads)}


def _describe_vision(state: dict[str, Tensor]) -> dict[str, Any]:
    width, _, patch, _ = state["vision.patch_embed.proj.weight"].shape
    return {
        "image_size": math.isqrt(state["vision.pos_embed"].shape[1] - 1) * patch,
        "patch_size": patch,
        "vision_hidden_size": width,
        "vision_layers": count_layers(state, "vision.blocks."),
        "vision_heads": max(1, width // HEAD_WIDTH),
        "vision_norm_eps": 1e-12,
    }


def cut_after(layers: int, given: int | None) -> int:
    """How many of a BERT's layers read the text alone: as many as given, or half of them."""
    if not layers:
        raise InputError(
            "no BERT in it (text_encoder.bert.encoder.layer.*): neither PROMU nor ALPRO"
        )
    text_layers = max(1, layers // 2) if given is None else given
    if not 0 < text_layers <= layers:
        raise InputError(f"--text-layers {text_layers}: the BERT has {layers} layers")
    return text_layers


def count_layers(state: Iterable[str], prefix: str) -> int:
    """How many layers have tensors below `prefix`."""
    # Counted, not read from the largest number: a file must not be able to ask for 10^9 layers.
    pattern = re.compile(re.escape(prefix) + r"(\d+)\.")
    return len({match[1] for name in state if (match := pattern.match(name))})


def _rows(state: dict[str, Tensor], name: str) -> int:
    return len(state[name]) if name in state else 0


def _below(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}


def _leave_out(
    state: dict[str, Tensor], pattern: re.Pattern[str], reason: str, notes: list[str]
) -> dict[str, Tensor]:
    rest = {name: tensor for name, tensor in state.items() if not pattern.fullmatch(name)}
    if len(rest) < len(state):
        notes.append(f"left out {len(state) - len(rest)} tensors: {reason}")
    return rest
