"""Losses, gradients and weights stay finite, or the run says where they stopped to be."""

from typing import Literal, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from pretrain import distributed
from pretrain.config import Precision
from shards.files import CommonError

_SHOWN_KEYS = 8
_OVERFLOWS = 32
"""In fp16 the loss scale halves at each: from 2^16, so many in a row are no search for a scale."""


class _Seen(NamedTuple):
    step: int
    loss: Tensor
    keys: tuple[str, ...]


class FiniteWatch:
    """What was computed since the last check, kept on the device until then.

    Engines leave out an update whose gradient is not finite, so weights and moments stay good
    whatever a batch holds. `stop` ends the run at the next check; `skip` counts and goes on.
    In fp16, gradients that overflow while their loss is finite are counted under either.
    """

    def __init__(self, policy: Literal["stop", "skip"], precision: str = "fp32") -> None:
        self.policy, self.precision = policy, precision
        self.skipped = 0
        """Updates left out since this process started."""
        self._seen: list[_Seen] = []
        self._norms: dict[int, Tensor | float] = {}
        self._in_a_row = 0

    def saw_loss(self, step: int, loss: Tensor, keys: tuple[str, ...]) -> None:
        """The loss of one micro-batch of these samples."""
        self._seen.append(_Seen(step, loss.detach(), keys))

    def saw_gradient(self, step: int, norm: Tensor | float) -> None:
        """The gradient norm of a step over all ranks, before clipping."""
        self._norms[step] = norm

    def check(self, module: nn.Module) -> None:
        """Collective; the one place that waits for the device.

        Raises:
            CommonError: a loss or gradient was not finite (`stop`), or a weight is not.
        """
        if not self._seen:
            return
        losses = torch.stack([seen.loss.float() for seen in self._seen])
        norms = torch.stack(
            [torch.as_tensor(norm, device=losses.device).float() for norm in self._norms.values()]
        )
        bad_losses, bad_norms = ~losses.isfinite(), ~norms.isfinite()
        bad_weights = ~finite_weights(module)
        flags = torch.stack([bad_losses.any(), bad_norms.any(), bad_weights]).long()
        # One reduction, one copy to the host.
        loss_found, norm_found, weights_found = distributed.max_over_ranks(flags).tolist()
        skipped = int(bad_norms.sum()) if norm_found else 0
        if self.precision == "fp16":  # the norm is that of all ranks: they count alike
            for bad in bad_norms.tolist():
                self._in_a_row = self._in_a_row + 1 if bad else 0
            norm_found = self._in_a_row >= _OVERFLOWS
        if weights_found or (self.policy == "stop" and (loss_found or norm_found)):
            self._stop(bad_losses.tolist(), bad_norms.tolist(), bool(weights_found))
        self.skipped += skipped
        self._seen, self._norms = [], {}

    def _stop(self, bad_losses: list[bool], bad_norms: list[bool], weights: bool) -> None:
        first, last = self._seen[0].step, self._seen[-1].step
        culprits = [seen for seen, bad in zip(self._seen, bad_losses, strict=True) if bad]
        step = next((s for s, bad in zip(self._norms, bad_norms, strict=True) if bad), last)
        known = bool(culprits)
        seen = culprits[0] if known else next(seen for seen in self._seen if seen.step == step)
        mine = (known, f"step {seen.step}, {_describe(seen)}, rank {distributed.rank()}")
        everyone = _everywhere(mine)
        # Ranks with such a loss; where the gradient alone was not finite, all of them.
        places = [text for known, text in everyone if known] or [text for _, text in everyone]
        what = "weights are" if weights else "loss or gradient was"
        raise CommonError(
            f"{what} not finite within steps {first}…{last} ({'; '.join(places[:4])}); checkpoints "
            "are intact: look at these samples; optim.nonfinite skip goes on without such updates, "
            "a new run_dir takes a lower optim.lr or engine.precision fp32"
        )


def finite_weights(module: nn.Module) -> Tensor:
    """0-dim bool: every weight (of this rank's part, under ZeRO-3) is finite."""
    # Under ZeRO-3 `p` itself is empty and its part lies in `ds_tensor`.
    parts = [getattr(p, "ds_tensor", p).detach() for p in module.parameters()]
    # Not finite if and only if its largest magnitude is not.
    return torch.stack(torch._foreach_norm(parts, torch.inf)).isfinite().all()


def _describe(seen: _Seen) -> str:
    keys, more = seen.keys[:_SHOWN_KEYS], len(seen.keys) - _SHOWN_KEYS
    listed = " ".join(keys) + (f" and {more} more" if more > 0 else "")
    return f"loss {float(seen.loss):g}, samples {listed}"


def _everywhere(mine: tuple[bool, str]) -> list[tuple[bool, str]]:
    if distributed.world_size() == 1:
        return [mine]
    everyone = [mine] * distributed.world_size()
    dist.all_gather_object(everyone, mine)
    return everyone


def clip_or_leave_out(
    optimizer: torch.optim.Optimizer, clip: float, scaler: torch.amp.GradScaler
) -> Tensor:
    """Clip gradients to a global norm (0: no limit); returns the norm before.

    Where it is not finite, the fused AdamW that follows changes nothing, without asking the host;
    in fp16 the loss is scaled less from then on.
    """
    scaler.unscale_(optimizer)
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    norm = nn.utils.clip_grad_norm_(parameters, clip or torch.inf, foreach=True)
    scaler.update()
    optimizer.found_inf = (~norm.isfinite()).float()  # type: ignore[attr-defined]  # of fused ones
    return norm


def precision_for(name: Precision, device: torch.device) -> Precision:
    """What `auto` means on a device; other names as they are."""
    if name != "auto":
        return name
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    able: dict[str, bool] = getattr(
        torch.cpu, "get_capabilities", dict
    )()  # of torch 2.10 and newer
    return "bf16" if able.get("avx512_bf16") or able.get("amx_bf16") else "fp32"


def norm_in_float32(module: nn.Module, device: torch.device) -> None:
    """Let LayerNorms compute in float32 under the CPU's autocast, as CUDA's lets them.

    Their backward pass in bfloat16 adds up rows in bfloat16 there: of the bias gradient of 4096
    rows 40 % are lost (findings/torch_cpu_autocast_layer_norm.sh). Our own towers keep float32
    between layers; a ConvNeXt and projections do not.
    """
    if device.type == "cpu":
        for part in module.modules():
            if isinstance(part, nn.LayerNorm):
                part.register_forward_pre_hook(lambda _, inputs: tuple(x.float() for x in inputs))


def loss_scaler(device: torch.device, precision: str) -> torch.amp.GradScaler:
    """Keeps gradients within float16's range; does nothing in other precisions."""
    return torch.amp.GradScaler(device.type, enabled=precision == "fp16")
