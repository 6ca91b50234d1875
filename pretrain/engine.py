"""DeepSpeed and single-process engines behind the same few methods.

Both compute: loss of a micro-batch -> gradients averaged over accumulation and ranks -> clipping
-> AdamW -> schedule. Batch size, accumulation, clipping, precision and optimizer come from our
configuration alone; a DeepSpeed file sets the rest (`tuning.py`).
"""

import logging
import os
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from pretrain import distributed
from pretrain.numerics import clip_or_leave_out, loss_scaler, norm_in_float32
from pretrain.tuning import norm_in_one_call, pass_over_padding, read_tuning, zero_stage
from shards.files import InputError

Write = Callable[[Any, Any], None]
"""`torch.save`, or what takes its place: (state_dict, path)."""
Build = Callable[[nn.Module], tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LambdaLR]]


def start(kind: Literal["auto", "deepspeed", "single"]) -> str:
    """Join the process group where a launcher started us; returns the kind of engine to build."""
    launched = bool(os.environ.get("RANK"))
    world = distributed.from_launcher("WORLD_SIZE", 1)
    if launched and distributed.from_launcher("RANK", 0) >= world:
        raise InputError(
            f"RANK={os.environ['RANK']} with WORLD_SIZE={world} in the environment: a rank is less "
            "than the number of ranks; `unset RANK WORLD_SIZE` to train in one process"
        )
    if kind == "auto":
        kind = "deepspeed" if launched else "single"
    if kind == "single" and world > 1:
        raise InputError("engine.kind single cannot run in several processes; use deepspeed")
    if kind == "deepspeed":
        if launched and world > 1 and not os.environ.get("MASTER_ADDR"):
            raise InputError(
                "RANK is set, MASTER_ADDR is not: start with deepspeed, torchrun or "
                "`python -m pretrain supervise`, or `unset RANK WORLD_SIZE` to train in one process"
            )
        _init_deepspeed()
    if torch.cuda.is_available() and distributed.device().type == "cuda":
        # What names no GPU takes the current one, which is 0 for all ranks of a machine.
        torch.cuda.set_device(distributed.device())
    return kind


def _init_deepspeed() -> None:
    os.environ.setdefault("DS_ACCELERATOR", distributed.device().type)
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    import deepspeed
    from deepspeed.accelerator import get_accelerator

    from pretrain.cluster.port import own_port

    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)  # the import sets its own
    if get_accelerator().device_name() == "cpu":
        # A collective for CPU inference, compiled at start-up by all ranks at once, for a minute
        # or more, with a compiler that need not be there. Training uses gloo's.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    backend = get_accelerator().communication_backend_name()
    with own_port():
        deepspeed.init_distributed(backend, auto_mpi_discovery=False)


class SingleEngine:
    """This process alone, without DeepSpeed."""

    layout = "single"
    """How checkpoints are cut: they load as they are only into an engine of the same layout."""

    def __init__(
        self, module: nn.Module, build: Build, *, precision: str, accumulation: int, clip: float
    ) -> None:
        self.device = distributed.device()
        self.module = module.to(self.device)
        norm_in_float32(self.module, self.device)
        self.optimizer, self.schedule = build(self.module)
        self.precision, self.accumulation, self.clip = precision, accumulation, clip
        self.scaler = loss_scaler(self.device, precision)
        self.grad_norm: Tensor | float = 0.0
        self._micro_steps = 0

    def __call__(self, *inputs: Any) -> Any:
        """What the module makes of one micro-batch."""
        with autocast(self.device, self.precision):
            return self.module(*inputs)

    def backward(self, loss: Tensor) -> None:
        """Accumulate the gradient of one micro-batch."""
        self.scaler.scale(loss / self.accumulation).backward()

    def step(self) -> None:
        """After each micro-batch; updates at the end of an accumulation."""
        self._micro_steps += 1
        if self._micro_steps % self.accumulation:
            return
        self.grad_norm = clip_or_leave_out(self.optimizer, self.clip, self.scaler)
        self.optimizer.step()
        self.schedule.step()
        self.optimizer.zero_grad(set_to_none=True)

    @property
    def lr(self) -> float:
        """Learning rate of the next update."""
        return float(self.schedule.get_last_lr()[0])

    def follow_schedule(self) -> None:
        """After `load`: the rates of this run's schedule, where the checkpoint's was another."""
        _set_rates(self.optimizer.param_groups, self.schedule)

    def whole(self, parameter: nn.Parameter) -> AbstractContextManager:
        """A context in which `parameter` may be read outside of its module's forward pass."""
        return nullcontext(parameter)

    def save(self, root: Path, tag: str, write: Write = torch.save) -> None:
        """Weights, moments and schedule below root/tag."""
        folder = root / tag
        folder.mkdir(parents=True, exist_ok=True)
        state = {
            "model": self.module.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "scaler": self.scaler.state_dict(),
        }
        write(state, folder / "state.pt")

    def load(self, root: Path, tag: str) -> None:
        """Inverse of `save`."""
        state = torch.load(root / tag / "state.pt", map_location=self.device, weights_only=True)
        self.module.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        self.scaler.load_state_dict(state.get("scaler", {}))


