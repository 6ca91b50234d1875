"""What is in a shard directory, for a person: a table, JSON, or one HTML page with pictures."""

import base64
import html
import json
import statistics
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from shards.command import Tool
from shards.files import InputError, atomic_path, refuse_foreign
from shards.progress import Progress
from shards.schema import OBJECTS
from shards.shard import Picture
from shards.stream import ShardReader

MOST_DAMAGED = 20
"""Damaged pictures that are listed before they are only counted."""


@dataclass(frozen=True, kw_only=True)
class StatsConfig:
    """Say what a shard directory holds: pairs, captions, sizes, objects, words, damage."""

    POSITIONAL: ClassVar = ("shards",)
    shards: str
    """Shard directory, local or remote."""
    format: Literal["table", "json", "html"] = "table"
    """html: one page, with pictures."""
    out: Path | None = None
    """File to write (default: standard output; html needs one)."""
    pictures: int = 24
    """On the page."""
    nouns: int = 20
    """Most frequent ones that are listed; 0: none is counted."""

    def __post_init__(self) -> None:
        if self.format == "html" and self.out is None:
            raise InputError("--format html needs --out FILE.html")


def stats(config: StatsConfig) -> None:
    """Read every picture's JSON and bytes once; print or write."""
    if config.out is not None:
        refuse_foreign(config.out, "shards  ", '{\n  "shards":', PAGE)
    reader = ShardReader(config.shards)
    if reader.has_column(OBJECTS):
        reader = ShardReader(config.shards, columns=[OBJECTS])
    shown: list[Picture] = []
    figures = collect(reader, shown, config.pictures if config.format == "html" else 0)
    if config.nouns:
        figures["most frequent nouns"] = frequent_nouns(reader, config.nouns)
    if config.format == "html":
        text = page(figures, shown)
    else:
        text = as_json(figures) if config.format == "json" else table(figures)
    if config.out is None:
        print(text, end="")
        return
    with atomic_path(config.out) as temporary:
        temporary.write_text(text, encoding="utf-8")
    print(f"{config.out}: written")


STATS = Tool(StatsConfig, stats, "shards/train")


def collect(reader: ShardReader, shown: list[Picture], pictures: int) -> dict[str, Any]:
    """Figures by name; `shown` takes some pictures of all shards."""
    index = reader.index
    words: list[int] = []
    sides: list[int] = []
    objects: list[int] = []
    labels: Counter[str] = Counter()
    sources: Counter[str] = Counter()
    damaged: list[str] = []
    image_ids: set[str] = set()
    # Every so many, so that all shards are shown, not the first one alone.
    each = -(-index.pictures // max(pictures, 1))
    seen = 0
    for shard in Progress(range(len(index.shards)), unit="shard", desc="stats"):
        for picture in sound_pictures(reader, shard, damaged):
            if pictures and seen % each == 0:
                shown.append(picture)
            seen += 1
            image_ids.add(picture.meta.image_id)
            sides.append(min(picture.meta.size))
            if picture.objects is not None:
                objects.append(len(picture.objects))
                labels.update(item.label for item in picture.objects)
            for pair in picture.meta.pairs:
                words.append(len(pair.caption.split()))
                sources[pair.source] += 1
    figures: dict[str, Any] = {
        "shards": len(index.shards),
        "pictures": len(image_ids),
        "stored pictures": index.pictures,
        "pairs": index.samples,
        "matched pairs": index.matched,
        "rejected rows": index.rejects,
        "MiB": round(sum(shard.bytes for shard in index.shards) / 2**20, 1),
        "pairs a picture": round(index.samples / max(len(image_ids), 1), 2),
        "words a caption": spread(words),
        "shorter side, pixels": spread(sides),
        "pairs by source": dict(sources.most_common()),
    }
    if objects:
        figures["objects a picture"] = spread(objects)
        figures["pictures without object"] = objects.count(0)
        figures["most frequent objects"] = dict(labels.most_common(20))
    figures["damaged pictures"] = len(damaged)
    if damaged:
        figures["damaged"] = damaged[:MOST_DAMAGED]
    return figures


def short_form(reader: ShardReader) -> str:
    """One line, from the tables of rows alone."""
    index = reader.index
    words: list[int] = []
    sides: list[int] = []
    for shard in range(len(index.shards)):
        words += [len(caption.split()) for caption in reader.captions(shard)]
        sides += reader.shard(shard).rows.sizes.min(axis=1).tolist()
    return (
        f"{index.matched / index.samples:.0%} of the pairs matched, "
        f"{index.samples / index.pictures:.2f} pairs a picture; words a caption: "
        f"{said(spread(words))}; shorter side: {said(spread(sides))}"
    )


def sound_pictures(reader: ShardReader, shard: int, damaged: list[str]) -> Iterator[Picture]:
    """Those whose checksum is right; `damaged` takes what is said of the others."""
    try:
        opened = reader.shard(shard)
    except InputError as error:
        damaged.append(str(error))
        return
    for number in range(len(opened.rows.sizes)):
        try:
            yield opened.picture(number)
        except InputError as error:
            damaged.append(str(error))


def spread(values: Sequence[int]) -> dict[str, float]:
    """Least, median, mean, most."""
    if not values:
        return {}
    return {
        "least": min(values),
        "median": statistics.median(values),
        "mean": round(statistics.fmean(values), 1),
        "most": max(values),
    }


def frequent_nouns(reader: ShardReader, number: int) -> dict[str, int] | str:
    """Of the captions, each counted once, by the lexicon; or why there are none."""
    from shards.nouns import lexicon_tagger, unique_captions

    counts: Counter[str] = Counter()
    try:
        for nouns in lexicon_tagger()(unique_captions([reader])):
            counts.update(nouns)
    except InputError as error:
        return str(error)
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:number])


