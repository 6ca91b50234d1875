"""Rank, world size, and collectives that keep gradients."""

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor

from shards.files import CommonError, InputError
from shards.locks import lock

T = TypeVar("T")


def rank() -> int:
    """This process's number among all; 0 when alone, whatever a launcher's shell may say."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """Number of processes; 1 when alone."""
    return dist.get_world_size() if dist.is_initialized() else 1


def from_launcher(name: str, default: int) -> int:
    """What a launcher says in the environment: RANK, WORLD_SIZE, LOCAL_RANK.

    Raises:
        CommonError: no number.
    """
    value = os.environ.get(name) or str(default)
    if not value.isdecimal():
        raise CommonError(
            f"{name}={value!r} in the environment is no number, as deepspeed and torchrun set it; "
            f"`unset {name}` to run in one process"
        )
    return int(value)


def is_main() -> bool:
    """True on the one process that writes files and talks."""
    return rank() == 0


def device() -> torch.device:
    """This process's accelerator, or the CPU."""
    if torch.cuda.is_available() and os.environ.get("DS_ACCELERATOR", "cuda") == "cuda":
        return torch.device("cuda", from_launcher("LOCAL_RANK", 0) if dist.is_initialized() else 0)
    return torch.device("cpu")


def barrier() -> None:
    """Wait for all processes; nothing when alone."""
    if dist.is_initialized():
        dist.barrier()


def own_group() -> dist.ProcessGroup | None:
    """A gloo group whose messages never meet those of the training; None when alone. Collective."""
    if world_size() == 1:
        return None
    group = dist.new_group(backend="gloo")
    assert isinstance(group, dist.ProcessGroup)  # a number, to who is no member
    return group


def broadcast_object(value: T) -> T:
    """The main process's picklable `value` on every process."""
    if not dist.is_initialized():
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def all_objects(value: T) -> list[T]:
    """Every process's picklable `value`, in order of rank."""
    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def on_main(function: Callable[[], T]) -> T:
    """The result of `function`, run on the main process, on every process.

    Its InputError is raised everywhere, as a CommonError: else the others would wait for the main
    process in vain.
    """
    if world_size() == 1:
        return function()
    outcome: tuple[T | None, str | None] = (None, None)
    if is_main():
        try:
            outcome = (function(), None)
        except InputError as error:
            outcome = (None, str(error))
    value, problem = broadcast_object(outcome)
    if problem is not None:
        raise CommonError(problem)
    return cast(T, value)


@contextmanager
def held(run_dir: Path) -> Iterator[None]:
    """The run directory is this job's alone; the main process holds its lock.

    Raises:
        InputError: another process holds it; of several processes each raises it.
    """
    with ExitStack() as stack:
        on_main(lambda: stack.enter_context(lock(run_dir)))
        yield


class _GatherWithGradient(torch.autograd.Function):
    """All-gather along dim 0 whose backward sums the gradients that all ranks send back."""

    @staticmethod
    def forward(ctx, local: Tensor) -> Tensor:
        parts = [torch.empty_like(local) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, local.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        total = gradient.contiguous()
        dist.all_reduce(total)
        return total.chunk(dist.get_world_size())[dist.get_rank()]


def gather(local: Tensor) -> Tensor:
    """(B, …) on each rank -> (W·B, …) in rank order, with gradient for floating-point tensors.

    The backward sums; together with an engine that averages gradients over ranks, a loss of local
    rows times the world size then has exactly the gradient of the one-process loss.
    """
    if world_size() == 1:
        return local
    if local.is_floating_point():
        return _GatherWithGradient.apply(local)
    parts = [torch.empty_like(local) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, local.contiguous())
    return torch.cat(parts)


def gather_together(features: Tensor, table: Tensor) -> tuple[Tensor, Tensor]:
    """(B, F) float32 and (B, n) int64, gathered as by `gather` in one message."""
    if world_size() == 1:
        return features, table
    # The integers' bits travel as floats, which nobody computes with.
    everything = gather(torch.cat([features, table.view(features.dtype)], dim=1))
    width = features.shape[1]
    bits = everything.detach()[:, width:].contiguous()
    return everything[:, :width], bits.view(table.dtype)


def mean_over_ranks(values: Tensor) -> Tensor:
    """Element-wise mean over ranks, without gradient."""
    if world_size() > 1:
        values = values.detach().clone()
        dist.all_reduce(values)
        values /= world_size()
    return values


def max_over_ranks(values: Tensor) -> Tensor:
    """Element-wise maximum over ranks."""
    if world_size() > 1:
        values = values.clone()
        dist.all_reduce(values, dist.ReduceOp.MAX)
    return values
