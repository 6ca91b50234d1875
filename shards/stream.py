"""Shards -> samples: one global order for every world size, and access by address.

**Order.** `CanonicalOrder` is a pure function of (index, seed, epoch). It deals the shuffled
shards to a fixed number of canonical streams and interleaves these, so that at any time only as
many shards are in use as there are streams, however large the corpus.

**Ranks.** The order is cut into global batches, and every global batch into the ranks' shares
(`RankBatches`). The sequence of global batches hence does not know the number of ranks or workers,
and epochs follow each other without a gap: no pair is dropped, every rank makes the same steps.

**Resume.** `ShardReader` finds a sample by an offset table (one header scan per shard on first
use) instead of reading up to it. Starting at sample n costs the same for every n.
"""

import os
import tarfile
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from shards.schema import (
    COLUMN_NAME,
    OBJECTS,
    TEACHER,
    ColumnIndex,
    DetectedObject,
    InputError,
    PairMeta,
    ShardInfo,
    parse_column,
    parse_object,
    read_index,
)

OPEN_SHARDS = 96
T = TypeVar("T")


class CanonicalOrder:
    """The order of all samples in an epoch, whoever reads them."""

    def __init__(
        self, counts: Sequence[int], *, seed: int, streams: int = 64, shuffle: bool = True
    ) -> None:
        """
        Args:
            counts: samples per shard, in the order of the index.
            seed: of the permutations.
            streams: canonical streams; fewer where there are fewer shards.
            shuffle: False gives tar order, in every epoch.
        """
        if not sum(counts):
            raise InputError("no sample in any shard")
        self.counts = np.asarray(counts, dtype=np.int64)
        self.seed, self.shuffle = seed, shuffle
        self.streams = min(streams, len(self.counts))

    def __len__(self) -> int:
        """Samples per epoch."""
        return int(self.counts.sum())

    def epoch(self, epoch: int) -> np.ndarray:
        """(N, 2) int32: shard number and row in the shard, every sample exactly once."""
        if not self.shuffle:
            return self._addresses(range(len(self.counts)), np.arange)
        random = np.random.default_rng([self.seed, epoch])
        shards = random.permutation(len(self.counts))
        streams = [
            self._addresses(shards[first :: self.streams], random.permutation)
            for first in range(self.streams)
        ]
        # Round-robin: sort by position in the stream, then by stream.
        position = np.concatenate([np.arange(len(stream)) for stream in streams])
        return np.concatenate(streams)[np.argsort(position, kind="stable")]

    def _addresses(
        self, shards: Sequence[int] | range, rows: Callable[[int], np.ndarray]
    ) -> np.ndarray:
        parts = []
        for shard in shards:
            part = np.empty((self.counts[shard], 2), dtype=np.int32)
            part[:, 0], part[:, 1] = shard, rows(int(self.counts[shard]))
            parts.append(part)
        return np.concatenate(parts)


class RankBatches:
    """Endless micro-batches of one rank, as addresses `(epoch, shard, row)`.

    Global batch g holds the positions [g G, (g + 1) G) of the epochs laid end to end; micro-step a
    of rank r takes g G + a micro world + r + world j, for j below the micro-batch size.
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
        global_batch = micro_batch_size * accumulation * world
        if start % global_batch:
            raise InputError(
                f"{start} samples consumed is no multiple of the global batch {global_batch}; "
                "resume with the global batch of the interrupted run"
            )
        self.start = start

    def position(self, samples: int) -> tuple[int, int]:
        """(epoch, samples into that epoch) after `samples` were consumed globally."""
        return divmod(samples, len(self.order))

    def __iter__(self) -> Iterator[list[tuple[int, int, int]]]:
        epoch, order, step = -1, None, self.micro_batch_size * self.world
        at = self.start
        while True:
            batch = []
            for position in range(at + self.rank, at + step, self.world):
                wanted, row = self.position(position)
                if wanted != epoch:
                    epoch, order = wanted, self.order.epoch(wanted)
                batch.append((epoch, int(order[row, 0]), int(order[row, 1])))
            yield batch
            at += step


@dataclass(frozen=True)
class Sample:
    """A pair as stored, with its columns where these were asked for."""

    key: str
    image: bytes
    """JPEG."""
    meta: PairMeta
    objects: tuple[DetectedObject, ...] | None = None
    """Best first; None: column not asked for."""
    teacher: dict[str, np.ndarray] | None = None
    """image_feat (256,) f16, object_feat (256,) f16, has_object () bool."""


@dataclass(frozen=True)
class _Table:
    """Where a shard's members lie."""

    path: Path
    keys: np.ndarray
    """(n,) bytes strings."""
    places: np.ndarray
    """(n, 4) int64: offset and size of the .jpg, offset and size of the .json."""


