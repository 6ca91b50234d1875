"""`python -m finetune view`: draws what an experiment changes, and writes it as a view manifest.

Same files and seed give the same bytes. The rules are in `view_rules.py`, the file format in
`manifest.py`.
"""

import argparse
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

from finetune import registry, view_rules
from finetune.manifest import Change, View, read_view, write_view
from finetune.tasks import side_inputs
from finetune.tasks.base import Task
from finetune.tasks.region_cache import Regions, read_regions
from pretrain.cli import InputError, exit_on_input_error

__all__ = ["Change", "View", "main", "read_view", "write_view"]

SCOPES = {
    "train": ("train",),
    "dev": ("val",),
    "test": ("test",),
    "train+dev": ("train", "val"),
    "all": ("train", "val", "test"),
}

RAW = argparse.RawDescriptionHelpFormatter
EXAMPLES = {
    "ratio": "0.05",
    "k": "5",
    "keep": "0.4",
    "regions": "DATA/mnre/regions",
    "num_grounded": "2",
    "num_detected": "1",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The subcommands of `python -m finetune view`."""
    tools = parser.add_subparsers(dest="tool", required=True, metavar="TOOL")

    def tool(name: str, text: str, scope: str, **arguments: Mapping[str, Any]) -> None:
        needed = "".join(
            f" --{option.replace('_', '-')} {EXAMPLES[option]}"
            for option, settings in arguments.items()
            if settings.get("required")
        )
        example = f"python -m finetune view {name} --data DATA/mnre{needed} --out views/{name}"
        sub = tools.add_parser(
            name, help=text, description=text, epilog=f"example: {example}", formatter_class=RAW
        )
        sub.add_argument("--data", required=True, type=Path, help="folder of the task's files")
        sub.add_argument("--task", default="mnre", help="mnre, twitter2015, … (default mnre)")
        sub.add_argument(
            "--out", required=True, type=Path, help="folder for {split}.jsonl, or one .jsonl file"
        )
        sub.add_argument("--seed", type=int, default=1, help="default 1")
        sub.add_argument(
            "--scope", choices=SCOPES, default=scope, help=f"splits to change; default {scope}"
        )
        for option, settings in arguments.items():
            sub.add_argument(f"--{option.replace('_', '-')}", **settings)

    def ratio(text: str) -> dict[str, Any]:
        return {"required": True, "type": share, "metavar": "SHARE", "help": f"{text}, in [0, 1]"}

    regions = {"type": Path, "metavar": "DIR", "help": "region cache: regions_vg_*, regions_od"}
    tool(
        "align-noise", "give rows wrong pictures", "all", ratio=ratio("share of the rows"),
        unit={"choices": ["row", "tweet"], "default": "row", "help": "what moves (default row)"},
        regions=regions,
        vg={
            "choices": ["donor", "reground"], "default": "donor",
            "help": "boxes in the wrong picture: its own row's, or grounded anew from the "
            "receiving row's phrases with --grounder (default donor)",
        },
        grounder={"metavar": "MODEL", "help": "of reground: Grounding DINO folder or hub id"},
        tagger={"default": "en_core_web_sm", "help": "of reground: spaCy model, or none"},
    )  # fmt: skip
    tool(
        "aug-noise", "spoil regions", "test", ratio=ratio("share of the regions"),
        regions={**regions, "required": True},
        ops={"choices": ["both", "modify", "delete"], "default": "both", "help": "default both"},
        p_modify={
            "type": share, "default": Fraction(1, 2), "metavar": "SHARE",
            "help": "with both: chance of a random box rather than deletion (default 0.5)",
        },
    )  # fmt: skip
    tool(
        "fraction", "keep a share of the rows", "train", ratio=ratio("share of the rows"),
        stratified={"action": "store_true", "help": "the same share of each relation"},
    )  # fmt: skip
    tool(
        "kshot", "keep K rows of each relation", "train",
        k={"required": True, "type": positive, "help": "rows of each relation"},
        include_none={
            "action": argparse.BooleanOptionalAction, "default": True,
            "help": "limit the rows without a relation, too (default: yes)",
        },
    )  # fmt: skip
    tool(
        "image-drop", "take pictures away", "all", keep=ratio("share of the pictures to keep"),
    )  # fmt: skip
    tool(
        "region-grid", "keep the first regions of each kind", "all",
        regions={**regions, "required": True},
        num_grounded={"required": True, "type": int, "help": "grounded regions a row"},
        num_detected={"required": True, "type": int, "help": "detected regions a picture"},
    )  # fmt: skip


def share(text: str) -> Fraction:
    """A number in [0, 1], exactly as it was typed: 0.29 of 100 is 29."""
    try:
        value = Fraction(text)
    except (ValueError, ZeroDivisionError):
        value = Fraction(-1)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a share in [0, 1]")
    return value


def positive(text: str) -> int:
    """A whole number above zero."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above zero")
    return int(text)


