"""Records -> tar shards: parallel, resumable, the same bytes every time.

Killed at any moment, a build goes on with the first shard that is not finished. What is finished
is known from `.build/<shard>.json`, written after the tar's rename; `index.json` comes last.
`.build` stays: thanks to it a tar that was lost is written again alone, by the same command.

A picture is stored once, its pairs beside it, in one shard: what looks at pictures looks at each
once, and any shard can be fetched, moved and checked by itself.

Memory does not grow with the pictures: one a process at a time, and few shards' records. What grows
is the corpus' look-up, near 0.4 KiB a pair (rows; each article's caption and path): 0.4 GiB for
20,000 pairs, which extends to 0.8 GiB for 1.1 M (same benchmark).
"""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, astuple, dataclass
from importlib.metadata import version
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from shards.arrays import pack
from shards.claim import STATE, claim, is_whole, require_same_input, same_pictures, start
from shards.corpora import Corpus, PictureSource, Record, Reject
from shards.files import InputError, atomic_path, file_sha256, sweep
from shards.images import QUALITY, SHORT_SIDE, RejectedImage, Stored
from shards.index import ShardIndex, ShardInfo
from shards.json_files import read_json, write_json
from shards.locks import lock
from shards.processes import in_order
from shards.progress import Progress
from shards.rows import make_rows
from shards.schema import INDEX_NAME, KEY_PATTERN, REJECTS_NAME, ROWS, PairMeta, PictureMeta
from shards.shard import read_metas, rows_name, with_checksum

MIN_SHARDS, MIN_SAMPLES, MAX_SAMPLES = 64, 32, 2048


@dataclass(frozen=True)
class Form:
    """How pictures are stored."""

    short_side: int | None = SHORT_SIDE
    """Larger ones are made smaller to it; None: none is."""
    quality: int = QUALITY
    """Of what is encoded."""


@dataclass(frozen=True)
class ShardTask:
    """One tar to write: all that a worker process needs."""

    name: str
    directory: Path
    pictures: PictureSource
    records: tuple[Record, ...]
    """Those of a picture stand together."""
    split: str
    form: Form

    def digest(self) -> str:
        """Changes whenever the tar's content would."""
        return _hashed([self.name, self.split, *asdict(self.form).values(), self.records])

    def stamps(self) -> dict[str, str]:
        """Changes whenever sizes or times of pictures do: a hash of `sizes`, one of both."""
        stamps = list(map(self.pictures.stamp, self.images()))
        return {"sizes": _hashed([size for size, _ in stamps]), "times": _hashed(stamps)}

    def contents(self) -> str:
        """Changes whenever a picture does."""
        return _hashed(list(map(self.pictures.crc32, self.images())))

    def images(self) -> Iterable[str]:
        """Each picture once, in order."""
        return dict.fromkeys(record.image for record in self.records)


def _hashed(values: Any) -> str:
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()


def build(
    corpus: Corpus,
    directory: Path,
    *,
    form: Form = Form(),
    shard_size: int | None = None,
    seed: int = 0,
    jobs: int = 1,
    command: str = "",
) -> ShardIndex:
    """Write a corpus as shards; a build that was interrupted goes on where it stopped.

    The pictures are permuted once, over the whole corpus, so that the two rows of a NewsCLIPpings
    pair do not share a shard (let alone a batch).

    Args:
        directory: holds one split; an other corpus or other options in it are an error.
        form: how pictures are stored.
        shard_size: pairs per tar, about, for pictures are not parted; by default such that there
            are 64 tars or more.
        jobs: processes; the bytes do not depend on it.
        command: the command line, for `verify` to print where a tar must be written again.
    """
    if not KEY_PATTERN.fullmatch(corpus.split):
        raise InputError(f"split {corpus.split!r}: only letters, digits, _ and - may name a split")
    if not len(corpus.numbers):
        reasons = Counter(reject.reason for reject in corpus.rejects).most_common(1)
        most = "".join(f"; most frequent reason: {reason} ({n})" for reason, n in reasons)
        raise InputError(f"no usable row among {corpus.rows}{most}")
    options = corpus.options | asdict(form) | {"shard_size": shard_size, "seed": seed}

    def tasks() -> Iterator[ShardTask]:
        return _tasks(corpus, directory, form=form, shard_size=shard_size, seed=seed)

    with lock(directory):
        finished = claim(directory, options)
        if finished:
            require_same_input(directory, finished, corpus, tasks())
            if all(_is_whole(directory, shard) for shard in finished.shards):
                return finished
        start(directory, options, command)
        return _write(corpus, directory, tasks(), options, jobs)


def _write(
    corpus: Corpus, directory: Path, tasks: Iterable[ShardTask], options: dict[str, Any], jobs: int
) -> ShardIndex:
    infos, rejects = [], list(corpus.rejects)
    pairs: Progress[None] = Progress(unit="pair", total=len(corpus.numbers), desc="build")
    with pairs:
        for info, refused in in_order(write_shard, tasks, jobs):
            infos.append(info)
            rejects += refused
            pairs.advance(info.samples + len(refused))
    index = ShardIndex(
        split=corpus.split,
        # Of a shard all of whose pictures were refused an empty tar is left: `_finish` removes it.
        shards=tuple(info for info in infos if info.samples),
        rows=corpus.rows,
        rejects=len(rejects),
        checksums=True,
        provenance={
            "options": options,
            "report": corpus.report,
            "versions": {name: version(name) for name in ("fusion-mre", "pillow", "webdataset")},
        },
    )
    _finish(directory, index, rejects, corpus.where)
    return index


