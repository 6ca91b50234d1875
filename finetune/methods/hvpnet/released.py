"""What HVPNeT's released code trains, and how: another way with pictures than without."""

from dataclasses import dataclass

from finetune.methods.hvpnet.config import HvpnetConfig


@dataclass(frozen=True)
class Recipe:
    """What the optimizer is told."""

    train_classifier: bool | None
    """Relations: false leaves the classifier at its random start."""
    decay_all: bool | None
    """Biases and norms decay too."""
    one_rate: bool = False
    """Everything learns at `optim.lr`."""

    @classmethod
    def of(cls, config: HvpnetConfig, kind: str, *, pictures: bool = True) -> "Recipe":
        """For a kind of task, with pictures or without.

        The released code trains text alone otherwise: the classifier too, without decay of biases
        and norms; for entities everything decays and learns at one rate. What is given holds.

        Args:
            config: as given, not settled.
        """
        settled = config.settled(kind)
        if pictures or settled.profile == "fixed":
            return cls(settled.train_classifier, settled.decay_all)
        if kind == "entities":
            return cls(settled.train_classifier, settled.decay_all, one_rate=True)
        return cls(config.train_classifier is not False, bool(config.decay_all))
