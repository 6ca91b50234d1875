"""An epoch's table against turns taken one by one, and what it costs."""

import itertools
import time
import tracemalloc

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from shards.order import AT_ONCE, Epoch
from shards.stream import CanonicalOrder, RankBatches


def in_turns(streams, together):
    """Streams of samples, D at a time from each, until all are at their end."""
    left, order = [list(stream) for stream in streams], []
    while any(left):
        for stream in left:
            order += stream[:together]
            del stream[:together]
    return order


@given(
    st.lists(st.lists(st.integers(0, 7), max_size=4), min_size=1, max_size=5).filter(
        lambda streams: sum(map(sum, streams))
    ),
    st.integers(1, 4),
    st.integers(0, 3),
)
def test_streams_take_turns(sizes, together, shift):
    counts = np.array(list(itertools.chain.from_iterable(sizes)))
    numbers = np.random.default_rng(0).permutation(len(counts))  # of shards, in any order
    ends = np.cumsum([len(stream) for stream in sizes])
    streams = [numbers[end - len(one) : end] for one, end in zip(sizes, ends, strict=True)]
    rows = {shard: np.random.default_rng(shard).permutation(counts[shard]) for shard in numbers}
    table = Epoch(counts, streams, lambda shard, count: rows[shard], together, shift)
    samples = [[(s, int(row)) for s in stream for row in rows[s]] for stream in streams]
    expected = in_turns(samples, together)
    expected = expected[shift % len(expected) :] + expected[: shift % len(expected)]
    assert list(map(tuple, table[:].tolist())) == expected
    some = np.array([len(table) - 1, 0, len(table) // 2])
    assert list(map(tuple, table[some].tolist())) == [expected[place] for place in some]


def test_an_order_of_every_size_of_row_and_more_positions_than_are_looked_up_at_once():
    counts = np.array([70_000, 3, AT_ONCE + 5])  # rows beyond 16 bits
    table = Epoch(counts, [np.array([0, 1]), np.array([2])], lambda s, n: np.arange(n)[::-1])
    addresses = table[:]
    assert addresses[:4].tolist() == [[0, 69_999], [2, AT_ONCE + 4], [0, 69_998], [2, AT_ONCE + 3]]
    assert addresses[-3:].tolist() == [[1, 2], [1, 1], [1, 0]]
    assert len(np.unique(addresses, axis=0)) == counts.sum()


def test_ten_million_samples_start_at_once_and_in_little_memory():
    """Two bytes a sample; addresses of all took 385 MiB and a second."""
    order = CanonicalOrder([2000] * 5000, seed=0)
    since = time.process_time()
    batches = RankBatches(order, rank=0, world=8, micro_batch_size=128, start=1024 * 3000)
    tracemalloc.start()
    first = next(iter(batches))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(set(first)) == 128
    assert peak < 30 * 2**20 and time.process_time() - since < 5
