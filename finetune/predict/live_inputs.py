"""Side inputs of new posts: what a run was trained with, made on the spot, or a line on what is
missing.

Pictures come with the posts. Captions come with them, too, or a captioner writes them (as `shards
captions` does). Regions are grounded from the post's own words and detected in its picture (as
`regions build` does, leak-safe), by weights that are at hand. Nothing else can be made: the other
side inputs are published files of the data sets.
"""

import json
import logging
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

from finetune.data.grounding import Grounder, ObjectDetector, keywords, spacy_tagger
from finetune.inputs.load import VISUAL
from finetune.inputs.split import InputOptions
from finetune.methods.base import Method
from finetune.tasks.base import Row, Task
from finetune.tasks.posts import Post
from finetune.tasks.region_cache import Regions, write_regions
from pretrain import distributed
from shards.captions import Captioner, captioned
from shards.files import InputError
from shards.images import RejectedImage, decoded

LOG = logging.getLogger(__name__)
LONGEST_CAPTION = 60
"""Word pieces that a captioner writes at most."""
CAPTIONED = 8
"""Pictures that it describes at a time."""
REGIONS = frozenset({"region_boxes", "region_pixels"})
POSSIBLE = REGIONS | {
    *("image", "image_ids", "caption", "entity_types", "visual_features", "released_markers"),
    "masked_entities",
}
"""Needs of a method that can be met for a post that nobody has seen."""
UNMADE = {
    "crop_count": "the number of a row's published crops, which tells the label",
    "generated": "pictures generated from each sentence",
    "phrases": "grounding phrases that TMR's authors published (of MNRE, they tell the label)",
    "scores": "correlation scores that TMR's authors published",
}


@dataclass(frozen=True, kw_only=True)
class LiveInputs:
    """Where weights for regions are, and what to do without."""

    regions: str = "live"
    """live: ground and detect. none: all slots empty."""
    grounder: str = "IDEA-Research/grounding-dino-base"
    """Grounding DINO: folder or hub id."""
    detector: str = "COCO_V1"
    """Faster R-CNN: COCO_V1 or a weights file."""
    tagger: str = "en_core_web_sm"
    """spaCy model that finds nouns; none: entity names alone."""
    caption_model: str | None = None
    """Captioner (BLIP, …): folder or hub id; None: captions come with the posts."""
    device: str = "cpu"

    @cached_property
    def captioner(self) -> Captioner:
        """Loaded when a run wants it."""
        try:
            return Captioner(self.caption_model, "a photo of", LONGEST_CAPTION, self.device)
        except InputError as error:
            reason = str(error).replace("--model", "--caption-model", 1)
            raise InputError(f"{reason}; or give --caption TEXT") from None

    @cached_property
    def ground(self) -> Grounder:
        """Loaded when the first post wants it."""
        return Grounder(self.grounder, self.device)

    @cached_property
    def detect(self) -> ObjectDetector:
        """Likewise."""
        return ObjectDetector(self.detector, self.device)

    @cached_property
    def tag(self):
        """Likewise; None: no nouns."""
        return None if self.tagger == "none" else spacy_tagger(self.tagger)

    def make(
        self, options: InputOptions, method: Method, task: Task, posts: Sequence[Post]
    ) -> InputOptions:
        """Write what the method reads beside the pictures, and point the options there."""
        folder, rows = task.image_folder("test"), task.read("test")
        if reads_captions(options.captions):
            if any(post.image and post.caption is None for post in posts):
                raise InputError(
                    "this run reads captions, and the post has none: give --caption TEXT "
                    "(`caption` in a JSON line), or --caption-model DIR to have them written"
                )
            write_captions(folder / "captions_test.jsonl", rows, posts)
            options = replace(options, captions=str(folder / "captions_{split}.jsonl"))
        if options.regions == "live":
            self.write_regions(folder, method, rows)
            options = replace(options, regions=str(folder))
        return options

    def describe(self, posts: Sequence[Post]) -> list[Post]:
        """The posts, with the captioner's caption where a picture has none.

        Without a captioner, and of a file that is no picture, none is written: `make` says so.
        """
        if self.caption_model is None:
            return list(posts)
        silent = {post.image: None for post in posts if post.image and post.caption is None}
        names = iter(list(silent))
        while some := list(islice(names, CAPTIONED)):
            pictures = {}
            for path in some:
                with suppress(RejectedImage):
                    pictures[path] = captioned(path)
            if pictures:
                texts = self.captioner.describe(list(pictures.values()))
                silent |= zip(pictures, texts, strict=True)
        return [
            post if post.caption is not None else replace(post, caption=silent.get(post.image))
            for post in posts
        ]

    def write_regions(self, folder: Path, method: Method, rows: Sequence[Row]) -> None:
        """`regions_vg_test.jsonl` and `regions_od.jsonl` of the kinds that the method has slots
        for."""
        grounded: dict[int, Regions] = {}
        detected: dict[str, Regions] = {}
        header = {"tool": "finetune predict", "leaky": False}
        slots = method.region_slots
        for row in rows:
            name, size, found, objects = row.image_id or "none", (1, 1), [], None
            if row.image_id is not None:
                picture = decoded(folder / row.image_id)
                size = picture.size
                if slots.get("vg"):
                    found = self.ground(picture, keywords(row, self.tag, slots["vg"]))
                if slots.get("od") and name not in detected:
                    objects = tuple(self.detect(picture)[: slots["od"]])
            grounded[row.row] = Regions(name, size, tuple(found))
            if objects is not None:
                detected[name] = Regions(name, size, objects)
        if "vg" in slots:
            write_regions(folder / "regions_vg_test.jsonl", header, grounded)
        if "od" in slots:
            nothing = {"none": Regions("none", (1, 1), ())}
            write_regions(folder / "regions_od.jsonl", header, detected or nothing)