class ShardReader:
    """Random access to the samples of a shard directory. Picklable; opens files when needed."""

    def __init__(self, location: str | os.PathLike[str], *, columns: Sequence[str] = ()) -> None:
        """
        Args:
            location: shard directory.
            columns: columns to deliver with each sample: `objects`, `teacher`.
        """
        self.location = str(location)
        self.directory = Path(location)
        self.index = read_index(self.directory)
        self.columns = tuple(columns)
        for column in columns:
            self._check_column(column)
        self._clear()

    def _clear(self) -> None:
        self._tables: dict[int, _Table] = {}
        self._files: OrderedDict[int, int] = OrderedDict()
        self._objects: OrderedDict[int, list[tuple[DetectedObject, ...]]] = OrderedDict()
        self._teachers: OrderedDict[int, Any] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        keep = ("location", "directory", "index", "columns")
        return {name: getattr(self, name) for name in keep}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._clear()

    def __del__(self) -> None:
        for file in getattr(self, "_files", {}).values():
            os.close(file)

    def __len__(self) -> int:
        """Samples over all shards."""
        return self.index.samples

    def has_column(self, column: str) -> bool:
        """Whether the column is there and complete."""
        path = self.directory / column / COLUMN_NAME
        return path.is_file() and parse_column(path.read_bytes(), str(path)).complete

    def read(self, shard: int, row: int) -> Sample:
        """The sample at an address.

        Raises:
            InputError: the shard is missing, cut, or holds something else than the index says.
        """
        table = self._tables.get(shard)
        if table is None:
            table = self._tables[shard] = self._scan(shard)
        key = table.keys[row].decode()
        image_at, image_size, meta_at, meta_size = table.places[row].tolist()
        file = _recent(self._files, shard, lambda: os.open(table.path, os.O_RDONLY), os.close)
        image, meta = os.pread(file, image_size, image_at), os.pread(file, meta_size, meta_at)
        if len(image) != image_size or len(meta) != meta_size:
            raise InputError(f"{table.path}: {key} is cut; run `python -m shards verify`")
        return Sample(
            key=key,
            image=image,
            meta=PairMeta.parse(meta, f"{table.path}: {key}.json"),
            objects=self._read_objects(shard, row) if OBJECTS in self.columns else None,
            teacher=self._read_teacher(shard, row) if TEACHER in self.columns else None,
        )

    def samples(self, shard: int) -> Iterator[Sample]:
        """All samples of a shard, in tar order."""
        for row in range(self.index.shards[shard].samples):
            yield self.read(shard, row)

    def _scan(self, shard: int) -> _Table:
        """The offset table of a shard, after checking it against the index."""
        info = self.index.shards[shard]
        path = self.directory / info.name
        check_size(path, info)
        keys, places = [], []
        try:
            with tarfile.open(path, "r:") as tar:
                for member in tar:
                    key, _, suffix = member.name.rpartition(".")
                    if suffix == "jpg":
                        keys.append(key)
                        places.append([member.offset_data, member.size])
                    elif suffix == "json" and keys and keys[-1] == key and len(places[-1]) == 2:
                        places[-1] += [member.offset_data, member.size]
                    else:
                        raise InputError(f"{path}: member {member.name} is not expected there")
        except (tarfile.TarError, OSError, ValueError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f"{path}: damaged tar ({error}); {mend(self.location)}") from error
        incomplete = [key for key, place in zip(keys, places, strict=True) if len(place) != 4]
        if incomplete:
            raise InputError(f"{path}: {incomplete[0]} has no .json; {mend(self.location)}")
        if len(keys) != info.samples:
            raise InputError(
                f"{path}: {len(keys)} samples, the index says {info.samples}; {mend(self.location)}"
            )
        return _Table(path, np.array(keys, dtype="S"), np.array(places, dtype=np.int64))

    def _check_column(self, column: str) -> ColumnIndex:
        path = self.directory / column / COLUMN_NAME
        if column not in (OBJECTS, TEACHER):
            raise InputError(f"{column!r}: no such column; there are {OBJECTS} and {TEACHER}")
        command = "python -m shards detect" if column == OBJECTS else "python -m pretrain.label"
        if not path.is_file():
            raise InputError(f"{self.location}: no {column} column; run `{command}` on it")
        index = parse_column(path.read_bytes(), str(path))
        for shard in self.index.shards:
            part = index.shards.get(shard.stem)
            if not index.complete or part is None or part.tar_sha256 != shard.sha256:
                raise InputError(f"{path}: unfinished or outdated; run `{command}` again")
        return index

    def _read_objects(self, shard: int, row: int) -> tuple[DetectedObject, ...]:
        table, stem = self._tables[shard], self.index.shards[shard].stem
        path = self.directory / OBJECTS / f"{stem}.jsonl"
        return _recent(self._objects, shard, lambda: read_objects(path, table.keys))[row]

    def _read_teacher(self, shard: int, row: int) -> dict[str, np.ndarray]:
        info = self.index.shards[shard]
        path = self.directory / TEACHER / f"{info.stem}.safetensors"
        tensors = _recent(self._teachers, shard, lambda: _open_teacher(path, info))
        names = ("image_feat", "object_feat", "has_object")
        return {name: tensors.get_slice(name)[row] for name in names}


