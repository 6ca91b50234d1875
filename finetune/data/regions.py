"""`python -m finetune regions build | recover | import`: writes region caches.

    build    leak-safe: phrases of the text grounded by Grounding DINO, objects by Faster R-CNN
    recover  the boxes of the community's crops, found again in the pictures: leaky
    import   boxes that somebody else has computed

A run that was interrupted goes on where it stopped. `tasks/region_cache.py` has the format.
"""

import argparse
import json
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from finetune import registry
from finetune.data import crop_matching
from finetune.data.grounding import Grounder, ObjectDetector, keywords, spacy_tagger
from finetune.data.region_files import entry, finish, pictures
from finetune.data.resumable import resumable
from finetune.tasks import side_files
from finetune.tasks.base import Row, Task
from finetune.tasks.reading import not_empty, parse_record, read_lines
from finetune.tasks.region_cache import Region, Regions, regions_from_json, regions_to_json
from finetune.tasks.splits import SPLITS
from shards.command import CommandParser, exit_on_input_error
from shards.files import InputError
from shards.images import decoded

GENERATED_SIZE = (768, 768)
"""TMR's generated pictures."""


# ---- build --------------------------------------------------------------------------------------


def build(args: argparse.Namespace, task: Task, splits: Sequence[str]) -> None:
    """`regions_vg_{split}.jsonl` of each split, and one `regions_od.jsonl`."""
    rows = {split: task.read(split) for split in splits}
    tag = None if args.tagger == "none" else spacy_tagger(args.tagger)
    grounder = Grounder(args.grounder, args.device)
    for split in splits:
        phrases = {row.row: keywords(row, tag, args.num_grounded) for row in rows[split]}
        header = {
            "tool": "regions build",
            **grounder.provenance,
            "keywords": {"tagger": args.tagger, "limit": args.num_grounded},
            "leaky": False,
        }
        ground(args, task, split, rows[split], phrases, grounder, header)
    if args.detector != "none":
        detect(args, task, rows)


def ground(
    args: argparse.Namespace,
    task: Task,
    split: str,
    rows: Sequence[Row],
    phrases: Mapping[int, Sequence[tuple[str, str]]],
    grounder: Callable[[Image.Image, Sequence[tuple[str, str]]], Sequence[Region]],
    header: Mapping[str, Any],
) -> None:
    """One split's cache. All phrases that the rows of a picture ask for go through in one pass."""
    asked: dict[str, dict[str, None]] = defaultdict(dict)
    for row in rows:
        asked[row.image_id] |= dict.fromkeys(phrase for phrase, _ in phrases[row.row])
    folder = task.image_folder(split)

    def look(work: tuple[Path, Sequence[str]]) -> dict[str, Any]:
        path, wanted = work
        picture = decoded(path)
        found = grounder(picture, [(phrase, "") for phrase in wanted])
        return {"size": picture.size, "regions": regions_to_json(found, "vg")}

    present = pictures(folder, asked, args.max_missing)
    work = {name: (path, list(asked[name])) for name, path in present.items()}
    out = args.out / f"regions_vg_{split}.jsonl"
    found = resumable(out, header, work, look)
    entries = {}
    for row in rows:
        if row.image_id in found:
            whole = entry(row.image_id, found[row.image_id], out)
            by_phrase = {region.text: region for region in whole.regions}
            regions = (
                Region(by_phrase[phrase].box, by_phrase[phrase].score, phrase, kind)
                for phrase, kind in phrases[row.row]
                if phrase in by_phrase
            )
            entries[row.row] = Regions(whole.image_id, whole.size, tuple(regions))
    finish(out, header, entries)


