"""`python -m finetune rows KIND`: what finished runs make of single rows.

tweets  all entity pairs of a post, the right relations and what each run says
gates   DGF-PT: how its gates react to each row's picture
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from finetune import registry
from finetune.protocols import seed_files
from finetune.run.results import Predictions, read_result
from finetune.tasks.splits import BY_OPTION
from shards.command import CommandParser
from shards.files import InputError, atomic_path

# ---- tweets --------------------------------------------------------------------------------------


def tweets(args: argparse.Namespace) -> None:
    """DGF-PT, Figure 5."""
    from finetune.report.command import run_names
    from finetune.report.papers import dgfpt

    if len(args.runs) == 1 and not args.all:
        raise InputError("one run disagrees with nobody: name two or more, or give --all")
    results = [read_result(run) for run in args.runs]
    names = {result["task"] for result in results}
    if len(names) > 1 or results[0]["provenance"]["kind"] != "relation":
        raise InputError("tweets: runs of one task with relations are needed")
    answers = {
        f"{name} (leaky)" if result["leaky"] else name: first_seed(run, args.split)
        for name, run, result in zip(run_names(args.runs), args.runs, results, strict=True)
    }
    rows = registry.load("tasks", names.pop())(args.data).read(BY_OPTION[args.split])
    check_same_rows(answers, {row.row: row.relation for row in rows}, args)
    said = {
        name: dict(zip(given.rows, given.answers, strict=True)) for name, given in answers.items()
    }
    found = dgfpt.tweets(rows, said)
    shown = [post for post in found if args.all or post.disputed()]
    for post in shown:
        print("\n".join(dgfpt.post_lines(post)))
    print(
        f"{len(shown)} of {len(found)} posts"
        + ("" if args.all else ": those on which the runs disagree")
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
    args: argparse.Namespace,
) -> None:
    """Refuse predictions of other rows than the folder's."""
    for name, given in answers.items():
        if dict(zip(given.rows, given.gold, strict=True)) != gold:
            raise InputError(f"{name}: answered other rows than {args.split} of {args.data}")


# ---- gates ---------------------------------------------------------------------------------------


def gates(args: argparse.Namespace) -> None:
    """DGF-PT, equations 4 to 7, best with a view of `finetune view align-noise`."""
    from finetune.report.papers.dgfpt_gates import NUMBERS, summary
    from finetune.report.papers.dgfpt_gates import gates as read
    from finetune.run.evaluate import pick_precision, views_of
    from finetune.run.open_run import open_run

    split = BY_OPTION[args.split]
    views = views_of(args.view, split)
    seed = open_run(args.run)
    task, loaded = seed.load(args.data, split, views=views)
    records = read(seed.method, task.info, loaded, pick_precision("auto"))
    touched = {row for view in views.get(split, ()) for row in view.changes}
    with atomic_path(args.out) as temporary, temporary.open("w", encoding="utf-8") as file:
        for record in records:
            record["changed"] = record["row"] in touched
            file.write(json.dumps(record) + "\n")
    everything = {record["row"] for record in records}
    sets = {"changed by the view": touched, "as they are": everything - touched}
    print(f"{'rows':>6}  " + "  ".join(f"{name:>7}" for name in NUMBERS))
    for name, means in summary(records, sets).items():
        print(line(name, means))
    print(args.out)


def line(name: str, means: Mapping[str, Any]) -> str:
    """Means of a set of rows."""
    from finetune.report.papers.dgfpt_gates import NUMBERS

    values = "  ".join(f"{means[key]:7.4f}" for key in NUMBERS)
    return f"{means['rows']:>6}  {values}  {name}"


# ---- the command ---------------------------------------------------------------------------------


def parser() -> argparse.ArgumentParser:
    """Options of each kind."""
    whole = CommandParser(
        prog="python -m finetune rows",
        description="What finished runs make of single rows.",
        epilog="example: python -m finetune rows tweets runs/mtb runs/dgfpt --data MNRE",
    )
    kinds = whole.add_subparsers(dest="kind", metavar="KIND", required=True)
    text = "all entity pairs of a post, with gold and what each run says; a star: wrong"
    one = kinds.add_parser(
        "tweets", help=text, description=f"{text}. First seeds.",
        epilog="example: python -m finetune rows tweets runs/mtb runs/dgfpt --data MNRE",
    )  # fmt: skip
    one.add_argument("runs", nargs="+", metavar="RUN", type=Path, help="run directories")
    one.add_argument("--all", action="store_true", help="also posts on which the runs agree")
    one.set_defaults(run_kind=tweets)
    text = "gates of a run of dgfpt on each row, as JSON lines; their means are printed"
    one = kinds.add_parser(
        "gates", help=text, description=f"{text}.",
        epilog="example: python -m finetune rows gates runs/dgfpt --data MNRE "
        "--view views/align-50/test.jsonl --out gates.jsonl",
    )  # fmt: skip
    one.add_argument("run", metavar="RUN", type=Path, help="run of dgfpt that sees pictures")
    one.add_argument("--view", help="manifests: whose changes the gates are to notice")
    one.add_argument("--out", required=True, type=Path, help="JSON lines, one a row")
    one.set_defaults(run_kind=gates)
    for one in kinds.choices.values():
        one.add_argument("--data", required=True, type=Path, help="folder of the task's files")
        one.add_argument("--split", choices=("dev", "test"), default="test")
    return whole


def main(argv: Sequence[str]) -> None:
    """python -m finetune rows KIND"""
    args = parser().parse_args(argv)
    args.run_kind(args)