def read_objects(path: Path, keys: Sequence[bytes]) -> list[tuple[DetectedObject, ...]]:
    """A shard's objects, in tar order, checked against the shard's keys."""
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); run detect again") from error
    if len(lines) != len(keys):
        raise InputError(f"{path}: {len(lines)} lines for {len(keys)} samples; run detect again")
    result = []
    for number, (line, key) in enumerate(zip(lines, keys, strict=True), start=1):
        name = f"{path}: line {number}"
        fields = parse_object(line, name)
        if fields.get("key") != key.decode() or not isinstance(fields.get("objects"), list):
            raise InputError(f"{name}: not the objects of {key.decode()}; run detect again")
        objects = fields["objects"]
        result.append(
            tuple(DetectedObject.from_dict(o, f"{name}, {key.decode()}") for o in objects)
        )
    return result


def check_size(path: Path, info: ShardInfo) -> None:
    """Raises InputError unless the file is there and as long as the index says."""
    if not path.is_file():
        raise InputError(f"{path}: missing; {mend(path.parent)}")
    size = path.stat().st_size
    if size != info.bytes:
        raise InputError(f"{path}: {size} bytes, the index says {info.bytes}; {mend(path.parent)}")


def mend(location: str | os.PathLike[str]) -> str:
    """The end of a message about damaged shards."""
    return f"run `python -m shards verify {location}` to see what to rebuild"


def _open_teacher(path: Path, info: ShardInfo) -> Any:
    from safetensors import SafetensorError, safe_open

    try:
        tensors = safe_open(path, framework="np")
        for name in ("image_feat", "object_feat", "has_object"):
            if tensors.get_slice(name).get_shape()[0] != info.samples:
                raise InputError(f"{path}: `{name}` has not {info.samples} rows; label again")
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path}: damaged ({error}); run pretrain.label again") from error
    return tensors


def _recent(
    cache: OrderedDict[int, T],
    key: int,
    load: Callable[[], T],
    close: Callable[[T], None] | None = None,
) -> T:
    """`cache[key]`, loaded if absent; the longest unused entry goes when there are too many."""
    if key not in cache:
        cache[key] = load()
        if len(cache) > OPEN_SHARDS:
            _, old = cache.popitem(last=False)
            if close:
                close(old)
    cache.move_to_end(key)
    return cache[key]
