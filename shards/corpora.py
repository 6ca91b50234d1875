"""Raw corpora -> records: what a corpus is, and any file of captions as one.

A corpus reads its small files at once and its pictures never: `write.py` opens those, in parallel.
Every raw row ends either as a `Record` or as a `Reject`.
"""

import hashlib
import os
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from shards.caption_files import CaptionRow, read_caption_rows
from shards.files import InputError
from shards.images import RejectedImage, Stored, file_content, stored_image
from shards.records import Refused


class Record(NamedTuple):
    """One pair before its picture is opened."""

    row: int
    """Number of the raw row, over all files read."""
    image: str
    """What the corpus' `PictureSource` calls it."""
    caption: str
    matched: bool
    caption_id: str
    image_id: str
    source: str
    similarity: float | None = None


class Reject(NamedTuple):
    """A raw row that does not become a sample."""

    row: int
    reason: str


class PictureSource(Protocol):
    """Where a corpus has its pictures; picklable."""

    def stored(self, image: str, short_side: int | None, quality: int) -> Stored:
        """A picture, as it goes into a shard; errors as `stored_image`."""
        ...

    def stamp(self, image: str) -> tuple[int, int]:
        """(size in bytes, time of the last change); (-1, 0): there is none."""
        ...

    def crc32(self, image: str) -> int:
        """Of its bytes, as `Stored` has it; 0: there is none."""
        ...


@dataclass(frozen=True)
class PictureFolder:
    """Files, by paths relative to a folder."""

    root: Path

    def stored(self, image: str, short_side: int | None, quality: int) -> Stored:
        """See `PictureSource`."""
        return stored_image(self.root / image, short_side, quality)

    def stamp(self, image: str) -> tuple[int, int]:
        """See `PictureSource`."""
        try:
            stat = os.stat(self.root / image)
        except OSError:
            return -1, 0
        return stat.st_size, stat.st_mtime_ns

    def crc32(self, image: str) -> int:
        """See `PictureSource`."""
        try:
            return zlib.crc32(file_content(self.root / image))
        except RejectedImage:
            return 0


@dataclass(frozen=True)
class Corpus:
    """All rows of one split."""

    split: str
    pictures: PictureSource
    """Opens `Record.image`."""
    numbers: np.ndarray
    """Raw row numbers that may become samples, ascending."""
    groups: np.ndarray
    """Of each of these rows a number that is its picture's."""
    record: Callable[[int], Record]
    """Raw row number -> record."""
    where: Callable[[int], str]
    """Raw row number -> file and line or element, to find the row again."""
    rejects: Sequence[Reject]
    options: dict[str, Any]
    """What selects these rows: part of the provenance, and what a resumed build must repeat."""
    report: dict[str, Any] = field(default_factory=dict)
    """Invariants and coverage, for the index and for a person."""

    @property
    def rows(self) -> int:
        """Raw rows read."""
        return len(self.numbers) + len(self.rejects)


