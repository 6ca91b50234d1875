"""FocalMRE, settings: what the paper says, and a switch for what it leaves open."""

from dataclasses import dataclass
from typing import Literal

Style = Literal["rect", "ellipse", "dim", "blur", "none"]
Color = tuple[int, int, int]


@dataclass(frozen=True, kw_only=True)
class FocalMREConfig:
    """Settings of FocalMRE; defaults are the paper's, and ours where it is silent."""

    vision: str = "init"
    """Picture tower. init: that of --init. Else a timm ViT, or hub id or folder of a CLIP."""
    input: Literal["focal", "cropped", "original"] = "focal"
    """focal: the picture with a frame around the region. cropped: the region alone. original: one
    plain picture for both kinds. (One plain copy a region: focal with style none and fill mask.)"""
    num_grounded: int = 4
    """Grounded regions a row; 0 leaves the kind out, 0 of both kinds leaves the text alone."""
    num_detected: int = 3
    """Detected regions a row; likewise."""
    fill: Literal["unframed", "repeat", "mask"] = "unframed"
    """Slots without region. unframed: the plain picture. repeat: the regions in turn. mask: left
    out, which shows the number of regions."""
    style: Style = "rect"
    """The frame: rect or ellipse as edge; dim or blur what is outside; none."""
    color: Color = (255, 0, 0)
    """RGB of the edge of grounded regions."""
    color_detected: Color = (255, 0, 0)
    """RGB of the edge of detected regions."""
    frame_width: int = 3
    """Pixels of the edge in a picture of 224 x 224."""
    merge: Literal["none", "per_kind", "all"] = "none"
    """Frames in a picture. none: one. per_kind: all of the kind. all: all of the row."""
    attention: Literal["focal", "mean", "cls"] = "focal"
    """focal: equation 3. mean, cls (without it): the mean patch, or the class token, for all."""
    include_cls: bool = False
    """Attention also sees the class token."""
    attention_dropout: float = 0.1
    """Dropout of the attention."""
    dropout_on: Literal["weights", "output"] = "weights"
    """Where: on the attention weights, or on what they gather."""
    gate: Literal["dim", "token", "image", "none"] = "dim"
    """Equation 4, a gate for each dimension, text position, or picture; none: see `no_gate`."""
    no_gate: Literal["sum", "average", "image"] = "sum"
    """Without gate: text + picture, their mean, or the picture alone."""
    fusion_norm: Literal["free", "softmax"] = "free"
    """Weights of equation 5 as learned, or through a softmax."""
    share_kinds: bool = True
    """One attention and gate for grounded and detected regions."""
    classifier: Literal["mlp", "linear"] = "mlp"
    """mlp: Linear–GELU–Dropout–Linear. linear: one layer."""
    dropout: float = 0.1
    """Dropout in the classifier."""

    def __post_init__(self) -> None:
        for name in ("num_grounded", "num_detected"):
            if getattr(self, name) < 0:
                raise ValueError(f"model.{name} must not be negative")
        if self.frame_width < 1:
            raise ValueError("model.frame_width must be at least 1")
        for name in ("color", "color_detected"):
            if not all(0 <= value <= 255 for value in getattr(self, name)):
                raise ValueError(f"model.{name}: three numbers from 0 to 255")
        for name in ("attention_dropout", "dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"model.{name} must be in [0, 1)")
        if self.merge != "none" and self.input != "focal":
            raise ValueError("model.merge is about frames: it needs model.input focal")

    @property
    def slots(self) -> dict[str, int]:
        """Kinds of region in use -> regions a row."""
        both = {"vg": self.num_grounded, "od": self.num_detected}
        return {kind: number for kind, number in both.items() if number}
