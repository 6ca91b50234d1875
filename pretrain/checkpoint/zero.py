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
import zipfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pretrain.checkpoint.untrusted import load_pickle
from shards.files import InputError


class _Inert:
    """Takes the place of DeepSpeed's bookkeeping objects; holds attributes, does nothing."""


MOMENTS = ("exp_avg", "exp_avg_sq")
"""What AdamW keeps of each trained tensor beside its `step`."""
Contents = list[dict[str, Any]]
"""Files of a kind, one a rank."""
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
    models, optimizers = open_checkpoint(folder)
    if not optimizers:
        return {name: tensor.float() for name, tensor in models[0]["module"].items()}

    def gather(stage: int) -> dict[str, Tensor]:
        if stage == 3:
            state = _untrained(models)
            return state | _cut_tensors(models, [rank["fp32_flat_groups"] for rank in optimizers])
        state = {name: _float(tensor) for name, tensor in models[0]["module"].items()}
        masters = [rank["single_partition_of_fp32_groups"] for rank in optimizers]
        return state | _cut_groups(models[0], optimizers, masters)

    state = _fitting(folder, optimizers, gather)
    # Tied tensors are stored once, under one of their names.
    for name, source in models[0]["shared_params"].items():
        state[name] = state[source]
    return state


def read_moments(folder: Path, names: Sequence[str]) -> dict[str, dict[str, Tensor]]:
    """Trained tensor -> its `step`, `exp_avg` and `exp_avg_sq`; any stage, any number of ranks.

    Args:
        names: trained tensors in the order of the optimizer, by which stage 0 numbers them.

    Raises:
        InputError: as `read_zero`, or they are not the tensors that the checkpoint trained.
    """
    models, optimizers = open_checkpoint(folder)
    if not optimizers:
        states, module = models[0]["optimizer"]["state"], models[0]["module"]
        trained = sum(len(group["params"]) for group in models[0]["optimizer"]["param_groups"])
        if trained != len(names):
            raise InputError(f"{folder}: trained {trained} tensors, this run {len(names)}")
        step = max((state["step"] for state in states.values()), default=torch.zeros(()))
        unseen = {name: torch.zeros_like(module[name]) for name in names}  # never had a gradient
        return {
            name: states.get(number, {"step": step} | dict.fromkeys(MOMENTS, unseen[name]))
            for number, name in enumerate(names)
        }

    # Moments lie cut and flattened as the weights do, so the same cuts give them back.
    def gather(stage: int) -> dict[str, dict[str, Tensor]]:
        place = "optimizer_state_dict" if stage == 3 else "base_optimizer_state"
        states = [rank[place]["state"] for rank in optimizers]
        by_key = {}
        for key in MOMENTS:
            flats = [[state[group][key] for group in sorted(state)] for state in states]
            by_key[key] = (
                _cut_tensors(models, flats)
                if stage == 3
                else _cut_groups(models[0], optimizers, flats)
            )
        step = {"step": states[0][0]["step"]}
        return {name: step | {key: by_key[key][name] for key in MOMENTS} for name in names}

    return _fitting(folder, optimizers, gather)


def open_checkpoint(folder: Path) -> tuple[Contents, Contents]:
    """What the files of modules and of optimizers hold, by rank; stage 0 has none of the latter.

    Raises:
        InputError: no checkpoint, or the files of some rank are missing.
    """
    models = [_load(path) for path in _by_rank(folder, "*model_states.pt")]
    if not models:
        raise InputError(f"{folder}: no DeepSpeed checkpoint (no *model_states.pt)")
    optimizers = [
        _load(path)["optimizer_state_dict"] for path in _by_rank(folder, "*optim_states.pt")
    ]
    if optimizers:
        world = optimizers[0]["partition_count"]
        world = max(world) if isinstance(world, list) else world
        of_modules = int(optimizers[0]["zero_stage"]) == 3 and world != len(models)
        if world != len(optimizers) or of_modules:
            raise InputError(
                f"{folder}: written by {world} ranks, files of {len(optimizers)} are here; "
                "copy those of every node into one folder"
            )
    return models, optimizers


def take(pieces: Sequence[Tensor], start: int, count: int) -> Tensor:
    """`count` elements of flat tensors laid end to end; a view where one piece holds them all."""
    parts = []
    for piece in pieces:
        if count and start < len(piece):
            parts.append(piece[start : start + count])
            count -= len(parts[-1])
        start = max(0, start - len(piece))
    if count:
        raise IndexError(f"{count} elements beyond the end of the partitions")
    return parts[0] if len(parts) == 1 else torch.cat(parts) if parts else pieces[0][:0]


