"""Settings of the methods that are one file; nothing here imports torch."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class MTBConfig:
    """Settings of MTB."""

    classifier: Literal["mlp", "linear"] = "linear"
    """linear: one layer. mlp: Linear–ReLU–Linear, as PROMU's."""
    crop_count: bool = False
    """Also read how many crops the community's region files have for the row. This leaks the label
    and marks the result so."""


@dataclass(frozen=True, kw_only=True)
class BertCrfConfig:
    """Settings of the tagging head."""

    dropout: float = 0.1
    """Dropout before the emission layer."""
    mask_illegal: bool = False
    """Decode only sequences that BIO allows."""


@dataclass(frozen=True, kw_only=True)
class PromuConfig:
    """Settings of PROMU's heads."""

    classifier: Literal["mlp", "linear"] = "mlp"
    """Relations. mlp: as in the released code. linear: one layer."""
    tagging: Literal["words", "pieces"] = "words"
    """Entities. words: a CRF over the first pieces of words. pieces: over all word pieces, later
    ones tagged X, as HVPNeT and TMR do."""
    dropout: float = 0.1
    """Entities: dropout before the emission layer."""
    mask_illegal: bool = False
    """Entities by words: decode only sequences that BIO allows."""
