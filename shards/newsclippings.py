"""NewsCLIPpings over VisualNews as a corpus: one sub-split, or a union."""

import json
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import numpy as np

from shards.corpora import Corpus, ImageFolder, PictureFolder, Record, Reject, is_text
from shards.files import InputError
from shards.json_files import is_number

Subset = Literal[
    "merged_balanced",
    "person_sbert_text_text",
    "scene_resnet_place",
    "semantics_clip_text_image",
    "semantics_clip_text_text",
]
SUBSETS: tuple[str, ...] = get_args(Subset)
BLANKS = re.compile(r"[ \t\r\n]*")
SOURCES = ("guardian", "bbc", "usa_today", "washington_post")


ROW = np.dtype(
    [
        ("row", "i8"),  # over all sub-splits, one after the other
        ("subset", "i1"),
        ("id", "i8"),
        ("image_id", "i8"),
        ("falsified", "?"),
        ("similarity", "f8"),
    ]
)


def newsclippings(
    news_clippings: Path, visual_news: Path, subsets: Sequence[str], split: str
) -> Corpus:
    """NewsCLIPpings rows, their captions and pictures looked up in VisualNews by id.

    Args:
        news_clippings: folder that holds `data/<subset>/<split>.json`.
        visual_news: folder that holds `origin/data.json`.
        subsets: names of sub-splits; their rows are numbered one after the other.
        split: train, val or test.
    """
    origin = Path(visual_news) / "origin"
    table, starts, rejects = _read_table(news_clippings, subsets, split)
    ids = {*table["id"].tolist(), *table["image_id"].tolist()}
    # Of VisualNews, which is far larger, no more is kept than rows name.
    entries = read_visual_news(origin / "data.json", ids)

    def where(row: int) -> str:
        subset = int(np.searchsorted(starts, row, side="right")) - 1
        return f"{split}.json of {subsets[subset]}, annotation {row - starts[subset]}"

    keep, coverage = _look_up(table, entries, ImageFolder(origin), rejects)
    usable = table[keep]
    numbers = np.ascontiguousarray(usable["row"])  # searchsorted would copy a strided one each time

    def record(row: int) -> Record:
        line = usable[np.searchsorted(numbers, row)]
        caption_id, image_id = int(line["id"]), int(line["image_id"])
        similarity = float(line["similarity"])
        return Record(
            row=row,
            image=entries[image_id].image,
            caption=entries[caption_id].caption.strip(),
            matched=not line["falsified"],
            caption_id=str(caption_id),
            image_id=str(image_id),
            source=subsets[line["subset"]],
            similarity=None if np.isnan(similarity) else similarity,
        )

    return Corpus(
        split=split,
        pictures=PictureFolder(origin),
        numbers=numbers,
        groups=np.ascontiguousarray(usable["image_id"]),
        record=record,
        where=where,
        rejects=rejects,
        options={"corpus": "newsclippings", "subset": list(subsets), "split": split},
        report={"invariants": _invariants(table, starts), "coverage": coverage},
    )


def _read_table(
    news_clippings: Path, subsets: Sequence[str], split: str
) -> tuple[np.ndarray, list[int], list[Reject]]:
    """Well-formed annotations as `ROW`s, the number of each sub-split's first row, and the rest."""
    parts, starts, rejects = [], [0], []
    for number, subset in enumerate(subsets):
        annotations, rows = _read_annotations(_annotation_file(news_clippings, subset, split)), []
        for position, annotation in enumerate(annotations):
            row = starts[-1] + position
            problem = _annotation_problem(annotation)
            if problem:
                rejects.append(Reject(row, problem))
                continue
            similarity = annotation.get("similarity_score")
            similarity = similarity if is_number(similarity) else np.nan
            ids = annotation["id"], annotation["image_id"]
            rows.append((row, number, *ids, annotation["falsified"], similarity))
        parts.append(np.array(rows, dtype=ROW))
        starts.append(starts[-1] + len(annotations))
    return np.concatenate(parts), starts, rejects


class VisualNewsEntry(NamedTuple):
    """The fields of a VisualNews entry that a pair needs."""

    caption: str
    image: str
    source: str


def read_visual_news(path: Path, ids: set[int]) -> dict[int, VisualNewsEntry]:
    """The ids entries of VisualNews' `data.json`, read as a stream (the file is near 1 GB)."""
    entries = {}
    for entry in iterate_json_array(path):
        number = entry.get("id") if isinstance(entry, dict) else None
        if type(number) is not int or number not in ids:
            continue
        caption, image, source = (entry.get(k) for k in ("caption", "image_path", "source"))
        if isinstance(caption, str) and isinstance(image, str):
            source = source if source in SOURCES else "unknown"
            entries[number] = VisualNewsEntry(caption, os.path.normpath(image), source)
    return entries


