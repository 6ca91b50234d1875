"""What accompanies the rows: captions, phrases, scores, crop names, boxes, types.

Every reader gives a `SideInput`: values keyed by row number or by picture, strictly read. `leaky`
marks the community files whose number or wording was derived from the gold relation: the grounding
queries behind them were head, tail, *and the entity types that the gold relation names*.

| file | key | value | leaky |
|---|---|---|---|
| `caption/<model>_{split}.txt`, `captions.jsonl` | picture | caption | no |
| `txt/phrase_text_{split}.json` (TMR, MNRE) | row | words of the grounding queries | yes |
| `ner15_grounding_text_{split}.json`, `ner17_…` (TMR, Twitter) | picture | the same | no |
| `{split}_weight_{strong,weak}.txt`, `dif_…`, `ner_…` (TMR) | picture | score | no |
| `txt/mre_{split}_dict.pth` | row | names of crop files | yes |
| `twitter201x_{split}_dict.pth`, `{split}_img2crop.pth` | picture | crop files | no |
| `txt/mre_dif_{split}_dict.pth` (TMR) | row | boxes in the generated picture | yes |
| `types_{split}.jsonl` | row | (head type, tail type) | as its header says |

Of Twitter the queries are nouns that a tagger found in the tweet, and the words `person location
organization misc` where it found none. Of 102 tweets looked at, a third of such words lie in no
entity, a third of the entities' words are not among them, and 7 of 11 tweets without nouns hold
entities: they say no more than the text does.

Region caches have a file of their own, `region_cache.py`; how lines are read, `reading.py`.
"""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from finetune.tasks.base import Box, SideInput
from finetune.tasks.reading import (
    finite_number,
    is_row,
    keyed_lists,
    not_empty,
    read_text,
    read_with_header,
)
from finetune.tasks.splits import FILE_NAMES
from shards.files import InputError
from shards.records import json_object, parse_records, python_literal, read_records

_MNRE = "are in the MNRE archive (data.tar.gz) that MKGformer's and HVPNeT's READMEs link"
ORIGINS = {
    "regions_": "`python -m finetune regions build` makes it",
    "types_": "`python -m finetune types` makes it",
    "mre_{": f"the community's lists of grounded crops {_MNRE}",
    "_img2crop": f"the community's lists of detected crops {_MNRE}",
    "mre_dif_": "TMR's boxes in its generated pictures are in the data that TMR's README links",
    "caption/": "CAMIM's captions are in its repository; --captions names another captioner",
    "phrase_text_": "TMR's grounding phrases are in the data that TMR's README links",
    "_grounding_text_": "TMR's grounding phrases are in TMR-NER/data of TMR's repository",
    "_weight_": "TMR's are in its repository, `python -m finetune generate scores` makes others",
}
"""Part of a pattern -> what the file is, and who makes it: for the user who lacks it."""


def find(folder: str | Path, pattern: str, split: str, *others: str) -> Path:
    """The file of a split: `pattern` holds `{split}`, for which val, dev and valid all stand.

    Args:
        others: patterns of other publishers; the first file that is there counts.

    Raises:
        InputError: there is none.
    """
    patterns = (pattern, *others)
    names = [one.format(split=name) for one in patterns for name in FILE_NAMES[split]]
    for name in names:
        if (Path(folder) / name).is_file():
            return Path(folder) / name
    hints = (f"; {what}" for part, what in ORIGINS.items() for one in patterns if part in one)
    hint = next(hints, "")
    raise InputError(f"{folder}: none of {', '.join(names)} is there{hint}")


