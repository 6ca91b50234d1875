"""The file format of views: what an experiment changes in a split, which every method takes.

A header line, then one line for each changed row::

    {"tool": "align-noise", "params": {…}, "seed": 1, "split": "test", "sources": {file: sha256},
     "leaky": false}
    {"row": 3, "img_id": "other.jpg", "vg": […]}

A row may have `drop` (it is left out), `img_id` (another picture), `vg` and `od` (other regions; a
null among them is a deleted one, whose place stays empty), `no_image`. Which rows change and how is
decided in `finetune/data/view_rules.py`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

from finetune.tasks.base import Row
from finetune.tasks.reading import is_row, read_with_header
from finetune.tasks.region_cache import Region, Regions, regions_from_json, regions_to_json
from shards.files import InputError
from shards.json_files import write_json_lines
from shards.records import parse_records

AnyRow = TypeVar("AnyRow", bound=Row)
KEYS = {"row", "drop", "img_id", "vg", "od", "no_image"}


@dataclass(frozen=True)
class Change:
    """What a view does to one row."""

    drop: bool = False
    image_id: str | None = None
    """The picture shown instead of the row's own."""
    vg: tuple[Region | None, ...] | None = None
    """Grounded regions instead of the cached ones; one that is None leaves its place empty."""
    od: tuple[Region | None, ...] | None = None
    """Detected regions instead of the cached ones of the picture."""
    no_image: bool = False


@dataclass(frozen=True)
class View:
    """A manifest."""

    split: str
    changes: Mapping[int, Change]
    """Row number -> change, in order of rows."""
    header: Mapping[str, Any] = field(default_factory=dict)

    @property
    def leaky(self) -> bool:
        """Whether it holds regions that the label has shaped."""
        return bool(self.header.get("leaky", False))

    def apply(self, rows: Sequence[AnyRow], split: str) -> list[AnyRow]:
        """The rows that remain, with the pictures that the view shows (None: taken away).

        Raises:
            InputError: made for another split, or for more rows than there are.
        """
        if split != self.split:
            raise InputError(f"view: made for the {self.split} split, applied to {split}")
        if unknown := self.changes.keys() - {row.row for row in rows}:
            raise InputError(
                f"view: changes row {min(unknown)}, which the {split} split lacks; "
                "it was made from another file"
            )
        return [
            self._shown(row, self.changes.get(row.row, Change()))
            for row in rows
            if not self.changes.get(row.row, Change()).drop
        ]

    @staticmethod
    def _shown(row: AnyRow, change: Change) -> AnyRow:
        if change.no_image:
            return replace(row, image_id=None)
        return row if change.image_id is None else replace(row, image_id=change.image_id)

    def grounded(self, row: Row, cached: Mapping[int, Regions]) -> tuple[Region | None, ...]:
        """The row's grounded regions under this view.

        Raises:
            InputError: its picture was exchanged and the view says nothing of the boxes in the new
                one: boxes must move with the picture.
        """
        change = self.changes.get(row.row, Change())
        if change.no_image:
            return ()
        if change.vg is not None:
            return change.vg
        if change.image_id is not None:
            raise InputError(
                f"view: row {row.row} shows another picture without its boxes; make the view anew "
                "with --regions DIR"
            )
        return cached[row.row].regions

    def detected(self, row: Row, cached: Mapping[str, Regions]) -> tuple[Region | None, ...]:
        """The detected regions of the picture that `row`, as `apply` gives it, shows."""
        change = self.changes.get(row.row, Change())
        if change.od is not None or row.image_id is None:
            return change.od or ()
        return cached[row.image_id].regions


def merged(views: Sequence[View]) -> View:
    """Several views of one split as one; of two that contradict each other, the later one holds.

    A later picture brings its own boxes: those of an earlier view stay with the earlier picture.

    Raises:
        InputError: they were made for different splits.
    """
    splits = list(dict.fromkeys(view.split for view in views))
    if len(splits) != 1:
        raise InputError(f"views of different splits cannot be merged: {', '.join(splits)}")
    changes: dict[int, Change] = {}
    for view in views:
        for row, new in view.changes.items():
            old = changes.get(row, Change())
            if new.image_id is not None:
                old = replace(old, image_id=None, vg=None, od=None, no_image=False)
            changes[row] = Change(
                # No view brings back what an earlier one has dropped.
                drop=old.drop or new.drop,
                image_id=new.image_id or old.image_id,
                vg=old.vg if new.vg is None else new.vg,
                od=old.od if new.od is None else new.od,
                no_image=old.no_image or new.no_image,
            )
    header = {
        "tool": "merged",
        "views": [dict(view.header) for view in views],
        "leaky": any(view.leaky for view in views),
    }
    return View(splits[0], dict(sorted(changes.items())), header)


def write_view(path: str | Path, view: View) -> None:
    """Write a manifest atomically."""

    def record(row: int, change: Change) -> dict[str, Any]:
        fields: dict[str, Any] = {"row": row}
        if change.drop:
            fields["drop"] = True
        if change.image_id is not None:
            fields["img_id"] = change.image_id
        for kind, regions in (("vg", change.vg), ("od", change.od)):
            if regions is not None:
                fields[kind] = regions_to_json(regions, kind)
        if change.no_image:
            fields["no_image"] = True
        return fields

    changed = sorted(view.changes.items())
    write_json_lines(path, {**view.header, "split": view.split}, (record(*c) for c in changed))


def read_view(path: str | Path) -> View:
    """Read a manifest.

    Raises:
        InputError: no view, or lists every damaged line.
    """
    path = Path(path)
    changes: dict[int, Change] = {}
    header, records = read_with_header(path, "split", Literal["train", "val", "test"])

    def add(_: int, record: dict[str, Any]) -> None:
        row = record.get("row")
        if not is_row(row) or row in changes:
            raise InputError(f"no row number, or row {row} a second time")
        changes[row] = _change(record)

    parse_records(path, records, add)
    return View(header["split"], changes, header)


def _change(record: dict[str, Any]) -> Change:
    if unknown := record.keys() - KEYS:
        raise InputError(f"unknown key {sorted(unknown)[0]!r}")
    for key in ("drop", "no_image"):
        if not isinstance(record.get(key, False), bool):
            raise InputError(f"{key} must be true or false")
    image_id = record.get("img_id")
    if not (image_id is None or (isinstance(image_id, str) and image_id)):
        raise InputError("img_id must be a file name")
    regions = {
        # The picture's size is not known here.
        kind: regions_from_json(record[kind], None, gaps=True)
        for kind in ("vg", "od")
        if kind in record
    }
    return Change(
        record.get("drop", False), image_id, **regions, no_image=record.get("no_image", False)
    )
