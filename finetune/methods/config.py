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


@dataclass(frozen=True, kw_only=True)
class VisualConfig:
    """Settings of methods of two towers."""

    vision: str = "init"
    """Picture tower. init: that of --init. none: the words of --captions stand for what is seen.
    Else a timm ViT, or hub id or folder of a CLIP."""


@dataclass(frozen=True, kw_only=True)
class UmtConfig(VisualConfig):
    """Settings of UMT."""

    span_weight: float = 0.5
    """Entities: weight of the auxiliary task, spans without types."""


@dataclass(frozen=True, kw_only=True)
class ObjectsConfig(VisualConfig):
    """Settings of methods that read the picture and grounded regions."""

    regions: int = 3
    """Grounded regions beside the whole picture; `--regions` says where they come from."""

    def __post_init__(self) -> None:
        if self.regions < 0:
            raise ValueError("model.regions must not be negative")


@dataclass(frozen=True, kw_only=True)
class UmgfConfig(ObjectsConfig):
    """Settings of UMGF."""

    layers: int = 2
    """Of the graph."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.layers < 1:
            raise ValueError("model.layers must be at least 1")


@dataclass(frozen=True, kw_only=True)
class IfaformerConfig(ObjectsConfig):
    """Settings of IFAformer."""


@dataclass(frozen=True, kw_only=True)
class MegaConfig(ObjectsConfig):
    """Settings of MEGA."""

    structure: float = 0.5
    """Share of the structural alignment; the rest is by meaning."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.structure <= 1:
            raise ValueError("model.structure is a share: 0 <= structure <= 1")


@dataclass(frozen=True, kw_only=True)
class GenerativeConfig:
    """Settings of a generative model."""

    template: str = "{text} In this post the relation of {head} to {tail} is"
    """Relations: the question, with {text}, {head} and {tail}; a relation's words follow it."""
    word_template: str = "{text} In this post the word {word} names"
    """Entities: the question on each word, with {text} and {word}; a type's words follow it."""
    lora: int = 0
    """Rank of adapters that learn at optim.lr (pip install 'fusion-mre[lora]'); 0: the model stays
    as it is."""

    def __post_init__(self) -> None:
        self.check_template("template", ("text", "head", "tail"))
        self.check_template("word_template", ("text", "word"))
        if self.lora < 0:
            raise ValueError("model.lora must not be negative")

    def check_template(self, setting: str, fields: tuple[str, ...]) -> None:
        """ValueError unless a template holds these fields and no other."""
        marks = dict(zip(fields, "\1\2\3", strict=False))
        names = [f"{{{field}}}" for field in fields]
        try:
            filled = getattr(self, setting).format(**marks)
        except (AttributeError, KeyError, IndexError, ValueError) as error:
            raise ValueError(f"model.{setting}: {', '.join(names)} alone ({error})") from None
        if not set(marks.values()) <= set(filled):
            raise ValueError(
                f"model.{setting} must hold {', '.join(names[:-1])} and {names[-1]}, all of them"
            )
