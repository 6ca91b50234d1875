"""How new posts get the regions and captions that a run reads: options of predict and serve."""

from dataclasses import dataclass
from typing import Literal

WEIGHTS = ("caption_model", "grounder", "detector", "tagger")
"""Options that may name a folder or file of weights."""


@dataclass(frozen=True, kw_only=True)
class LiveOptions:
    """What makes side inputs, and what to do without."""

    regions: Literal["live", "none"] = "live"
    """For runs that read regions. live: ground and detect them now. none: all slots empty."""
    grounder: str = "IDEA-Research/grounding-dino-base"
    """Grounding DINO: folder or hub id."""
    detector: str = "COCO_V1"
    """Faster R-CNN: COCO_V1 or a weights file."""
    tagger: str = "en_core_web_sm"
    """spaCy model that finds nouns to ground; none: entity names alone."""
    caption_model: str | None = None
    """For runs that read captions: a captioner (BLIP, …), folder or hub id, for posts without."""
    caption_prompt: str = "a photo of"
    """What the captioner is asked; as the captions of training were made."""
