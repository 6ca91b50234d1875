"""The options of each kind of view, a class a tool."""

from dataclasses import dataclass, fields
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

from finetune.config import TaskOptions
from shards.options import positive

Scope = Literal["train", "dev", "test", "train+dev", "all"]


@dataclass(frozen=True, kw_only=True)
class ViewConfig(TaskOptions):
    """What every view asks for."""

    out: Path
    """Folder for {split}.jsonl, or one .jsonl file."""
    seed: int = 1
    """Draws what is changed."""
    scope: Scope = "all"
    """Splits to change."""

    def __post_init__(self) -> None:
        for name in ("ratio", "keep", "p_modify"):
            if not 0 <= getattr(self, name, 0) <= 1:
                raise ValueError(f"--{name} {getattr(self, name)}: not a share in [0, 1]")

    @property
    def region_cache(self) -> Path | None:
        """Folder of the regions that the view changes or lends."""
        return getattr(self, "regions", None)

    def parameters(self) -> dict[str, Any]:
        """The options of this kind of view alone, but for where its files lie."""
        common = {field.name for field in fields(ViewConfig)} | {"regions"}
        names = [field.name for field in fields(self) if field.name not in common]
        values = {name: getattr(self, name) for name in names}
        return {k: float(v) if isinstance(v, Fraction) else v for k, v in values.items()}


@dataclass(frozen=True, kw_only=True)
class AlignNoise(ViewConfig):
    """Give rows wrong pictures."""

    ratio: Fraction
    """Share of rows."""
    unit: Literal["row", "tweet"] = "row"
    """What gets a wrong picture."""
    regions: Path | None = None
    """Region cache: regions_vg_*, regions_od."""
    vg: Literal["donor", "reground"] = "donor"
    """Boxes in the wrong picture: those of its own row, or grounded anew from the receiving row's
    phrases."""
    grounder: str | None = None
    """Of reground: Grounding DINO, folder or id."""
    tagger: str = "en_core_web_sm"
    """Of reground: spaCy model, or none."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.vg == "reground" and self.grounder is None:
            raise ValueError("--vg reground needs --grounder MODEL")


@dataclass(frozen=True, kw_only=True)
class AugNoise(ViewConfig):
    """Spoil regions."""

    scope: Scope = "test"
    """Splits to change."""
    ratio: Fraction
    """Share of regions."""
    regions: Path
    """Region cache: regions_vg_*, regions_od."""
    ops: Literal["both", "modify", "delete"] = "both"
    """What is done to them."""
    p_modify: Fraction = Fraction(1, 2)
    """Of both: chance of a random box, not deletion."""
    num_grounded: int | None = None
    """Grounded regions a row that the method sees: only these are spoilt; default: all cached."""
    num_detected: int | None = None
    """Detected regions a picture, likewise."""


@dataclass(frozen=True, kw_only=True)
class KeepFraction(ViewConfig):
    """Keep a share of the rows."""

    scope: Scope = "train"
    """Splits to change."""
    ratio: Fraction
    """Share of rows."""
    stratified: bool = False
    """The same share of each relation."""


@dataclass(frozen=True, kw_only=True)
class KShot(ViewConfig):
    """Keep K rows of each relation."""

    scope: Scope = "train"
    """Splits to change."""
    k: int
    """Rows of each relation."""
    include_none: bool = True
    """Limit rows without a relation, too."""

    def __post_init__(self) -> None:
        super().__post_init__()
        positive(k=self.k)


@dataclass(frozen=True, kw_only=True)
class ImageDrop(ViewConfig):
    """Take pictures away."""

    keep: Fraction
    """Share of pictures that stay."""


@dataclass(frozen=True, kw_only=True)
class RegionGrid(ViewConfig):
    """Keep the first regions of each kind."""

    regions: Path
    """Region cache: regions_vg_*, regions_od."""
    num_grounded: int
    """Grounded regions a row."""
    num_detected: int
    """Detected regions a picture."""