def detect(args: argparse.Namespace, task: Task, rows: Mapping[str, Sequence[Row]]) -> None:
    """The objects of all pictures of all splits."""
    detector = ObjectDetector(args.detector, args.device, args.num_detected)
    header = {"tool": "regions build", **detector.provenance, "leaky": False}
    work: dict[str, Path] = {}
    for split, some in rows.items():
        names = [row.image_id for row in some]
        work |= pictures(task.image_folder(split), names, args.max_missing)

    def look(path: Path) -> dict[str, Any]:
        picture = decoded(path)
        return {"size": picture.size, "regions": regions_to_json(detector(picture), "od")}

    out = args.out / "regions_od.jsonl"
    found = resumable(out, header, work, look)
    finish(out, header, {name: entry(name, value, out) for name, value in found.items()})


# ---- recover ------------------------------------------------------------------------------------


def recover(args: argparse.Namespace, task: Task, splits: Sequence[str]) -> None:
    """`regions_vg_{split}.jsonl` with the boxes of the community's crops."""
    for split in splits:
        rows = task.read(split)
        folder = args.data / "img_vg" / split / "crops"
        names = crop_names(args.data, split)
        present = pictures(task.image_folder(split), (r.image_id for r in rows), args.max_missing)
        work = {
            str(row.row): (
                present[row.image_id],
                [folder / name for name in names.get(row.row, ())],
            )
            for row in rows
            if row.image_id in present
        }
        header = {
            "tool": "regions recover",
            "model": "normalised cross-correlation",
            "thresholds": {"score": crop_matching.GOOD},
            "leaky": True,
        }
        out = args.out / f"regions_vg_{split}.jsonl"
        found = resumable(out, header, work, find_crops, args.workers)
        lost = [name for value in found.values() for name in value["lost"]]
        entries = {row.row: found[str(row.row)] for row in rows if str(row.row) in found}
        finish(
            out,
            {**header, "lost": len(lost)},
            {row: entry(rows[row].image_id, value, out) for row, value in entries.items()},
        )
        if lost:
            print(f"{out}: {len(lost)} crops not found in their pictures, first: {lost[0]}")


def crop_names(folder: Path, split: str) -> Mapping[int, Sequence[str]]:
    """Row -> crop files: from `txt/mre_{split}_dict.pth`, else from the names in `img_vg`."""
    if any((folder / "txt").glob("mre_*_dict.pth")):
        path = side_files.find(folder, "txt/mre_{split}_dict.pth", split)
        return side_files.read_crop_names(path).values
    names: dict[int, list[str]] = defaultdict(list)
    for path in sorted((folder / "img_vg" / split / "crops").glob("*_pred_yolo_crop_*.png")):
        row, _, _ = path.name.partition("_")
        if not row.isdecimal():
            raise InputError(f"{path}: expected a name like 12_pred_yolo_crop_3.png: row, query")
        names[int(row)].append(path.name)
    if not names:
        raise InputError(f"{folder}: neither txt/mre_{split}_dict.pth nor img_vg/{split}/crops")
    return names


def find_crops(work: tuple[Path, Sequence[Path]]) -> dict[str, Any]:
    """The regions of one row's crops in its picture, and the names of those not found."""
    path, crops = work
    picture = decoded(path)
    matcher = crop_matching.Matcher(picture)
    regions, lost = [], []
    for crop in crops:
        match = matcher.find_scaled(decoded(crop)) if crop.is_file() else None
        if match is None:
            lost.append(crop.name)
        else:
            regions.append(Region(match.box, match.score, "", "community"))
    return {"size": picture.size, "regions": regions_to_json(regions, "vg"), "lost": lost}


# ---- import -------------------------------------------------------------------------------------


def import_boxes(args: argparse.Namespace, task: Task, splits: Sequence[str]) -> None:
    """TMR's boxes in its generated pictures, or anybody's objects."""
    if args.objects:
        entries = read_objects(args.objects)
        header = {"tool": "regions import", "source": args.objects.name, "leaky": args.leaky}
        finish(args.out / "regions_od.jsonl", header, entries)
        return
    for split in splits:
        path = side_files.find(args.data, "txt/mre_dif_{split}_dict.pth", split)
        boxes = side_files.read_generated_boxes(path)
        rows = task.read(split)
        boxes.require_rows(len(rows))
        entries = {
            row.row: Regions(
                row.image_id,
                GENERATED_SIZE,
                tuple(Region(box, 1.0, "", "community") for box in boxes.values[row.row]),
            )
            for row in rows
        }
        header = {"tool": "regions import", "source": path.name, "leaky": True}
        finish(args.out / f"regions_generated_{split}.jsonl", header, entries)
        for note in boxes.notes:
            print(f"{path}: {note}")


