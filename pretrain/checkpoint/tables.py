"""Our tensor names <-> those of other people's checkpoints.

`rename` serves every foreign checkpoint. The tables are of the authors' PROMU, and of the BERT and
ViT that it is made of: one row per tensor of ours, with the names of the tensors of theirs that it
consists of (query, key and value of a ViT are one matrix in timm). PROMU commit 0ef4296.
"""

import re
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from shards.files import InputError

Table = dict[str, tuple[str, ...]]
"""Our name -> the names of theirs whose rows, stacked, it is."""
Rules = Sequence[tuple[str, str | None]]
"""Pattern of a whole name of theirs -> our name, None: not used. The first that fits counts."""

_BERT_EMBEDDINGS = (
    "word_embeddings.weight",
    "position_embeddings.weight",
    "token_type_embeddings.weight",
    "LayerNorm.weight",
    "LayerNorm.bias",
)
_BERT_LAYER = (
    "attention.self.query",
    "attention.self.key",
    "attention.self.value",
    "attention.output.dense",
    "attention.output.LayerNorm",
    "intermediate.dense",
    "output.dense",
    "output.LayerNorm",
)
_VIT_STEM = {
    "cls_token": ("embeddings.cls_token",),
    "pos_embed": ("embeddings.position_embeddings",),
    "patch_embed.proj.weight": ("embeddings.patch_embeddings.projection.weight",),
    "patch_embed.proj.bias": ("embeddings.patch_embeddings.projection.bias",),
    "norm.weight": ("layernorm.weight",),
    "norm.bias": ("layernorm.bias",),
}
_VIT_LAYER = {
    "norm1": ("layernorm_before",),
    "attn.qkv": tuple(f"attention.attention.{name}" for name in ("query", "key", "value")),
    "attn.proj": ("attention.output.dense",),
    "norm2": ("layernorm_after",),
    "mlp.fc1": ("intermediate.dense",),
    "mlp.fc2": ("output.dense",),
}
PROJECTIONS = ("text_proj", "vision_proj")
HEADS = {
    "heads.itm": "itm_head",
    "heads.entity.0": "coe_head.0",
    "heads.entity.2": "coe_head.2",
    "heads.relation.0": "cir_head.0",
    "heads.relation.2": "cir_head.2",
}
SCALAR = "temp"


def with_suffixes(ours: str, theirs: Iterable[str]) -> Table:
    """The rows of one module with weight and bias."""
    return {
        f"{ours}.{end}": tuple(f"{name}.{end}" for name in theirs) for end in ("weight", "bias")
    }


def bert_table(prefix: str, layers: int, cut: int) -> Table:
    """A BERT under `prefix` whose layers from `cut` on are fusion layers."""
    table: Table = {
        f"text.embeddings.{name}": (f"{prefix}embeddings.{name}",) for name in _BERT_EMBEDDINGS
    }
    for index in range(layers):
        ours = f"text.encoder.layer.{index}" if index < cut else f"fusion.layer.{index - cut}"
        for name in _BERT_LAYER:
            table |= with_suffixes(f"{ours}.{name}", [f"{prefix}encoder.layer.{index}.{name}"])
    return table


def vit_table(prefix: str, layers: int) -> Table:
    """A Hugging Face ViT under `prefix`, in timm's names."""
    table: Table = {
        f"vision.{ours}": tuple(prefix + name for name in theirs)
        for ours, theirs in _VIT_STEM.items()
    }
    for index in range(layers):
        for ours, theirs in _VIT_LAYER.items():
            names = [f"{prefix}encoder.layer.{index}.{name}" for name in theirs]
            table |= with_suffixes(f"vision.blocks.{index}.{ours}", names)
    return table


def promu_table(
    *, text_layers: int, fusion_layers: int, vision_layers: int, heads: Iterable[str]
) -> Table:
    """The whole student; `heads`: our names of the heads that are there, `heads.itm` …"""
    table = bert_table("text_encoder.bert.", text_layers + fusion_layers, text_layers)
    table |= vit_table("visual_encoder.", vision_layers)
    for name in PROJECTIONS:
        table |= with_suffixes(name, [name])
    for name in heads:
        table |= with_suffixes(name, [HEADS[name]])
    return table | {"heads.temperature": (SCALAR,)}


# ---------------------------------------------------------------------- both directions


def rename(
    state: Mapping[str, Tensor], rules: Rules, source: str, required: Iterable[str] = ()
) -> dict[str, Tensor]:
    """A foreign checkpoint's tensors under our names.

    A name takes the first rule that fits it whole. Where several names of theirs become one of
    ours, their rows are stacked in the order of the rules, then of the numbers in the names.

    Args:
        source: whose checkpoint it should be, for the error.
        required: names of theirs that must be there.

    Raises:
        InputError: names that no rule knows, or required ones that are missing.
    """
    compiled = [(re.compile(pattern), ours) for pattern, ours in rules]
    parts: dict[str, dict[tuple[int, ...], Tensor]] = {}
    unknown = []
    for name, tensor in state.items():
        for place, (pattern, ours) in enumerate(compiled):
            if match := pattern.fullmatch(name):
                if ours is not None:
                    order = (place, *map(int, re.findall(r"\d+", name)))
                    parts.setdefault(match.expand(ours), {})[order] = tensor
                break
        else:
            unknown.append(name)
    # Both lists at once: of a foreign file one wants to see all that is wrong.
    lists = {"unknown": unknown, "missing": [name for name in required if name not in state]}
    if wrong := [
        f"{len(names)} {what} names: {', '.join(names[:8])}{', …' if names[8:] else ''}"
        for what, names in lists.items()
        if names
    ]:
        raise InputError(f"not a checkpoint of {source}: {'; '.join(wrong)}")
    return {
        ours: torch.cat([stack[order] for order in sorted(stack)])
        if len(stack) > 1
        else next(iter(stack.values()))
        for ours, stack in parts.items()
    }


def to_ours(theirs: Mapping[str, Tensor], table: Table) -> dict[str, Tensor]:
    """Their tensors under our names, float32.

    Raises:
        InputError: a tensor of theirs that no row names, or a row's tensor that is missing.
    """
    rules = [(re.escape(name), ours) for ours, names in table.items() for name in names]
    required = [name for names in table.values() for name in names]
    state = rename(theirs, rules, "this layout", required)
    # DeepSpeed cannot broadcast 0-dim parameters, so their scalar is a vector of one here.
    return {name: torch.atleast_1d(tensor.float()) for name, tensor in state.items()}


def to_theirs(ours: dict[str, Tensor], table: Table) -> dict[str, Tensor]:
    """The inverse of `to_ours`. Raises: InputError with what their layout has no name for."""
    foreign = sorted(set(ours) - set(table))
    if foreign:
        raise InputError(
            f"the authors' layout has no place for {len(foreign)} tensors "
            f"({', '.join(foreign[:6])}{', …' if foreign[6:] else ''})"
        )
    state: dict[str, Tensor] = {}
    for name, names in table.items():
        state |= zip(names, ours[name].chunk(len(names)), strict=True)
    state[SCALAR] = state[SCALAR].reshape(())
    return state
