"""DeepSpeed's own settings: stage, buckets, offload; never what our configuration sets."""

import json
import sysconfig
from itertools import compress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from shards.files import InputError

_OURS = (
    "train_batch_size",
    "train_micro_batch_size_per_gpu",
    "gradient_accumulation_steps",
    "gradient_clipping",
    "optimizer",
    "scheduler",  # theirs forget the peak rate (findings/deepspeed_warmup_takes_decayed_rate.sh)
    "bf16",
    "fp16",
    "torch_autocast",
    "amp",
)


def zero_stage(tuning: dict[str, Any]) -> int:
    """The ZeRO stage that a DeepSpeed file asks for."""
    return tuning.get("zero_optimization", {}).get("stage", 0)


def read_tuning(name: str) -> dict[str, Any]:
    """A DeepSpeed JSON file, looked up from here, the repository, and where a wheel puts it.

    Raises:
        InputError: missing, damaged, or it sets what our configuration sets.
    """
    installed = Path(sysconfig.get_path("data"), "share/fusion-mre", name)
    candidates = [Path(name), Path(__file__).resolve().parents[1] / name, installed]
    path = next((candidate for candidate in candidates if candidate.is_file()), None)
    if path is None:
        raise InputError(f"engine.deepspeed: no file {name}")
    try:
        content = json.loads(path.read_text())
    except ValueError as error:
        raise InputError(f"{path}: not JSON ({error})") from error
    taken = sorted(set(content) & set(_OURS))
    if taken:
        raise InputError(
            f"{path}: {', '.join(taken)} belong in the run's own configuration "
            "(batch.*, optim.*, engine.precision); remove them here"
        )
    if "offload_optimizer" in content.get("zero_optimization", {}):
        # Else DeepSpeed insists on an optimizer of its own, which it compiles first.
        content.setdefault("zero_force_ds_cpu_optimizer", False)
    return content


def pass_over_padding(zero: Any) -> None:
    """DeepSpeed asks each group for its tensors' step: an IndexError where a rank has none."""
    load, groups = zero.load_hp_checkpoint_state_from_checkpoint_dir, zero.optimizer.param_groups

    def load_held(name: str, folder: str) -> None:
        held = [any(p._hp_mapping is not None for p in group) for group in getattr(zero, name)]
        zero.held_groups = list(compress(getattr(zero, name), held))
        zero.optimizer.param_groups = list(compress(groups, held))
        try:
            load("held_groups", folder)
        finally:
            zero.optimizer.param_groups = groups

    zero.load_hp_checkpoint_state_from_checkpoint_dir = load_held


def norm_in_one_call(zero: Any) -> None:
    """DeepSpeed asks for the norm of one gradient at a time: here one call for those of a group.

    It goes on with their norms as with a single gradient: the norm of norms, summed over ranks.
    """
    norm = zero.get_grad_norm_direct

    def norm_of_norms(
        gradients: list[Tensor], params: list[Tensor], norm_type: float = 2
    ) -> Tensor:
        held = [g for g in gradients if not getattr(g, "_zero_padding", False)]
        if held:
            gradients = [torch.stack(torch._foreach_norm(held, norm_type, dtype=torch.float32))]
        return norm(gradients, params[:1], norm_type)

    zero.get_grad_norm_direct = norm_of_norms
