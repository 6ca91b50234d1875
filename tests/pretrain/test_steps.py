"""What the loop makes of its loader."""

import multiprocessing
import os
import signal
import time

import psutil
import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from pretrain.data.batch import PretrainBatch
from pretrain.steps import Feed, workers_watched
from shards.files import InputError


class Broken(Dataset):
    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int):
        raise InputError("train-000007.tar: pair-12: undecodable image in shard (truncated)")


@pytest.mark.parametrize("workers", [0, 1])
def test_an_error_out_of_a_loader_process_is_one_line(workers):
    feed = Feed(iter(DataLoader(Broken(), num_workers=workers)), torch.device("cpu"))
    with pytest.raises(InputError) as caught:
        next(feed)
    expected = "rank 0: train-000007.tar: pair-12: undecodable image in shard (truncated)"
    assert str(caught.value) == expected


class Numbers(Dataset):
    def __len__(self):
        return 64

    def __getitem__(self, number):
        return torch.full((9,), number)


@pytest.mark.parametrize("heard", [False, True])
def test_a_worker_that_is_gone_is_named_however_that_shows(heard):
    """By PyTorch's signal, or first by the connection through which its last batches come; and the
    workers that die by our own hand then say nothing more."""
    others = multiprocessing.active_children()
    stream = iter(DataLoader(Numbers(), num_workers=2, prefetch_factor=8))
    workers = [worker for worker in multiprocessing.active_children() if worker not in others]
    handler = signal.getsignal(signal.SIGCHLD)  # PyTorch's
    try:
        next(stream)
        time.sleep(0.5)  # the others are made, and not fetched
        if not heard:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        with pytest.raises(InputError, match=r"^rank 0: DataLoader worker"), workers_watched():
            for worker in workers[: 1 if heard else None]:
                os.kill(worker.pid, signal.SIGKILL)
            for _ in stream:
                time.sleep(0.01)
    finally:
        signal.signal(signal.SIGCHLD, handler)
    # Not `active_children`: an error that strikes while one is waited for leaves it there for ever.
    assert len(workers) == 2 and not any(psutil.pid_exists(worker.pid) for worker in workers)


def test_what_breaks_while_all_workers_live_stays_what_it_is():
    for error in (ConnectionResetError("peer"), RuntimeError("other"), OSError("disk")):
        with pytest.raises(type(error), match=str(error)), workers_watched():
            raise error


def test_the_last_steps_see_all_patches():
    batch = PretrainBatch(
        pixel_values=torch.zeros(2, 3, 8, 8, dtype=torch.uint8),
        input_ids=torch.ones(2, 8, dtype=torch.int64),
        attention_mask=torch.ones(2, 8, dtype=torch.int64),
        matched=torch.ones(2, dtype=torch.bool),
        ids=torch.arange(4).view(2, 2),
        patch_weights=torch.ones(2, 16),
        kept_patches=torch.tensor([[0, 2, 3], [1, 2, 9]]),
    )
    feed = Feed(iter([batch, batch]), torch.device("cpu"))
    assert next(feed).seen_weights.shape == (2, 3)
    feed.masked = False
    assert next(feed).seen_weights.shape == (2, 16)
