"""Other people's tars as a shard directory, read in place.

What opening needs is read once for each tar: where its pairs lie, their captions, the size in each
picture's header. That table is kept in the cache folder (`shards.location`), by path, size and time
of the tar, for the other processes of a run and for the next run.
"""

import fcntl
import hashlib
import json
import os
import weakref
from collections import Counter, OrderedDict
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np

from shards.arrays import map_arrays, pack
from shards.corpora import is_text, text_id
from shards.files import InputError, atomic_path, file_sha256
from shards.foreign import Entry, expand, read_tar
from shards.images import QUALITY, RejectedImage, header, stored_bytes
from shards.index import ShardIndex, ShardInfo
from shards.location import cache_folder, names_tars
from shards.rows import Member, Rows, check_rows, make_rows
from shards.schema import PairMeta, PictureMeta
from shards.shard import OpenShard, Picture, Sample
from shards.stream import ShardReader

VERSION = 1
"""Of the tables; a change of what they hold or of what is refused counts it up."""
HEADER = 1 << 16
"""Bytes in which most JPEGs say their size."""


def open_shards(
    location: str | os.PathLike[str], *, columns: Sequence[str] = (), cache: Path | None = None
) -> ShardReader:
    """A shard directory, or tars; arguments and errors as of the readers."""
    if names_tars(location):
        return TarReader(location, columns=columns, cache=cache)
    return ShardReader(location, columns=columns, cache=cache)


class Refusal(NamedTuple):
    """A key that is no pair."""

    where: str
    """`00000.tar: key`"""
    reason: str


class TarReader(ShardReader):
    """A tar is a shard, a key with a picture and a caption a matched pair; there are no columns."""

    def __init__(
        self,
        location: str | os.PathLike[str],
        *,
        columns: Sequence[str] = (),
        cache: Path | None = None,
    ) -> None:
        """
        Args:
            location: tars of this machine, with `*` or `{00000..00099}`.
            columns: none, or an error.
            cache: folder for the tables.
        """
        self.location = os.fspath(location)
        if columns:
            raise InputError(
                f"{location}: tars as they are have no column of {' or '.join(columns)}; "
                f"`python -m shards build webdataset --tars '{location}'` makes shards that can"
            )
        if "://" in self.location:
            raise InputError(f"{location}: tars are read in place from local disks alone")
        self.cache = cache or cache_folder()
        self.paths = expand([self.location])
        self.refusals: list[Refusal] = []
        shards = []
        for number, path in enumerate(self.paths):
            table = read_table(path, self.cache)
            self.refusals += table.refusals
            pairs = len(table.rows.picture)
            # Names by number: what people call their tars is no name of a shard.
            name, size = f"tar-{number:06d}.tar", path.stat().st_size
            shards.append(ShardInfo(name, pairs, pairs, size, table.sha256, pairs))
        pairs, refused = sum(shard.samples for shard in shards), len(self.refusals)
        self.index = ShardIndex("train", tuple(shards), pairs + refused, refused)
        if not pairs:
            raise InputError(f"{location}: no pair; {self.summary()}")
        self.columns = {}
        self._open = OrderedDict()

    def has_column(self, column: str) -> bool:
        """See `ShardReader`."""
        return False

    def summary(self) -> str:
        """What became of the keys, in a line."""
        index, reasons = self.index, Counter(refusal.reason for refusal in self.refusals)
        refused = "".join(f"; {count} x {reason}" for reason, count in reasons.most_common(8))
        return (
            f"{len(index.shards):,} tars: {index.rows:,} keys = {index.samples:,} pairs + "
            f"{index.rejects:,} rejects{refused}"
        )

    def write_rejects(self, path: Path) -> None:
        """Every reject by name, as `build` lists them."""
        with atomic_path(path) as temporary, open(temporary, "w", encoding="utf-8") as file:
            for refusal in self.refusals:
                file.write(json.dumps(refusal._asdict()) + "\n")

    def _shard(self, number: int) -> OpenShard:
        path = self.paths[number]
        return TarShard(path, read_table(path, self.cache, self.index.shards[number].sha256))


