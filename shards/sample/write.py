"""Synthetic corpora in the raw formats, in which the picture provably matters.

One folder holds what three publishers ship: NewsCLIPpings over VisualNews, MNRE, Twitter-2017.
People, cues and other things are drawn. News captions name what is drawn. An MNRE post shows only
of which type the two entities are; which of the three relations of these types holds can be read
from the one cue in the picture alone. The type of a Twitter name is what the picture shows.

Everything is a pure function of the options: same options, same bytes.
"""

import argparse
import json
import os
import shutil
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

from shards.files import InputError, write_json
from shards.sample.mnre import write_mnre
from shards.sample.news import write_news
from shards.sample.pictures import PEOPLE
from shards.sample.twitter import write_twitter
from shards.sample.world import CUE_NOUNS, CUES, NEUTRAL, TYPE_NOUNS, write_lines

PROVENANCE = "sample.json"
FORMAT = 2


@dataclass(frozen=True)
class SampleOptions:
    """What the bytes depend on."""

    pairs: int = 4000
    rows: tuple[int, int, int] = (1500, 300, 600)
    size: int = 64
    seed: int = 0

    def __post_init__(self) -> None:
        if self.pairs < 80 or self.pairs % 2:
            raise InputError(f"--pairs {self.pairs}: must be even and at least 80")
        if len(self.rows) != 3 or min(self.rows) < 1:
            raise InputError(f"--rows {','.join(map(str, self.rows))}: must be three, each above 0")
        if not 32 <= self.size <= 1024:
            raise InputError(f"--size {self.size}: must be 32 to 1024 pixels")
        if self.seed < 0:
            raise InputError(f"--seed {self.seed}: must not be negative")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `python -m shards sample`."""
    default = SampleOptions()
    add = parser.add_argument
    add("out", type=Path, metavar="OUT", help="folder to write")
    add(
        "--pairs",
        type=int,
        default=default.pairs,
        metavar="N",
        help="news rows of train, half of them falsified; val and test get a tenth each "
        "(default: %(default)s)",
    )
    add(
        "--rows",
        type=_three_numbers,
        default=default.rows,
        metavar="A,B,C",
        help=f"relation rows of train, val, test (default: {','.join(map(str, default.rows))})",
    )
    add(
        "--size",
        type=int,
        default=default.size,
        metavar="PX",
        help="side of the pictures in pixels (default: %(default)s)",
    )
    add("--seed", type=int, default=default.seed, metavar="S", help="(default: %(default)s)")
    add("--workers", type=int, default=1, metavar="N", help="processes (default: %(default)s)")


def run(args: argparse.Namespace) -> None:
    """Run `python -m shards sample`."""
    names = ("pairs", "rows", "size", "seed", "workers")
    write_sample(args.out, **{name: getattr(args, name) for name in names})


def write_sample(
    out: Path,
    *,
    pairs: int = SampleOptions.pairs,
    rows: tuple[int, int, int] = SampleOptions.rows,
    size: int = SampleOptions.size,
    seed: int = SampleOptions.seed,
    workers: int = 1,
) -> None:
    """Write `news_clippings/`, `visual_news/`, `mnre/`, `twitter2017/`, `relations.tsv` (the words
    that captions use for the cues, a relation vocabulary) and `sample.json` to `out`.

    The folder appears complete or not at all. One that already holds this sample is left alone.

    Args:
        out: a folder that does not exist, is empty, or holds the sample of the same options.
        pairs: news rows of train, half of them falsified; val and test get a tenth each.
        rows: relation rows of train, val, test.
        size: side of the pictures in pixels.
        seed: of everything.
        workers: drawing processes; the bytes do not depend on them.

    Raises:
        InputError: impossible options, or `out` holds something else.
    """
    options = SampleOptions(pairs, (rows[0], rows[1], rows[2]), size, seed)
    if workers < 1:
        raise InputError(f"--workers {workers}: must be positive")
    out = Path(out).absolute()
    if _already_there(out, options):
        print(f"{out}: already there")
        return
    out.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}."))
    try:
        counts = {
            "news_clippings": write_news(unfinished, pairs, size, seed, workers),
            "mnre": write_mnre(unfinished, options.rows, size, seed, workers),
            "twitter2017": write_twitter(unfinished, size, seed, workers),
        }
        words = [word for cues in CUES.values() for _, word in cues.values()]
        write_lines(unfinished / "relations.tsv", words)
        write_json(unfinished / PROVENANCE, _provenance(options, counts))
        unfinished.chmod(0o755)  # mkdtemp's is the owner's alone
        os.replace(unfinished, out)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    for corpus, splits in counts.items():
        print(f"{out / corpus}: " + ", ".join(f"{n} {split}" for split, n in splits.items()))


def _three_numbers(text: str) -> tuple[int, ...]:
    numbers = tuple(int(number) for number in text.split(","))
    if len(numbers) != 3:
        raise ValueError
    return numbers


def _already_there(out: Path, options: SampleOptions) -> bool:
    """Whether `out` is the sample of these options; False where there is nothing yet."""
    if out.is_dir():
        if not any(out.iterdir()):
            return False
    elif not out.exists():
        return False
    path = out / PROVENANCE
    if not path.is_file():
        raise InputError(f"{out}: holds something, but no {PROVENANCE}; name a new folder")
    try:
        made = json.loads(path.read_bytes())
        written = (made["format"], made["options"])
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: damaged ({error!r}); remove the folder") from error
    if written != (FORMAT, _provenance(options, {})["options"]):
        raise InputError(
            f"{path}: the sample there has format {written[0]} and options {written[1]}, not those "
            "asked for; remove the folder or name a new one"
        )
    return True


def _provenance(options: SampleOptions, counts: dict[str, dict[str, int]]) -> dict:
    """What a reader, human or not, may want to know of the sample; lists the cue of a relation."""
    return {
        "format": FORMAT,
        "options": asdict(options) | {"rows": list(options.rows)},
        "counts": counts,
        "nouns": [*PEOPLE, *CUE_NOUNS, *NEUTRAL],
        "cues": [
            {"tail": tail, "noun": noun, "relation": relation, "caption_word": word}
            for tail, cues in CUES.items()
            for noun, (relation, word) in cues.items()
        ],
        "entity_types": {name: list(nouns) for name, nouns in TYPE_NOUNS.items()},
    }
