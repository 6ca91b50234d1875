"""Where in a picture was a crop cut? Normalised cross-correlation through the Fourier transform.

H, W: picture, h, w: crop. Needs numpy alone; the scores are those of OpenCV's `TM_CCOEFF_NORMED`.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from PIL import Image

GOOD = 0.90
"""Score above which a crop counts as found. The published crops reach 0.96 to 0.99: they are cut at
scale 1, but from a blurred copy of the picture."""


@dataclass(frozen=True)
class Match:
    """The best place of a crop."""

    score: float
    """Correlation in [-1, 1]."""
    box: tuple[int, int, int, int]
    """(x1, y1, x2, y2) in pixels of the picture"""


class Matcher:
    """Finds any number of crops in one picture, whose transform is computed once."""

    def __init__(self, picture: Image.Image):
        grey = _grey(picture)
        self.shape = grey.shape
        # Differences from the mean keep the running sums small, hence exact.
        self.transform = np.fft.rfft2(grey - grey.mean())
        self.sums = _running_sums(grey - grey.mean())
        self.squares = _running_sums((grey - grey.mean()) ** 2)

    def find(self, crop: Image.Image) -> Match | None:
        """The best place at scale 1; None for a crop larger than the picture or of one colour."""
        template = _grey(crop)
        (height, width), (h, w) = self.shape, template.shape
        if h > height or w > width:
            return None
        template = template - template.mean()
        energy = float((template**2).sum())
        if energy < 1e-6 * template.size:
            return None
        spectrum = np.fft.rfft2(template, self.shape).conj()
        product = np.fft.irfft2(self.transform * spectrum, self.shape)
        product = product[: height - h + 1, : width - w + 1]
        variance = _window(self.squares, h, w) - _window(self.sums, h, w) ** 2 / (h * w)
        # A window of one colour correlates with nothing; rounding must not say otherwise.
        flat = variance < 1e-6 * h * w
        scores = np.where(flat, 0, product / np.sqrt(np.where(flat, 1, variance) * energy))
        y, x = np.unravel_index(int(scores.argmax()), scores.shape)
        return Match(float(scores[y, x]), (int(x), int(y), int(x) + w, int(y) + h))

    def find_scaled(self, crop: Image.Image, accept: float = GOOD) -> Match | None:
        """At scale 1; where that is below `accept`, the best of scales 0.95 … 1.05.

        Returns:
            None where no scale reaches `accept`.
        """
        best = self.find(crop)
        if best is None or best.score < accept:
            matches = [match for scaled in _scaled(crop) if (match := self.find(scaled))]
            best = max([*matches, *([best] if best else [])], key=lambda m: m.score, default=None)
        return best if best is not None and best.score >= accept else None


def _scaled(crop: Image.Image) -> Iterator[Image.Image]:
    for percent in (99, 101, 98, 102, 97, 103, 96, 104, 95, 105):
        width, height = (max(1, round(side * percent / 100)) for side in crop.size)
        yield crop.resize((width, height), Image.Resampling.BILINEAR)


def _grey(picture: Image.Image) -> np.ndarray:
    """(H, W) float64 in 0 … 255"""
    return np.asarray(picture.convert("RGB").convert("L"), dtype=np.float64)


def _running_sums(values: np.ndarray) -> np.ndarray:
    """(H + 1, W + 1): entry (i, j) is the sum over the first i rows and j columns."""
    return np.pad(values.cumsum(0).cumsum(1), ((1, 0), (1, 0)))


def _window(sums: np.ndarray, h: int, w: int) -> np.ndarray:
    """(H - h + 1, W - w + 1): the sum over each window of h × w."""
    return sums[h:, w:] - sums[:-h, w:] - sums[h:, :-w] + sums[:-h, :-w]
