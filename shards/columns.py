"""Columns: what later commands know about the samples, one file per shard beside the tars.

A column can be written, resumed and replaced without touching a tar.
"""

import hashlib
import json
import shlex
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from shards.files import InputError, atomic_path, file_sha256, sweep
from shards.index import ColumnIndex, ColumnShard, ShardIndex, ShardInfo, parse_column, read_index
from shards.json_files import write_json
from shards.locks import lock
from shards.progress import Progress
from shards.schema import COLUMN_NAME, FORMAT_VERSION


def write_column(
    directory: Path,
    column: str,
    compute: Callable[[Sequence[int]], Iterable[tuple[int, bytes]]],
    provenance: dict[str, Any],
    *,
    desc: str,
    progress: Progress[Any] | None = None,
    part: tuple[int, int] = (0, 1),
    wait: Callable[[], None] = lambda: None,
) -> None:
    """Write `<column>/<shard>.safetensors` for every shard that lacks it, then mark it complete.

    A file is kept if it was made with the same `provenance` from the same tar; so an interrupted
    run goes on at the first missing shard, and a changed one starts over, saying so.

    Args:
        compute: numbers of shards -> (number, the file's bytes) of each.
        provenance: model, options, versions; JSON.
        progress: which `compute` itself advances; None: shard by shard.
        part: (rank, number of processes) that share the shards out; each writes its own.
        wait: returns once all of them have come so far.

    Raises:
        InputError: shards of format 1, whose columns are about pairs.
    """
    directory, content = Path(directory), json.loads(json.dumps(provenance))
    index = read_index(directory)
    if index.format < FORMAT_VERSION:
        new = shlex.quote(f"{directory}-new")
        raise InputError(
            f"{directory}: an earlier format, which stores a picture again with each pair; run "
            f"`python -m shards convert {shlex.quote(str(directory))} {new}`, then this on {new}"
        )
    own = _Writer(directory, column, content, *part)
    with lock(directory / column) if own.rank == 0 else nullcontext(), progress or nullcontext():
        if own.rank == 0:
            own.gather(index)
        wait()
        missing = own.missing(index)
        done = compute(missing)
        # `compute` may report in smaller units than a shard, on CPUs minutes long.
        for number, file in Progress(
            done, unit="shard", total=len(index.shards[own.rank :: own.world]), desc=desc,
            done=len(index.shards[own.rank :: own.world]) - len(missing),
            silent=progress is not None or own.rank > 0,
        ):  # fmt: skip
            own.write(index.shards[number], file)
        wait()
        if own.rank == 0:
            own.gather(index, complete=True)
            sweep(directory / column)


class _Writer:
    """One process's share of a column. Rank 0 keeps `column.json`, the others one of their own
    beside it until all are done."""

    def __init__(
        self, directory: Path, column: str, provenance: dict[str, Any], rank: int, world: int
    ) -> None:
        self.folder, self.column, self.provenance = directory / column, column, provenance
        self.rank, self.world = rank, world
        self.path = self.folder / (f"column-{rank}.json" if rank else COLUMN_NAME)
        self.done: dict[str, ColumnShard] = {}
        self.told = False

    def gather(self, index: ShardIndex, complete: bool = False) -> None:
        """Take over what all ranks, of this run or an earlier one, have done."""
        others = sorted(self.folder.glob("column-*.json"))
        for path in (self.path, *others):
            self.done |= self._known(path)
        shards = {shard.stem: self.done[shard.stem] for shard in index.shards if complete}
        if complete or others:
            self._save(shards or self.done, complete)
        for path in others:
            path.unlink()

    def missing(self, index: ShardIndex) -> list[int]:
        """Numbers of this process's shards whose file is not there as it should be."""
        known = self.done | self._known(self.folder / COLUMN_NAME)
        self.done = {}
        numbers = []
        for number in range(self.rank, len(index.shards), self.world):
            shard = index.shards[number]
            before, path = known.get(shard.stem), self.folder / f"{shard.stem}.safetensors"
            if before and before.tar_sha256 == shard.sha256 and file_sha256(path) == before.sha256:
                self.done[shard.stem] = before
            else:
                numbers.append(number)
        return numbers

    def write(self, shard: ShardInfo, content: bytes) -> None:
        """A shard's file, then the note that it is there."""
        with atomic_path(self.folder / f"{shard.stem}.safetensors") as temporary:
            temporary.write_bytes(content)
        sha256 = hashlib.sha256(content).hexdigest()
        self.done[shard.stem] = ColumnShard(shard.pictures, sha256, shard.sha256)
        self._save(self.done, False)

    def _save(self, shards: dict[str, ColumnShard], complete: bool) -> None:
        index = ColumnIndex(self.column, complete, shards, self.provenance)
        write_json(self.path, index.to_dict(), checksum=True)

    def _known(self, path: Path) -> dict[str, ColumnShard]:
        if not path.exists():
            return {}
        before = parse_column(path.read_bytes(), str(path))
        if before.provenance == self.provenance and before.format == FORMAT_VERSION:
            return before.shards
        if self.rank == 0 and not self.told:
            names = sorted(before.provenance.keys() | self.provenance)
            changed = [n for n in names if before.provenance.get(n) != self.provenance.get(n)]
            what = ", ".join(changed) or "an earlier format"
            print(f"{self.folder}: made with other options before ({what}); it is written anew")
            self.told = True
        return {}
