"""The model's part of a pre-training configuration: an architecture, stated in full or in part."""

from dataclasses import asdict, dataclass, fields, replace
from typing import Any, TypeVar

from pretrain.model.config import FusionEncoderConfig

ARCHITECTURE = tuple(item.name for item in fields(FusionEncoderConfig))
Section = TypeVar("Section")


def _unstated(section: type[Section]) -> type[Section]:
    """Every field that `FusionEncoderConfig` declares becomes optional, None being "not stated":
    its default is the directory's that `init` names, else the one declared."""
    declared: dict[str, Any] = {item.name: item.type for item in fields(FusionEncoderConfig)}
    inherited = {name: kind | None for name, kind in declared.items()}
    section.__annotations__ = inherited | section.__annotations__
    for name in inherited:
        setattr(section, name, None)
    return section


@dataclass(frozen=True, kw_only=True)
@_unstated
class ModelConfig(FusionEncoderConfig):
    """Architecture of the encoder, and where its first weights come from. What is null is as in
    `init`; without init, as in BERT-base and ViT-B/16, cut after 6 layers."""

    init: str | None = None
    """Model directory or hub id of the run's first weights, architecture and tokenizer; fusion
    layers it lacks are drawn at random. None: all weights random."""
    tokenizer: str | None = None
    """Tokenizer directory or hub id where `init` gives none; or `wordpiece` or `unigram`
    (SentencePiece): learned from the training captions. None: wordpiece."""

    def __post_init__(self) -> None:
        if not self.unsettled():
            super().__post_init__()

    def unsettled(self) -> list[str]:
        """Fields that wait for what `init` names."""
        return [name for name in ARCHITECTURE if getattr(self, name) is None]

    def stated(self) -> dict[str, Any]:
        """Fields of the architecture that have a value."""
        waiting = self.unsettled()
        return {name: getattr(self, name) for name in ARCHITECTURE if name not in waiting}

    def architecture(self) -> FusionEncoderConfig:
        """The part that `config.json` stores: what is stated, the declared defaults elsewhere."""
        return FusionEncoderConfig(**self.stated())

    def settled(self) -> "ModelConfig":
        """With random weights: nothing is left open.

        Raises:
            ValueError: a layout or a bridge that only published weights can have.
        """
        if self.bridge == "aligned":
            raise ValueError(
                "model.bridge aligned: it begins where the trained projections of model.init "
                "agree; name a model directory there"
            )
        if self.encoder_layout == "two_bert":
            raise ValueError(
                "model.encoder_layout two_bert: two whole BERTs are made of published ones, by "
                "`python -m pretrain convert --encoder-layout two_bert`, and named by model.init; "
                "with random weights they are the layout split"
            )
        return replace(self, **asdict(self.architecture()))
