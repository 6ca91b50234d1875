"""`python -m finetune figures KIND`: plots of runs and studies, a column of a paper wide."""

import argparse
import json
import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from finetune import figures, metrics, tables
from pretrain.cli import CommandParser, InputError

NUMBERS = {"none": 0.0, "clean": 0.0, "all": 100.0}
"""Columns of a study that are words and stand at an end of the axis."""
NOTHING = 0.005
"""A loss of probability that rounding could be."""


# ---- states --------------------------------------------------------------------------------------


def states(args: argparse.Namespace) -> None:
    """PROMU, Figure 3."""
    from finetune.states import collect

    if args.number < 3:
        raise InputError(f"--number {args.number}: at least 3")
    panels = []
    for pairs in collect(args.run, args.data, args.split, args.number, args.regions, args.seed):
        own, others = pairs.cosines()
        note = f"cosine: own pair {own:.2f}, others {others:.2f}"
        print(f"{' and '.join(pairs.names)}, {len(pairs.first)} rows: {note}")
        panels.append({"names": pairs.names, "points": pairs.flat(args.seed), "note": note})
    figures.states(panels, args.out)


# ---- look ----------------------------------------------------------------------------------------


def look(args: argparse.Namespace) -> None:
    """What each run's answer needs of the picture; of a run that attends, also where to."""
    from finetune import looking
    from finetune.extractor import Extractor
    from finetune.own_inputs import LiveInputs
    from finetune.posts import parse_post
    from finetune.report import run_names

    record = {"text": args.text, "head": args.head, "tail": args.tail, "image": args.image}
    panels: list[tuple[str, Image.Image]] = []
    logging.getLogger("finetune.inputs").setLevel(logging.WARNING)  # it counts the covered pictures
    names = run_names([Path(run) for run in args.runs])
    for name, run in zip(names, args.runs, strict=True):
        extract = Extractor.from_pretrained(run, live=LiveInputs(regions=args.regions))
        if extract.run.info.kind != "relation":
            raise InputError(f"{run}: finds entities; where a run looked is shown for relations")
        post = parse_post(record, Path(), extract.task)
        with Watched(extract.run.method) as seen:
            (answer,) = extract.answer([post], top_k=1)
        if "error" in answer:
            raise InputError(f"{run}: {answer['error']}")
        if not panels:
            panels.append(("the picture", thumbnail(post.image, looking.SHOWN)))
        worth = looking.occlusion(extract, post, answer["relation"])
        most = looking.strongest(worth)["loss"]
        if most < NOTHING:  # else the map would show noise, stretched to full brightness
            worth = worth * 0
        needs = f"a cell: up to {most:.2f}" if most >= NOTHING else "loses nothing"
        said = f"{short(answer['relation'])} {answer['probability']:.2f}"
        title = f"{fitted(name)}\n{said}\n{needs}"
        panels.append((title, looking.overlay(panels[0][1], worth)))
        print(f"{name}: {said}, {needs}")
        panels += attention(extract.run.method, seen.batch, name)
    figures.looks(panels, args.text, args.out)


class Watched:
    """While it is open, the last batch that a method read is kept."""

    def __init__(self, method: Any) -> None:
        self.method, self.batch = method, None

    def __enter__(self) -> "Watched":
        self.hook = self.method.register_forward_pre_hook(self.keep)
        return self

    def keep(self, method: Any, inputs: tuple[Any, ...]) -> None:
        """The hook."""
        (self.batch,) = inputs

    def __exit__(self, *error: object) -> None:
        self.hook.remove()


def attention(method: Any, batch: Any, name: str) -> list[tuple[str, Image.Image]]:
    """FocalMRE, Figure 4: the copies whose gate is most and least open; none of other methods."""
    from finetune.looking import overlay

    if not hasattr(method, "glance") or batch.pixel_values is None:
        return []
    try:
        glance = method.glance(batch)
    except ValueError:  # this run has no attention, or no gate
        return []
    gate = glance.gate[0].mean(dim=-1)
    order = gate.argsort(descending=True).tolist()
    chosen = {order[0]: "most open"}
    if len({tuple(p.flatten().tolist()) for p in glance.pictures[0]}) > 1:
        chosen[order[-1]] = "least open"
    panels = []
    for copy, which in chosen.items():
        weights = glance.weights[0, copy].mean(dim=0).float().cpu().numpy()
        side = round(len(weights) ** 0.5)
        pixels = glance.pictures[0, copy].permute(1, 2, 0).cpu().numpy()
        title = f"{fitted(name)}\nattention\ngate {float(gate[copy]):.2f}"
        title += f" ({which})" if len(chosen) > 1 else ""
        panels.append((title, overlay(Image.fromarray(pixels), weights.reshape(side, side))))
    return panels