def read_captions(path: str | Path) -> SideInput:
    """`{'img_id': …, 'text': …}` a line, Python literal (CAMIM) or JSON; outer blanks are cut."""
    path = Path(path)
    values: dict[str, str] = {}

    def add(_: int, record: Any) -> None:
        if not isinstance(record, dict) or not {"img_id", "text"} <= record.keys():
            raise InputError("expected an object with img_id and text")
        image_id, text = record["img_id"], record["text"]
        if not isinstance(image_id, str) or not image_id or not isinstance(text, str):
            raise InputError("img_id and text must be strings")
        if image_id in values:
            raise InputError(f"a second caption of {image_id}; keep one")
        values[image_id] = text.strip()

    parser = json_object if path.suffix == ".jsonl" else python_literal
    parse_records(path, read_records(path, parser), add)
    # Published files hold both kinds: told, not refused.
    empty = sum(not text for text in values.values())
    filler = [text for text in values.values() if _one_word_again(text)]
    notes: tuple[str, ...] = ()
    if empty:
        notes += (f"{empty} of {len(values)} captions are empty",)
    if filler:
        notes += (
            f"{len(filler)} of {len(values)} captions say one word again and again, such as "
            f"{filler[0][:40]!r}",
        )
    return SideInput(path=path, keyed_by="image", values=not_empty(values, path), notes=notes)


def _one_word_again(text: str) -> bool:
    """`person, person, person`: what captioners write of a picture they make nothing of."""
    words = text.lower().replace(",", " ").split()
    return len(words) > 2 and len(set(words)) == 1


def read_phrases(path: str | Path) -> SideInput:
    """`{"<row>": "words of the queries"}`, one JSON object (TMR on MNRE). Leaks the label."""
    path, values = Path(path), {}
    for key, phrase in _phrases(path).items():
        if not key.isdecimal() or not phrase.strip():
            raise InputError(f"{path}: key {key!r}: expected a row number and its phrase")
        values[int(key)] = phrase
    return SideInput(path=path, keyed_by="row", values=not_empty(values, path), leaky=True)


def read_image_phrases(path: str | Path) -> SideInput:
    """`{"<id>.jpg": "words of the queries"}`, one JSON object (TMR on Twitter): from the text."""
    path, values = Path(path), _phrases(Path(path))
    for key in values:
        if "." not in key:
            raise InputError(f"{path}: key {key!r}: expected the name of a picture and its phrase")
    empty = sum(not phrase.strip() for phrase in values.values())
    notes = (f"{empty} of {len(values)} phrases are empty",) if empty else ()
    return SideInput(path=path, keyed_by="image", values=not_empty(values, path), notes=notes)


def _phrases(path: Path) -> dict[str, str]:
    """A JSON object of strings."""
    try:
        content = json.loads(read_text(path))
    except ValueError as error:
        raise InputError(f"{path}: not JSON ({error})") from None
    if not isinstance(content, dict):
        raise InputError(f"{path}: expected an object that maps rows or pictures to phrases")
    for key, phrase in content.items():
        if not isinstance(phrase, str):
            raise InputError(f"{path}: key {key!r}: its phrase is no text")
    return content


def read_scores(path: str | Path) -> SideInput:
    """`img_id<TAB>number` a line (TMR). A picture may have several lines; the last one counts.

    The published files have one line a row but name only the picture, so where the rows of one
    picture differ, nobody can tell which line belongs to which; `notes` counts such pictures.
    """
    path, differing = Path(path), set()
    values: dict[str, float] = {}

    def add(_: int, line: str) -> None:
        image_id, _tab, number = line.partition("\t")
        score = finite_number(number)
        if not image_id or score is None:
            raise InputError(f"expected img_id<TAB>number, found {line[:60]!r}")
        if values.setdefault(image_id, score) != score:
            differing.add(image_id)
        values[image_id] = score

    parse_records(path, read_records(path, str), add)
    notes = (f"{len(differing)} pictures have several scores",) if differing else ()
    return SideInput(path=path, keyed_by="image", values=not_empty(values, path), notes=notes)


def read_crop_names(path: str | Path) -> SideInput:
    """Row -> names of the community's crop files, from a `.pth`. Leaks the label.

    The key is the line number in the text file, although the publishers' README says image name.
    """
    path = Path(path)
    values = {}
    for row, names in _row_keyed(path):
        if not all(isinstance(name, str) and name and "/" not in name for name in names):
            raise InputError(f"{path}: row {row}: expected names of crop files")
        values[row] = tuple(names)
    return SideInput(path=path, keyed_by="row", values=not_empty(values, path), leaky=True)


