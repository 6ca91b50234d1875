"""`python -m finetune regions build | recover | import`: writes region caches.

    build    leak-safe: phrases of the text grounded by Grounding DINO, objects by Faster R-CNN
    recover  the boxes of the community's crops, found again in the pictures: leaky
    import   boxes that somebody else has computed

A run that was interrupted goes on where it stopped. `tasks/region_cache.py` has the format.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from finetune.config import Split, TaskOptions
from finetune.data import crop_matching
from finetune.data.region_files import crop_names, entry, finish, pictures, read_objects
from finetune.data.resumable import resumable
from finetune.tasks import side_files
from finetune.tasks.base import Row, Task
from finetune.tasks.region_cache import Region, Regions, regions_to_json
from shards.command import Group, Tool
from shards.images import decoded
from shards.options import positive

GENERATED_SIZE = (768, 768)
"""TMR's generated pictures."""


# ---- options -------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class RegionConfig(TaskOptions):
    """What every kind of cache asks for."""

    out: Path
    """Folder of the caches."""
    split: tuple[Split, ...] = ()
    """Which; none: all there are."""
    max_missing: int = 0
    """Pictures that may be absent."""


@dataclass(frozen=True, kw_only=True)
class BuildConfig(RegionConfig):
    """Leak-safe regions from text and picture alone."""

    grounder: str = "IDEA-Research/grounding-dino-base"
    """Grounding DINO: folder or hub id."""
    detector: str = "COCO_V1"
    """Faster R-CNN: COCO_V1, a weights file, or none."""
    tagger: str = "en_core_web_sm"
    """spaCy model, or none."""
    num_grounded: int = 4
    """Phrases a row."""
    num_detected: int = 3
    """Objects a picture."""
    device: str = "cpu"
    """cpu, cuda, …"""


@dataclass(frozen=True, kw_only=True)
class RecoverConfig(RegionConfig):
    """Boxes of the community's crops (leaky)."""

    workers: int = 1
    """Processes."""

    def __post_init__(self) -> None:
        positive(workers=self.workers)


@dataclass(frozen=True, kw_only=True)
class ImportConfig(RegionConfig):
    """TMR's boxes in DATA (leaky), or objects from a file."""

    objects: Path | None = None
    """JSON lines image_id, size, objects."""
    leaky: bool = True
    """Stamp of --objects; --no-leaky where you know that no label shaped them."""


# ---- build --------------------------------------------------------------------------------------


def build(config: BuildConfig) -> None:
    """`regions_vg_{split}.jsonl` of each split, and one `regions_od.jsonl`."""
    from finetune.data.grounding import Grounder, keywords, spacy_tagger

    task, splits = config.open(), config.splits(config.split)
    rows = {split: task.read(split) for split in splits}
    tag = None if config.tagger == "none" else spacy_tagger(config.tagger)
    grounder = Grounder(config.grounder, config.device)
    for split in splits:
        phrases = {row.row: keywords(row, tag, config.num_grounded) for row in rows[split]}
        header = {
            "tool": "regions build",
            **grounder.provenance,
            "keywords": {"tagger": config.tagger, "limit": config.num_grounded},
            "leaky": False,
        }
        ground(config, task, split, rows[split], phrases, grounder, header)
    if config.detector != "none":
        detect(config, task, rows)


