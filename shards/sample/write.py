"""Synthetic corpora in the raw formats, in which the picture provably matters.

One folder holds what three publishers ship: NewsCLIPpings over VisualNews, MNRE, Twitter-2017.
People, cues and other things are drawn. News captions name what is drawn. An MNRE post shows only
of which type the two entities are; which of the three relations of these types holds can be read
from the one cue in the picture alone. The type of a Twitter name is what the picture shows.

Everything is a pure function of the options: same options, same bytes.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from shards.command import Tool
from shards.files import InputError, replace_folder
from shards.json_files import write_json
from shards.locks import lock_file
from shards.options import positive
from shards.sample.generated import FOLDER, write_generated
from shards.sample.mnre import write_mnre
from shards.sample.news import write_news
from shards.sample.pictures import PEOPLE
from shards.sample.twitter import write_twitter
from shards.sample.world import CUE_NOUNS, CUES, NEUTRAL, TYPE_NOUNS, write_lines

PROVENANCE = "sample.json"
FORMAT = 2


@dataclass(frozen=True, kw_only=True)
class SampleConfig:
    """Write synthetic corpora in the raw formats: NewsCLIPpings over VisualNews, MNRE, Twitter."""

    POSITIONAL: ClassVar = ("out",)
    out: Path
    """A folder that does not exist, is empty, or holds the sample of the same options."""
    pairs: int = 4000
    """News rows of train, half of them falsified; val and test get a tenth each."""
    rows: tuple[int, int, int] = (1500, 300, 600)
    """Relation rows of train, val, test."""
    size: int = 64
    """Side of the pictures, pixels."""
    seed: int = 0
    """Of everything."""
    workers: int = 1
    """Drawing processes; the bytes do not depend on them."""

    def __post_init__(self) -> None:
        if self.pairs < 80 or self.pairs % 2:
            raise InputError(f"--pairs {self.pairs}: must be even and at least 80")
        if min(self.rows) < 1:
            raise InputError(f"--rows {','.join(map(str, self.rows))}: must be above 0")
        if not 32 <= self.size <= 1024:
            raise InputError(f"--size {self.size}: must be 32 to 1024 pixels")
        positive(workers=self.workers)

    def provenance(self) -> dict[str, Any]:
        """What the bytes depend on."""
        rows = list(self.rows)
        return {"pairs": self.pairs, "rows": rows, "size": self.size, "seed": self.seed}


def write_sample(config: SampleConfig) -> None:
    """Write `news_clippings/`, `visual_news/`, `mnre/`, `twitter2017/`, `relations.tsv` (the words
    that captions use for the cues, a relation vocabulary) and `sample.json`.

    The folder appears complete or not at all. One that already holds this sample is left alone,
    except that an older one gets the generated pictures of `mnre/`, which it lacks.

    Raises:
        InputError: `out` holds something else.
    """
    out = config.out.absolute()
    with lock_file(out):
        options = config.size, config.seed, config.workers
        if _already_there(out, config.provenance()):
            print(f"{out}: already there")
            if not (out / "mnre" / FOLDER).exists():
                write_generated(out / "mnre", *options)
                print(f"{out / 'mnre' / FOLDER}: added")
            return
        with replace_folder(out) as folder:
            counts = {
                "news_clippings": write_news(folder, config.pairs, *options),
                "mnre": write_mnre(folder, config.rows, *options),
                "twitter2017": write_twitter(folder, *options),
            }
            write_generated(folder / "mnre", *options)  # reads what `write_mnre` wrote
            words = [word for cues in CUES.values() for _, word in cues.values()]
            write_lines(folder / "relations.tsv", words)
            write_json(folder / PROVENANCE, _provenance(config.provenance(), counts))
    for corpus, splits in counts.items():
        print(f"{out / corpus}: " + ", ".join(f"{n} {split}" for split, n in splits.items()))


SAMPLE = Tool(SampleConfig, write_sample, "raw")


def _already_there(out: Path, options: dict[str, Any]) -> bool:
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
    if written != (FORMAT, options):
        raise InputError(
            f"{path}: the sample there has format {written[0]} and options {written[1]}, not those "
            "asked for; remove the folder or name a new one"
        )
    return True


def _provenance(options: dict[str, Any], counts: dict[str, dict[str, int]]) -> dict[str, Any]:
    """What a reader, human or not, may want to know of the sample; lists the cue of a relation."""
    return {
        "format": FORMAT,
        "options": options,
        "counts": counts,
        "nouns": [*PEOPLE, *CUE_NOUNS, *NEUTRAL],
        "cues": [
            {"tail": tail, "noun": noun, "relation": relation, "caption_word": word}
            for tail, cues in CUES.items()
            for noun, (relation, word) in cues.items()
        ],
        "entity_types": {name: list(nouns) for name, nouns in TYPE_NOUNS.items()},
    }
