"""What the loop makes of its loader."""

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from pretrain.data.batch import PretrainBatch
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
