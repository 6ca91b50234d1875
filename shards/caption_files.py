"""Files of captions -> rows of `image` and `caption`: CSV and its like, JSON lines, COCO's JSON."""

from pathlib import Path
from typing import Any, NamedTuple

from shards.files import InputError
from shards.json_files import read_json
from shards.records import Parsed, Refused, read_records
from shards.tables import TableRow, read_table

COLUMNS = (("image", "caption"), ("image_name", "comment"), ("file_name", "caption"))
"""Names that a header may give both: ours, Flickr30k's `results.csv`, COCO's."""


class CaptionRow(NamedTuple):
    """A caption of a picture."""

    line: int
    """Of the file; of COCO's JSON the number of the annotation, from 1."""
    image: str
    caption: str


def read_caption_rows(
    path: Path, *, delimiter: str | None = None, encoding: str | None = None
) -> list[CaptionRow | Refused]:
    """Every row of a file, accepted or refused.

    Args:
        path: `.json`: COCO's `images` and `annotations`; `.jsonl`: objects with `image` and
            `caption`; any other name: a delimited file whose header names one pair of `COLUMNS`.
        delimiter, encoding: of a delimited file; see `read_table`.

    Raises:
        InputError: unreadable as a whole.
    """
    if path.suffix.lower() in (".json", ".jsonl") and (delimiter or encoding):
        raise InputError(f"{path}: --delimiter and --encoding are of tables, not of JSON")
    if path.suffix.lower() == ".json":
        return _coco(path)
    if path.suffix.lower() == ".jsonl":
        return [_of_object(record) for record in read_records(path)]
    problem = None
    for names in COLUMNS:
        try:
            table = read_table(path, names, delimiter=delimiter, encoding=encoding)
        except InputError as error:
            problem = problem or error
            continue
        image, caption = names
        return [
            CaptionRow(row.line, row.fields[image], row.fields[caption])
            if isinstance(row, TableRow)
            else row
            for row in table.rows
        ]
    assert problem  # `COLUMNS` has names
    raise problem


def _of_object(record: Parsed | Refused) -> CaptionRow | Refused:
    if isinstance(record, Refused):
        return record
    image, caption = record.fields.get("image"), record.fields.get("caption")
    if not isinstance(image, str) or not isinstance(caption, str):
        return Refused(record.line, "needs the texts `image` and `caption`")
    return CaptionRow(record.line, image, caption)


def _coco(path: Path) -> list[CaptionRow | Refused]:
    content = read_json(path)
    images, annotations = content.get("images"), content.get("annotations")
    if not isinstance(images, list) or not isinstance(annotations, list):
        raise InputError(f"{path}: no lists `images` and `annotations`, as COCO's captions have")
    names: dict[Any, Any] = {}
    for number, image in enumerate(images, start=1):
        if not isinstance(image, dict) or not isinstance(image.get("id"), int | str):
            raise InputError(f"{path}: image {number} has no `id`")
        if image["id"] in names:
            raise InputError(f"{path}: image id {image['id']} appears twice")
        names[image["id"]] = image.get("file_name")
    rows: list[CaptionRow | Refused] = []
    for number, entry in enumerate(annotations, start=1):
        fields = entry if isinstance(entry, dict) else {}
        key, caption = fields.get("image_id"), fields.get("caption")
        # Of a list or an object no dictionary can be asked.
        name = names.get(key) if isinstance(key, int | str) else None
        if not isinstance(caption, str):
            rows.append(Refused(number, "`caption` is missing or no text"))
        elif not isinstance(name, str):
            rows.append(Refused(number, f"`image_id` {key!r} is no image with a `file_name`"))
        else:
            rows.append(CaptionRow(number, name, caption))
    return rows
