"""Records -> tar shards: parallel, resumable, the same bytes every time.

Killed at any moment, a build goes on with the first shard that is not finished. What is finished
is known from `.build/<shard>.json`, written after the tar's rename; `index.json` comes last.
`.build` stays: thanks to it a tar that was lost is written again alone, by the same command.

Pairs carry their JPEG, although one picture serves about two pairs. With pointers into picture
shards, each batch would need all of those at hand (now it needs one shard per canonical stream: 64
of 542 for 1.1 M pairs), and no shard could be fetched, moved or checked by itself. The price is
disk, twice as much (measured: `tests/bench/bench_shards.py`): near 80 GB for 1.1 M pairs, not 36.

Memory does not grow with the pictures: one a process at a time, and few shards' records. What grows
is the corpus' look-up, near 0.4 KiB a pair (rows; each article's caption and path): 0.4 GiB for
20,000 pairs, which extends to 0.8 GiB for 1.1 M (same benchmark).
"""

import hashlib
import json
import multiprocessing
import os
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from shards.claim import STATE, claim, is_whole, require_same_input, start
from shards.corpora import Corpus, Record, Reject
from shards.files import InputError, atomic_path, file_sha256, read_json, sweep, write_json
from shards.images import RejectedImage, picture_orientation, stored_image
from shards.locks import lock
from shards.processes import end_with
from shards.progress import Progress
from shards.schema import (
    INDEX_NAME,
    KEY_PATTERN,
    REJECTS_NAME,
    PairMeta,
    ShardIndex,
    ShardInfo,
)
from shards.shard import with_checksum

MIN_SHARDS, MIN_SAMPLES, MAX_SAMPLES = 64, 32, 2048


@dataclass(frozen=True)
class ShardTask:
    """One tar to write: all that a worker process needs."""

    name: str
    directory: Path
    images: Path
    records: tuple[Record, ...]
    split: str
    max_side: int

    def digest(self) -> str:
        """Changes whenever the tar's content would."""
        content = json.dumps([self.name, self.split, self.max_side, self.records])
        return hashlib.sha256(content.encode()).hexdigest()

    def pictures(self) -> str:
        """Changes whenever a picture's size in bytes does."""
        sizes = []
        for record in self.records:
            try:
                sizes.append(os.stat(self.images / record.image).st_size)
            except OSError:
                sizes.append(-1)
        return hashlib.sha256(json.dumps(sizes).encode()).hexdigest()


def build(
    corpus: Corpus,
    directory: Path,
    *,
    max_side: int = 512,
    shard_size: int | None = None,
    seed: int = 0,
    jobs: int = 1,
    command: str = "",
) -> ShardIndex:
    """Write a corpus as shards; a build that was interrupted goes on where it stopped.

    The rows are permuted once, over the whole corpus, so that the two rows of a NewsCLIPpings
    pair, and the captions of one picture, do not share a shard (let alone a batch).

    Args:
        directory: holds one split; an other corpus or other options in it are an error.
        max_side: largest shorter side of a stored picture, in pixels.
        shard_size: samples per tar; by default such that there are 64 tars or more.
        jobs: processes; the bytes do not depend on it.
        command: the command line, for `verify` to print where a tar must be written again.
    """
    if not KEY_PATTERN.fullmatch(corpus.split):
        raise InputError(f"split {corpus.split!r}: only letters, digits, _ and - may name a split")
    if not len(corpus.numbers):
        reasons = Counter(reject.reason for reject in corpus.rejects).most_common(1)
        raise InputError(f"no usable row among {corpus.rows}; most frequent reason: {reasons}")
    options = corpus.options | {"max_side": max_side, "shard_size": shard_size, "seed": seed}

    def tasks() -> Iterator[ShardTask]:
        return _tasks(corpus, directory, max_side=max_side, shard_size=shard_size, seed=seed)

    with lock(directory):
        finished = claim(directory, options)
        if finished:
            require_same_input(directory, finished, corpus, tasks())
            if all(is_whole(directory / shard.name, shard) for shard in finished.shards):
                return finished
        start(directory, options, command)
        return _write(corpus, directory, tasks(), options, jobs)


def _write(
    corpus: Corpus, directory: Path, tasks: Iterable[ShardTask], options: dict[str, Any], jobs: int
) -> ShardIndex:
    infos, rejects = [], list(corpus.rejects)
    pairs: Progress[None] = Progress(unit="pair", total=len(corpus.numbers), desc="build")
    with pairs:
        for info, refused in _run(tasks, jobs):
            infos.append(info)
            rejects += refused
            pairs.advance(info.samples + len(refused))
    index = ShardIndex(
        split=corpus.split,
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
    corpus: Corpus, directory: Path, *, max_side: int, shard_size: int | None, seed: int
) -> Iterator[ShardTask]:
    numbers = np.random.default_rng([seed, 0]).permutation(corpus.numbers)
    parts = np.array_split(numbers, shard_count(len(numbers), shard_size))
    for number, part in enumerate(parts):
        yield ShardTask(
            name=f"{corpus.split}-{number:06d}.tar",
            directory=directory,
            images=corpus.images,
            records=_matched_first(corpus.record(row) for row in part.tolist()),
            split=corpus.split,
            max_side=max_side,
        )


