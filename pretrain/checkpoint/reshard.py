"""A checkpoint laid out anew, for another number of ranks or another ZeRO stage.

DeepSpeed's own converter knows no stage 0, and what it makes of stage 3 the others cannot read, nor
stage 3 what it makes of theirs. Here every stage is read as whole tensors (`zero.py`) and written
in the one of two forms that the stage to come reads:

    0      mp_rank_00_model_states.pt              weights and moments of every tensor
    1-3    zero/NAME/{fp32,exp_avg,exp_avg_sq,step}.pt, zero/optimizer_state.pt
           and a model_states.pt with the counters ("universal checkpoint")
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pretrain.checkpoint.zero import MOMENTS, open_checkpoint, read_moments, read_zero

_COUNTERS = (
    *("lr_scheduler", "global_steps", "global_samples", "skipped_steps"),
    *("dp_world_size", "mp_world_size", "ds_version"),
)


def reshard(folder: Path, groups: Sequence[Sequence[str]], stage: int) -> Path:
    """`step-N/` -> `step-N-universal/` beside it, which `stage` resumes on any number of ranks.

    Weights, moments, counters and the loss scale of fp16 are carried over; frozen tensors and
    buffers only to stage 0: a run rebuilds them as it did at its start.

    Args:
        groups: trained tensors of each parameter group, in the optimizer's order.

    Raises:
        InputError: the checkpoint is not whole, or not of these tensors.
    """
    names = [name for group in groups for name in group]
    weights, moments = read_zero(folder), read_moments(folder, names)
    models, optimizers = open_checkpoint(folder)
    content = {name: models[0][name] for name in _COUNTERS}
    content["scaler"] = {"scale": _loss_scale(models[0], optimizers)}
    out = folder.with_name(f"{folder.name}-universal")
    out.mkdir(exist_ok=True)
    if stage == 0:
        content |= _whole(weights, moments, _settings(models[0], optimizers), groups)
    else:
        _write_universal(out / "zero", weights, moments, len(groups), content["ds_version"])
    # Stage 3 looks for modules under the name of a rank, the other stages under none.
    rank = "zero_pp_rank_0_" * (stage == 3)
    torch.save(content, out / f"{rank}mp_rank_00_model_states.pt")
    return out


def _whole(
    weights: dict[str, Tensor],
    moments: dict[str, dict[str, Tensor]],
    settings: list[dict[str, Any]],
    groups: Sequence[Sequence[str]],
) -> dict[str, Any]:
    """As stage 0 writes it: the module, and an optimizer that numbers its tensors."""
    numbered, first = [], 0
    for group, options in zip(groups, settings, strict=True):
        numbered.append(options | {"params": list(range(first, first + len(group)))})
        first += len(group)
    # Stage 0 knows no names: tensors are numbered through all groups, in the optimizer's order.
    states = {
        number: {key: tensor.clone() for key, tensor in moments[name].items()}
        for number, name in enumerate(name for group in groups for name in group)
    }
    module = {name: tensor.clone() for name, tensor in weights.items()}  # views of whole files
    return {"module": module, "optimizer": {"state": states, "param_groups": numbered}}


def _write_universal(
    folder: Path,
    weights: dict[str, Tensor],
    moments: dict[str, dict[str, Tensor]],
    groups: int,
    version: str,
) -> None:
    """One file a tensor, as stages 1 to 3 read them."""
    for name, tensors in moments.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        torch.save(tensors["step"].clone(), folder / name / "step.pt")
        for key, tensor in (("fp32", weights[name]), *((key, tensors[key]) for key in MOMENTS)):
            torch.save({"param": tensor.clone()}, folder / name / f"{key}.pt")
    # The run has set its groups up itself; stage 3 would give the first one's decay to all.
    own: list[dict[str, Any]] = [{"params": []} for _ in range(groups)]
    step = next(iter(moments.values()))["step"].clone()
    nested = {"state": {0: {"step": step}}, "param_groups": own}  # where stage 3 looks
    content = {"ds_version": version, "param_groups": own, "optimizer_state_dict": nested}
    torch.save(content, folder / "optimizer_state.pt")


def _settings(model: dict[str, Any], optimizers: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The optimizer's parameter groups: learning rate, decay, …"""
    if not optimizers:
        return model["optimizer"]["param_groups"]
    stage3 = optimizers[0].get("optimizer_state_dict")
    return (stage3 or optimizers[0]["base_optimizer_state"])["param_groups"]


def _loss_scale(model: dict[str, Any], optimizers: list[dict[str, Any]]) -> float:
    """Of fp16; 1 in other precisions."""
    if not optimizers:
        return float(model.get("scaler", {}).get("scale", 1.0))
    return float(optimizers[0]["loss_scaler"].cur_scale)
