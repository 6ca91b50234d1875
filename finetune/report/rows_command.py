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
from shards.command import CommandParser
from shards.files import InputError, atomic_path

# ---- tweets --------------------------------------------------------------------------------------


def tweets(args: argparse.Namespace) -> None:
    """DGF-PT, Figure 5."""
    from finetune.report.command import read_result, run_names
    from finetune.report.papers import tweets as posts

    if len(args.runs) == 1 and not args.all:
        raise InputError("one run disagrees with nobody: name two or more, or give --all")
    results = [read_result(run) for run in args.runs]
    names = {result["task"] for result in results}
    if len(names) > 1 or results[0]["provenance"]["kind"] != "relation":
        raise InputError("tweets: runs of one task with relations are needed")
    answers = {
        f"{name} (leaky)" if result["leaky"] else name: read_answers(run, args.split)
        for name, run, result in zip(run_names(args.runs), args.runs, results, strict=True)
    }
    rows = registry.load("tasks", names.pop())(args.data).read(SPLITS[args.split])
    check_same_rows(answers, {row.row: row.relation for row in rows}, args)
    said = {name: {row: pred for row, (_, pred) in some.items()} for name, some in answers.items()}
    found = posts.tweets(rows, said)
    shown = [post for post in found if args.all or post.disputed()]
    for post in shown:
        print("\n".join(posts.lines(post)))
    print(
        f"{len(shown)} of {len(found)} posts"
        + ("" if args.all else ": those on which the runs disagree")
    )


SPLITS = {"dev": "val", "test": "test"}
"""Splits that every training answers -> their names in a task."""


def read_answers(run: Path, split: str) -> dict[int, tuple[str, str]]:
    """Row -> (gold, answer) of the run's first seed."""
    path = next(iter(seed_files(run, f"pred_{split}.jsonl")), None)
    if path is None:
        raise InputError(f"{run}: no seed-*/pred_{split}.jsonl in it")
    try:
        records = map(json.loads, path.read_text(encoding="utf-8").splitlines())
        return {record["row"]: (record["gold"], record["pred"]) for record in records}
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: damaged ({error!r})") from None


def check_same_rows(
    answers: Mapping[str, Mapping[int, tuple[str, str]]],
    gold: Mapping[int, str],
    args: argparse.Namespace,
) -> None:
    """Refuse predictions of other rows than the folder's."""
    for name, some in answers.items():
        if {row: right for row, (right, _) in some.items()} != gold:
            raise InputError(f"{name}: answered other rows than {args.split} of {args.data}")


# ---- gates ---------------------------------------------------------------------------------------


def gates(args: argparse.Namespace) -> None:
    """DGF-PT, equations 4 to 7, best with a view of `finetune view align-noise`."""
    from finetune.config import cache_directory, split_paths
    from finetune.inputs.load import InputOptions, load_split, read_views
    from finetune.predict.finished_run import best_seed
    from finetune.report.papers.dgfpt import NUMBERS, summary
    from finetune.report.papers.dgfpt import gates as read
    from finetune.run import checkpoint
    from finetune.run.evaluate import check_labels, pick_precision
    from pretrain import distributed

    views = read_views(split_paths(args.view))
    split = SPLITS[args.split]
    if views and split not in views:
        raise InputError(f"--view {args.view}: made for {', '.join(views)}, not for {split}")
    directory = best_seed(str(args.run))
    model = directory / "model" if (directory / "model").is_dir() else directory
    method, tokenizer, description = checkpoint.load_method(model)
    task = registry.load("tasks", description["task"]["name"])(args.data)
    check_labels(task, description["task"]["labels"], str(args.data))
    cache = cache_directory(None, directory.parent)
    options = InputOptions(**description["inputs"], cache=cache, views=views)
    loaded = load_split(task, split, tokenizer, method, options)
    method.to(distributed.device())
    records = read(method, task.info, loaded, pick_precision("auto"))
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
    from finetune.report.papers.dgfpt import NUMBERS

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
        one.add_argument("--split", choices=tuple(SPLITS), default="test")
    return whole


def main(argv: Sequence[str]) -> None:
    """python -m finetune rows KIND"""
    args = parser().parse_args(argv)
    args.run_kind(args)
