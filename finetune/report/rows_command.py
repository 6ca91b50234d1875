"""`python -m finetune rows KIND`: what finished runs make of single rows.

tweets  all entity pairs of a post, the right relations and what each run says
gates   DGF-PT: how its gates react to each row's picture
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from finetune import registry
from finetune.protocols import seed_files
from finetune.run.results import Predictions, read_result
from finetune.tasks.splits import BY_OPTION
from shards.command import Group, Tool
from shards.files import InputError, atomic_path, refuse_foreign

# ---- options -------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class RowsConfig:
    """What both kinds ask for."""

    data: Path
    """Folder of the task's files."""
    split: Literal["dev", "test"] = "test"
    """Of which rows."""


@dataclass(frozen=True, kw_only=True)
class TweetsConfig(RowsConfig):
    """All entity pairs of a post, with gold and what each run says; a star: wrong. First seeds."""

    POSITIONAL: ClassVar = ("runs",)
    runs: tuple[Path, ...]
    """Run directories."""
    all: bool = False
    """Also posts on which the runs agree."""

    def __post_init__(self) -> None:
        if len(self.runs) == 1 and not self.all:
            raise ValueError("one run disagrees with nobody: name two or more, or give --all")


@dataclass(frozen=True, kw_only=True)
class GatesConfig(RowsConfig):
    """Gates of a run of dgfpt on each row, as JSON lines; their means are printed."""

    POSITIONAL: ClassVar = ("run",)
    run: Path
    """Run of dgfpt that sees pictures."""
    view: str | None = None
    """Manifests: whose changes the gates are to notice."""
    out: Path
    """JSON lines, one a row."""


# ---- tweets --------------------------------------------------------------------------------------


def tweets(config: TweetsConfig) -> None:
    """DGF-PT, Figure 5."""
    from finetune.report.command import run_names
    from finetune.report.papers import dgfpt

    results = [read_result(run) for run in config.runs]
    names = {result["task"] for result in results}
    if len(names) > 1 or results[0]["provenance"]["kind"] != "relation":
        raise InputError("tweets: runs of one task with relations are needed")
    answers = {
        f"{name} (leaky)" if result["leaky"] else name: first_seed(run, config.split)
        for name, run, result in zip(run_names(config.runs), config.runs, results, strict=True)
    }
    rows = registry.load("tasks", names.pop())(config.data).read(BY_OPTION[config.split])
    # Gold and answers come from files of runs, tokens from --data: they must be of one state.
    check_same_rows(answers, {row.row: row.relation for row in rows}, config)
    labels = {
        name: dict(zip(given.rows, given.answers, strict=True)) for name, given in answers.items()
    }
    posts = dgfpt.tweets(rows, labels)
    printed = [post for post in posts if config.all or post.disputed()]
    for post in printed:
        print("\n".join(dgfpt.post_lines(post)))
    print(
        f"{len(printed)} of {len(posts)} posts"
        + ("" if config.all else ": those on which the runs disagree")
    )


def first_seed(run: Path, split: str) -> Predictions:
    """What the run's first seed answered."""
    path = next(iter(seed_files(run, f"pred_{split}.jsonl")), None)
    if path is None:
        raise InputError(f"{run}: no seed-*/pred_{split}.jsonl in it")
    return Predictions.read(path)


def check_same_rows(
    answers: Mapping[str, Predictions],
    gold: Mapping[int, str],
    config: RowsConfig,
) -> None:
    """Refuse predictions of other rows than the folder's."""
    for name, given in answers.items():
        if dict(zip(given.rows, given.gold, strict=True)) != gold:
            raise InputError(f"{name}: answered other rows than {config.split} of {config.data}")


# ---- gates ---------------------------------------------------------------------------------------


def gates(config: GatesConfig) -> None:
    """DGF-PT, equations 4 to 7, best with a view of `finetune view align-noise`."""
    from finetune.report.papers.dgfpt_gates import NUMBERS, summary
    from finetune.report.papers.dgfpt_gates import gates as read
    from finetune.run.evaluate import pick_precision, views_of
    from finetune.run.open_run import open_run

    refuse_foreign(config.out, '{"row": ')
    split = BY_OPTION[config.split]
    views = views_of(config.view, split)
    seed = open_run(config.run)
    task, loaded = seed.load(config.data, split, views=views)
    records = read(seed.method, task.info, loaded, pick_precision("auto"))
    touched = {row for view in views.get(split, ()) for row in view.changes}
    with atomic_path(config.out) as temporary, temporary.open("w", encoding="utf-8") as file:
        for record in records:
            record["changed"] = record["row"] in touched
            file.write(json.dumps(record) + "\n")
    everything = {record["row"] for record in records}
    sets = {"changed by the view": touched, "as they are": everything - touched}
    print(f"{'rows':>6}  " + "  ".join(f"{name:>7}" for name in NUMBERS))
    for name, means in summary(records, sets).items():
        print(line(name, means))
    print(config.out)


def line(name: str, means: Mapping[str, Any]) -> str:
    """Means of a set of rows."""
    from finetune.report.papers.dgfpt_gates import NUMBERS

    values = "  ".join(f"{means[key]:7.4f}" for key in NUMBERS)
    return f"{means['rows']:>6}  {values}  {name}"


# ---- the command ---------------------------------------------------------------------------------

TOOLS = {
    "tweets": Tool(TweetsConfig, tweets, "runs/mtb runs/dgfpt --data MNRE"),
    "gates": Tool(
        GatesConfig,
        gates,
        "runs/dgfpt --data MNRE --view views/align-50/test.jsonl --out gates.jsonl",
        True,
    ),
}

main = Group("python -m finetune rows", TOOLS, "What finished runs make of single rows.", "tweets")
