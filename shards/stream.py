"""Shards -> samples: one global order for every world size, and access by address.

**Order.** `CanonicalOrder` is a pure function of (index, seed, epoch). It deals the shuffled
shards to a fixed number of canonical streams and interleaves these, so that at any time only as
many shards are in use as there are streams, however large the corpus.

**Ranks.** The order is cut into global batches, and every global batch into the ranks' shares
(`RankBatches`). The sequence of global batches hence does not know the number of ranks or workers,
and epochs follow each other without a gap: no pair is dropped, every rank makes the same steps.
Several samples of a picture may be kept together, and then come to one rank in following steps, so
that one decoding serves them all.

**Resume.** `ShardReader` finds a sample by its shard's table instead of reading up to it. Starting
at sample n costs the same for every n.
"""

import itertools
import os
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from shards.files import InputError
from shards.index import ColumnIndex, parse_column, parse_index
from shards.location import open_location
from shards.order import Epoch
from shards.schema import COLUMN_COMMANDS, COLUMN_NAME, INDEX_NAME
from shards.shard import OpenShard, Picture, Sample

OPEN_SHARDS = 96
"""Above the default number of canonical streams, so that an epoch opens each shard about once."""


class CanonicalOrder:
    """The order of all samples in an epoch, whoever reads them."""

    def __init__(
        self,
        counts: Sequence[int],
        *,
        seed: int,
        streams: int = 64,
        shuffle: bool = True,
        together: int = 1,
        pictures: Callable[[int], np.ndarray] | None = None,
    ) -> None:
        """
        Args:
            counts: samples per shard, in the order of the index.
            seed: of the permutations.
            streams: canonical streams; fewer where there are fewer shards.
            shuffle: False gives tar order, in every epoch.
            together: so many samples of a picture follow each other, for `RankBatches` to spread
                over as many steps; 1: samples are permuted one by one.
            pictures: shard number -> (samples,) the picture of each; needed for `together`.
        """
        if not sum(counts):
            raise InputError("no sample in any shard")
        self.counts = np.asarray(counts, dtype=np.int64)
        self.seed, self.shuffle = seed, shuffle
        self.streams = min(streams, len(self.counts))
        self.together, self.pictures = together, pictures

    def __len__(self) -> int:
        """Samples per epoch."""
        return int(self.counts.sum())

    def epoch(self, epoch: int) -> Epoch:
        """Every sample exactly once: `epoch(e)[positions]` are shard numbers and rows in them."""
        if not self.shuffle:
            return Epoch(
                self.counts, [np.arange(len(self.counts))], lambda s, count: np.arange(count)
            )
        random = np.random.default_rng([self.seed, epoch])
        shards = random.permutation(len(self.counts))

        def rows(shard: int, count: int) -> np.ndarray:
            if self.together == 1 or not count:
                return random.permutation(count)
            assert self.pictures  # needed for `together`
            return visits(self.pictures(shard)[:count], self.together, random)

        streams = [shards[first :: self.streams] for first in range(self.streams)]
        # What `RankBatches` spreads over its steps is counted from the first epoch on.
        shift = epoch * len(self) % self.together
        return Epoch(self.counts, streams, rows, self.together, shift)


def visits(pictures: np.ndarray, together: int, random: np.random.Generator) -> np.ndarray:
    """A permutation of samples, given the picture of each, in which up to `together` samples of a
    picture follow each other; those with fewer come last, so that the others stay aligned."""
    order = random.permutation(len(pictures))
    order = order[np.argsort(pictures[order], kind="stable")]
    _, first, sizes = np.unique(pictures[order], return_index=True, return_counts=True)
    place = np.arange(len(order)) - np.repeat(first, sizes)  # among those of the picture
    visit = np.cumsum(place % together == 0) - 1
    length = np.bincount(visit)[visit]
    return order[np.lexsort((random.permutation(visit[-1] + 1)[visit], -length))]