def read_objects(path: Path) -> dict[str, Regions]:
    """`{"image_id", "size", "objects": [{"box", "score", "label"}]}` lines, as `shards` writes."""
    entries: dict[str, Regions] = {}
    for where, line in read_lines(path):
        record = parse_record(json.loads, line, where)
        if not isinstance(record, dict) or not {"image_id", "size", "objects"} <= record.keys():
            raise InputError(f"{where}: expected an object with image_id, size and objects")
        name, size = record["image_id"], record["size"]
        if not isinstance(name, str) or not name or name in entries:
            raise InputError(f"{where}: image_id {name!r} is no file name, or comes twice")
        if not isinstance(size, list) or [type(side) for side in size] != [int, int]:
            raise InputError(f"{where}: size must be [width, height] in pixels")
        regions = regions_from_json(record["objects"], size, where)
        best_first = sorted(regions, key=lambda region: -region.score)
        entries[name] = Regions(name, tuple(size), tuple(best_first))
    return not_empty(entries, path)


# ---- command ------------------------------------------------------------------------------------


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The subcommands of `python -m finetune regions`."""
    tools = parser.add_subparsers(dest="tool", required=True, metavar="TOOL")

    def tool(name: str, function: Callable[..., None], text: str) -> argparse.ArgumentParser:
        sub = tools.add_parser(
            name,
            help=text,
            description=text,
            epilog=f"example: python -m finetune regions {name} --data DATA/mnre --out REGIONS",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        sub.set_defaults(function=function)
        sub.add_argument("--data", required=True, type=Path, help="folder of the task's files")
        sub.add_argument("--task", default="mnre", help="mnre, twitter2015, … (default mnre)")
        sub.add_argument("--out", required=True, type=Path, help="folder of the caches")
        sub.add_argument(
            "--split", action="append", choices=SPLITS, help="repeatable; default: all there are"
        )
        sub.add_argument(
            "--max-missing", type=int, default=0, help="pictures that may be absent; default 0"
        )
        return sub

    sub = tool("build", build, "leak-safe regions from text and picture alone")
    sub.add_argument(
        "--grounder", default="IDEA-Research/grounding-dino-base", help="folder or hub id"
    )
    sub.add_argument("--detector", default="COCO_V1", help="COCO_V1, a weights file, or none")
    sub.add_argument("--tagger", default="en_core_web_sm", help="spaCy model, or none")
    sub.add_argument("--num-grounded", type=int, default=4, help="phrases a row; default 4")
    sub.add_argument("--num-detected", type=int, default=3, help="objects a picture; default 3")
    sub.add_argument("--device", default="cpu", help="cpu, cuda, …; default cpu")

    sub = tool("recover", recover, "boxes of the community's crops (leaky)")
    sub.add_argument("--workers", type=int, default=1, help="processes; default 1")

    sub = tool("import", import_boxes, "TMR's boxes in DATA (leaky), or objects from a file")
    sub.add_argument(
        "--objects", type=Path, metavar="FILE", help="JSON lines image_id, size, objects"
    )
    sub.add_argument(
        "--leaky",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="stamp of --objects; --no-leaky where you know that no label shaped them",
    )


@exit_on_input_error
def main(argv: Sequence[str] | None = None) -> None:
    """`python -m finetune regions`"""
    parser = CommandParser(
        prog="python -m finetune regions",
        description="Write region caches.",
        epilog="example: python -m finetune regions build --data DATA/mnre --out REGIONS",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_arguments(parser)
    args = parser.parse_args(argv)
    task = registry.load("tasks", args.task)(args.data)
    splits = args.split or [split for split in SPLITS if task.split_file(split)]
    args.function(args, task, splits)
