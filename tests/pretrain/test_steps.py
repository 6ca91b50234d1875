"""What the loop makes of its loader."""

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from pretrain.steps import Feed
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