def draw(args: argparse.Namespace, task: Task, split: str) -> View:
    """The view of one split that the options describe."""
    rows = task.read(split)
    sources = [task.split_file(split)]
    grounded: Mapping[int, Regions] = {}
    detected: Mapping[str, Regions] = {}
    if folder := getattr(args, "regions", None):
        cache = read_regions(side_inputs.find(folder, "regions_vg_{split}.jsonl", split))
        cache.require_rows(len(rows))
        grounded, sources = cache.values, [*sources, cache.path]
        if (folder / "regions_od.jsonl").is_file():
            cache = read_regions(folder / "regions_od.jsonl")
            cache.of(rows)
            detected, sources = cache.values, [*sources, cache.path]
    match args.tool:
        case "align-noise":
            lent = grounded if args.regions and args.vg == "donor" else None
            changes = view_rules.align_noise(
                rows, args.ratio, args.seed, unit=args.unit, grounded=lent
            )
            if args.vg == "reground":
                changes = _reground(args, changes, rows, task.image_folder(split))
        case "aug-noise":
            p_modify = {"modify": Fraction(1), "delete": Fraction(0)}.get(args.ops, args.p_modify)
            changes = view_rules.aug_noise(
                rows, grounded, detected, args.ratio, args.seed, p_modify=float(p_modify)
            )
        case "fraction":
            changes = view_rules.fraction(rows, args.ratio, args.seed, stratified=args.stratified)
        case "kshot":
            changes = view_rules.kshot(rows, args.k, args.seed, include_none=args.include_none)
        case "image-drop":
            changes = view_rules.image_drop(rows, args.keep, args.seed)
        case "region-grid":
            changes = view_rules.region_grid(
                rows, grounded, detected, args.num_grounded, args.num_detected
            )
    common = {"tool", "data", "task", "out", "seed", "scope", "regions", "command"}
    params = {
        name: float(value) if isinstance(value, Fraction) else value
        for name, value in sorted(vars(args).items())
        if name not in common
    }
    header = {
        "tool": args.tool,
        "params": params,
        "seed": args.seed,
        "split": split,
        "sources": {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sources},
    }
    return View(split, changes, header)


def _reground(
    args: argparse.Namespace, changes: Mapping[int, Change], rows: Sequence[Any], folder: Path
) -> dict[int, Change]:
    """The receiving row's own phrases, looked for in the wrong picture."""
    if args.grounder is None:
        raise InputError("--vg reground needs --grounder MODEL")
    from finetune.grounding import Grounder, keywords, spacy_tagger
    from finetune.regions import open_picture, pictures

    tag = None if args.tagger == "none" else spacy_tagger(args.tagger)
    grounder, by_row = Grounder(args.grounder), {row.row: row for row in rows}
    shown = pictures(folder, (change.image_id for change in changes.values()), max_missing=0)
    return {
        row: replace(
            change,
            vg=tuple(grounder(open_picture(shown[change.image_id]), keywords(by_row[row], tag))),
        )
        for row, change in changes.items()
    }


@exit_on_input_error
def main(argv: Sequence[str] | None = None) -> None:
    """`python -m finetune view`"""
    parser = argparse.ArgumentParser(
        prog="python -m finetune view",
        description="Write a view manifest: what an experiment changes in a split.",
        epilog="example: python -m finetune view align-noise --data DATA/mnre --ratio 0.05 "
        "--out views/align-05",
        formatter_class=RAW,
    )
    add_arguments(parser)
    args = parser.parse_args(argv)
    task = registry.load("tasks", args.task)(args.data)
    splits = [split for split in SCOPES[args.scope] if task.split_file(split)]
    if not splits:
        raise InputError(f"{args.data}: no split of --scope {args.scope} is there")
    one_file = args.out.suffix == ".jsonl"
    if one_file and len(splits) > 1:
        raise InputError(f"--out {args.out}: {len(splits)} splits need a folder; or give --scope")
    for split in splits:
        view = draw(args, task, split)
        path = args.out if one_file else args.out / f"{split}.jsonl"
        write_view(path, view)
        print(f"{path}: changes {len(view.changes)} rows of {split}")
    for split in SCOPES[args.scope]:
        if split not in splits:
            print(f"{args.data} has no {split} split: no view of it")
