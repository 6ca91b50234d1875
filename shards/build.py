"""`python -m shards build`: the commands that write a raw corpus as shards; what they report."""

import shlex
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from shards import corpora, foreign, newsclippings, write
from shards.command import Tool, dispatch
from shards.files import InputError
from shards.images import QUALITY, SHORT_SIDE
from shards.index import ShardIndex
from shards.json_files import read_json_lines
from shards.options import positive
from shards.records import MOST_LISTED
from shards.schema import REJECTS_NAME
from shards.stats import short_form
from shards.stream import ShardReader
from shards.threads import cores


@dataclass(frozen=True, kw_only=True)
class BuildConfig:
    """What both kinds of corpora have in common."""

    out: Path
    """Shard directory, one split."""
    short_side: int = SHORT_SIDE
    """Shorter side of stored pictures, pixels: larger ones are made smaller, once; 288 serves views
    of 224."""
    quality: int = QUALITY
    """JPEG quality of the pictures that are encoded."""
    as_is: bool = False
    """Store JPEGs of any size as they are."""
    shard_size: int | None = None
    """Pairs per tar, about (default: automatic)."""
    seed: int = 0
    """Of the permutation."""
    jobs: int | None = None
    """Processes (default: all cores)."""

    def __post_init__(self) -> None:
        positive(short_side=self.short_side, shard_size=self.shard_size, jobs=self.jobs)
        if not 1 <= self.quality <= 100:
            raise InputError(f"--quality {self.quality}: 1 to 100 is needed")


@dataclass(frozen=True, kw_only=True)
class NewsClippingsConfig(BuildConfig):
    """NewsCLIPpings over VisualNews."""

    news_clippings: Path
    """Holds data/<subset>/."""
    visual_news: Path
    """Holds origin/data.json."""
    subset: tuple[newsclippings.Subset, ...] = ("merged_balanced",)
    """Sub-splits to unite."""
    split: Literal["train", "val", "test"]
    """Which one of the corpus."""


@dataclass(frozen=True, kw_only=True)
class CaptionsConfig(BuildConfig):
    """Any file of captions: CSV, TSV, JSON lines, COCO's JSON, Flickr30k's results.csv."""

    images: Path
    """Folder of the pictures."""
    captions: Path
    """Table whose header names image and caption (or image_name and comment, as Flickr30k's);
    .jsonl of objects with both; .json as COCO has it."""
    delimiter: str | None = None
    """comma, tab, semicolon or pipe (default: as the header has)."""
    encoding: str | None = None
    """Of the table (default: its byte order mark's, or utf-8)."""
    split: str = "train"
    """Name of the split."""
    mismatch: float = 0.5
    """Share of the rows given another picture's caption."""
    fraction: str = "0:1"
    """Take this range of the (seeded, permuted) pictures, e.g. 0:0.9."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.mismatch <= 1:
            raise InputError(f"--mismatch {self.mismatch}: a share between 0 and 1 is needed")
        first, last = self.bounds()
        if not 0 <= first < last <= 1:
            raise InputError(f"--fraction {self.fraction}: 0 <= A < B <= 1 is needed")

    def bounds(self) -> tuple[float, float]:
        """Of the fraction."""
        try:
            first, last = (float(part) for part in self.fraction.split(":"))
        except ValueError:
            raise InputError(f"--fraction {self.fraction}: not of the form A:B") from None
        return first, last


@dataclass(frozen=True, kw_only=True)
class WebDatasetConfig(BuildConfig):
    """Other people's WebDataset tars, such as img2dataset's: picture and .txt or .json a key."""

    tars: tuple[str, ...]
    """Files, with * or {00000..00099}."""
    split: str = "train"
    """Name of the split."""
    mismatch: float = 0.5
    """Share of the rows given another picture's caption."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.mismatch <= 1:
            raise InputError(f"--mismatch {self.mismatch}: a share between 0 and 1 is needed")


def build_webdataset(config: WebDatasetConfig, command: str = "") -> ShardIndex:
    """Build and report; `command` is recorded for `verify`."""
    corpus = foreign.webdataset(
        config.tars, split=config.split, mismatch=config.mismatch, seed=config.seed
    )
    return _build(corpus, config, command)


def build_newsclippings(config: NewsClippingsConfig, command: str = "") -> ShardIndex:
    """Build and report; `command` is recorded for `verify`."""
    subsets = list(dict.fromkeys(config.subset))
    corpus = newsclippings.newsclippings(
        config.news_clippings, config.visual_news, subsets, config.split
    )
    return _build(corpus, config, command)


def build_captions(config: CaptionsConfig, command: str = "") -> ShardIndex:
    """Build and report; `command` is recorded for `verify`."""
    corpus = corpora.captions(
        config.images,
        config.captions,
        split=config.split,
        mismatch=config.mismatch,
        fraction=config.bounds(),
        seed=config.seed,
        delimiter=config.delimiter,
        encoding=config.encoding,
    )
    return _build(corpus, config, command)


def _build(corpus: corpora.Corpus, config: BuildConfig, command: str) -> ShardIndex:
    index = write.build(
        corpus,
        config.out,
        form=write.Form(None if config.as_is else config.short_side, config.quality),
        shard_size=config.shard_size,
        seed=config.seed,
        jobs=config.jobs or cores(),
        command=command,
    )
    _report(config.out, index)
    return index


def _report(directory: Path, index: ShardIndex) -> None:
    total = sum(shard.bytes for shard in index.shards)
    print(
        f"{directory}: {index.rows} rows = {index.samples} samples ({index.matched} matched) "
        f"+ {index.rejects} rejects; {index.pictures} pictures in {len(index.shards)} shards, "
        f"{total / 2**20:.1f} MiB"
    )
    print(f"  {short_form(ShardReader(directory))}")
    for title, values in index.provenance["report"].items():
        print(f"  {title}: {values}")
    if index.rejects:
        rejects = [reject for _, reject in read_json_lines(directory / REJECTS_NAME)]
        for reason, count in Counter(reject["reason"] for reject in rejects).most_common(8):
            print(f"  rejected {count}: {reason}")
        for reject in rejects[:MOST_LISTED]:
            print(f"  {reject['where']}: {reject['reason']}")
        if len(rejects) > MOST_LISTED:
            print(f"  and {len(rejects) - MOST_LISTED} more in {directory / REJECTS_NAME}")


def main(argv: Sequence[str]) -> None:
    """`python -m shards build`"""
    command = shlex.join(["python", "-m", "shards", "build", *argv])
    example = "--images flickr --captions c.csv --out shards"
    commands = {
        "newsclippings": Tool(
            NewsClippingsConfig,
            partial(build_newsclippings, command=command),
            "--news-clippings NC --visual-news VN --split train --out shards/train",
        ),
        "webdataset": Tool(
            WebDatasetConfig,
            partial(build_webdataset, command=command),
            "--tars 'laion/{00000..00099}.tar' --out shards/train",
        ),
        "captions": Tool(CaptionsConfig, partial(build_captions, command=command), example),
    }
    text = "Write a raw corpus as shards; resumable, the same bytes every time."
    dispatch("python -m shards build", commands, argv, text, f"captions {example}")
