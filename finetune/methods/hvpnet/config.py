"""HVPNeT, settings: the paper's model, and a switch for each reading of the released code."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from finetune.methods.profiles import Profiled, Profiles
from shards.options import positive


@dataclass(frozen=True, kw_only=True)
class HvpnetConfig(Profiled):
    """Settings of HVPNeT. The released code: `--model.profile legacy`."""

    profiles: ClassVar[Profiles] = {
        "fixed": {
            "absent": "mask",
            "batch_statistics": False,
            "train_classifier": True,
            "decay_all": False,
            "tagging": "words",
            "markers": "whole",
        },
        "legacy": {
            "absent": "attend",
            "batch_statistics": True,
            "train_classifier": False,
            "decay_all": True,
            "tagging": "pieces",
            "markers": "released",
        },
    }
    absent: Literal["mask", "mask_slots", "attend"] | None = None
    """A picture or region that is not there. mask (fixed): unseen. mask_slots: its four places are
    masked in each head, which under prefix_head_split reshape are not where its numbers stand.
    attend (legacy): a picture of the mean colour is seen."""
    batch_statistics: bool | None = None
    """BatchNorm of the frozen ResNet uses each batch's statistics in training (legacy: true)."""
    train_classifier: bool | None = None
    """Relations: false leaves the classifier at its random start (legacy, by mistake; but without
    pictures it learned)."""
    decay_all: bool | None = None
    """Weight decay of biases and norms too (legacy: true; but for relations without pictures,
    false)."""
    tagging: Literal["words", "pieces"] | None = None
    """Entities. words (fixed): a CRF over words. pieces (legacy): over word pieces, with tags for
    later pieces, [CLS] and [SEP]."""
    markers: Literal["whole", "released"] | None = None
    """Relations. released (legacy): the closing marker of an entity at the text's end is lost, and
    between neighbours one opens before the other closes. whole (fixed): four markers, nested."""
    vision: str = "resnet50.tv_in1k"
    """A timm ResNet, or a directory in timm's layout; init: the vision tower of --init's fusion
    model, whose picture size is taken, four of its layers standing for a ResNet's stages."""
    vision_random: bool = False
    """Draw the ResNet's weights at random."""
    vision_width: int = 64
    """Channels of the ResNet's first stage; other than 64 with random weights only."""
    freeze: bool = True
    """The ResNet stays as it is, so each picture is looked at once. false: it learns at optim.lr,
    at optim.head_lr if drawn at random."""
    image_size: int = 224
    """Side of the square pictures; at least 64."""
    resize: Literal["center_crop", "squash"] = "center_crop"
    """center_crop, as released: shorter side to 256/224 of image_size, then the middle."""
    regions: int = 3
    """Grounded regions beside the whole picture; `--regions` says where they come from."""
    prompt_layout: Literal["channel_slab", "spatial"] = "channel_slab"
    """A picture's four tokens: a run of channels with their 2 × 2 grid, or a place of the grid."""
    prefix_head_split: Literal["reshape", "transpose"] = "reshape"
    """How prefix numbers become heads: in memory order, as released, or the usual way."""
    prompt_width: int = 800
    """Hidden width of the prompt encoder."""
    head_dropout: float = 0.0
    """Relations: dropout before the classifier (the released code makes one, unused)."""
    tag_dropout: float = 0.1
    """Entities: dropout before the emission layer."""

    def __post_init__(self) -> None:
        if self.image_size < 64:
            raise ValueError(
                "model.image_size must be at least 64: the last map is pooled to 2 × 2"
            )
        positive("model.", vision_width=self.vision_width, prompt_width=self.prompt_width)