class DeepSpeedEngine:
    """ZeRO over the process group that a launcher set up."""

    def __init__(
        self,
        module: nn.Module,
        build: Build,
        *,
        precision: str,
        accumulation: int,
        clip: float,
        micro_batch_size: int,
        tuning: str,
    ) -> None:
        import deepspeed

        self.device = distributed.device()
        self.precision = precision
        module.to(self.device)
        optimizer, schedule = build(module)
        names = {parameter: name for name, parameter in module.named_parameters()}
        self.groups = [[names[p] for p in group["params"]] for group in optimizer.param_groups]
        """Names of the trained tensors, in the optimizer's order."""
        content = read_tuning(tuning)
        stage = zero_stage(content)
        config = {
            **content,
            "train_micro_batch_size_per_gpu": micro_batch_size,
            "gradient_accumulation_steps": accumulation,
            "gradient_clipping": clip if stage else 0.0,
            "zero_allow_untested_optimizer": True,  # BertAdam
        }
        # Ours, inside the module, where DeepSpeed does not switch it off: its own `torch_autocast`
        # would send the gradients of all Linears through bfloat16 before they are summed.
        module.forward = autocast(self.device, precision)(module.forward)
        norm_in_float32(module, self.device)
        self.engine, *_ = deepspeed.initialize(
            model=module, optimizer=optimizer, lr_scheduler=schedule, config=config
        )
        self.module = self.engine.module
        self._grad_norm: Tensor | float = 0.0
        # ZeRO scales losses and leaves out updates that are not finite; stage 0 does neither.
        self.scaler = loss_scaler(self.device, "fp32" if stage else precision)
        if not stage:

            def before(inner: torch.optim.Optimizer, *_: Any) -> None:
                self._grad_norm = clip_or_leave_out(inner, clip, self.scaler)

            optimizer.register_step_pre_hook(before)
        elif precision == "fp16":
            from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler

            # Its fp16 mode would make it, but also cast the module, buffers and sums to float16.
            self.engine.optimizer.loss_scaler = DynamicLossScaler(
                init_scale=2.0**16,
                scale_window=2000,
                min_scale=2.0**-20,
                delayed_shift=1,
                consecutive_hysteresis=False,
                raise_error_at_min_scale=False,
            )
            self.engine.optimizer.dynamic_loss_scale = True
        if stage in (1, 2):
            norm_in_one_call(self.engine.optimizer)
        self.stage = stage
        # Without ZeRO every rank holds everything: such a checkpoint loads anywhere.
        self.layout = f"zero{stage}-{distributed.world_size()}" if stage else "zero0"

    def __call__(self, *inputs: Any) -> Any:
        """What the module makes of one micro-batch."""
        return self.engine(*inputs)

    def backward(self, loss: Tensor) -> None:
        """Accumulate the gradient of one micro-batch."""
        self.engine.backward(self.scaler.scale(loss))

    def step(self) -> None:
        """After each micro-batch; updates at the end of an accumulation."""
        last = self.engine.is_gradient_accumulation_boundary()
        self.engine.step()
        if last and getattr(self.engine.optimizer, "overflow", False):
            self.engine.lr_scheduler.step()  # DeepSpeed's schedule would wait; ours counts steps

    @property
    def lr(self) -> float:
        """Learning rate of the next update."""
        return self.engine.get_lr()[0]

    @property
    def grad_norm(self) -> Tensor | float:
        """Of the last update, over all ranks, before clipping."""
        return self.engine.get_global_grad_norm() if self.stage else self._grad_norm

    def follow_schedule(self) -> None:
        """After `load`: the rates of this run's schedule, where the checkpoint's was another."""
        _set_rates(self.engine.optimizer.param_groups, self.engine.lr_scheduler)

    def whole(self, parameter: nn.Parameter) -> AbstractContextManager:
        """A context in which `parameter` may be read outside of its module's forward pass."""
        import deepspeed

        return deepspeed.zero.GatheredParameters([parameter], enabled=self.stage == 3)

    def save(self, root: Path, tag: str, write: Write = torch.save) -> None:
        """Collective: weights, moments and schedule below root/tag."""
        state = {"scaler": self.scaler.state_dict()}
        writer = self.engine.checkpoint_engine
        own = writer.save
        if write is not torch.save:
            writer.save = write  # called with state_dict and path, sometimes by name
        try:
            self.engine.save_checkpoint(str(root), tag=tag, client_state=state, save_latest=False)
        finally:
            writer.save = own

    def load(self, root: Path, tag: str) -> None:
        """Collective: inverse of `save`, in the same layout or from a `-universal` copy."""
        copy = tag.endswith("-universal")
        self.engine._config.load_universal_checkpoint = copy and self.stage > 0
        if copy and self.stage in (1, 2):
            pass_over_padding(self.engine.optimizer)
        path, state = self.engine.load_checkpoint(str(root), tag=tag)
        if path is None:
            raise InputError(f"{root / tag}: DeepSpeed found nothing to load there")
        if not copy:
            self.scaler.load_state_dict(state.get("scaler", {}))
            return
        # What each stage keeps in a place of its own.
        rates = self.engine.lr_scheduler.get_last_lr()
        for group, rate in zip(self.engine.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
        # All groups share stage 3's, and it lies on the CPU: a GPU's AdamW needs it beside it.
        for piece, moments in self.engine.optimizer.state.items():
            moments["step"] = moments["step"].to(piece.device, copy=True)
        self.scaler.load_state_dict(self.scaler.state_dict() | state["scaler"])
        if self.stage and self.precision == "fp16":
            self.engine.optimizer.loss_scaler.cur_scale = state["scaler"]["scale"]


Engine = SingleEngine | DeepSpeedEngine


def _set_rates(groups: list[dict[str, Any]], schedule: torch.optim.lr_scheduler.LambdaLR) -> None:
    rates = [
        base * factor(schedule.last_epoch)
        for base, factor in zip(schedule.base_lrs, schedule.lr_lambdas, strict=True)
    ]
    for group, rate in zip(groups, rates, strict=True):
        group["lr"] = rate
    schedule._last_lr = rates  # what `get_last_lr` answers, and logs show


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """The context in which a model of this precision computes."""
    dtype = torch.float16 if precision == "fp16" else torch.bfloat16
    return torch.autocast(device.type, dtype, enabled=precision != "fp32")