def as_json(figures: dict[str, Any]) -> str:
    """One object."""
    return json.dumps(figures, indent=2, ensure_ascii=False) + "\n"


def table(figures: dict[str, Any]) -> str:
    """Two columns."""
    width = max(map(len, figures)) + 2
    return "".join(f"{name:<{width}}{said(value)}\n" for name, value in figures.items())


def said(value: Any) -> str:
    """A figure as text."""
    if isinstance(value, dict):
        return ", ".join(f"{name} {count:,}" for name, count in value.items())
    if isinstance(value, list):
        return "; ".join(map(str, value))
    return f"{value:,}" if isinstance(value, int | float) else str(value)


PAGE = '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>Shards</title>'


def page(figures: dict[str, Any], pictures: Sequence[Picture]) -> str:
    """HTML without a script or a link: figures, then pictures with their boxes and pairs."""
    rows = "".join(
        f"<tr><th>{html.escape(name)}</th><td>{html.escape(said(value))}</td></tr>\n"
        for name, value in figures.items()
    )
    return (
        f"{PAGE}<style>"
        "body{font:15px sans-serif;margin:2em}th{text-align:left;padding-right:2em;vertical-align:"
        "top}figure{display:inline-block;width:20em;vertical-align:top;margin:1em}svg{width:100%}"
        ".mismatch{color:#b00}</style></head><body>\n"
        f"<table>\n{rows}</table>\n{''.join(map(_figure, pictures))}</body></html>\n"
    )


def _figure(picture: Picture) -> str:
    width, height = picture.meta.size
    content = base64.b64encode(picture.image).decode()
    boxes = "".join(
        f'<rect x="{x1}" y="{y1}" width="{x2 - x1}" height="{y2 - y1}" fill="none" stroke="lime" '
        f'stroke-width="{width / 200}"><title>{html.escape(item.label)} {item.score:g}</title>'
        "</rect>"
        for item in picture.objects or ()
        for x1, y1, x2, y2 in [item.box]
    )
    pairs = "".join(
        f"<li{'' if pair.matched else ' class=mismatch'}>{html.escape(pair.caption)}"
        f"{'' if pair.matched else ' (mismatched)'}</li>"
        for pair in picture.meta.pairs
    )
    return (
        f'<figure><svg viewBox="0 0 {width} {height}"><image width="{width}" height="{height}" '
        f'href="data:image/jpeg;base64,{content}"/>{boxes}</svg>'
        f"<figcaption>{html.escape(picture.meta.image_id)}<ul>{pairs}</ul></figcaption></figure>\n"
    )