def _fitting(folder: Path, optimizers: Contents, gather: Callable[[int], dict]) -> dict:
    """What `gather` makes of a stage; an InputError where the files are not laid out so."""
    stage = int(optimizers[0]["zero_stage"])
    try:
        return gather(stage)
    except (KeyError, IndexError, RuntimeError, TypeError) as error:
        raise InputError(f"{folder}: not the layout of ZeRO stage {stage} ({error!r})") from error


def _cut_groups(
    model: dict[str, Any], optimizers: Contents, flats: list[list[Tensor]]
) -> dict[str, Tensor]:
    """Stages 1 and 2: every parameter group is one flat tensor, cut into one piece a rank.

    Args:
        flats: the pieces of each rank, by group.
    """
    state = {}
    paddings = optimizers[0].get("param_alignment_paddings")  # since 0.19: zeros after a tensor
    for group, shapes in enumerate(model["param_shapes"]):
        pieces = [rank[group].detach() for rank in flats]
        after = paddings[group] if paddings else [0] * len(shapes)
        start = 0
        for (name, shape), padding in zip(shapes.items(), after, strict=True):
            state[name] = take(pieces, start, shape.numel()).view(shape)
            start += shape.numel() + padding
        _check_consumed(start, sum(map(len, pieces)), 2 * len(flats))
    return state


def _cut_tensors(models: Contents, flats: list[list[Tensor]]) -> dict[str, Tensor]:
    """Stage 3: every tensor is cut into one piece a rank, the last one padded.

    Args:
        flats: what each rank holds, laid end to end.
    """
    state, start = {}, 0
    flats = [[flat.detach() for flat in rank] for rank in flats]
    for shapes in models[0]["param_shapes"]:
        for name, shape in shapes.items():
            count = math.ceil(shape.numel() / len(flats))
            pieces = [take(rank, start, count) for rank in flats]
            state[name] = take(pieces, 0, shape.numel()).view(shape)
            start += count
    _check_consumed(start, sum(map(len, flats[0])), 1)
    return state


def _untrained(models: Contents) -> dict[str, Tensor]:
    """Stage 3: buffers, and frozen tensors from the pieces of all ranks."""
    state = {name: _float(models[0]["module"][name]) for name in models[0]["buffer_names"]}
    for name, shape in (models[0]["frozen_param_shapes"] or {}).items():
        pieces = [model["frozen_param_fragments"][name].flatten() for model in models]
        state[name] = take(pieces, 0, shape.numel()).view(shape).float()
    return state


def _check_consumed(used: int, stored: int, alignment: int) -> None:
    if not used <= stored < used + alignment:
        raise IndexError(f"{stored} elements stored, {used} accounted for")


def _float(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.is_floating_point() else tensor


def members_crc32(path: Path) -> str:
    """Of names, sizes and checksums of all members of a file that PyTorch wrote: of its content,
    without reading that."""
    with zipfile.ZipFile(path) as archive:
        members = [(one.filename, one.file_size, one.CRC) for one in archive.infolist()]
    return f"{zlib.crc32(repr(members).encode()):08x}"


def check_trained(path: Path, crc32: str | None = None) -> None:
    """Read a file of a checkpoint as data alone, and compare its checksums.

    Args:
        crc32: `members_crc32` of what was written; None: not known.

    Raises:
        InputError: cut, damaged, another one, or its pickle asks for more than a training run
            writes.
    """
    _load(path)
    try:
        if crc32 not in (None, members_crc32(path)):
            raise InputError(f"{path}: not the file that was written")
        with zipfile.ZipFile(path) as archive:
            member = archive.testzip()
    except (zipfile.BadZipFile, OSError) as error:
        raise InputError(f"{path}: damaged ({error})") from None
    if member is not None:
        raise InputError(f"{path}: damaged (checksum of {member})")


def _load(path: Path) -> dict[str, Any]:
    return load_pickle(path, _ALLOWED)


def _by_rank(folder: Path, pattern: str) -> list[Path]:
    def rank(path: Path) -> int:
        named = re.search(r"zero_pp_rank_(\d+)", path.name)
        return int(named[1]) if named else 0

    return sorted(folder.glob(pattern), key=rank)
