"""MKGformer, settings: the paper's model, and a switch for each reading of the authors' code."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from finetune.methods.profiles import Profiled, Profiles
from shards.options import positive


@dataclass(frozen=True, kw_only=True)
class MKGformerConfig(Profiled):
    """Settings of MKGformer."""

    profiles: ClassVar[Profiles] = {
        "fixed": {
            "mask_text_pad": True,
            "mask_slots": True,
            "positions": "clip",
            "train_classifier": True,
            "decay_all": False,
            "pad_to": 0,
        },
        "legacy": {
            "mask_text_pad": False,
            "mask_slots": False,
            "positions": "normal",
            "train_classifier": False,
            "decay_all": True,
            "pad_to": 80,
        },
    }
    former: ClassVar = {"preset": ("profile", {"modern": "fixed"})}
    vision: str = "openai/clip-vit-base-patch32"
    """CLIP vision tower: hub id or directory; init: the ViT of --init's fusion model, if it has
    its text side's width and heads; random: new weights in the text tower's sizes."""
    vision_patch: int = 32
    """Patch side in pixels of a random tower."""
    vg: int = 3
    """Grounded regions a row (FocalMRE's re-run: 4)."""
    od: int = 3
    """Detected regions a row."""
    vg_size: int = 128
    """Side of a grounded region in pixels. Of `vision: init`, rounded up to whole patches."""
    od_size: int = 64
    """Side of a detected region in pixels, at most vg_size; rounded as that."""
    fusion_layers: int = 4
    """Last layers that have PGI and CAF."""
    caf_scale: Literal["one", "sqrt"] = "one"
    """Factor on C Vᵀ. one: as the authors. sqrt: 1/√D."""
    use_full_image: bool = False
    """Also read the whole picture's patches; changes the method."""
    dropout: float = 0.1
    """Entities: dropout before the emission layer."""
    mask_illegal: bool = False
    """Entities: decode only sequences that BIO allows."""
    mask_text_pad: bool | None = None
    """Hide padding from PGI; else results depend on the padding's length."""
    mask_slots: bool | None = None
    """Hide slots without a region; else they are zero pictures that are attended to."""
    positions: Literal["clip", "normal"] | None = None
    """Positions of the regions' patches. clip: the tower's own, resized. normal: N(0, 1)."""
    train_classifier: bool | None = None
    """The authors' optimiser leaves the relation classifier at its random initial values."""
    decay_all: bool | None = None
    """Weight decay on biases, norms and tables too."""
    pad_to: int | None = None
    """Pad texts to this many word pieces; 0: to the longest of a batch."""

    def __post_init__(self) -> None:
        if min(self.vg, self.od) < 0 or self.vg + self.od < 1:
            raise ValueError("model.vg and model.od must not be negative, and not both 0")
        if self.od_size > self.vg_size:
            raise ValueError("model.od_size must not exceed model.vg_size: regions are cut once")
        positive("model.", fusion_layers=self.fusion_layers, vision_patch=self.vision_patch)