class TarShard(OpenShard):
    """A tar, opened for access by row and by picture."""

    def __init__(self, path: Path, table: "Table") -> None:
        self.path, self.rows, self.plain = path, table.rows, table.plain
        self.matched, self.objects, self.teacher = len(table.rows.picture), None, None
        self.file = os.open(path, os.O_RDONLY)
        weakref.finalize(self, os.close, self.file)

    def image(self, number: int) -> bytes:
        """The picture as RGB or grey JPEG, upright: one that is no such thing is encoded anew."""
        at, size = self.rows.places[number, :2].tolist()
        content = os.pread(self.file, size, at)
        if self.plain[number]:
            return content
        name = Path(f"{self.path}: {self.rows.picture_key(number)}")
        return stored_bytes(name, content, None, QUALITY).content

    def picture(self, number: int) -> Picture:
        """See `OpenShard`."""
        pair, key = self._pair(number), self.rows.picture_key(number)
        return Picture(key, self.image(number), PictureMeta(pair.image_id, pair.size, 1, (pair,)))

    def read(self, row: int) -> Sample:
        """See `OpenShard`; a picture is of one pair."""
        return Sample(self.rows.key(row), self.image(row), self._pair(row))

    def _pair(self, row: int) -> PairMeta:
        width, height = self.rows.sizes[row].tolist()
        key, caption = self.rows.key(row), self.rows.caption(row)
        return _meta(key, caption, (width, height), self.path)


class Table(NamedTuple):
    """What is read of a tar once."""

    rows: Rows
    plain: np.ndarray
    """(P,) bool: the picture is an upright RGB or grey JPEG."""
    refusals: list[Refusal]
    sha256: str
    """Of all this."""


def read_table(path: Path, cache: Path, sha256: str | None = None) -> Table:
    """The table of a tar, from the cache folder, where it is put when it is not there.

    Args:
        sha256: what it must be.

    Raises:
        InputError: no tar, a cut one, one that changed since `sha256` was taken; a cache folder
            that cannot be written.
    """
    stat = path.stat()
    identity = json.dumps([VERSION, os.path.realpath(path), stat.st_size, stat.st_mtime_ns])
    cached = cache / f"tar-{hashlib.sha256(identity.encode()).hexdigest()}.safetensors"
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with open(f"{cached}.lock", "w") as lock:  # one process reads a tar; the others wait for it
            fcntl.flock(lock, fcntl.LOCK_EX)
            table = _kept(cached)
            if table is None:
                with atomic_path(cached) as temporary:
                    temporary.write_bytes(_make(path))
                table = _kept(cached)
    except OSError as error:
        raise InputError(
            f"{cache}: tables of tars cannot be kept there ({error.strerror}); set "
            "FUSION_MRE_CACHE to a folder that can be written"
        ) from error
    assert table  # just written
    if sha256 not in (None, table.sha256):
        raise InputError(f"{path}: changed since it was first read")
    return table


def _kept(path: Path) -> Table | None:
    """None: not there, or damaged."""
    try:
        tensors, about = map_arrays(path)
        plain, pairs = tensors.pop("plain"), len(tensors["picture"])
        rows = check_rows(tensors, str(path), pairs, pairs)
        refusals = [Refusal(where, reason) for where, reason in about]
        return Table(rows, plain, refusals, str(file_sha256(path)))
    except (InputError, KeyError, TypeError, ValueError):
        return None


def _make(path: Path) -> bytes:
    pictures, plain, refusals = [], [], []
    with open(path, "rb") as file:
        for entry in read_tar(0, path):
            try:
                size, is_plain = _header(file.fileno(), path, entry)
            except RejectedImage as error:
                refusals.append(Refusal(f"{path.name}: {entry.key}", error.reason))
                continue
            assert entry.image and entry.caption  # `_header` asks
            member = Member(f"{path.stem}/{entry.key}", *entry.image, 0, 0)
            pair = _meta(member.key, entry.caption.strip(), size, path)
            pictures.append((member, PictureMeta(pair.image_id, size, 1, (pair,))))
            plain.append(is_plain)
    content = make_rows(pictures)._asdict() | {"plain": np.array(plain, bool)}
    return pack(content, refusals)


def _header(file: int, path: Path, entry: Entry) -> tuple[tuple[int, int], bool]:
    """(width, height) of an entry's picture, and whether it is `plain`.

    Raises:
        RejectedImage: no usable picture or caption, as far as the header tells.
    """
    if entry.problem or not entry.image:
        raise RejectedImage(path, entry.problem)
    if not is_text(entry.key):
        raise RejectedImage(path, "its name is no UTF-8")
    at, size = entry.image
    content = os.pread(file, min(size, HEADER), at)
    if size > HEADER and content.startswith(b"\xff\xd8"):
        with suppress(RejectedImage):  # a long header
            return header(path, content)
    return header(path, content if size <= HEADER else os.pread(file, size, at))


def _meta(key: str, caption: str, size: tuple[int, int], path: Path) -> PairMeta:
    return PairMeta(caption, True, text_id(caption), key, size, path.parent.name or "webdataset")
