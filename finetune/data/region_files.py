"""The files that the tools of `python -m finetune regions` read and write."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from finetune.data.resumable import log_path
from finetune.tasks import side_files
from finetune.tasks.reading import not_empty
from finetune.tasks.region_cache import Regions, regions_from_json, write_regions
from shards.files import InputError
from shards.records import parse_records, read_records


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
    try:
        regions = regions_from_json(value["regions"], value["size"])
    except InputError as error:
        raise InputError(f"{log_path(out)}: {name}: {error}") from None
    return Regions(name, tuple(value["size"]), regions)


def crop_names(folder: Path, split: str) -> Mapping[int, Sequence[str]]:
    """Row -> crop files: from `txt/mre_{split}_dict.pth`, else from the names in `img_vg`."""
    if any((folder / "txt").glob("mre_*_dict.pth")):
        path = side_files.find(folder, "txt/mre_{split}_dict.pth", split)
        return side_files.read_crop_names(path).values
    names: dict[int, list[str]] = defaultdict(list)
    for path in sorted((folder / "img_vg" / split / "crops").glob("*_pred_yolo_crop_*.png")):
        row, _, _ = path.name.partition("_")
        if not row.isdecimal():
            raise InputError(f"{path}: expected a name like 12_pred_yolo_crop_3.png: row, query")
        names[int(row)].append(path.name)
    if not names:
        raise InputError(f"{folder}: neither txt/mre_{split}_dict.pth nor img_vg/{split}/crops")
    return names


def read_objects(path: Path) -> dict[str, Regions]:
    """`{"image_id", "size", "objects": [{"box", "score", "label"}]}` lines, as `shards` writes."""
    entries: dict[str, Regions] = {}

    def add(_: int, record: dict[str, Any]) -> None:
        if not {"image_id", "size", "objects"} <= record.keys():
            raise InputError("expected an object with image_id, size and objects")
        name, size = record["image_id"], record["size"]
        if not isinstance(name, str) or not name or name in entries:
            raise InputError(f"image_id {name!r} is no file name, or comes twice")
        if not isinstance(size, list) or [type(side) for side in size] != [int, int]:
            raise InputError("size must be [width, height] in pixels")
        best_first = sorted(regions_from_json(record["objects"], size), key=lambda r: -r.score)
        entries[name] = Regions(name, (size[0], size[1]), tuple(best_first))

    parse_records(path, read_records(path), add)
    return not_empty(entries, path)