def read_image_crops(path: str | Path) -> SideInput:
    """Picture -> crop files, best first, from a `.pth`: detected objects, the same for all rows.

    HVPNeT's `twitter201x_{split}_dict.pth` names the picture, MNRE's `{split}_img2crop.pth` gives
    its name without ending, and paths instead of names.
    """
    path, values = Path(path), {}
    for name, crops in keyed_lists(path):
        if not isinstance(name, str) or not name:
            raise InputError(f"{path}: key {name!r}: expected the name of a picture")
        if not all(isinstance(crop, str) and crop for crop in crops):
            raise InputError(f"{path}: {name}: expected names of crop files")
        values[name] = tuple(crops)
    dotted = any("." in name for name in values)
    keyed_by: Literal["image", "stem"] = "image" if dotted else "stem"
    return SideInput(path=path, keyed_by=keyed_by, values=not_empty(values, path))


def read_generated_boxes(path: str | Path) -> SideInput:
    """Row -> boxes in the generated 768 × 768 picture, from a `.pth` (TMR). Leaks the label.

    Boxes without area after rounding are left out; `notes` counts them.
    """
    path, flat = Path(path), 0
    values: dict[int, tuple[Box, ...]] = {}
    for row, boxes in _row_keyed(path):
        try:
            rounded: list[Any] = [tuple(float(side) for side in box) for box in boxes]
        except (TypeError, ValueError):
            raise InputError(f"{path}: row {row}: expected boxes (x1, y1, x2, y2)") from None
        if not all(len(box) == 4 and all(map(math.isfinite, box)) for box in rounded):
            raise InputError(f"{path}: row {row}: expected boxes of four finite numbers")
        solid = [b for b in rounded if round(b[2]) > round(b[0]) and round(b[3]) > round(b[1])]
        flat += len(rounded) - len(solid)
        values[row] = tuple(solid)
    notes = (f"{flat} boxes without area left out",) if flat else ()
    return SideInput(
        path=path, keyed_by="row", values=not_empty(values, path), leaky=True, notes=notes
    )


def read_types(path: str | Path) -> SideInput:
    """Row -> (head type, tail type), from `{"row", "head", "tail"}` lines after a header line."""
    path = Path(path)
    values: dict[int, tuple[str, str]] = {}
    header, records = read_with_header(path, "leaky", bool)

    def add(_: int, record: dict[str, Any]) -> None:
        row, head, tail = (record.get(key) for key in ("row", "head", "tail"))
        if not is_row(row) or not all(isinstance(text, str) and text for text in (head, tail)):
            raise InputError("expected row, head and tail")
        if row in values:
            raise InputError(f"row {row} a second time")
        values[row] = str(head), str(tail)

    parse_records(path, records, add)
    return SideInput(
        path=path,
        keyed_by="row",
        values=not_empty(values, path),
        leaky=header["leaky"],
        header=header,
    )


def read_features(path: str | Path) -> SideInput:
    """Row -> any JSON value, from `{"row", "feature"}` lines: something for the audit to judge."""
    path = Path(path)
    values: dict[int, Any] = {}

    def add(_: int, record: dict[str, Any]) -> None:
        if not is_row(record.get("row")):
            raise InputError("expected an object with row and feature")
        if "feature" not in record or record["row"] in values:
            raise InputError(f"no feature, or row {record['row']} a second time")
        values[record["row"]] = record["feature"]

    parse_records(path, read_records(path), add)
    return SideInput(path=path, keyed_by="row", values=not_empty(values, path))


def _row_keyed(path: Path) -> Iterator[tuple[int, list[Any]]]:
    """Items of a dict from row number to list."""
    for row, items in keyed_lists(path):
        if not is_row(row):
            raise InputError(f"{path}: key {row!r}: expected a row number")
        yield row, items
