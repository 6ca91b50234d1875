"""DGF-PT's gates, row by row: do they react to a picture that does not belong to its text?

Of each row: the shares α of its objects (eq. 4), the norm of the local gate β (eq. 5), the mean
size of the global gate γ (eq. 6), and what the fusion does to the probability of the right
relation. A row without objects has β = 0, one without a picture γ = 1.

K: objects, D: hidden size.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from finetune.inputs.split import LoadedSplit
from finetune.methods.base import Method
from finetune.methods.dgfpt.fusion import DualGate
from finetune.methods.dgfpt.model import Dgfpt
from finetune.tasks.base import TaskInfo
from pretrain.engine import autocast
from shards.files import InputError

NUMBERS = ("beta", "gamma", "before", "after", "change")


@torch.inference_mode()
def gates(
    method: Method, task: TaskInfo, loaded: LoadedSplit, precision: str, rows_a_batch: int = 64
) -> list[dict[str, Any]]:
    """A record a row, in file order: `row`, `gold`, `alpha` (of the objects that are there),
    `beta`, `gamma`, `before` and `after` (probability of `gold` without and with the fusion),
    `change`.

    Raises:
        InputError: a method without gates, or a run that sees no pictures.
    """
    if not isinstance(method, Dgfpt) or method.fuse is None or method.vision is None:
        raise InputError("gates are shown of runs of dgfpt that see pictures, with model.gates")
    method.eval()
    device = next(method.parameters()).device
    records: dict[int, dict[str, Any]] = {}
    with autocast(device, precision), method.one_pass():
        for batch in loaded.dataset.batches(rows_a_batch):
            batch = batch.to(device)
            with watched(method.fuse) as inputs:
                after = method(batch).logits.softmax(-1)
            with unfused(method):
                before = method(batch).logits.softmax(-1)
            alpha, beta, gamma = of_batch(method.fuse, *inputs)
            labels = batch.require("labels")
            right = (shares.gather(1, labels[:, None])[:, 0] for shares in (before, after))
            columns = [beta, gamma, *right]
            numbers = torch.stack([column.double() for column in columns], dim=1).tolist()
            for row, gold, shares, values in zip(
                batch.rows.tolist(), labels.tolist(), alpha, numbers, strict=True
            ):
                values = [*values, values[3] - values[2]]
                record = {"row": row, "gold": task.labels[gold], "alpha": shares}
                record |= {k: round(v, 5) for k, v in zip(NUMBERS, values, strict=True)}
                records[row] = record
    return [records[row] for row in sorted(records)]  # batches go by length


def of_batch(
    fuse: DualGate,
    states: Tensor,
    pooled: Tensor,
    objects: tuple[Tensor, Tensor] | None,
    image: tuple[Tensor, Tensor] | None,
) -> tuple[list[list[float]], Tensor, Tensor]:
    """α of each row's objects; ‖β‖ (B,); mean |γ| (B,). Arguments as of `DualGate.forward`."""
    alpha: list[list[float]] = [[] for _ in states]
    beta, gamma = states.new_zeros(len(states)), states.new_ones(len(states))
    if image is not None:
        gamma = fuse.global_gate(*image).float().abs().mean(-1)
    if objects is not None:
        shares, gate = fuse.local_gate(pooled, *objects)
        beta = gate.float().norm(dim=-1)
        alpha = [
            [round(share, 5) for share, is_object in zip(row, mask, strict=True) if is_object]
            for row, mask in zip(shares.tolist(), objects[1].tolist(), strict=True)
        ]
    return alpha, beta, gamma


def summary(
    records: Sequence[Mapping[str, Any]], changed: Mapping[str, set[int]]
) -> dict[str, dict[str, float]]:
    """Name of a set of rows -> means of `NUMBERS`, and `rows`; sets without rows are left out."""
    means = {}
    for name, rows in changed.items():
        if chosen := [record for record in records if record["row"] in rows]:
            sums = {key: sum(record[key] for record in chosen) for key in NUMBERS}
            means[name] = {"rows": len(chosen)} | {k: v / len(chosen) for k, v in sums.items()}
    return means


@contextmanager
def watched(fuse: DualGate) -> Iterator[list[Any]]:
    """What the gates are given, once a forward pass has run."""
    inputs: list[Any] = []
    hook = fuse.register_forward_pre_hook(lambda _, arguments: inputs.extend(arguments))
    try:
        yield inputs
    finally:
        hook.remove()


@contextmanager
def unfused(method: Dgfpt) -> Iterator[None]:
    """The method decides from h_t, as if it had been built without gates."""
    fuse, method.fuse = method.fuse, None
    try:
        yield
    finally:
        method.fuse = fuse
