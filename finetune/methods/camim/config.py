"""CAMIM, settings: what it adds to TMR or HVPNeT, and a switch for each reading of its code."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from finetune.methods.hvpnet.config import HvpnetConfig
from finetune.methods.profiles import Profiled, Profiles
from finetune.methods.tmr.config import TmrConfig

Levels = Literal["ws", "s", "w"]
Combine = Literal["concat", "add"]
Direction = Literal["g2o", "o2g", "symmetric"]


@dataclass(frozen=True, kw_only=True)
class CamimSettings(Profiled):
    """What CAMIM adds to either method. Tables and figures are the paper's."""

    profiles: ClassVar[Profiles] = {
        "fixed": {
            "combine": "concat",
            "swap_words": False,
            "sentence": "mean_masked",
            "mask_words": True,
        },
        "legacy": {
            "combine": "add",
            "swap_words": True,
            "sentence": "mean_all",
            "mask_words": False,
        },
    }

    use_cam: bool = True
    """The caption-aware module (Table 1)."""
    use_mi: bool = True
    """The mutual-information loss (Table 1)."""
    mi_alpha: float = 0.1
    """Its weight (Figure 4c)."""
    mi_direction: Direction = "g2o"
    """g2o: the generated feature is the anchor, originals are candidates (code). o2g: the other way
    (Eq. 22). symmetric: the mean. On HVPNeT picture and final feature stand for them."""
    mi_temperature: float = 1.0
    """Divides the similarities."""
    mi_mask_same_image: bool = False
    """Rows of one picture are no negatives of each other."""
    mi_gather: bool = False
    """Negatives from all processes; a last batch that they cannot share equally keeps its own."""
    cam_levels: Levels = "ws"
    """Words and sentence of the caption, or one of them: w, s (Figure 4b)."""
    combine: Combine | None = None
    """Self and cross attention: concat (fixed, Eq. 11), add (legacy)."""
    swap_words: bool | None = None
    """Words attend to words with query and key exchanged (legacy: true)."""
    sentence: Literal["mean_masked", "mean_all", "cls"] | None = None
    """A caption's own vector: the mean of its words (fixed), with padding (legacy), or [CLS]."""
    mask_words: bool | None = None
    """Leave padding of captions out of attention and sums (legacy: false, always 40 words)."""
    share_bert: bool = False
    """One BERT for sentence and caption, not one for each."""


@dataclass(frozen=True, kw_only=True)
class CamimTmrConfig(CamimSettings, TmrConfig):
    """Settings of CAMIM on TMR."""

    mi_pair: Literal["og", "ogf", "tf", "ogt"] = "og"
    """What the loss joins (Figure 4a): original and generated feature; both and the final feature;
    text and final feature; both and the text."""
    fusion: Literal["tmr", "cross_attention"] = "tmr"
    """How the sources meet the sentence. tmr: TMR's scores, phrases, sums and entity states, as
    released. cross_attention: [CLS] alone, as printed (Eqs. 15 to 19); no phrases, no scores."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.fusion == "cross_attention" and not (self.use_cam and "w" in self.cam_levels):
            raise ValueError(
                "model.fusion cross_attention reads [CLS] among the captions' words: it wants "
                "use_cam true and cam_levels ws or w"
            )
        if self.use_mi and self.generated == "none" and self.mi_pair != "tf":
            raise ValueError(
                f"model.mi_pair {self.mi_pair} joins the original and the generated feature, and "
                "model.generated none leaves one; choose mi_pair tf, or use_mi false"
            )


@dataclass(frozen=True, kw_only=True)
class CamimHvpnetConfig(CamimSettings, HvpnetConfig):
    """Settings of CAMIM on HVPNeT."""

    hvp_cam_mode: Literal["residual", "replace", "all_rows"] = "residual"
    """The prefix is made of the picture's tokens and what the captions add, of which there is
    nothing at first (so it begins at plain HVPNeT); of the aligned tokens alone; or of these and
    the aligned words: 44 slots a picture, not 4."""

    def __post_init__(self) -> None:
        super().__post_init__()
        fixed = self.profile == "fixed" if self.mask_words is None else self.mask_words
        if self.hvp_cam_mode == "all_rows" and fixed and self.prefix_head_split == "reshape":
            raise ValueError(
                "model.hvp_cam_mode all_rows: under prefix_head_split reshape the padding of "
                "captions would move other numbers; choose prefix_head_split transpose"
            )
