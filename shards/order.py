"""The table of one epoch, small enough for a hundred million samples."""

from collections.abc import Callable, Sequence

import numpy as np

AT_ONCE = 2**16
"""Positions looked up together: for each, a number a stream is held."""


class Epoch:
    """(N, 2) int32, shard and row of each sample, made for the positions that are asked for.

    S streams of samples take turns of D samples each; one that has come to its end is passed over.
    What is kept is the row of each sample, its stream's samples behind each other: two bytes a
    sample, where shards hold fewer than 65,536. Addresses of all would be eight, and sorting them
    into turns twice that again.
    """

    def __init__(
        self,
        counts: np.ndarray,
        streams: Sequence[np.ndarray],
        rows: Callable[[int, int], np.ndarray],
        together: int = 1,
        shift: int = 0,
    ) -> None:
        """
        Args:
            counts: samples of each shard.
            streams: the shards of each stream; every shard stands in one.
            rows: (shard, its samples) -> a permutation of its rows; called once for each shard,
                stream by stream.
            together: D.
            shift: the whole turned so that this sample comes first.
        """
        self.shards = np.concatenate(streams)
        self.ends = np.cumsum(counts[self.shards])
        self.rows = np.empty(self.ends[-1], np.min_scalar_type(counts.max()))
        for shard, end in zip(self.shards.tolist(), self.ends.tolist(), strict=True):
            count = int(counts[shard])
            self.rows[end - count : end] = rows(shard, count)
        self.lengths = np.array([counts[stream].sum() for stream in streams])
        self.together, self.shift = together, shift
        whole, rest = np.divmod(self.lengths, together)
        turns = np.arange(whole.max() + 1)
        samples = together * (len(whole) - np.searchsorted(np.sort(whole), turns, side="right"))
        np.add.at(samples, whole, rest)
        self.turn_starts = np.cumsum(samples) - samples

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, positions: slice | np.ndarray) -> np.ndarray:
        """Of n positions, (n, 2) int32."""
        if isinstance(positions, slice):
            positions = np.arange(*positions.indices(len(self)))
        found = np.empty((len(positions), 2), np.int32)
        for start in range(0, len(positions), AT_ONCE):
            part = slice(start, start + AT_ONCE)
            place = self._place((positions[part] + self.shift) % len(self))
            found[part, 0] = self.shards[np.searchsorted(self.ends, place, side="right")]
            found[part, 1] = self.rows[place]
        return found

    def _place(self, positions: np.ndarray) -> np.ndarray:
        """Where samples stand when the streams stand behind each other."""
        turn = np.searchsorted(self.turn_starts, positions, side="right") - 1
        within = positions - self.turn_starts[turn]
        first = turn * self.together
        taken = (self.lengths - first[:, None]).clip(0, self.together).cumsum(axis=1)  # (n, S)
        stream = (taken <= within[:, None]).sum(axis=1)
        before = np.where(stream > 0, taken[np.arange(len(turn)), stream - 1], 0)
        return self.lengths.cumsum()[stream] - self.lengths[stream] + first + within - before
