"""DeepSpeed checkpoints -> one float32 state dict, without DeepSpeed and without running pickles.

A checkpoint `step-N/` holds, by ZeRO stage, over W ranks:

    0      mp_rank_00_model_states.pt            every tensor (`module`)
    1, 2   mp_rank_00_model_states.pt            `module` in the training precision, frozen included
           *zero_pp_rank_R_…_optim_states.pt     float32 master: rank R's piece of each flat group
    3      zero_pp_rank_R_…_model_states.pt      buffers, and rank R's piece of each frozen tensor
           zero_pp_rank_R_…_optim_states.pt      float32 master: rank R's piece of each tensor

DeepSpeed's own `zero_to_fp32` loses the frozen tensors of stage 1, does not know stage 0, and
unpickles whatever the files hold.
"""

import math
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pretrain.checkpoint.untrusted import load_pickle
from shards.schema import InputError


class _Inert:
    """Takes the place of DeepSpeed's bookkeeping objects; holds attributes, does nothing."""


_ALLOWED = (
    (_Inert, "deepspeed.runtime.fp16.loss_scaler.LossScaler"),
    (_Inert, "deepspeed.runtime.fp16.loss_scaler.DynamicLossScaler"),
    (_Inert, "deepspeed.utils.tensor_fragment.fragment_address"),
    (int, "deepspeed.runtime.zero.config.ZeroStageEnum"),
)


def read_zero(folder: Path) -> dict[str, Tensor]:
    """One float32 state dict from `checkpoints/step-N/`, any stage, any number of ranks.

    Trained tensors come from the float32 masters; buffers and frozen tensors from the module. At
    stages 0 to 2 all but the few tensors that straddle two ranks are views of the mapped files, so
    memory stays near the size of the model.

    Raises:
        InputError: no checkpoint, ranks missing, or tensors that do not fit their shapes.
    """
    models = [_load(path) for path in _by_rank(folder, "*model_states.pt")]
    if not models:
        raise InputError(f"{folder}: no DeepSpeed checkpoint (no *model_states.pt)")
    optimizers = [
        _load(path)["optimizer_state_dict"] for path in _by_rank(folder, "*optim_states.pt")
    ]
    if not optimizers:
        return {name: tensor.float() for name, tensor in models[0]["module"].items()}
    stage, world = int(optimizers[0]["zero_stage"]), optimizers[0]["partition_count"]
    world = max(world) if isinstance(world, list) else world
    if world != len(optimizers) or (stage == 3 and world != len(models)):
        raise InputError(
            f"{folder}: written by {world} ranks, files of {len(optimizers)} are here; "
            "copy those of every node into one folder"
        )
    try:
        state = (
            _gather_whole(models, optimizers)
            if stage == 3
            else _gather_groups(models[0], optimizers)
        )
    except (KeyError, IndexError, RuntimeError, TypeError) as error:
        raise InputError(f"{folder}: not the layout of ZeRO stage {stage} ({error!r})") from error
    for name, source in models[0]["shared_params"].items():
        state[name] = state[source]
    return state


def reshard(folder: Path) -> Path:
    """`step-N/` -> `step-N-universal/` beside it, which any world size and ZeRO stage 1-3 resumes.

    Weights, moments and step counts are carried over, by DeepSpeed's own converter;
    `DeepSpeedEngine.load` reads the result.
    The converter unpickles: only for checkpoints of one's own runs.

    Raises:
        InputError: stage 0 (it needs no conversion: resume it as it is), or the converter failed.
    """
    if not any(folder.glob("*optim_states.pt")):
        raise InputError(f"{folder}: no ZeRO partitions; a stage 0 checkpoint resumes anywhere")
    out = folder.with_name(f"{folder.name}-universal")
    # Without --inject_missing_state it accepts Megatron's checkpoints alone.
    command = [
        sys.executable,
        "-m",
        "deepspeed.checkpoint.ds_to_universal",
        "--inject_missing_state",
    ]
    # It reads paths as regular expressions: names relative to the run hold nothing special.
    command += ["--input_folder", folder.name, "--output_folder", out.name]
    result = subprocess.run(command, cwd=folder.parent, capture_output=True, text=True, check=False)
    if result.returncode:
        shutil.rmtree(out, ignore_errors=True)
        reason = result.stderr.strip().splitlines()[-1:] or ["no message"]
        raise InputError(f"{folder}: DeepSpeed's ds_to_universal failed ({reason[0]})")
    return out


def take(pieces: Sequence[Tensor], start: int, count: int) -> Tensor:
    """`count` elements of flat tensors laid end to end; a view where one piece holds them all."""
    found = []
    for piece in pieces:
        if count and start < len(piece):
            found.append(piece[start : start + count])
            count -= len(found[-1])
        start = max(0, start - len(piece))
    if count:
        raise IndexError(f"{count} elements beyond the end of the partitions")
    return found[0] if len(found) == 1 else torch.cat(found) if found else pieces[0][:0]


def _gather_groups(model: dict[str, Any], optimizers: list[dict[str, Any]]) -> dict[str, Tensor]:
    """Stages 1 and 2: every parameter group is one flat tensor, cut into one piece a rank."""
    state = {name: _float(tensor) for name, tensor in model["module"].items()}
    masters = [optimizer["single_partition_of_fp32_groups"] for optimizer in optimizers]
    paddings = optimizers[0].get("param_alignment_paddings")  # since 0.19: zeros after a tensor
    for group, shapes in enumerate(model["param_shapes"]):
        pieces = [rank[group].detach() for rank in masters]
        after = paddings[group] if paddings else [0] * len(shapes)
        start = 0
        for (name, shape), padding in zip(shapes.items(), after, strict=True):
            state[name] = take(pieces, start, shape.numel()).view(shape)
            start += shape.numel() + padding
        _check_consumed(start, sum(map(len, pieces)), 2 * len(masters))
    return state


def _gather_whole(
    models: list[dict[str, Any]], optimizers: list[dict[str, Any]]
) -> dict[str, Tensor]:
    """Stage 3: every tensor is cut into one piece a rank, the last one padded."""
    world = len(optimizers)
    buffers = models[0]["buffer_names"]
    state = {name: _float(models[0]["module"][name]) for name in buffers}
    for name, shape in (models[0]["frozen_param_shapes"] or {}).items():
        pieces = [model["frozen_param_fragments"][name].flatten() for model in models]
        state[name] = take(pieces, 0, shape.numel()).view(shape).float()
    masters = [[flat.detach() for flat in rank["fp32_flat_groups"]] for rank in optimizers]
    start = 0
    for shapes in models[0]["param_shapes"]:
        for name, shape in shapes.items():
            count = math.ceil(shape.numel() / world)
            pieces = [take(rank, start, count) for rank in masters]
            state[name] = take(pieces, 0, shape.numel()).view(shape)
            start += count
    _check_consumed(start, sum(map(len, masters[0])), 1)
    return state


def _check_consumed(used: int, there: int, alignment: int) -> None:
    if not used <= there < used + alignment:
        raise IndexError(f"{there} elements stored, {used} accounted for")


def _float(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.is_floating_point() else tensor


def _load(path: Path) -> dict[str, Any]:
    return load_pickle(path, _ALLOWED)


def _by_rank(folder: Path, pattern: str) -> list[Path]:
    def rank(path: Path) -> int:
        named = re.search(r"zero_pp_rank_(\d+)", path.name)
        return int(named[1]) if named else 0

    return sorted(folder.glob(pattern), key=rank)
