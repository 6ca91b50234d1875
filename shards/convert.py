"""Shards of an earlier format -> shards that store each picture once, with their columns."""

import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np

from shards.arrays import pack
from shards.columns import write_column
from shards.command import Tool
from shards.corpora import Corpus, Record, Reject
from shards.detections import pack_detections
from shards.files import InputError, file_sha256
from shards.images import Stored
from shards.json_files import read_json_lines
from shards.options import positive
from shards.schema import COLUMN_NAME, FORMAT_VERSION, OBJECTS, REJECTS_NAME, TEACHER
from shards.shard import read_metas
from shards.stream import ShardReader
from shards.threads import cores
from shards.write import Form, build


@dataclass(frozen=True, kw_only=True)
class ConvertConfig:
    """Write shards of an earlier format anew, each picture once; columns come along."""

    POSITIONAL: ClassVar = ("old", "new")
    old: Path
    """Shard directory, which stays as it is."""
    new: Path
    """Shard directory to write."""
    jobs: int | None = None
    """Processes (default: all cores)."""

    def __post_init__(self) -> None:
        positive(jobs=self.jobs)


class Place(NamedTuple):
    """Where the old shards have a picture first."""

    shard: int
    number: int


@dataclass
class OldPictures:
    """A `PictureSource` of addresses `shard/number`; what is stored stays as it is."""

    location: Path
    _reader: ShardReader | None = field(default=None, compare=False)

    def stored(self, image: str, short_side: int | None, quality: int) -> Stored:
        """See `PictureSource`."""
        self._reader = self._reader or ShardReader(self.location)
        shard, number = map(int, image.split("/"))
        picture = self._reader.shard(shard).picture(number)
        return Stored(picture.image, picture.meta.size, picture.meta.orientation, 0)

    def stamp(self, image: str) -> tuple[int, int]:
        """See `PictureSource`; the corpus' options name the old index, which hashes all."""
        return 0, 0

    def crc32(self, image: str) -> int:
        """See `stamp`."""
        return 0


def convert(config: ConvertConfig) -> None:
    """Build, then the columns."""
    reader = ShardReader(config.old)
    if reader.index.format >= FORMAT_VERSION:
        raise InputError(f"{config.old}: stores each picture once already; there is nothing to do")
    corpus, places = old_corpus(config.old, reader)
    options = reader.index.provenance.get("options") or {}
    index = build(
        corpus,
        config.new,
        form=Form(None),  # nothing is encoded a second time
        shard_size=options.get("shard_size"),
        seed=options.get("seed", 0),
        jobs=config.jobs or cores(),
        command=shlex.join(["python", "-m", "shards", "convert", str(config.old), str(config.new)]),
    )
    columns = [name for name in (OBJECTS, TEACHER) if reader.has_column(name)]
    for column in columns:
        _convert_column(config.old, config.new, column, places)
    print(
        f"{config.new}: {index.samples} pairs of {index.pictures} pictures in {len(index.shards)} "
        f"shards ({reader.index.pictures} pictures in {config.old}); columns: "
        f"{', '.join(columns) or 'none'}"
    )


CONVERT = Tool(ConvertConfig, convert, "shards/train shards/train-new")


def old_corpus(directory: Path, reader: ShardReader) -> tuple[Corpus, dict[str, Place]]:
    """Old shards as a raw corpus, and the first place of each picture."""
    index = reader.index
    records: dict[int, Record] = {}
    places: dict[str, Place] = {}
    for shard in range(len(index.shards)):
        opened = reader.shard(shard)
        for number, (member, meta) in enumerate(read_metas(opened.file, str(opened.path))):
            (pair,) = meta.pairs
            # The copies of a picture are equal: the first stands for all, and so do its columns.
            place = places.setdefault(meta.image_id, Place(shard, number))
            # Rows keep their raw numbers, which the rejects name, too.
            row = int(member.key.rpartition("_")[2])
            records[row] = Record(
                row=row,
                image=f"{place.shard}/{place.number}",
                caption=pair.caption,
                matched=pair.matched,
                caption_id=pair.caption_id,
                image_id=meta.image_id,
                source=pair.source,
                similarity=pair.similarity,
            )
    lines = _rejects(directory / REJECTS_NAME)
    ids = {image_id: number for number, image_id in enumerate(places)}
    numbers = sorted(records)
    corpus = Corpus(
        split=index.split,
        pictures=OldPictures(directory),
        numbers=np.array(numbers, np.int64),
        groups=np.array([ids[records[row].image_id] for row in numbers], np.int64),
        record=records.__getitem__,
        where=lambda row: str(lines[row]["where"]) if row in lines else f"row {row}",
        rejects=[Reject(row, line["reason"]) for row, line in lines.items()],
        options={"corpus": "convert", "index": file_sha256(directory / "index.json")},
        report=index.provenance.get("report", {}),
    )
    return corpus, places


def _rejects(path: Path) -> dict[int, dict[str, Any]]:
    """By raw row."""
    lines = {}
    for number, line in read_json_lines(path):
        if type(line.get("row")) is not int or not {"where", "reason"} <= line.keys():
            raise InputError(f"{path}: line {number}: no reject (`row`, `where`, `reason`)")
        lines[line["row"]] = line
    return lines


def _convert_column(old: Path, new: Path, column: str, places: dict[str, Place]) -> None:
    """What an old column says of the first place of a picture, for the picture."""
    reader, target = ShardReader(old, columns=[column]), ShardReader(new)
    provenance: dict[str, Any] = dict(reader.columns[column].provenance)
    objects = OBJECTS, COLUMN_NAME
    if column == TEACHER:
        if provenance.get("objects_sha256") != file_sha256(old.joinpath(*objects)):
            raise InputError(
                f"{old}: its objects changed after its teacher column was written; run "
                "`python -m pretrain label` on the new shards"
            )
        provenance["objects_sha256"] = file_sha256(new.joinpath(*objects))

    def compute(shard: int) -> bytes:
        sources = [places[picture.meta.image_id] for picture in target.pictures(shard)]
        if column == OBJECTS:
            return pack_detections([reader.shard(s).objects_of(n) or () for s, n in sources])
        rows = [reader.shard(s).teacher_of(n) or {} for s, n in sources]
        return pack({name: np.stack([row[name] for row in rows]) for name in rows[0]})

    def files(numbers: Sequence[int]) -> Iterator[tuple[int, bytes]]:
        yield from ((number, compute(number)) for number in numbers)

    write_column(new, column, files, provenance, desc=f"convert {column}")
