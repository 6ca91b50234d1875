"""Long computations item by item, each result logged at once: an interrupted run goes on."""

import hashlib
import json
import os
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from shards.files import InputError, file_sha256
from shards.json_files import read_lines

Work = TypeVar("Work")


def resumable(
    out: Path,
    header: Mapping[str, Any],
    work: Mapping[str, Work],
    compute: Callable[[Work], dict[str, Any]],
    workers: int = 1,
    reads: Callable[[Work], Iterable[Path]] = lambda item: (),
) -> dict[str, dict[str, Any]]:
    """`compute` of each item, those of an earlier, interrupted run taken from its log.

    Args:
        out: the file that the caller will write; the log lies beside it, the caller deletes it.
        header: settings that the results depend on; a log of other settings is started anew.
        work: key -> argument of `compute`, whose results are JSON objects.
        workers: processes; above 1, `compute` must be a module's function.
        reads: the files that an item's result depends on; where one of them, or the item itself,
            is another than the log was made with, the item is computed anew.
    """
    from tqdm import tqdm

    log = log_path(out)
    log.parent.mkdir(parents=True, exist_ok=True)
    digests = {key: _digest(item, reads(item)) for key, item in work.items()}
    known = {
        key: value for key, digest, value in _read_log(log, header) if digests.get(key) == digest
    }
    todo = {key: item for key, item in work.items() if key not in known}
    with log.open("a", encoding="utf-8") as lines:
        pool = ProcessPoolExecutor(workers) if workers > 1 else None
        results = (
            pool.map(compute, todo.values(), chunksize=8) if pool else map(compute, todo.values())
        )
        try:
            bar = tqdm(results, total=len(todo), desc=out.name, disable=None)
            for key, value in zip(todo, bar, strict=True):
                # As an interrupted run would read it: tuples are lists, keys are text, both times.
                known[key] = json.loads(json.dumps(value))
                lines.write(_line([key, digests[key], value]))
                lines.flush()
        finally:
            if pool:
                pool.shutdown(cancel_futures=True)
    return {key: known[key] for key in work}


def log_path(out: Path) -> Path:
    """Where `resumable` keeps its log for the file `out`."""
    return out.with_name(f".{out.name}.log")


def _digest(item: Any, files: Iterable[Path]) -> str:
    """Of an item as written down, and of the content of what it reads."""
    content = [str(item), *(file_sha256(path) for path in files)]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:20]


def _line(content: Any) -> str:
    """JSON behind the checksum of its bytes."""
    text = json.dumps(content, ensure_ascii=False)
    return f"{zlib.crc32(text.encode()):08x} {text}\n"


def _read_log(log: Path, header: Mapping[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """(key, digest, result) that an interrupted run has left, up to the first damaged line, from
    which on it is cut off; a log of other settings is started anew."""
    first = _line(header)
    whole: list[str] = []
    try:
        for _, line in read_lines(log) if log.is_file() else ():
            checksum, _, text = line.partition(" ")
            if checksum != f"{zlib.crc32(text.encode()):08x}" or (not whole and line != first[:-1]):
                break
            whole.append(line + "\n")
    except InputError:  # a byte that is no UTF-8: damaged like any other
        pass
    end = sum(len(line.encode()) for line in whole)
    if not whole:
        log.write_text(first, encoding="utf-8")
    elif log.stat().st_size != end:
        os.truncate(log, end)
    for line in whole[1:]:
        key, digest, value = json.loads(line.partition(" ")[2])
        yield key, digest, value
