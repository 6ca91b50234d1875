"""Region caches: the boxes that any method may be given, from whatever grounder or detector.

`regions_vg_{split}.jsonl` has one line a row: boxes grounded from the row's phrases.
`regions_od.jsonl` has one line a picture: detected objects. The first line of either is a header
with the tool, the model, its thresholds, and `leaky`: whether gold labels shaped anything in it::

    {"tool": "regions build", "model": …, "leaky": false}
    {"row": 0, "img_id": "a.jpg", "size": [800, 600],
     "vg": [{"box": [x1, y1, x2, y2], "score": 0.31, "phrase": "oslo", "kind": "head"}]}

    {"img_id": "a.jpg", "size": [800, 600], "od": [{"box": …, "score": 0.9, "label": "person"}]}
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from finetune.tasks.base import Box, Key, SideInput
from finetune.tasks.reading import is_row, not_empty, read_with_header
from shards.files import InputError
from shards.json_files import is_number, write_json_lines
from shards.records import parse_records


@dataclass(frozen=True)
class Region:
    """One box in absolute pixels of the original picture."""

    box: Box
    """(x1, y1, x2, y2)"""
    score: float
    text: str
    """The phrase that was grounded, or the detector's label."""
    kind: str = "object"
    """head, tail, noun; community: a published crop, its query unknown; object: detected."""


@dataclass(frozen=True)
class Regions:
    """The regions of one row (grounded) or of one picture (detected), best or queried first."""

    image_id: str
    size: tuple[int, int]
    """(width, height) of the picture"""
    regions: tuple[Region, ...]


def read_regions(path: str | Path) -> SideInput:
    """A cache keyed by row (`vg`) or by picture (`od`); values are `Regions`.

    Raises:
        InputError: lists every damaged line.
    """
    path = Path(path)
    values: dict[Key, Regions] = {}
    header, records = read_with_header(path, "leaky", bool)
    kinds = set()

    def add(_: int, record: dict[str, Any]) -> None:
        kind = "vg" if "vg" in record else "od"
        kinds.add(kind)
        key: Any = record.get("row") if kind == "vg" else record.get("img_id")
        # One kind a file: rows and pictures have different keys.
        if (kind == "vg" and not is_row(key)) or len(kinds) > 1:
            raise InputError("expected row and vg, or img_id and od, the same throughout")
        if key in values:
            raise InputError(f"{key!r} a second time")
        values[key] = _regions(record, kind)

    parse_records(path, records, add)
    return SideInput(
        path=path,
        keyed_by="image" if kinds == {"od"} else "row",
        values=not_empty(values, path),
        leaky=header["leaky"],
        header=header,
    )


def write_regions(
    path: str | Path, header: Mapping[str, Any], entries: Mapping[Key, Regions]
) -> None:
    """Write a region cache atomically. Keys are rows (`vg`) or pictures (`od`).

    Args:
        header: provenance; must say whether the regions are `leaky`.
    """
    if not isinstance(header.get("leaky"), bool):
        raise ValueError("a region cache must say whether it is leaky")

    def record(key: Key, entry: Regions) -> dict[str, Any]:
        picture = {"img_id": entry.image_id, "size": list(entry.size)}
        if isinstance(key, int):
            return {"row": key, **picture, "vg": regions_to_json(entry.regions, "vg")}
        return {**picture, "od": regions_to_json(entry.regions, "od")}

    write_json_lines(path, header, (record(key, entry) for key, entry in entries.items()))


def rounded(regions: Iterable[Region]) -> tuple[Region, ...]:
    """Boxes to a hundredth of a pixel, as caches hold them."""
    corners = ((region, [round(side, 2) for side in region.box]) for region in regions)
    return tuple(replace(region, box=(x1, y1, x2, y2)) for region, (x1, y1, x2, y2) in corners)


def regions_to_json(regions: Iterable[Region | None], kind: str) -> list[dict[str, Any] | None]:
    """The list under `vg` or `od`; boxes to a hundredth of a pixel; null for an empty place."""
    records: list[dict[str, Any] | None] = []
    for place in regions:
        if place is None:
            records.append(None)
            continue
        (region,) = rounded([place])
        record: dict[str, Any] = {"box": list(region.box), "score": round(region.score, 4)}
        if kind == "vg":
            record |= {"phrase": region.text, "kind": region.kind}
        else:
            record["label"] = region.text
        records.append(record)
    return records


def regions_from_json(
    records: Any, size: Sequence[int] | None, *, gaps: bool = False
) -> tuple[Any, ...]:
    """The other way round, checked: four finite numbers, positive area, inside the picture.

    Args:
        size: [width, height] of the picture; None where it is not known.
        gaps: whether null, an empty place, may stand among them.

    Raises:
        InputError: without a place, which the caller knows.
    """
    if not isinstance(records, list):
        raise InputError("expected a list of regions")
    regions: list[Region | None] = []
    for record in records:
        if gaps and record is None:
            regions.append(None)
            continue
        box = record.get("box") if isinstance(record, dict) else None
        if not isinstance(box, list) or len(box) != 4 or not all(map(is_number, box)):
            raise InputError(f"a region's box is four finite numbers, not {box!r}")
        x1, y1, x2, y2 = box
        if not (x1 < x2 and y1 < y2):
            raise InputError(f"box {box} is empty; expected [x1, y1, x2, y2]")
        # A pixel over the edge is a rounding of the tool; more is another scale or picture.
        if min(x1, y1) < -1 or (size and (x2 > size[0] + 1 or y2 > size[1] + 1)):
            raise InputError(f"box {box} leaves its picture; boxes are absolute pixels")
        score, text = record.get("score"), record.get("phrase", record.get("label"))
        if not is_number(score) or not isinstance(text, str):
            raise InputError("a region needs a score and a phrase or label")
        regions.append(Region(tuple(box), score, text, record.get("kind", "object")))
    return tuple(regions)


def _regions(record: dict[str, Any], kind: str) -> Regions:
    image_id, size = record.get("img_id"), record.get("size")
    if not isinstance(image_id, str) or not image_id:
        raise InputError("img_id is missing")
    if not isinstance(size, list) or [type(side) for side in size] != [int, int] or min(size) < 1:
        raise InputError(f"size must be [width, height] in pixels, not {size!r}")
    return Regions(image_id, (size[0], size[1]), regions_from_json(record.get(kind), size))
