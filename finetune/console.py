"""The console command `fusion-mre`: all three packages under one name.

Installed as a script, it does not look for modules in the working folder, as `python -m` does.
"""

import sys
from collections.abc import Sequence

from finetune.__main__ import COMMANDS
from finetune.__main__ import main as finetune_main
from shards.command import Module, dispatch, exit_on_input_error
from shards.processes import run

PACKAGES = {
    "shards": Module("shards.__main__", "raw corpora to shards and their columns"),
    "pretrain": Module("pretrain.__main__", "the fusion encoder: train, label, convert, …"),
    "finetune": Module("finetune.__main__", "methods x tasks; its commands stand here, too:"),
}


@exit_on_input_error
def main(argv: Sequence[str] | None = None) -> None:
    """A package's command, or one of fine-tuning directly."""
    words = list(sys.argv[1:] if argv is None else argv)
    if words and words[0] in COMMANDS:
        return finetune_main(words)
    dispatch(
        "fusion-mre",
        PACKAGES | COMMANDS,
        words,
        "Entities and relations of posts that come as text and image.",
        "train --config mnre/promu --data MNRE --init MODEL_DIR --out runs/promu",
    )


def script() -> None:
    """What the installed command runs."""
    run(main)