class RankBatches:
    """Endless micro-batches of one rank, as addresses `(epoch, shard, row)`.

    Global batch g holds the positions [g G, (g + 1) G) of the epochs laid end to end; micro-step a
    of rank r takes g G + a micro world + r + world j, for j below the micro-batch size.

    Where an order keeps D samples of a picture together, they are dealt to D steps: position
    t G + s of a span of D G positions takes the sample s D + t of it. So they come to the same rank
    in D following steps, each time in the same place, and never to one batch; which samples a
    global batch holds is again a function of the order alone.
    """

    def __init__(
        self,
        order: CanonicalOrder,
        *,
        rank: int,
        world: int,
        micro_batch_size: int,
        accumulation: int = 1,
        start: int = 0,
    ) -> None:
        """
        Args:
            accumulation: micro-steps per global batch; G = micro x accumulation x world.
            start: samples that all ranks together have consumed; a multiple of G.
        """
        self.order, self.rank, self.world = order, rank, world
        self.micro_batch_size, self.accumulation = micro_batch_size, accumulation
        self.global_batch = micro_batch_size * accumulation * world
        if start % self.global_batch:
            raise InputError(
                f"{start} samples consumed is no multiple of the global batch {self.global_batch}; "
                "resume with the global batch of the interrupted run"
            )
        self.start = start

    def position(self, samples: Any) -> tuple[Any, Any]:
        """(epoch, samples into that epoch) after `samples`, one number or many, were consumed
        globally."""
        return divmod(samples, len(self.order))

    def __iter__(self) -> Iterator[list[tuple[int, int, int]]]:
        step = self.micro_batch_size * self.world
        tables: dict[int, Epoch] = {}
        for at in itertools.count(self.start, step):
            places = np.arange(at + self.rank, at + step, self.world)
            epochs, positions = self.position(self._sample(places))
            batch = np.empty((len(places), 3), np.int64)
            batch[:, 0] = epochs
            for epoch in np.unique(epochs).tolist():  # a span may lie over the ends of several
                if epoch not in tables:
                    tables = {e: table for e, table in tables.items() if e >= epoch - 1}
                    tables[epoch] = self.order.epoch(epoch)
                chosen = epochs == epoch
                batch[chosen, 1:] = tables[epoch][positions[chosen]]
            yield [(epoch, shard, row) for epoch, shard, row in batch.tolist()]

    def blocks(self) -> Iterator[list[list[tuple[int, int, int]]]]:
        """The same micro-batches, those of the steps that share pictures in one list."""
        batches = iter(self)
        together = self.order.together
        step = self.start // self.global_batch
        while True:
            steps = together - step % together
            yield list(itertools.islice(batches, steps * self.accumulation))
            step += steps

    def _sample(self, places: np.ndarray) -> np.ndarray:
        """Which samples of the epochs laid end to end stand at these positions."""
        together = self.order.together
        span, offset = divmod(places, together * self.global_batch)
        step, slot = divmod(offset, self.global_batch)
        return span * together * self.global_batch + slot * together + step


class ShardReader:
    """Random access to the samples of a shard directory. Picklable; opens files when needed."""

    def __init__(
        self,
        location: str | os.PathLike[str],
        *,
        columns: Sequence[str] = (),
        cache: Path | None = None,
    ) -> None:
        """
        Args:
            location: shard directory, local or a URL that fsspec reads.
            columns: columns to deliver with each sample: `objects`, `teacher`.
            cache: folder for fetched shards of a remote location; see `shards.location`.
        """
        self.location = os.fspath(location)
        self._source = open_location(location, cache)
        self.index = parse_index(self._source.content(INDEX_NAME), f"{self.location}/{INDEX_NAME}")
        self.columns = {column: self._column(column) for column in columns}
        self._open: OrderedDict[int, OpenShard] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_open": OrderedDict()}

    def __len__(self) -> int:
        """Samples over all shards."""
        return self.index.samples

    def has_column(self, column: str) -> bool:
        """Whether the column is there and complete."""
        content = self._source.content(f"{column}/{COLUMN_NAME}")
        return content is not None and parse_column(content, f"{column}/{COLUMN_NAME}").complete

    def read(self, shard: int, row: int) -> Sample:
        """The pair at an address.

        Raises:
            InputError: the shard is missing, cut, or holds something else than the index says.
        """
        return self.shard(shard).read(row)

    def shard(self, number: int) -> OpenShard:
        """A shard, opened; errors as `read`."""
        opened = self._open.get(number)
        if opened is None:
            opened = self._open[number] = self._shard(number)
            if len(self._open) > OPEN_SHARDS:
                self._open.popitem(last=False)
        self._open.move_to_end(number)
        return opened

    def _shard(self, number: int) -> OpenShard:
        return OpenShard(self._source, self.index.shards[number], self.columns, self.index)

    def row_pictures(self, shard: int) -> np.ndarray:
        """(samples,) int32: of each row of a shard the number of its picture."""
        return self.shard(shard).rows.picture

    def captions(self, shard: int) -> list[str]:
        """Of all pairs of a shard; no picture is read."""
        rows = self.shard(shard).rows
        return [rows.caption(row) for row in range(len(rows.picture))]

    def pictures(self, shard: int) -> Iterator[Picture]:
        """All pictures of a shard, in tar order."""
        opened = self.shard(shard)
        yield from map(opened.picture, range(len(opened.rows.sizes)))

    def samples(self, shard: int) -> Iterator[Sample]:
        """All pairs of a shard, by row."""
        for row in range(self.index.shards[shard].samples):
            yield self.read(shard, row)

    def _column(self, column: str) -> ColumnIndex:
        name = f"{self.location}/{column}/{COLUMN_NAME}"
        if column not in COLUMN_COMMANDS:
            raise InputError(f"{column!r}: no such column; there are {', '.join(COLUMN_COMMANDS)}")
        command = f"`{COLUMN_COMMANDS[column]} {self.location}`"
        content = self._source.content(f"{column}/{COLUMN_NAME}")
        if content is None:
            raise InputError(f"{self.location}: no {column} column; run {command}")
        index = parse_column(content, name)
        for shard in self.index.shards:
            part = index.shards.get(shard.stem)
            if not index.complete or part is None or part.tar_sha256 != shard.sha256:
                raise InputError(f"{name}: unfinished or outdated; run {command} again")
        return index
