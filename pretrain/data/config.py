"""Settings of the data: shards, and how pairs become tensors."""

from dataclasses import dataclass

MAX_LENGTH = 80
"""Word pieces of a caption (paper)."""


def check_share(name: str, value: float) -> None:
    """Raises: ValueError: not between 0 and 1."""
    if not 0 <= value <= 1:
        raise ValueError(f"{name}: a share between 0 and 1 is needed, not {value}")


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Shards and how pairs become tensors."""

    train: str
    """Shard directory (path or fsspec URL) to train on; or tars of other people with pictures and
    captions, read in place: "DIR/{00000..00099}.tar"."""
    val: str | None = None
    """Shard directory, or tars, to validate on."""
    matched_only: bool = False
    """Train on matched pairs alone: mismatched ones teach nothing under CIT alone."""
    max_length: int | None = None
    """Longest caption in word pieces, specials included; None: 80 (paper), or what fewer positions
    of the model allow."""
    crop_scale: tuple[float, float] = (0.2, 1.0)
    """Share of the picture that a random resized crop keeps."""
    flip: float = 0.5
    """Probability of a left-right flip."""
    photometric: float = 0.5
    """Probability of each of two random brightness or sharpness changes."""
    fixed_views: bool = False
    """Whole pictures, neither cropped, flipped nor changed. While `optim.freeze` holds the vision
    tower, its states are computed once a picture and kept in memory (4 bytes a value: 100 KB for 64
    patches, 384 wide)."""
    keep_patches: float = 1.0
    """Share of each view's patches that the model sees, drawn anew each epoch; 1: all. A half takes
    about two thirds of a step's time (FLIP: Li et al., CVPR 2023)."""
    unmasked_steps: int = 0
    """With `keep_patches` below 1: so many of the last steps see all patches, as users do."""
    min_visible: float = 0.25
    """An object of which the view shows less than this fraction takes no part in COE."""
    workers: int = 4
    """Loader processes per rank; they start once."""
    steps_per_decode: int = 1
    """So many pairs of a picture come in as many following steps, never in one batch, and it is
    decoded once for them; 1: pairs are permuted one by one."""
    streams: int = 64
    """Canonical streams of the sample order; bounds the set of open shards."""

    def __post_init__(self) -> None:
        for name in ("flip", "photometric", "min_visible"):
            check_share(f"data.{name}", getattr(self, name))
        if self.fixed_views and self.keep_patches != 1:
            raise ValueError("data.fixed_views shows whole pictures: leave data.keep_patches at 1")
        if not 0 < self.keep_patches <= 1 or self.unmasked_steps < 0:
            raise ValueError("data: 0 < keep_patches <= 1 and unmasked_steps >= 0 are needed")
        if self.unmasked_steps and self.keep_patches == 1:
            raise ValueError(
                f"data.unmasked_steps {self.unmasked_steps}: with data.keep_patches 1 every step "
                "sees all patches; set that below 1, or leave this out"
            )
        low, high = self.crop_scale
        if not 0 < low <= high <= 1:
            raise ValueError(f"data.crop_scale: 0 < low <= high <= 1 is needed, not {low}, {high}")
        length = 3 if self.max_length is None else self.max_length
        if self.workers < 0 or min(self.streams, self.steps_per_decode) < 1 or length < 3:
            raise ValueError(
                "data: workers >= 0, streams and steps_per_decode >= 1, max_length >= 3 are needed"
            )
