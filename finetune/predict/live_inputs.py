"""Side inputs of new posts: what a run was trained with, made on the spot, or a line on what is
missing.

Pictures come with the posts. Captions come with them, too, or a captioner writes them (as `shards
captions` does). Regions are grounded from the post's own words and detected in its picture (as
`regions build` does, leak-safe), by weights that are at hand. What a method brings says itself how
it is made of a post, or why it cannot be (`Provider.live`).
"""

import logging
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

from finetune.data.grounding import Grounder, ObjectDetector, keywords, spacy_tagger
from finetune.inputs.load import providers_of
from finetune.methods.base import Method
from finetune.predict.live_options import LiveOptions
from finetune.tasks.base import Row, SideInput
from finetune.tasks.posts import Post
from finetune.tasks.region_cache import Region, Regions, rounded
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
POST = Path("the post")
"""What messages call the place of a side input that came with a post."""


@dataclass(frozen=True, kw_only=True)
class LiveInputs(LiveOptions):
    """The models that the options name, loaded when they are wanted."""

    device: str = "cpu"

    @cached_property
    def captioner(self) -> Captioner:
        """Loaded when a run wants it."""
        try:
            return Captioner(
                str(self.caption_model), self.caption_prompt, LONGEST_CAPTION, self.device
            )
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
        return ObjectDetector(self.detector, self.device, limit=None)  # `slots` say how many

    @cached_property
    def tag(self):
        """Likewise; None: no nouns."""
        return None if self.tagger == "none" else spacy_tagger(self.tagger)

    def make(
        self,
        inputs: Mapping[str, Any],
        slots: Mapping[str, int],
        rows: Sequence[Row],
        posts: Sequence[Post],
    ) -> dict[str, SideInput]:
        """What the run reads beside text and pictures of these posts, as `load_split` takes it.

        Args:
            inputs: of the run, as `check_needs` gives them. slots: `InputSpec.region_slots`.
            rows: a row a post, `image_id` the path of its picture.
        """
        given: dict[str, SideInput] = {}
        if reads_captions(inputs.get("captions")):
            if any(post.image and post.caption is None for post in posts):
                raise InputError(
                    "this run reads captions, and the post has none: give --caption TEXT "
                    "(`caption` in a JSON line), or --caption-model DIR to have them written"
                )
            texts = {
                row.row: (post.caption or "").strip() for row, post in zip(rows, posts, strict=True)
            }
            given["caption"] = SideInput(path=POST, keyed_by="row", values=texts)
        if inputs.get("regions") == "live":
            grounded, detected = self.find_regions(slots, rows)
            given["vg"] = SideInput(path=POST, keyed_by="row", values=grounded)
            given["od"] = SideInput(path=POST, keyed_by="image", values=detected)
        return given

    def describe(self, posts: Sequence[Post]) -> list[Post]:
        """The posts, with the captioner's caption where a picture has none.

        Without a captioner, and of a file that is no picture, none is written: `make` says so.
        """
        if self.caption_model is None:
            return list(posts)
        # By picture: one that several posts show is described once.
        silent: dict[Path, str | None] = {
            post.image: None for post in posts if post.image and post.caption is None
        }
        names = iter(list(silent))
        while batch := list(islice(names, CAPTIONED)):
            pictures = {}
            for path in batch:
                with suppress(RejectedImage):
                    pictures[path] = captioned(path)
            if pictures:
                texts = self.captioner.describe(list(pictures.values()))
                silent |= zip(pictures, texts, strict=True)
        return [
            replace(post, caption=silent[post.image])
            if post.image and post.caption is None
            else post
            for post in posts
        ]

    def find_regions(
        self, slots: Mapping[str, int], rows: Sequence[Row]
    ) -> tuple[dict[int, Regions], dict[str, Regions]]:
        """Row -> what its words name in its picture; picture -> the objects in it. Of the kinds
        that there are slots for, at the precision of region caches."""
        grounded: dict[int, Regions] = {}
        detected: dict[str, Regions] = {}
        for row in rows:
            name = row.image_id
            if name is None:
                grounded[row.row] = Regions("none", (1, 1), ())
                continue
            picture = decoded(name)
            regions: tuple[Region, ...] = ()
            if slots.get("vg"):
                regions = rounded(self.ground(picture, keywords(row, self.tag, slots["vg"])))
            grounded[row.row] = Regions(name, picture.size, regions)
            if slots.get("od") and name not in detected:
                objects = rounded(self.detect(picture)[: slots["od"]])
                detected[name] = Regions(name, picture.size, objects)
        return grounded, detected


def reads_captions(captions: str | None) -> bool:
    """Whether a run with this `--captions` reads any."""
    return captions not in (None, "none")


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
    providers = providers_of(method.spec, inputs["images"])
    if missing := [made.live for made in providers.values() if isinstance(made.live, str)]:
        raise InputError(f"{source}: it reads what new posts do not have: {'; '.join(missing)}")
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
    if REGIONS & providers.keys() and inputs.get("regions") != "none":
        if inputs.get("regions") == "community":
            LOG.warning("%s was trained on published crops; new posts have grounded ones", source)
        inputs["regions"] = live.regions
        if live.regions == "live":
            try:
                load_weights(method, live)
            except InputError as error:
                raise InputError(f"{error}; or --regions none: no regions") from None
    return inputs


def live_inputs(options: LiveOptions) -> LiveInputs:
    """As a command's options say, on this process's device."""
    chosen = {field.name: getattr(options, field.name) for field in fields(LiveOptions)}
    return LiveInputs(**chosen, device=str(distributed.device()))


def load_weights(method: Method, live: LiveInputs) -> None:
    """Load, before the first post, what the method's slots take."""
    if method.region_slots.get("vg"):
        _ = live.ground, live.tag
    if method.region_slots.get("od"):
        _ = live.detect
