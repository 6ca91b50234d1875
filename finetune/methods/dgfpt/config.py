"""DGF-PT, settings: what the paper says, and a switch for what it leaves open (README.md)."""

from dataclasses import dataclass
from typing import Literal

ORDERS = {
    # Table 4: what is read when.
    "o_i_t": "Po Pe O I T",
    "o_t_i": "Po Pe O T I",
    "i_o_t": "Po Pe I O T",
    "i_t_o": "Po Pe I T O",
    "t_o_i": "Po Pe T O I",
    "t_i_o": "Po Pe T I O",
    # Table 2: prefixes removed, or read at the second or third stage.
    "without_prefixes": "O I T",
    "without_entity_prefix": "Po O I T",
    "without_object_prefix": "Pe O I T",
    "prefixes_in_s2": "O Po Pe I T",
    "prefixes_in_s3": "O I Po Pe T",
    "entity_prefix_in_s2": "Po O Pe I T",
    "entity_prefix_in_s3": "Po O I Pe T",
    "object_prefix_in_s2": "Pe O Po I T",
    "object_prefix_in_s3": "Pe O I Po T",
    "entity_prefix_in_s2_object_prefix_in_s3": "O Pe I Po T",
    "entity_prefix_in_s3_object_prefix_in_s2": "O Po I Pe T",
}
"""Name -> segments: prefixes Po (objects) and Pe (entities), objects O, image I, text T."""

SEGMENTS = ("Po", "Pe", "O", "I", "T")
PREFIXES = {
    "Po": ("Consider", "", ", predict relation."),
    "Pe": ("Consider", ",", ", predict relation."),
}
"""Words before, between and after the two slots (§4.1.2)."""


@dataclass(frozen=True, kw_only=True)
class DgfptConfig:
    """Settings of DGF-PT. Defaults are the paper's, and ours where it is silent."""

    segments: str = "o_i_t"
    """Order of reading: an entry of `ORDERS` (Tables 2 and 4), or segments like "Po Pe O I T"."""
    plm: Literal["frozen", "full"] = "frozen"
    """Language model. frozen: prefixes and new layers learn alone. full: it learns at optim.lr."""
    markers: bool = False
    """Leave the entity markers in the text (needs plm full)."""
    positions: Literal["continue", "restart_text"] = "continue"
    """Position ids run over all segments, or begin at 1 again where the text begins."""
    prefix: Literal["trained", "fixed"] = "trained"
    """The literal words of the prefixes."""
    vision: str = "init"
    """What sees pictures and objects. init: the vision tower of the fusion model directory that the
    run starts from; none: text alone; else a timm name or a directory in timm's layout, for example
    vgg16.tv_in1k (the paper's: 4,096 numbers a picture)."""
    vision_trained: bool = False
    """Train it at optim.lr. Otherwise a timm model sees every picture once, before the first step;
    its features lie in the cache."""
    vision_random: bool = False
    """Draw a timm model's weights at random."""
    image_size: int = 0
    """Side of the pictures that a timm model sees; 0: that of its weights."""
    objects: int = 10
    """K: detected objects of a picture, best first."""
    grounded: int = 0
    """Regions of the row's own phrases that count as objects, too, and go first."""
    image_blocks: int = 4
    """M: positions of the whole picture."""
    object_select: Literal["soft", "hard", "score"] = "soft"
    """Objects in the object prefix. soft, hard: those that the entities attend to most, mixed or
    the first alone. score: the detector's two best."""
    alpha: Literal["shifted", "softmax", "raw"] = "shifted"
    """Eq. 4. raw: as printed, with negative and unbounded shares."""
    pool: Literal["mean", "entities", "last"] = "mean"
    """The one vector of a text in eq. 4 and eq. 12."""
    gates: bool = True
    """Eqs. 4–8. false: Table 2's "w/o dual-gated fusion"; eqs. 10–12 then compare nothing."""
    caption_weight: float = 0.0
    """δ of eq. 8, 0.4 in the paper; above 0, captions are read (--captions)."""
    decoder: Literal["small", "continue"] = "small"
    """Eq. 9. small: two layers of its own over the fused text. continue: types and query are read
    by the language model after the text, and the fused text joins at the end."""
    entity_pool: Literal["last", "mean"] = "last"
    """Which pieces of an entity eq. 13 reads; under a causal mask the last has seen all."""
    classify_on: Literal["fused", "plain"] = "fused"
    """Entity states of eq. 13: after fusion, or (as printed, without tildes) before."""
    type_mask: Literal["off", "soft", "hard"] = "off"
    """Relations whose name contradicts the entities' types lose 5 points, or all chance."""
    consistency: Literal["kl", "ce", "printed"] = "kl"
    """Eq. 11: the divergence that the text describes, the cross-entropy that it calls equal, or the
    formula as printed (unbounded)."""
    consistency_detach: Literal["none", "pre", "post"] = "none"
    """The side of it that gets no gradient: before or after fusion."""
    consistency_weight: float = 2.0
    """λ_d; 0 saves a pass of the decoder. With contrast_weight 0: "w/o joint objective"."""
    contrast: Literal["corrected", "printed"] = "corrected"
    """Eq. 12: with the sign that the text describes and a margin, or the formula as printed."""
    margin: float = 0.2
    """Of eq. 12, corrected."""
    contrast_weight: float = 2.0
    """λ_s."""
    class_weight: float = 3.0
    """λ_c."""
    dropout: float = 0.6
    """In the fusion MLP, before the decoder, before the classifier."""

    def __post_init__(self) -> None:
        order = self.order
        if "T" not in order or len(set(order)) < len(order) or not {*order} <= set(SEGMENTS):
            raise ValueError(
                f"model.segments {self.segments!r}: an entry of {', '.join(ORDERS)}, or each of "
                f"{' '.join(SEGMENTS)} at most once, T among them"
            )
        if self.markers and self.plm == "frozen":
            raise ValueError("model.markers: a frozen language model cannot learn them; plm full")
        if self.image_blocks < 1 or min(self.objects, self.grounded) < 0:
            raise ValueError("model.image_blocks is at least 1, objects and grounded at least 0")
        if not 0 <= self.dropout < 1:
            raise ValueError("model.dropout is a share: 0 <= dropout < 1")

    @property
    def order(self) -> list[str]:
        """The segments."""
        return ORDERS.get(self.segments, self.segments).split()
