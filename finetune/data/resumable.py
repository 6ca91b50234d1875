"""Long computations item by item, each result logged at once: an interrupted run goes on."""

import json
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

Work = TypeVar("Work")


def resumable(
    out: Path,
    header: Mapping[str, Any],
    work: Mapping[str, Work],
    compute: Callable[[Work], dict[str, Any]],
    workers: int = 1,
) -> dict[str, dict[str, Any]]:
    """`compute` of each item, those of an earlier, interrupted run taken from its log.

    Args:
        out: the file that the caller will write; the log lies beside it, the caller deletes it.
        header: settings that the results depend on; a log of other settings is started anew.
        work: key -> argument of `compute`, whose results are JSON objects.
        workers: processes; above 1, `compute` must be a module's function.
    """
    from tqdm import tqdm

    log = log_path(out)
    log.parent.mkdir(parents=True, exist_ok=True)
    known = dict(_read_log(log, header))
    todo = {key: item for key, item in work.items() if key not in known}
    with log.open("a", encoding="utf-8") as lines:
        pool = ProcessPoolExecutor(workers) if workers > 1 else None
        results = (
            pool.map(compute, todo.values(), chunksize=8) if pool else map(compute, todo.values())
        )
        try:
            bar = tqdm(results, total=len(todo), desc=out.name, disable=None)
            for key, value in zip(todo, bar, strict=True):
                known[key] = json.loads(json.dumps(value))
                lines.write(json.dumps([key, value], ensure_ascii=False) + "\n")
                lines.flush()
        finally:
            if pool:
                pool.shutdown(cancel_futures=True)
    return {key: known[key] for key in work}


def log_path(out: Path) -> Path:
    """Where `resumable` keeps its log for the file `out`."""
    return out.with_name(f".{out.name}.log")


def _read_log(log: Path, header: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """What an interrupted run has done. Cuts a torn last line; other settings start a new log."""
    first = json.dumps(header, ensure_ascii=False) + "\n"
    content = log.read_text(encoding="utf-8") if log.is_file() else ""
    if not content.startswith(first):
        log.write_text(first, encoding="utf-8")
        return
    whole = content[: content.rindex("\n") + 1]
    log.write_text(whole, encoding="utf-8")
    yield from map(json.loads, whole.splitlines()[1:])
