"""Other people's WebDataset tars (img2dataset's, for example) as a raw corpus."""

import glob
import os
import re
import tarfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np

from shards.corpora import Corpus, Record, Reject, is_text, mismatches, text_id
from shards.files import InputError
from shards.images import Stored, stored_bytes
from shards.json_files import parse_object

PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".avif", ".gif", ".bmp", ".tif", ".tiff")
LARGEST_TEXT = 1 << 20  # bytes


class Entry(NamedTuple):
    """What the tars have under one key."""

    tar: int
    key: str
    image: tuple[int, int] | None
    """(offset, size) in the tar."""
    caption: str | None
    problem: str
    """Why it is no pair; "": it is one."""


@dataclass(frozen=True)
class TarPictures:
    """A `PictureSource` of places `tar/offset/size`."""

    paths: tuple[Path, ...]

    def stored(self, image: str, short_side: int | None, quality: int) -> Stored:
        """See `PictureSource`."""
        return stored_bytes(*self._content(image), short_side, quality)

    def _content(self, image: str) -> tuple[Path, bytes]:
        tar, offset, size = map(int, image.split("/"))
        with open(self.paths[tar], "rb") as file:
            return self.paths[tar], os.pread(file.fileno(), size, offset)

    def stamp(self, image: str) -> tuple[int, int]:
        """See `PictureSource`."""
        tar, _, size = map(int, image.split("/"))
        return size, self.paths[tar].stat().st_mtime_ns

    def crc32(self, image: str) -> int:
        """See `PictureSource`."""
        return zlib.crc32(self._content(image)[1])


def webdataset(
    patterns: Sequence[str], *, split: str = "train", mismatch: float = 0.5, seed: int = 0
) -> Corpus:
    """Pairs of a picture and a caption (`.txt`, else or if blank `caption` of `.json`) of one key.

    A key is a member's path up to its last dot; endings may be in capitals. Folders are passed
    over, members that are no picture and no caption counted; a key that lacks one of both, or
    comes again, is a reject.

    Args:
        patterns: tars, with `*` or `{00000..00099}`.
        mismatch: share of the rows that get the caption of another picture.
    """
    paths = expand(patterns)
    entries = [entry for number, path in enumerate(paths) for entry in read_tar(number, path)]
    rejects = [Reject(row, e.problem) for row, e in enumerate(entries) if e.problem]
    usable = [row for row, entry in enumerate(entries) if not entry.problem]
    lines = [(f"{paths[e.tar].stem}/{e.key}", e.caption or "") for e in entries]
    partner = mismatches(paths[0], lines, usable, mismatch, np.random.default_rng([seed, 2]))

    def record(row: int) -> Record:
        entry, caption = entries[row], lines[partner.get(row, row)][1].strip()
        assert entry.image  # it is usable
        return Record(
            row=row,
            image=f"{entry.tar}/{entry.image[0]}/{entry.image[1]}",
            caption=caption,
            matched=row not in partner,
            caption_id=text_id(caption),
            image_id=lines[row][0],
            source=paths[entry.tar].parent.name or "webdataset",
        )

    return Corpus(
        split=split,
        pictures=TarPictures(tuple(paths)),
        numbers=np.array(usable, np.int64),
        groups=np.array(usable, np.int64),
        record=record,
        where=lambda row: f"{paths[entries[row].tar].name}: {entries[row].key}",
        rejects=rejects,
        options={
            "corpus": "webdataset",
            "tars": [path.name for path in paths],
            "split": split,
            "mismatch": mismatch,
        },
        report={"tars": len(paths), "mismatched rows": f"{len(partner)} of {len(usable)}"},
    )


def expand(patterns: Sequence[str]) -> list[Path]:
    """The tars that patterns name, in order.

    Raises:
        InputError: a pattern that names none, or two tars of one name.
    """
    paths: list[Path] = []
    for pattern in patterns:
        texts = [text.replace("[", "[[]") for text in _ranges(pattern)]  # of `glob`, * alone
        matches = [Path(name) for text in texts for name in sorted(glob.glob(text))]
        if not matches:
            raise InputError(f"{pattern}: no such file")
        paths += matches
    names = [path.name for path in paths]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice:
        raise InputError(f"two are called {twice}; their keys could not be told apart")
    return paths


def _ranges(pattern: str) -> Iterator[str]:
    """`{00..03}` spelled out, as shells do."""
    match = re.search(r"\{(\d+)\.\.(\d+)\}", pattern)
    if match is None:
        yield pattern
        return
    for number in range(int(match[1]), int(match[2]) + 1):
        text = f"{number:0{len(match[1])}d}"
        yield from _ranges(pattern[: match.start()] + text + pattern[match.end() :])


def read_tar(number: int, path: Path) -> list[Entry]:
    """Every key of a tar, usable or not, in order of first appearance.

    Raises:
        InputError: no tar, or a cut one.
    """
    members: dict[str, dict[str, list[tuple[int, int] | None]]] = {}
    try:
        with tarfile.open(path, "r:") as tar, open(path, "rb") as file:
            for member in tar:
                if member.isdir():
                    continue
                name = PurePosixPath(member.name)
                key = str(name.with_suffix("") if name.name else name)
                place = (member.offset_data, member.size) if member.isfile() else None
                members.setdefault(key, {}).setdefault(name.suffix.lower(), []).append(place)
            if os.fstat(file.fileno()).st_size < tar.offset:
                raise InputError(f"{path}: is cut")
            return [_entry(number, key, endings, file.fileno()) for key, endings in members.items()]
    except (OSError, tarfile.TarError, EOFError) as error:
        raise InputError(f"{path}: cannot be read as an uncompressed tar ({error})") from error


def _entry(
    number: int, key: str, endings: dict[str, list[tuple[int, int] | None]], file: int
) -> Entry:
    """`endings`: where its members lie; None: a link or the like, which has no content."""
    pictures = [place for ending in PICTURES for place in endings.get(ending, [])]
    captions = endings.get(".txt") or endings.get(".json") or []

    def problem(reason: str) -> Entry:
        return Entry(number, key, None, None, reason)

    if not pictures and not captions:
        return problem(
            f"neither picture nor caption, but {', '.join(sorted(endings)) or 'nothing'}"
        )
    if not pictures or not captions:
        return problem("no picture of this key" if captions else "no .txt or .json of this key")
    if len(pictures) > 1 or len(captions) > 1:
        return problem("the key comes again")
    if pictures[0] is None or captions[0] is None:
        return problem("a link or a device, no file")
    offset, size = captions[0]
    if size > LARGEST_TEXT:
        return problem(f"a caption of {size:,} bytes")
    try:
        text = os.pread(file, size, offset).decode("utf-8-sig")
        caption = text if ".txt" in endings else parse_object(text, "its .json").get("caption")
    except UnicodeDecodeError:
        return problem("its caption is no UTF-8")
    except InputError as error:
        return problem(str(error))
    if not text.strip() and {".txt", ".json"} <= endings.keys():  # an empty .txt says nothing
        return _entry(number, key, {e: at for e, at in endings.items() if e != ".txt"}, file)
    if not isinstance(caption, str) or not caption.strip() or not is_text(caption):
        return problem("no usable caption")
    return Entry(number, key, pictures[0], caption, "")
