"""`python -m finetune figures KIND`: plots of runs and studies, a column of a paper wide."""

import argparse
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from finetune.report import figures, galleries, series, tables
from finetune.report.papers import dgfpt
from finetune.run.results import Predictions, of_seeds, read_result
from shards.command import CommandParser
from shards.files import InputError, atomic_path

# ---- states --------------------------------------------------------------------------------------


def states(args: argparse.Namespace) -> None:
    """PROMU, Figure 3."""
    from finetune.report.papers.promu import collect, panels

    if args.number < 3:
        raise InputError(f"--number {args.number}: at least 3")
    found = collect(args.run, args.data, args.split, args.number, args.regions, args.seed)
    shown = panels(found, args.seed)
    for pairs, panel in zip(found, shown, strict=True):
        print(f"{' and '.join(pairs.names)}, {len(pairs.first)} rows: {panel['note']}")
    figures.states(shown, args.out)


# ---- look ----------------------------------------------------------------------------------------


def look(args: argparse.Namespace) -> None:
    """What each run's answer needs of the picture; of a run that attends, also where to."""
    from finetune.predict.extractor import Extractor
    from finetune.predict.live_inputs import LiveInputs
    from finetune.predict.occlusion import thumbnail
    from finetune.report import looks
    from finetune.report.command import run_names
    from finetune.tasks.posts import parse_post

    record = {"text": args.text, "head": args.head, "tail": args.tail, "image": args.image}
    record["caption"] = args.caption
    live = LiveInputs(regions=args.regions, caption_model=args.caption_model)
    logging.getLogger("finetune.inputs.load").setLevel(
        logging.WARNING
    )  # it counts the covered pictures
    panels: list[tuple[str, Image.Image]] = []
    for name, run in zip(run_names([Path(run) for run in args.runs]), args.runs, strict=True):
        extract = Extractor.from_pretrained(run, live=live)
        if extract.run.info.kind != "relation":
            raise InputError(f"{run}: finds entities; where a run looked is shown for relations")
        post = parse_post(record, Path(), extract.task)
        panels = panels or [("the picture", thumbnail(post.image))]
        seen = looks.look(name, extract, post)
        print(f"{name}: {seen.answer}, {seen.needs}")
        panels += seen.panels
    galleries.looks(panels, args.text, args.out)


# ---- attention -----------------------------------------------------------------------------------


def attention(args: argparse.Namespace) -> None:
    """FocalMRE, Figure 4; the numbers beside the picture, as .npz."""
    from finetune.report.papers.focalmre import attend

    found = attend(args.run, args.data, args.split, args.row)
    galleries.looks(found.panels, found.heading, args.out)
    with atomic_path(args.out.with_suffix(".npz")) as temporary, open(temporary, "wb") as file:
        np.savez(file, **found.arrays)


# ---- relations -----------------------------------------------------------------------------------


def relations(args: argparse.Namespace) -> None:
    """Test F1 of each relation, mean over seeds."""
    answers, _ = read_relations(args.runs)
    figures.relations(tables.relation_f1(answers), args.out)


def sample_number(args: argparse.Namespace) -> None:
    """DGF-PT, Figure 4."""
    answers, results = read_relations(args.runs)
    train = tables.train_counts(results)
    found = dgfpt.binned(answers, train, dgfpt.edges(args.edges))
    if not any(found.values()):
        raise InputError(f"--edges {args.edges}: test has no relation with so many training rows")
    single = dgfpt.points(answers, train)
    print("\n".join(dgfpt.lines(found)))
    dgfpt.draw(found, single, args.out)


def read_relations(
    runs: Sequence[Path],
) -> tuple[dict[str, list[Predictions]], list[dict[str, Any]]]:
    """Test answers of each run, by its name (leaky runs are called so), and its `result.json`."""
    from finetune.report.command import run_names

    answers, results = {}, []
    for name, run in zip(run_names(runs), runs, strict=True):
        result, given = read_result(run), of_seeds(run, "test")
        if result["provenance"]["kind"] != "relation" or not given:
            raise InputError(f"{run}: no relations predicted on test (seed-*/pred_test.jsonl)")
        answers[f"{name} (leaky)" if result["leaky"] else name] = given
        results.append(result)
    return answers, results


# ---- study ---------------------------------------------------------------------------------------


def study(args: argparse.Namespace) -> None:
    """Curves over the columns of a study's tables."""
    shown = series.read_study(args.study).tables
    if args.table:
        titles = [table["title"] for table in shown]
        shown = [table for table in shown if table["title"] in args.table]
        if missing := set(args.table) - set(titles):
            raise InputError(
                f"{args.study}: no table {sorted(missing)[0]!r}; there are {', '.join(titles)}"
            )
    figures.study(shown, args.out)