def reads_captions(captions: str | None) -> bool:
    """Whether a run with this `--captions` reads any."""
    return captions not in (None, "none")


def write_captions(path: Path, rows: Sequence[Row], posts: Sequence[Post]) -> None:
    """A line a picture, as captioners write them."""
    texts = {
        row.image_id: post.caption
        for row, post in zip(rows, posts, strict=True)
        if row.image_id is not None
    }
    lines = [{"img_id": name, "text": text} for name, text in (texts or {"none": ""}).items()]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def check_needs(
    method: Method, trained: dict[str, Any], live: LiveInputs, source: str
) -> dict[str, Any]:
    """How the run's inputs are made for posts, before the first one is read.

    Args:
        trained: the `inputs` of `method.json`.

    Raises:
        InputError: a need that cannot be met, or weights that are not there.
    """
    inputs = dict(trained)
    needs = set(method.needs)
    if inputs["images"] == "none":
        needs -= VISUAL
    if "phrases" in needs and method.settings.phrases != "community":
        needs.remove("phrases")  # the names of the entities
    if missing := sorted(needs - POSSIBLE):
        what = "; ".join(UNMADE.get(name, name) for name in missing)
        raise InputError(f"{source}: it reads what new posts do not have: {what}")
    if inputs["images"] == "blank":
        LOG.warning("%s was trained on blank pictures: it does not look at yours", source)
    if inputs.get("types") is not None:
        LOG.warning("%s was trained with entity types; those of new posts are unknown", source)
        inputs["types"] = None
    if reads_captions(inputs.get("captions")):
        if live.caption_model is not None:
            _ = live.captioner
            LOG.warning(
                "%s was trained with captions %s; new posts without one have those of %s",
                source, inputs["captions"], live.caption_model,
            )  # fmt: skip
    elif live.caption_model is not None:
        LOG.warning("%s reads no captions: --caption-model is not used", source)
    if needs & REGIONS and inputs.get("regions") != "none":
        if inputs.get("regions") == "community":
            LOG.warning("%s was trained on published crops; new posts have grounded ones", source)
        inputs["regions"] = live.regions
        if live.regions == "live":
            try:
                load_weights(method, live)
            except InputError as error:
                raise InputError(f"{error}; or --regions none: no regions") from None
    return inputs


def live_inputs(settings: Any) -> LiveInputs:
    """As a command's settings say: those of its fields that are called like these."""
    names = ("regions", "grounder", "detector", "tagger", "caption_model")
    chosen = {name: getattr(settings, name) for name in names}
    return LiveInputs(**chosen, device=str(distributed.device()))


def load_weights(method: Method, live: LiveInputs) -> None:
    """Load, before the first post, what the method's slots take."""
    if method.region_slots.get("vg"):
        _ = live.ground, live.tag
    if method.region_slots.get("od"):
        _ = live.detect
