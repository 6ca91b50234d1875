"""Batches: nothing lost, nothing invented, the same for the same seed."""

import numpy as np
import pytest
import torch

from finetune.inputs.batch import Dataset, Padding, bucketed, num_batches, pad


def dataset(size: int = 103) -> Dataset:
    generator = np.random.default_rng(0)
    ids = [generator.integers(1, 99, generator.integers(3, 40)) for _ in range(size)]
    columns = {"input_ids": ids, "labels": np.arange(size), "head_start": np.arange(size) % 3}
    return Dataset(
        rows=np.arange(size) + 1000,
        columns=columns,
        padding={"input_ids": Padding("attention_mask", 7)},
    )


@pytest.mark.parametrize(("multiple", "width"), [(1, 9), (8, 16)])
def test_pad_against_a_loop(monkeypatch, multiple, width):
    monkeypatch.setattr("finetune.inputs.batch.MULTIPLE", multiple)
    arrays = [np.array([1, 2, 3]), np.array([4]), np.arange(9)]
    padded, mask = pad(arrays, fill=7)
    assert padded.shape == mask.shape == (3, width)
    for row, array in enumerate(arrays):
        assert padded[row].tolist() == array.tolist() + [7] * (width - len(array))
        assert mask[row].tolist() == [True] * len(array) + [False] * (width - len(array))


@pytest.mark.parametrize("seed", [None, 3])
@pytest.mark.parametrize("parts", [1, 4])
def test_every_row_once(seed, parts):
    data = dataset()
    generator = None if seed is None else np.random.default_rng(seed)
    batches = list(data.batches(16, generator, parts=parts))
    assert len(batches) == parts * num_batches(len(data), 16, parts)
    rows = torch.cat([batch.rows for batch in batches])
    assert sorted(rows.tolist()) == list(range(1000, 1103))
    for batch in batches:
        for i, row in enumerate(batch.rows.tolist()):
            ids = data.columns["input_ids"][row - 1000]
            assert batch.input_ids[i][batch.attention_mask[i]].tolist() == ids.tolist()
            assert (batch.input_ids[i][~batch.attention_mask[i]] == 7).all()
            assert batch.labels[i] == row - 1000


def test_a_remainder_smaller_than_the_parts_waits():
    assert [num_batches(rows, 16, 4) for rows in (3, 4, 16, 19, 20)] == [0, 1, 1, 1, 2]
    assert sum(map(len, dataset(19).batches(16, np.random.default_rng(0), parts=4))) == 16


def test_order_is_a_function_of_the_seed():
    lengths = dataset(1000).lengths
    first, again, other = (bucketed(lengths, 16, np.random.default_rng(s)) for s in (1, 1, 2))
    assert all((a == b).all() for a, b in zip(first, again, strict=True))
    assert not all(len(a) == len(b) and (a == b).all() for a, b in zip(first, other, strict=True))


def test_buckets_hold_similar_lengths():
    """Padding of a shuffled epoch: less than half of what random batches waste."""
    lengths = dataset(2000).lengths

    def waste(batches):
        return sum(lengths[b].max() * len(b) - lengths[b].sum() for b in batches)

    random = np.array_split(np.random.default_rng(1).permutation(2000), 125)
    assert waste(bucketed(lengths, 16, np.random.default_rng(1))) < 0.2 * waste(random)


def test_subset():
    part = dataset().subset([5, 2])
    assert part.rows.tolist() == [1005, 1002]
    assert next(part.batches(2, None)).labels.tolist() in ([5, 2], [2, 5])
