"""Columns: what later commands know about the samples, one file per shard beside the tars.

A column can be written, resumed and replaced without touching a tar.
"""

import hashlib
import json
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from shards.files import atomic_path, file_sha256, sweep, write_json
from shards.locks import lock
from shards.progress import Progress
from shards.schema import COLUMN_NAME, ColumnIndex, ColumnShard, parse_column, read_index


def write_column(
    directory: Path,
    column: str,
    suffix: str,
    compute: Callable[[int], bytes],
    provenance: dict[str, Any],
    *,
    desc: str,
    progress: Progress[Any] | None = None,
) -> ColumnIndex:
    """Write `<column>/<shard><suffix>` for every shard that lacks it, then mark it complete.

    A file is kept if it was made with the same `provenance` from the same tar; so an interrupted
    run goes on at the first missing shard, and a changed one starts over, saying so.

    Args:
        suffix: with its dot, for example `.jsonl`.
        compute: shard number -> the file's bytes.
        provenance: model, options, versions; JSON.
        progress: which `compute` itself advances; None: shard by shard.
    """
    # `compute` may report in smaller units than a shard, on CPUs minutes long.
    silent = progress is not None
    shards: Progress[Any] = Progress(
        read_index(directory).shards, unit="shard", desc=desc, silent=silent
    )
    content = json.loads(json.dumps(provenance))
    with lock(Path(directory) / column), progress or nullcontext():
        return _write_column(Path(directory), column, suffix, compute, content, shards)


def _write_column(
    directory: Path,
    column: str,
    suffix: str,
    compute: Callable[[int], bytes],
    provenance: dict[str, Any],
    progress: Progress[Any],
) -> ColumnIndex:
    index, folder = read_index(directory), directory / column
    done = _column_so_far(folder, column, provenance)
    for number, shard in enumerate(progress):
        path, known = folder / f"{shard.stem}{suffix}", done.get(shard.stem)
        if known and known.tar_sha256 == shard.sha256 and file_sha256(path) == known.sha256:
            continue
        content = compute(number)
        with atomic_path(path) as temporary:
            temporary.write_bytes(content)
        sha256 = hashlib.sha256(content).hexdigest()
        done[shard.stem] = ColumnShard(shard.samples, sha256, shard.sha256)
        write_json(folder / COLUMN_NAME, ColumnIndex(column, False, done, provenance).to_dict())
    shards = {shard.stem: done[shard.stem] for shard in index.shards}
    result = ColumnIndex(column, True, shards, provenance)
    write_json(folder / COLUMN_NAME, result.to_dict())
    sweep(folder)
    return result


def _column_so_far(folder: Path, column: str, provenance: dict[str, Any]) -> dict[str, ColumnShard]:
    path = folder / COLUMN_NAME
    if not path.exists():
        return {}
    before = parse_column(path.read_bytes(), str(path))
    if before.provenance == provenance:
        return dict(before.shards)
    print(f"{folder}: made with other options before; the column is written anew")
    return {}