def _matched_first(records: Iterable[Record]) -> tuple[Record, ...]:
    """A shard's rows in their tar order: its first `ShardInfo.matched` ones are the matched pairs.

    So a training on matched pairs alone finds them without reading a mismatched one.
    """
    return tuple(sorted(records, key=lambda record: not record.matched))


def shard_count(samples: int, shard_size: int | None) -> int:
    """Number of tars: 64 where each still gets 32 samples, more where one had over 2,048."""
    if shard_size:
        return -(-samples // shard_size)
    return max(1, min(samples // MIN_SAMPLES, MIN_SHARDS), -(-samples // MAX_SAMPLES))


def _run(tasks: Iterable[ShardTask], jobs: int) -> Iterator[tuple[ShardInfo, list[Reject]]]:
    """Results in the order of the tasks; few tasks are in memory at a time."""
    if jobs <= 1:
        yield from map(write_shard, tasks)
        return
    import webdataset  # noqa: F401 - forked workers share the libraries that are loaded before

    context = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(
        jobs, mp_context=context, initializer=end_with, initargs=(os.getpid(),)
    ) as pool:
        waiting: deque[Future[tuple[ShardInfo, list[Reject]]]] = deque()
        try:
            for task in tasks:
                waiting.append(pool.submit(write_shard, task))
                if len(waiting) > 2 * jobs:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        except BrokenProcessPool as error:
            raise InputError(
                "a writer process was killed (out of memory?); run the same command again, "
                "with fewer --jobs; it goes on where it stopped"
            ) from error


def write_shard(task: ShardTask) -> tuple[ShardInfo, list[Reject]]:
    """Write one tar, or read back what an earlier run says about it."""
    state = task.directory / STATE / f"{task.name}.json"
    digest = task.digest()
    pictures = task.pictures()
    done = _finished(task, state, digest, pictures)
    if done:
        return done
    samples, matched, rejects = 0, 0, []
    with atomic_path(task.directory / task.name) as temporary:
        with open(temporary, "wb") as file, _tar_writer(file) as tar:
            for record in task.records:
                try:
                    path = task.images / record.image
                    content, size = stored_image(path, task.max_side)
                    turn = picture_orientation(path)
                except RejectedImage as error:
                    rejects.append(Reject(record.row, error.reason))
                    continue
                meta = PairMeta(
                    caption=record.caption,
                    matched=record.matched,
                    caption_id=record.caption_id,
                    image_id=record.image_id,
                    size=size,
                    source=record.source,
                    similarity=record.similarity,
                    orientation=turn,
                )
                key = f"{task.split}_{record.row:08d}"  # unique, whatever the file was called
                json_member = with_checksum(key, content, meta.to_json())
                tar.write({"__key__": key, "jpg": content, "json": json_member})
                samples += 1
                matched += record.matched
        sha256 = file_sha256(temporary) or ""
        info = ShardInfo(task.name, samples, matched, temporary.stat().st_size, sha256)
    about = {"digest": digest, "pictures": pictures, "info": asdict(info), "rejects": rejects}
    write_json(state, about)
    return info, rejects


def _tar_writer(file):
    from webdataset import TarWriter

    # A fixed time and mode: equal input must give equal bytes.
    return TarWriter(file, encoder=False, mtime=0, mode=0o644, user="", group="")


def _finished(
    task: ShardTask, state: Path, digest: str, pictures: str
) -> tuple[ShardInfo, list[Reject]] | None:
    if not state.exists():
        return None
    try:
        saved = read_json(state)
        info = ShardInfo(**saved["info"])
        rejects = [Reject(*reject) for reject in saved["rejects"]]
        same = saved["digest"] == digest and saved.get("pictures", pictures) == pictures
    except (InputError, ValueError, KeyError, TypeError):
        return None  # damaged: the tar is written again, to the same bytes
    return (info, rejects) if same and is_whole(task.directory / task.name, info) else None


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
    with (
        atomic_path(directory / REJECTS_NAME) as temporary,
        open(temporary, "w", encoding="utf-8") as file,
    ):
        for row, reason in sorted(rejects):
            line = {"row": row, "where": where(row), "reason": reason}
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
    write_json(directory / INDEX_NAME, index.to_dict())
    sweep(directory)
    sweep(directory / STATE)
