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

from finetune import registry
from finetune.data import view_rules
from finetune.inputs.view import Change, View, read_view, write_view
from finetune.tasks import side_files
from finetune.tasks.base import Row, SideInput, Task
from finetune.tasks.region_cache import read_regions
from shards.command import CommandParser, exit_on_input_error
from shards.files import InputError
from shards.images import decoded

__all__ = ["Change", "View", "main", "read_view", "write_view"]

SCOPES = {
    "train": ("train",),
    "dev": ("val",),
    "test": ("test",),
    "train+dev": ("train", "val"),
    "all": ("train", "val", "test"),
}


def share(text: str) -> Fraction:
    """A number in [0, 1], exactly as it was typed: 0.29 of 100 is 29."""
    try:
        value = Fraction(text)
    except (ValueError, ZeroDivisionError):
        value = Fraction(-1)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a share in [0, 1]")
    return value


def whole(text: str) -> int:
    """0, 1, 2, …"""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number")
    return int(text)


def positive(text: str) -> int:
    """1, 2, …"""
    if whole(text) == 0:
        raise argparse.ArgumentTypeError("0 is not above zero")
    return int(text)


RATIO = {"required": True, "type": share, "metavar": "SHARE", "help": "of rows, in [0, 1]"}
REGIONS = {"type": Path, "metavar": "DIR", "help": "region cache: regions_vg_*, regions_od"}
TOOLS: Mapping[str, tuple[str, str, Mapping[str, Any]]] = {
    "align-noise": ("give rows wrong pictures", "all", {
        "--ratio": RATIO,
        "--unit": {"choices": ["row", "tweet"], "default": "row",
                   "help": "what gets a wrong picture; default row"},
        "--regions": REGIONS,
        "--vg": {"choices": ["donor", "reground"], "default": "donor",
                 "help": "boxes in the wrong picture: those of its own row, or grounded anew "
                 "from the receiving row's phrases; default donor"},
        "--grounder": {"metavar": "MODEL", "help": "of reground: Grounding DINO, folder or id"},
        "--tagger": {"default": "en_core_web_sm", "help": "of reground: spaCy model, or none"},
    }),
    "aug-noise": ("spoil regions", "test", {
        "--ratio": RATIO | {"help": "of regions, in [0, 1]"},
        "--regions": REGIONS | {"required": True},
        "--ops": {"choices": ["both", "modify", "delete"], "default": "both",
                  "help": "default both"},
        "--p-modify": {"type": share, "default": Fraction(1, 2), "metavar": "SHARE",
                       "help": "of both: chance of a random box, not deletion; default 0.5"},
    }),
    "fraction": ("keep a share of the rows", "train", {
        "--ratio": RATIO,
        "--stratified": {"action": "store_true", "help": "the same share of each relation"},
    }),
    "kshot": ("keep K rows of each relation", "train", {
        "--k": {"required": True, "type": positive, "help": "rows of each relation"},
        "--include-none": {"action": argparse.BooleanOptionalAction, "default": True,
                           "help": "limit rows without a relation, too; default yes"},
    }),
    "image-drop": ("take pictures away", "all", {
        "--keep": RATIO | {"help": "of pictures, in [0, 1], that stay"},
    }),
    "region-grid": ("keep the first regions of each kind", "all", {
        "--regions": REGIONS | {"required": True},
        "--num-grounded": {"required": True, "type": whole, "help": "grounded regions a row"},
        "--num-detected": {"required": True, "type": whole, "help": "detected regions a picture"},
    }),
}  # fmt: skip
"""Name -> (help, default scope, options)."""
EXAMPLES = {
    "--ratio": "0.05",
    "--k": "5",
    "--keep": "0.4",
    "--regions": "DATA/mnre",
    "--num-grounded": "2",
    "--num-detected": "1",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The subcommands of `python -m finetune view`."""
    tools = parser.add_subparsers(dest="tool", required=True, metavar="TOOL")
    for name, (text, scope, options) in TOOLS.items():
        required = [option for option, settings in options.items() if settings.get("required")]
        values = "".join(f" {option} {EXAMPLES[option]}" for option in required)
        sub = tools.add_parser(
            name,
            help=text,
            description=text,
            epilog="example: "
            f"python -m finetune view {name} --data DATA/mnre{values} --out views/{name}",
        )
        sub.add_argument("--data", required=True, type=Path, help="folder of the task's files")
        sub.add_argument("--task", default="mnre", help="mnre, twitter2015, … (default mnre)")
        sub.add_argument(
            "--out", required=True, type=Path, help="folder for {split}.jsonl, or one .jsonl file"
        )
        sub.add_argument("--seed", type=whole, default=1, help="default 1")
        sub.add_argument(
            "--scope",
            choices=SCOPES,
            default=scope,
            metavar="SCOPE",
            help=f"splits to change: {', '.join(SCOPES)}; default {scope}",
        )
        for option, settings in options.items():
            sub.add_argument(option, **settings)


def draw(args: argparse.Namespace, task: Task, split: str) -> View:
    """The view of one split that the options describe."""
    rows = task.read(split)
    caches = _caches(args, rows, split)
    grounded, detected = (cache.values if cache else {} for cache in caches)
    match args.tool:
        case "align-noise":
            lent = grounded if args.regions and args.vg == "donor" else None
            changes = view_rules.align_noise(
                rows, args.ratio, args.seed, unit=args.unit, grounded=lent
            )
            if args.vg == "reground":
                changes = _reground(args, changes, rows, task.image_folder(split))
        case "aug-noise":
            chance = {"both": args.p_modify, "modify": 1, "delete": 0}[args.ops]
            changes = view_rules.aug_noise(
                rows, grounded, detected, args.ratio, args.seed, p_modify=float(chance)
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
    return View(split, changes, _header(args, split, task, [c for c in caches if c]))


def _caches(
    args: argparse.Namespace, rows: Sequence[Row], split: str
) -> tuple[SideInput | None, SideInput | None]:
    """Grounded and detected regions, each None where it was not given."""
    folder = getattr(args, "regions", None)
    if folder is None:
        return None, None
    grounded = read_regions(side_files.find(folder, "regions_vg_{split}.jsonl", split))
    grounded.require_rows(len(rows))
    if not (folder / "regions_od.jsonl").is_file():
        return grounded, None
    detected = read_regions(folder / "regions_od.jsonl")
    detected.of(rows)
    return grounded, detected


def _header(
    args: argparse.Namespace, split: str, task: Task, caches: Sequence[SideInput]
) -> dict[str, Any]:
    """What decided the view; nothing of where its files lie, so that it is the same anywhere."""
    names = [option.removeprefix("--").replace("-", "_") for option in TOOLS[args.tool][2]]
    values = {name: getattr(args, name) for name in names if name != "regions"}
    paths = [task.split_file(split), *(cache.path for cache in caches)]
    return {
        "tool": args.tool,
        "params": {k: float(v) if isinstance(v, Fraction) else v for k, v in values.items()},
        "seed": args.seed,
        "split": split,
        "sources": {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in paths},
        "leaky": any(cache.leaky for cache in caches),
    }


def _reground(
    args: argparse.Namespace, changes: Mapping[int, Change], rows: Sequence[Any], folder: Path
) -> dict[int, Change]:
    """The receiving row's own phrases, looked for in the wrong picture."""
    if args.grounder is None:
        raise InputError("--vg reground needs --grounder MODEL")
    from finetune.data.grounding import Grounder, keywords, spacy_tagger
    from finetune.data.region_files import pictures

    tag = None if args.tagger == "none" else spacy_tagger(args.tagger)
    grounder, by_row = Grounder(args.grounder), {row.row: row for row in rows}
    shown = pictures(folder, (change.image_id for change in changes.values()), max_missing=0)
    return {
        row: replace(
            change,
            vg=tuple(grounder(decoded(shown[change.image_id]), keywords(by_row[row], tag))),
        )
        for row, change in changes.items()
    }


@exit_on_input_error
def main(argv: Sequence[str] | None = None) -> None:
    """`python -m finetune view`"""
    parser = CommandParser(
        prog="python -m finetune view",
        description="Write a view manifest: what an experiment changes in a split.",
        epilog="example: python -m finetune view align-noise --data DATA/mnre --ratio 0.05 "
        "--out views/align-05",
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