def thumbnail(path: Path, side: int) -> Image.Image:
    """The picture, its longer side at most so many pixels."""
    with Image.open(path) as picture:
        picture = picture.convert("RGB")
    picture.thumbnail((side, side))
    return picture


def fitted(name: str, most: int = 22) -> str:
    """The end of a name that is too long for a panel."""
    return name if len(name) <= most else "…" + name[1 - most :]


def short(relation: str) -> str:
    """/per/org/member_of -> member_of"""
    return relation.rsplit("/", 1)[-1]


# ---- relations -----------------------------------------------------------------------------------


def relations(args: argparse.Namespace) -> None:
    """Test F1 of each relation, mean over seeds."""
    from finetune.report import read_result, run_names

    by_run: dict[str, dict[str, dict[str, float]]] = {}
    for name, run in zip(run_names(args.runs), args.runs, strict=True):
        kind, answers = read_result(run)["provenance"]["kind"], tables.read_predictions(run)
        if kind != "relation" or not answers:
            raise InputError(f"{run}: no relations predicted on test (seed-*/pred_test.jsonl)")
        seeds = [metrics.relation_scores_by_label(a.gold, a.predicted) for a in answers]
        by_run[name] = {
            label: {
                "f1": sum(seed[label]["f1"] for seed in seeds) / len(seeds),
                "support": seeds[0][label]["support"],
            }
            for label in seeds[0]
        }
    first = {label: scores["support"] for label, scores in next(iter(by_run.values())).items()}
    for name, found in by_run.items():
        if {label: scores["support"] for label, scores in found.items()} != first:
            raise InputError(f"{name}: was tested on other rows than {next(iter(by_run))}")
    figures.relations(by_run, args.out)


# ---- study ---------------------------------------------------------------------------------------


def study(args: argparse.Namespace) -> None:
    """Curves over the columns of a study's tables."""
    found = read_study(args.study)
    if args.table:
        titles = [table["title"] for table in found]
        found = [table for table in found if table["title"] in args.table]
        if missing := set(args.table) - set(titles):
            raise InputError(
                f"{args.study}: no table {sorted(missing)[0]!r}; there are {', '.join(titles)}"
            )
    figures.study(found, args.out)


def read_study(path: Path) -> list[dict[str, Any]]:
    """`study.json` as `figures.study` draws it: a table each, test F1 or dev's without test."""
    try:
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        found: dict[str, dict[str, Any]] = {}
        for cell in cells:
            table = found.setdefault(
                cell["table"], {"title": cell["table"], "columns": [], "runs": {}}
            )
            if cell["column"] not in table["columns"]:
                table["columns"].append(cell["column"])
            f1 = (cell["test"] or cell["dev"])["f1"]
            table["runs"].setdefault(cell["run"], {})[cell["column"]] = f1["mean"], f1["sd"]
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; `python -m finetune study` writes it") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: not the study.json of a study ({error!r})") from None
    if not found:
        raise InputError(f"{path}: a study without cells")
    for table in found.values():
        table["axis"] = numbers(table["columns"])
    return list(found.values())


def numbers(columns: Sequence[str]) -> list[float] | None:
    """The numbers that columns such as `none`, `10 %`, `8 each` are; None if one is no number, or
    they are not of one unit."""
    values, units = [], set()
    for column in columns:
        if column in NUMBERS:
            values.append(NUMBERS[column])
        elif found := re.fullmatch(r"(\d+(?:\.\d+)?)\s*(\S*)", column):
            values.append(float(found[1]))
            units.add(found[2])
        else:
            return None
    if "all" in columns and units != {"%"}:
        return None
    return values if len(units) == 1 and len(set(values)) == len(values) > 1 else None


# ---- the command ---------------------------------------------------------------------------------

KINDS: Mapping[str, Any] = {
    "states": states,
    "look": look,
    "relations": relations,
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
    one.add_argument(
        "--regions", choices=("live", "none"), default="live",
        help="of runs that read regions: ground and detect them now, or leave all slots empty",
    )  # fmt: skip

    one = add("relations", "test F1 of each relation", "runs/mtb runs/promu")
    one.add_argument("runs", nargs="+", metavar="RUN", type=Path, help="run directories")

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