def ground(
    config: RegionConfig,
    task: Task,
    split: str,
    rows: Sequence[Row],
    phrases: Mapping[int, Sequence[tuple[str, str]]],
    grounder: Callable[[Image.Image, Sequence[tuple[str, str]]], Sequence[Region]],
    header: Mapping[str, Any],
) -> None:
    """One split's cache. All phrases that the rows of a picture ask for go through in one pass."""
    # Dicts, not sets: phrases are digested in their order, by which a log knows its work again.
    asked: dict[str | None, dict[str, None]] = defaultdict(dict)
    for row in rows:
        asked[row.image_id] |= dict.fromkeys(phrase for phrase, _ in phrases[row.row])
    folder = task.image_folder(split)

    def look(work: tuple[Path, Sequence[str]]) -> dict[str, Any]:
        path, phrases = work
        picture = decoded(path)
        regions = grounder(picture, [(phrase, "") for phrase in phrases])
        return {"size": picture.size, "regions": regions_to_json(regions, "vg")}

    present = pictures(folder, asked, config.max_missing)
    work = {name: (path, list(asked[name])) for name, path in present.items()}
    out = config.out / f"regions_vg_{split}.jsonl"
    values = resumable(out, header, work, look, reads=lambda item: item[:1])
    entries = {}
    for row in rows:
        if row.image_id in values:
            whole = entry(row.image_id, values[row.image_id], out)
            # Another row of the picture may ask for the phrase as another kind: head, noun.
            by_phrase = {region.text: region for region in whole.regions}
            regions = (
                Region(by_phrase[phrase].box, by_phrase[phrase].score, phrase, kind)
                for phrase, kind in phrases[row.row]
                if phrase in by_phrase
            )
            entries[row.row] = Regions(whole.image_id, whole.size, tuple(regions))
    finish(out, header, entries)


def detect(config: BuildConfig, task: Task, rows: Mapping[str, Sequence[Row]]) -> None:
    """The objects of all pictures of all splits."""
    from finetune.data.grounding import ObjectDetector

    detector = ObjectDetector(config.detector, config.device, config.num_detected)
    header = {"tool": "regions build", **detector.provenance, "leaky": False}
    work: dict[str, Path] = {}
    for split, of_split in rows.items():
        names = [row.image_id for row in of_split]
        work |= pictures(task.image_folder(split), names, config.max_missing)

    def look(path: Path) -> dict[str, Any]:
        picture = decoded(path)
        return {"size": picture.size, "regions": regions_to_json(detector(picture), "od")}

    out = config.out / "regions_od.jsonl"
    values = resumable(out, header, work, look, reads=lambda path: (path,))
    finish(out, header, {name: entry(name, value, out) for name, value in values.items()})


# ---- recover ------------------------------------------------------------------------------------


def recover(config: RecoverConfig) -> None:
    """`regions_vg_{split}.jsonl` with the boxes of the community's crops."""
    task = config.open()
    for split in config.splits(config.split):
        rows = task.read(split)
        folder = config.data / "img_vg" / split / "crops"
        names = crop_names(config.data, split)
        present = pictures(task.image_folder(split), (r.image_id for r in rows), config.max_missing)
        # By row, not by picture: the crops of two rows of a picture are other files.
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
        out = config.out / f"regions_vg_{split}.jsonl"
        values = resumable(
            out, header, work, find_crops, config.workers, lambda item: (item[0], *item[1])
        )
        lost = [name for value in values.values() for name in value["lost"]]
        entries = {int(n): entry(rows[int(n)].image_id, v, out) for n, v in values.items()}
        finish(out, {**header, "lost": len(lost)}, entries)
        if lost:
            print(f"{out}: {len(lost)} crops not found in their pictures, first: {lost[0]}")


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


def import_boxes(config: ImportConfig) -> None:
    """TMR's boxes in its generated pictures, or anybody's objects."""
    task = config.open()
    if config.objects:
        entries = read_objects(config.objects)
        header = {"tool": "regions import", "source": config.objects.name, "leaky": config.leaky}
        finish(config.out / "regions_od.jsonl", header, entries)
        return
    for split in config.splits(config.split):
        path = side_files.find(config.data, "txt/mre_dif_{split}_dict.pth", split)
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
        finish(config.out / f"regions_generated_{split}.jsonl", header, entries)
        for note in boxes.notes:
            print(f"{path}: {note}")


# ---- command -------------------------------------------------------------------------------------

_PLACES = "--data DATA/mnre --out REGIONS"
TOOLS = {
    "build": Tool(BuildConfig, build, _PLACES, True),
    "recover": Tool(RecoverConfig, recover, _PLACES, True),
    "import": Tool(ImportConfig, import_boxes, _PLACES, True),
}
main = Group("python -m finetune regions", TOOLS, "Write region caches.", "build")
