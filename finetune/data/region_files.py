"""Pictures in, region caches out: what the tools of `python -m finetune regions` share."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from finetune.data.resumable import log_path
from finetune.tasks.region_cache import Regions, regions_from_json, write_regions
from shards.files import InputError


def pictures(folder: Path, names: Iterable[str | None], max_missing: int) -> dict[str, Path]:
    """Name -> path of the pictures that are there.

    Raises:
        InputError: more than `max_missing` are not.
    """
    distinct = dict.fromkeys(name for name in names if name is not None)
    absent = [name for name in distinct if not (folder / name).is_file()]
    if len(absent) > max_missing:
        raise InputError(
            f"{folder}: {len(absent)} of {len(distinct)} pictures are missing, first {absent[0]}; "
            f"supply them, or leave their rows out with --max-missing {len(absent)}"
        )
    return {name: folder / name for name in distinct if name not in set(absent)}


def finish(out: Path, header: Mapping[str, Any], entries: Mapping[Any, Regions]) -> None:
    """Write the cache and forget the log."""
    write_regions(out, header, entries)
    log_path(out).unlink(missing_ok=True)
    total = sum(len(entry.regions) for entry in entries.values())
    stamp = "leaky" if header["leaky"] else "leak-safe"
    print(f"{out}: {len(entries)} lines, {total} regions, {stamp}")


def entry(name: str, value: Mapping[str, Any], out: Path) -> Regions:
    """A line of the log of `out` as the entry of a picture."""
    regions = regions_from_json(value["regions"], value["size"], str(log_path(out)))
    return Regions(name, tuple(value["size"]), regions)