# ---- the command ---------------------------------------------------------------------------------

KINDS: Mapping[str, Any] = {
    "states": states,
    "look": look,
    "attention": attention,
    "relations": relations,
    "sample-number": sample_number,
    "study": study,
}


def parser() -> argparse.ArgumentParser:
    """Options of each kind."""
    whole = CommandParser(
        prog="python -m finetune figures",
        description="Plots of finished runs and studies: PNG, a column of a paper wide.",
        epilog="example: python -m finetune figures study studies/protocols/study.json "
        "--out noise.png",
    )
    kinds = whole.add_subparsers(dest="kind", metavar="KIND", required=True)

    def add(name: str, text: str, example: str) -> argparse.ArgumentParser:
        example = f"example: python -m finetune figures {name} {example} --out f.png"
        return kinds.add_parser(name, help=text, description=f"{text}.", epilog=example)

    one = add(
        "states",
        "entity and object, relation and image after the fusion layers, by t-SNE",
        "runs/promu --data MNRE --regions MNRE",
    )
    one.add_argument("run", metavar="RUN", help="run of a method with fusion layers (promu)")
    one.add_argument("--data", required=True, type=Path, help="folder of the task's files")
    one.add_argument("--split", choices=("train", "dev", "test"), default="test")
    one.add_argument("--number", type=int, default=50, help="rows; default 50, as in the paper")
    one.add_argument(
        "--regions", metavar="DIR", type=Path, help="folder of regions_od.jsonl: adds the objects"
    )
    one.add_argument("--seed", type=int, default=0, help="draws the rows; default 0")

    one = add(
        "look",
        "what an answer needs of the picture, and what FocalMRE attends to",
        'runs/promu runs/focalmre --text "Bob in Oslo" --head Bob --tail Oslo --image 17.jpg',
    )
    one.add_argument("runs", nargs="+", metavar="RUN", help="runs that find relations")
    for name, text in (
        ("text", "the post"),
        ("head", "its head entity, or START:END in characters"),
        ("tail", "its tail entity"),
        ("image", "its picture"),
    ):
        one.add_argument(f"--{name}", required=True, help=text)
    one.add_argument("--caption", help="what it shows, for runs that read captions")
    one.add_argument("--caption-model", metavar="DIR", help="or a captioner: folder or hub id")
    one.add_argument(
        "--regions", choices=("live", "none"), default="live",
        help="of runs that read regions: ground and detect them now, or leave all slots empty",
    )  # fmt: skip

    one = add(
        "attention",
        "where FocalMRE's entities look in each framed copy of a row's picture",
        "runs/focalmre --data MNRE --row 7",
    )
    one.add_argument("run", metavar="RUN", help="run of focalmre, with the regions it was given")
    one.add_argument("--data", required=True, type=Path, help="folder of the task's files")
    one.add_argument("--split", choices=("train", "dev", "test"), default="test")
    one.add_argument("--row", required=True, type=int, help="its number in the file, from 0")

    one = add("relations", "test F1 of each relation", "runs/mtb runs/promu")
    one.add_argument("runs", nargs="+", metavar="RUN", type=Path, help="run directories")

    one = add(
        "sample-number",
        "scores of relations by how often train has them; also printed",
        "runs/dgfpt --edges 0,50,500",
    )
    one.add_argument("runs", nargs="+", metavar="RUN", type=Path, help="run directories")
    one.add_argument(
        "--edges", default=",".join(map(str, dgfpt.EDGES)), metavar="A,B,…",
        help="of the bins, in training rows (default: %(default)s); to train on at most N rows of "
        "each relation: `finetune view kshot --k N --no-include-none`, then `train --view`",
    )  # fmt: skip

    one = add("study", "curves of a study: noise, few labels, regions", "studies/p/study.json")
    one.add_argument("study", metavar="STUDY.json", type=Path, help="what a study wrote")
    one.add_argument("--table", action="append", metavar="TITLE", help="repeatable; default: all")
    for one in kinds.choices.values():
        one.add_argument("--out", required=True, type=Path, help="PNG to write")
    return whole


def main(argv: Sequence[str]) -> None:
    """python -m finetune figures KIND … --out f.png"""
    args = parser().parse_args(argv)
    if args.out.suffix != ".png":
        raise InputError(f"--out {args.out}: a PNG is written; call it so")
    args.out.parent.mkdir(parents=True, exist_ok=True)
    KINDS[args.kind](args)
    print(args.out)