def _tasks(
    corpus: Corpus, directory: Path, *, form: Form, shard_size: int | None, seed: int
) -> Iterator[ShardTask]:
    _, groups = np.unique(corpus.groups, return_inverse=True)
    place = np.random.default_rng([seed, 0]).permutation(groups.max() + 1)[groups]  # of pictures
    rows = np.lexsort((corpus.numbers, place))
    numbers, place = corpus.numbers[rows], place[rows]
    # A picture goes where its first pair falls.
    shard = np.searchsorted(place, place) * shard_count(len(numbers), shard_size) // len(numbers)
    parts = np.split(numbers, np.flatnonzero(np.diff(shard)) + 1)
    for number, part in enumerate(parts):
        yield ShardTask(
            name=f"{corpus.split}-{number:06d}.tar",
            directory=directory,
            pictures=corpus.pictures,
            records=tuple(map(corpus.record, part.tolist())),
            split=corpus.split,
            form=form,
        )


def shard_count(samples: int, shard_size: int | None) -> int:
    """Number of tars: 64 where each still gets 32 samples, more where one had over 2,048."""
    if shard_size:
        return -(-samples // shard_size)
    return max(1, min(samples // MIN_SAMPLES, MIN_SHARDS), -(-samples // MAX_SAMPLES))


def write_shard(task: ShardTask) -> tuple[ShardInfo, list[Reject]]:
    """Write one tar and its table, or read back what an earlier run says about them."""
    state = task.directory / STATE / f"{task.name}.json"
    done = _finished(task, state)
    if done:
        return done
    stamps = task.stamps()  # before pictures are read: a change afterwards must be noticed
    matched, rejects, contents = 0, list[Reject](), dict[str, int]()
    with atomic_path(task.directory / task.name) as temporary:
        with open(temporary, "wb") as file, _tar_writer(file) as tar:
            for _, group in groupby(task.records, key=lambda record: record.image_id):
                records = list(group)
                try:
                    stored = task.pictures.stored(records[0].image, *astuple(task.form))
                except RejectedImage as error:
                    contents[records[0].image] = task.pictures.crc32(records[0].image)
                    rejects += [Reject(record.row, error.reason) for record in records]
                    continue
                contents[records[0].image] = stored.crc32
                key = f"{task.split}_{records[0].row:08d}"  # unique, whatever the file was called
                json_member = with_checksum(key, stored.content, _meta(records, stored).to_json())
                tar.write({"__key__": key, "jpg": stored.content, "json": json_member})
                matched += sum(record.matched for record in records)
        with open(temporary, "rb") as written:
            rows = make_rows(read_metas(written.fileno(), task.name))
        sha256, size = file_sha256(temporary) or "", temporary.stat().st_size
        stem = task.name.removesuffix(".tar")
        with atomic_path(task.directory / rows_name(stem)) as table:
            table.write_bytes(content := pack(rows._asdict()))
    info = ShardInfo(
        name=task.name,
        samples=len(rows.picture),
        matched=matched,
        bytes=size,
        sha256=sha256,
        pictures=len(rows.sizes),
        rows_sha256=hashlib.sha256(content).hexdigest(),
    )
    about = {"digest": task.digest(), "info": asdict(info), "rejects": rejects}
    about |= {"pictures": stamps["sizes"], "times": stamps["times"]}
    about["contents"] = _hashed([contents[name] for name in task.images()])
    write_json(state, about, checksum=True)
    return info, rejects


def _meta(records: Sequence[Record], stored: Stored) -> PictureMeta:
    first = records[0]
    pairs = tuple(
        PairMeta(
            caption=record.caption,
            matched=record.matched,
            caption_id=record.caption_id,
            image_id=first.image_id,
            size=stored.size,
            source=record.source,
            similarity=record.similarity,
            orientation=stored.orientation,
            row=record.row,
        )
        for record in records
    )
    return PictureMeta(first.image_id, stored.size, stored.orientation, pairs)


def _is_whole(directory: Path, info: ShardInfo) -> bool:
    """Whether a tar and its table are there."""
    table = file_sha256(directory / rows_name(info.stem))
    return is_whole(directory / info.name, info) and table == info.rows_sha256


def _tar_writer(file):
    from webdataset import TarWriter

    # A fixed time and mode: equal input must give equal bytes.
    return TarWriter(file, encoder=False, mtime=0, mode=0o644, user="", group="")


def _finished(task: ShardTask, state: Path) -> tuple[ShardInfo, list[Reject]] | None:
    if not state.exists():
        return None
    try:
        saved = read_json(state)
        info = ShardInfo(**saved["info"])
        rejects = [Reject(*reject) for reject in saved["rejects"]]
        same = saved["digest"] == task.digest() and same_pictures(saved, task)
    except (InputError, ValueError, KeyError, TypeError):
        return None  # damaged: the tar is written again, to the same bytes
    return (info, rejects) if same and _is_whole(task.directory, info) else None


def _finish(
    directory: Path, index: ShardIndex, rejects: list[Reject], where: Callable[[int], str]
) -> None:
    """Rejects, then the index: the directory is complete with its last rename."""
    if not index.samples:
        first = f"{where(rejects[0].row)}: {rejects[0].reason}"
        raise InputError(f"no usable picture among {index.rows} rows; the first: {first}")
    names = {shard.name for shard in index.shards}
    for path in directory.glob(f"{index.split}-*.tar"):
        if path.name not in names:  # empty, or of an interrupted build over other raw files
            path.unlink()
            (directory / rows_name(path.stem)).unlink(missing_ok=True)
    with (
        atomic_path(directory / REJECTS_NAME) as temporary,
        open(temporary, "w", encoding="utf-8") as file,
    ):
        for row, reason in sorted(rejects):
            line = {"row": row, "where": where(row), "reason": reason}
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
    write_json(directory / INDEX_NAME, index.to_dict(), checksum=True)
    for folder in (directory, directory / STATE, directory / ROWS):
        sweep(folder)
