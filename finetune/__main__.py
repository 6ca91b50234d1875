"""`python -m finetune COMMAND`: every method on every task, judged one way."""

import logging
import os
import sys
from collections.abc import Sequence

from shards.command import Module, dispatch, exit_on_input_error, without_local_rank
from shards.processes import run

COMMANDS = {
    "train": Module(
        "finetune.run.command:train", "train a method on a task: select on dev, test once"
    ),
    "evaluate": Module("finetune.run.command:evaluate", "scores and predictions of a finished run"),
    "predict": Module("finetune.predict.command", "relation or entities of new posts"),
    "serve": Module("finetune.predict.serve", "a web page to try a run on a post and a picture"),
    "data": Module("finetune.data.own_data", "check a task's files, or make them of your posts"),
    "view": Module(
        "finetune.data.views", "write a view manifest: what an experiment changes in a split"
    ),
    "regions": Module("finetune.data.regions", "build, recover or import region caches"),
    "generate": Module(
        "finetune.data.generate", "TMR's side inputs: generated pictures, correlation scores"
    ),
    "types": Module(
        "finetune.data.entity_types", "write the types of the entities: NER, learned, gold (leaky)"
    ),
    "audit": Module("finetune.data.audit", "test whether an input leaks the label"),
    "study": Module("finetune.report.study", "one question, many runs, one table"),
    "list": Module(
        "finetune.report.listing", "methods, tasks, views, studies, configurations with figures"
    ),
    "report": Module("finetune.report.command", "tables and plots of any number of runs"),
    "figures": Module(
        "finetune.report.figures_command", "plots for a paper: states, looks, relations, studies"
    ),
    "rows": Module(
        "finetune.report.rows_command", "what runs make of single rows: disputed posts, gates"
    ),
}


@exit_on_input_error
def main(argv: Sequence[str] | None = None) -> None:
    """Dispatch on the first word."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    logging.getLogger("httpx").setLevel(logging.WARNING)
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    if not sys.stderr.isatty():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    dispatch(
        "python -m finetune",
        COMMANDS,
        without_local_rank(argv),
        "Every method on every task, judged one way.",
        "train --task mnre --method promu --data MNRE --init MODEL_DIR --out runs/promu",
    )


if __name__ == "__main__":
    run(main)
