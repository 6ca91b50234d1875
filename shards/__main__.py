"""`python -m shards`: raw corpora -> shards and their columns."""

import sys
from collections.abc import Sequence

from shards.command import Module, dispatch, exit_on_input_error
from shards.processes import run

COMMANDS = {
    "sample": Module("shards.sample.write:SAMPLE", "write synthetic corpora in the raw formats"),
    "build": Module("shards.build", "raw corpus to shards"),
    "convert": Module("shards.convert:CONVERT", "shards of an earlier format to new ones"),
    "detect": Module("shards.objects:DETECT", "write the objects column"),
    "nouns": Module("shards.nouns:NOUNS", "count the captions' nouns: the entity vocabulary"),
    "captions": Module("shards.captions", "generate captions, or convert published ones"),
    "stats": Module("shards.stats:STATS", "what is in shards: figures, or a page with pictures"),
    "verify": Module("shards.verify:VERIFY", "check every byte, key and count"),
}


@exit_on_input_error
def main(argv: Sequence[str] | None = None) -> None:
    """Dispatch on the first word."""
    dispatch(
        "python -m shards",
        COMMANDS,
        sys.argv[1:] if argv is None else argv,
        "Raw corpora to training shards and their columns.",
        "build newsclippings --news-clippings NC --visual-news VN --split train --out shards/train",
    )


if __name__ == "__main__":
    run(main)
