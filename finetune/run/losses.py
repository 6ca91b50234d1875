"""Losses of an epoch: left on the device while it works, read now and then, summed over rows."""

import math

import torch
from torch import Tensor

from pretrain import distributed
from shards.files import InputError

READ_LOSS_EVERY = 20
"""Batches between looks at the loss, and steps between its lines in `metrics.jsonl`."""


class EpochLosses:
    """Of this process's batches; means are over the rows of all processes."""

    def __init__(self, place: str) -> None:
        """place: `seed 1, epoch 2`, for the error message."""
        self.place = place
        self._unread: list[tuple[Tensor, Tensor]] = []
        self._batches = 0
        self._total, self._rows = 0.0, 0
        self._marked = (0.0, 0)

    def add(self, loss: Tensor, rows: Tensor) -> None:
        """The mean loss of a batch, and its rows' numbers in the training file."""
        self._unread.append((loss.detach(), rows))

    def read(self) -> None:
        """Sum up what was added: one wait for the device.

        Raises:
            InputError: a loss that is not finite, with the first such batch's rows.
        """
        values = torch.stack([loss for loss, _ in self._unread]).tolist()
        for value, (_, rows) in zip(values, self._unread, strict=True):
            self._batches += 1
            if not math.isfinite(value):
                raise InputError(
                    f"{self.place}, batch {self._batches}: the loss is {value} on rows "
                    f"{rows.tolist()} of the training file; lower --optim.lr and --optim.head_lr, "
                    "or look at these rows"
                )
        pairs = zip(values, self._unread, strict=True)
        self._total += sum(value * len(rows) for value, (_, rows) in pairs)
        self._rows += sum(len(rows) for _, rows in self._unread)
        self._unread = []

    def recent(self) -> float:
        """Mean a row since it was asked before; collective."""
        total, rows = self._marked
        self._marked = (self._total, self._rows)
        return _mean(self._total - total, self._rows - rows)

    def whole(self) -> float:
        """Mean a row of the epoch; collective."""
        return _mean(self._total, self._rows)


def _mean(total: float, rows: int) -> float:
    sums = torch.tensor([total, rows], dtype=torch.float64, device=distributed.device())
    total_of_all, rows_of_all = distributed.mean_over_ranks(sums).tolist()
    return total_of_all / rows_of_all