class ImageFolder:
    """Says which relative paths are pictures that exist below the folder."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._problems: dict[str, str | None] = {}

    def problem(self, path: str) -> str | None:
        """Why `path` cannot be used; None if it can. Asked once per path."""
        if path not in self._problems:
            self._problems[path] = self._check(path)
        return self._problems[path]

    def _check(self, path: str) -> str | None:
        normal = os.path.normpath(path)
        if not path or "\0" in path or not is_text(path):
            return "no usable image path"
        if os.path.isabs(normal) or normal.split(os.sep)[0] == os.pardir:
            return "image path leaves the image folder"
        return None if os.path.isfile(self.root / normal) else "image file is missing"


def captions(
    images: Path,
    csv_file: Path,
    *,
    split: str = "train",
    mismatch: float = 0.5,
    fraction: tuple[float, float] = (0.0, 1.0),
    seed: int = 0,
    delimiter: str | None = None,
    encoding: str | None = None,
) -> Corpus:
    """Rows of a file of captions, a share of them given the caption of another picture.

    Args:
        images: folder of the pictures.
        csv_file: see `read_caption_rows`.
        mismatch: share of the rows that get a wrong caption, never one of the same picture.
        fraction: (from, to): the share of the pictures taken, by a seeded permutation of all
            pictures; disjoint ranges never share a picture.
        delimiter, encoding: see `read_table`.
    """
    rows = read_caption_rows(Path(csv_file), delimiter=delimiter, encoding=encoding)
    lines = [_image_and_caption(row) for row in rows]
    readable = [row for row, line in enumerate(rows) if isinstance(line, CaptionRow)]
    names = list(dict.fromkeys(lines[row][0] for row in readable))
    # A stream of random numbers each (`write` has 0): no draw moves another.
    random = np.random.default_rng([seed, 1])
    bounds = [round(part * len(names)) for part in fraction]
    place = {name: number for number, name in enumerate(names)}
    chosen = {names[i] for i in random.permutation(len(names))[bounds[0] : bounds[1]]}
    folder, usable = ImageFolder(Path(images)), list[int]()
    rejects: list[Reject] = []

    def where(row: int) -> str:
        unit = "annotation" if Path(csv_file).suffix.lower() == ".json" else "line"
        return f"{Path(csv_file).name} {unit} {rows[row].line}"

    for row, (image, caption) in enumerate(lines):
        line = rows[row]
        if isinstance(line, Refused):  # of no known picture: in every fraction
            rejects.append(Reject(row, line.reason))
            continue
        if image not in chosen:
            continue
        problem = folder.problem(image)
        if problem is None and (not caption.strip() or not is_text(caption)):
            problem = "no usable caption"
        if problem:
            rejects.append(Reject(row, problem))
        else:
            usable.append(row)
    partner = mismatches(Path(csv_file), lines, usable, mismatch, np.random.default_rng([seed, 2]))

    # Asked for when its shard is written: so many records at a time are in memory.
    def record(row: int) -> Record:
        image = lines[row][0]
        caption = lines[partner.get(row, row)][1].strip()
        return Record(
            row=row,
            image=image,
            caption=caption,
            matched=row not in partner,
            caption_id=text_id(caption),
            image_id=image,
            source=Path(csv_file).stem,
        )

    return Corpus(
        split=split,
        pictures=PictureFolder(Path(images)),
        numbers=np.array(usable, dtype=np.int64),
        groups=np.array([place[lines[row][0]] for row in usable], dtype=np.int64),
        record=record,
        where=where,
        rejects=rejects,
        options={
            "corpus": "captions",
            "file": Path(csv_file).name,
            "split": split,
            "mismatch": mismatch,
            "fraction": list(fraction),
        },
        report={
            "pictures": f"{len(chosen)} of {len(names)}",
            "mismatched rows": f"{len(partner)} of {len(usable)} (--mismatch {mismatch:g})",
            "captions that no row carries": len(usable) - len({partner.get(r, r) for r in usable}),
        },
    )


def _image_and_caption(row: CaptionRow | Refused) -> tuple[str, str]:
    """Paths are spelled one way from here on: `./1.jpg` is the picture `1.jpg`."""
    if isinstance(row, Refused):
        return "", ""
    return os.path.normpath(row.image) if row.image else "", row.caption


def mismatches(
    path: Path,
    lines: list[tuple[str, str]],
    usable: list[int],
    share: float,
    random: np.random.Generator,
) -> dict[int, int]:
    """Row -> row whose caption it gets instead, for `share` of the usable rows."""
    own: dict[str, set[str]] = {}
    for image, caption in lines:
        own.setdefault(image, set()).add(caption.strip())
    partner = {}
    for row in random.permutation(usable)[: round(share * len(usable))].tolist():
        for _ in range(100):
            other = usable[random.integers(len(usable))]
            if lines[other][1].strip() not in own[lines[row][0]]:
                partner[row] = other
                break
        else:
            raise InputError(
                f"{path}: no wrong caption found for image {lines[row][0]}: there are too few "
                "different pictures; use --mismatch 0"
            )
    return partner


def is_text(text: str) -> bool:
    """Whether the text can be written as UTF-8: no lone surrogate of damaged bytes."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def text_id(text: str) -> str:
    """Equal for equal captions."""
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