def iterate_json_array(path: Path, chunk: int = 1 << 20) -> Iterator[Any]:
    """Elements of a JSON file that is one array of objects, holding about `chunk` characters."""
    decode, buffer, at = json.JSONDecoder().raw_decode, "", 0
    separator = "["  # what must stand before the next element
    try:
        with open(path, encoding="utf-8") as file:
            while True:
                more = file.read(chunk)
                buffer, at = buffer[at:] + more, 0
                while True:
                    start = _skip_blanks(buffer, at)
                    if start < len(buffer) and buffer[start] == "]" and separator == ",":
                        return
                    if start < len(buffer) and buffer[start] != separator:
                        raise InputError(f"{path}: not a JSON list (near {buffer[start:][:40]!r})")
                    first = _skip_blanks(buffer, start + 1)
                    if separator == "[" and buffer[first : first + 1] == "]":
                        return
                    try:
                        element, end = decode(buffer, first)
                    except json.JSONDecodeError:
                        break  # cut by the chunk's end, or broken: known when no more comes
                    yield element
                    at, separator = end, ","
                if not more:
                    near = buffer[at:][:40]
                    raise InputError(f"{path}: broken or cut short near {near!r}; fetch it again")
    except (OSError, UnicodeDecodeError, RecursionError) as error:
        raise InputError(f"{path}: cannot be read ({error})") from error


def _skip_blanks(text: str, at: int) -> int:
    blanks = BLANKS.match(text, at)
    assert blanks  # it matches nothing, too
    return blanks.end()


def _annotation_file(root: Path, subset: str, split: str) -> Path:
    path = Path(root) / "data" / subset / f"{split}.json"
    if not path.is_file():
        if not Path(root).is_dir():
            raise InputError(f"--news-clippings {root}: no such folder; give the one with data/")
        subsets = sorted(p.parent.name for p in Path(root).glob(f"data/*/{split}.json"))
        advice = f"--subset can be {', '.join(subsets)}" if subsets else "no sub-split here has one"
        raise InputError(f"{path}: no such file; {advice}")
    return path


def _read_annotations(path: Path) -> list[Any]:
    try:
        annotations = json.loads(path.read_bytes())["annotations"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(f"{path}: not a NewsCLIPpings file ({error!r})") from error
    if not isinstance(annotations, list):
        raise InputError(f"{path}: `annotations` is no list")
    return annotations


def _annotation_problem(annotation: Any) -> str | None:
    if not isinstance(annotation, dict):
        return "annotation is no JSON object"
    for name in ("id", "image_id"):
        value = annotation.get(name)
        if type(value) is not int or not 0 <= value < 2**63:
            return f"`{name}` is missing or no id"
    if not isinstance(annotation.get("falsified"), bool):
        return "`falsified` is missing or neither true nor false"
    return None


def _look_up(
    table: np.ndarray,
    entries: dict[int, VisualNewsEntry],
    folder: ImageFolder,
    rejects: list[Reject],
) -> tuple[np.ndarray, dict[str, Any]]:
    """Mask of the rows whose caption and picture exist; the others join `rejects`."""
    keep = np.ones(len(table), dtype=bool)
    coverage: dict[str, Counter[str]] = {source: Counter() for source in (*SOURCES, "unknown")}
    for number, (row, _, caption_id, image_id, _, _) in enumerate(table.tolist()):
        caption, image = entries.get(caption_id), entries.get(image_id)
        problem: str | None
        if caption is None or image is None:
            missing = caption_id if caption is None else image_id
            problem = f"VisualNews has no usable entry {missing}"
        elif not caption.caption.strip() or not is_text(caption.caption):
            problem = f"VisualNews entry {caption_id} has no usable caption"
        else:
            problem = folder.problem(image.image)
        counts = coverage[image.source if image else "unknown"]
        counts["rows"] += 1
        counts["usable"] += problem is None
        if problem:
            keep[number] = False
            rejects.append(Reject(row, problem))
    return keep, {source: dict(counts) for source, counts in coverage.items() if counts}


def _invariants(table: np.ndarray, starts: list[int]) -> dict[str, int]:
    """Rows that break what NewsCLIPpings promises; 0 everywhere is good."""
    offsets = table["row"] - np.array(starts)[table["subset"]]
    odd, same = offsets % 2 == 1, table["id"] == table["image_id"]
    return {
        "even row falsified, or odd row pristine": int((odd != table["falsified"]).sum()),
        "pristine row of two ids": int((~table["falsified"] & ~same).sum()),
        "falsified row of one id": int((table["falsified"] & same).sum()),
        "matched rows minus mismatched rows": int(len(table) - 2 * table["falsified"].sum()),
    }
