"""Retrieval of label descriptions, settings; nothing here imports torch."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class RetrievalConfig:
    """Settings of retrieval."""

    descriptions: str = "mnre"
    """A text for each relation: mnre or sample, as shipped, or a .csv or .tsv of yours with the
    columns relation and description."""
    pictures: Literal["init", "none"] = "init"
    """init: the whole picture, by the fusion model that the run starts from. none: text alone, by
    any BERT."""
    temperature: float = 0.07
    """Cosines are divided by it; learned from there."""

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise ValueError("model.temperature must be above 0")
