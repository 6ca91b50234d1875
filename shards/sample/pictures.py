"""Pictures of the synthetic corpora: people and things with distinct silhouettes, drawn with PIL.

Every noun is a few strokes in its own unit square, so what a picture shows is known exactly. Each
noun has its typical colours, shifted a little from drawing to drawing, and may be mirrored.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

Box = tuple[float, float, float, float]
"""(x1, y1, x2, y2); in unit coordinates or in pixels, as the text says."""

INKS = {
    "gold": (236, 178, 24),
    "pale": (188, 236, 252),
    "orange": (240, 120, 20),
    "white": (250, 250, 250),
    "black": (28, 28, 34),
    "red": (214, 30, 36),
    "blue": (30, 70, 205),
    "sky": (90, 170, 240),
    "green": (30, 140, 50),
    "lime": (130, 205, 60),
    "brown": (125, 75, 35),
    "tan": (226, 190, 140),
    "violet": (130, 40, 170),
    "pink": (250, 110, 165),
    "teal": (0, 160, 160),
    "cyan": (0, 215, 250),
    "steel": (62, 72, 130),
    "grey": (120, 124, 130),
    "maroon": (135, 20, 60),
    "magenta": (205, 0, 190),
    "yellow": (252, 226, 40),
    "skin": (236, 190, 150),
}
SKINS = ((250, 214, 180), (224, 172, 126), (170, 115, 75), (105, 68, 45))
HAIRS = ((30, 24, 22), (96, 56, 26), (196, 150, 60), (150, 150, 150))
CLOTHES = (
    (60, 80, 140),
    (150, 50, 60),
    (60, 120, 80),
    (110, 80, 130),
    (200, 150, 90),
    (80, 80, 90),
)

# (kind, ink, numbers). oval, block: box; poly: points; line: width, points; hoop: width, box.
STROKES: dict[str, tuple[tuple, ...]] = {
    "ring": (
        ("hoop", "gold", 0.17, 0.06, 0.26, 0.94, 1.0),
        ("poly", "pale", 0.22, 0.14, 0.36, 0.0, 0.64, 0.0, 0.78, 0.14, 0.5, 0.46),
        ("line", "blue", 0.04, 0.22, 0.14, 0.78, 0.14, 0.5, 0.46, 0.22, 0.14),
    ),
    "ball": (
        ("oval", "orange", 0.0, 0.0, 1.0, 1.0),
        ("line", "white", 0.09, 0.5, 0.0, 0.5, 1.0),
        ("line", "white", 0.09, 0.0, 0.5, 1.0, 0.5),
        ("hoop", "black", 0.05, 0.0, 0.0, 1.0, 1.0),
    ),
    "child": (
        ("line", "skin", 0.12, 0.08, 0.62, 0.3, 0.5, 0.7, 0.5, 0.92, 0.62),
        ("line", "skin", 0.14, 0.36, 0.82, 0.36, 1.0),
        ("line", "skin", 0.14, 0.64, 0.82, 0.64, 1.0),
        ("poly", "magenta", 0.32, 0.42, 0.68, 0.42, 0.94, 0.86, 0.06, 0.86),
        ("oval", "skin", 0.24, 0.04, 0.76, 0.5),
        ("poly", "yellow", 0.16, 0.24, 0.26, 0.06, 0.5, 0.0, 0.74, 0.06, 0.84, 0.24),
        ("oval", "black", 0.36, 0.26, 0.44, 0.34),
        ("oval", "black", 0.56, 0.26, 0.64, 0.34),
    ),
    "flag": (
        ("block", "red", 0.12, 0.04, 1.0, 0.24),
        ("block", "white", 0.12, 0.24, 1.0, 0.44),
        ("block", "blue", 0.12, 0.44, 1.0, 0.64),
        ("line", "brown", 0.09, 0.1, 0.0, 0.1, 1.0),
    ),
    "crown": (
        ("poly", "gold", 0.0, 0.2, 0.25, 0.55, 0.5, 0.05, 0.75, 0.55, 1.0, 0.2, 0.9, 0.9, 0.1, 0.9),
        ("block", "violet", 0.1, 0.72, 0.9, 0.92),
        ("oval", "violet", 0.41, 0.0, 0.59, 0.18),
        ("oval", "violet", 0.0, 0.1, 0.16, 0.26),
        ("oval", "violet", 0.84, 0.1, 1.0, 0.26),
    ),
    "key": (
        ("line", "steel", 0.2, 0.4, 0.4, 0.94, 0.94),
        ("line", "steel", 0.16, 0.66, 0.68, 0.86, 0.48),
        ("line", "steel", 0.16, 0.82, 0.84, 1.0, 0.66),
        ("hoop", "steel", 0.2, 0.0, 0.0, 0.58, 0.58),
    ),
    "trophy": (
        ("hoop", "gold", 0.08, 0.0, 0.06, 0.4, 0.46),
        ("hoop", "gold", 0.08, 0.6, 0.06, 1.0, 0.46),
        ("poly", "gold", 0.14, 0.0, 0.86, 0.0, 0.8, 0.42, 0.6, 0.6, 0.4, 0.6, 0.2, 0.42),
        ("block", "gold", 0.4, 0.56, 0.6, 0.8),
        ("block", "black", 0.14, 0.76, 0.86, 1.0),
    ),
    "book": (
        ("poly", "red", 0.0, 0.14, 0.5, 0.24, 1.0, 0.14, 1.0, 0.92, 0.5, 1.0, 0.0, 0.92),
        ("poly", "white", 0.07, 0.08, 0.5, 0.2, 0.5, 0.9, 0.07, 0.82),
        ("poly", "white", 0.93, 0.08, 0.5, 0.2, 0.5, 0.9, 0.93, 0.82),
        ("line", "black", 0.04, 0.5, 0.2, 0.5, 0.9),
        ("line", "steel", 0.04, 0.16, 0.3, 0.41, 0.37),
        ("line", "steel", 0.04, 0.16, 0.5, 0.41, 0.57),
        ("line", "steel", 0.04, 0.84, 0.3, 0.59, 0.37),
        ("line", "steel", 0.04, 0.84, 0.5, 0.59, 0.57),
    ),
    "camera": (
        ("block", "black", 0.0, 0.26, 1.0, 0.92),
        ("block", "black", 0.3, 0.1, 0.7, 0.3),
        ("oval", "white", 0.26, 0.34, 0.74, 0.84),
        ("oval", "sky", 0.33, 0.41, 0.67, 0.77),
        ("oval", "red", 0.82, 0.32, 0.94, 0.44),
    ),
    "map": (
        ("poly", "tan", 0.0, 0.06, 0.33, 0.16, 0.67, 0.06, 1.0, 0.16, 1.0, 0.94, 0.67, 0.84,
         0.33, 0.94, 0.0, 0.84),
        ("poly", "sky", 0.0, 0.45, 0.33, 0.4, 0.67, 0.6, 1.0, 0.5, 1.0, 0.94, 0.67, 0.84, 0.33,
         0.94, 0.0, 0.84),
        ("poly", "lime", 0.05, 0.14, 0.3, 0.22, 0.26, 0.44, 0.05, 0.48),
        ("oval", "lime", 0.55, 0.16, 0.95, 0.5),
        ("line", "white", 0.03, 0.33, 0.16, 0.33, 0.94),
        ("line", "white", 0.03, 0.67, 0.06, 0.67, 0.84),
        ("line", "red", 0.08, 0.14, 0.62, 0.3, 0.8),
        ("line", "red", 0.08, 0.3, 0.62, 0.14, 0.8),
    ),
    "house": (
        ("block", "tan", 0.12, 0.45, 0.88, 1.0),
        ("poly", "brown", 0.0, 0.48, 0.5, 0.0, 1.0, 0.48),
        ("block", "brown", 0.42, 0.66, 0.6, 1.0),
        ("block", "sky", 0.19, 0.58, 0.35, 0.74),
        ("block", "sky", 0.67, 0.58, 0.82, 0.74),
    ),
    "tree": (
        ("block", "brown", 0.42, 0.6, 0.58, 1.0),
        ("oval", "green", 0.0, 0.25, 0.55, 0.75),
        ("oval", "green", 0.45, 0.25, 1.0, 0.75),
        ("oval", "green", 0.18, 0.0, 0.82, 0.6),
    ),
    "car": (
        ("poly", "blue", 0.18, 0.5, 0.32, 0.2, 0.7, 0.2, 0.84, 0.5),
        ("block", "blue", 0.0, 0.46, 1.0, 0.76),
        ("poly", "pale", 0.27, 0.48, 0.37, 0.27, 0.49, 0.27, 0.49, 0.48),
        ("poly", "pale", 0.54, 0.48, 0.54, 0.27, 0.66, 0.27, 0.75, 0.48),
        ("oval", "black", 0.1, 0.62, 0.36, 0.88),
        ("oval", "black", 0.64, 0.62, 0.9, 0.88),
    ),
    "fish": (
        ("poly", "teal", 0.62, 0.5, 1.0, 0.2, 1.0, 0.8),
        ("oval", "teal", 0.0, 0.22, 0.78, 0.78),
        ("line", "white", 0.05, 0.36, 0.26, 0.36, 0.74),
        ("line", "white", 0.05, 0.52, 0.26, 0.52, 0.74),
        ("oval", "white", 0.1, 0.36, 0.24, 0.5),
        ("oval", "black", 0.14, 0.4, 0.21, 0.47),
    ),
    "cup": (
        ("hoop", "maroon", 0.1, 0.52, 0.4, 1.0, 0.84),
        ("poly", "maroon", 0.0, 0.3, 0.78, 0.3, 0.7, 1.0, 0.08, 1.0),
        ("oval", "tan", 0.0, 0.2, 0.78, 0.42),
        ("line", "white", 0.06, 0.25, 0.16, 0.3, 0.0),
        ("line", "white", 0.06, 0.5, 0.16, 0.55, 0.0),
    ),
    "umbrella": (
        ("line", "black", 0.06, 0.5, 0.1, 0.5, 0.92, 0.42, 0.98, 0.34, 0.92),
        ("poly", "violet", 0.0, 0.52, 0.08, 0.26, 0.28, 0.08, 0.5, 0.02, 0.72, 0.08, 0.92, 0.26,
         1.0, 0.52, 0.84, 0.44, 0.67, 0.52, 0.5, 0.44, 0.33, 0.52, 0.16, 0.44),
        ("line", "pink", 0.04, 0.5, 0.02, 0.33, 0.52),
        ("line", "pink", 0.04, 0.5, 0.02, 0.67, 0.52),
    ),
    "balloon": (
        ("line", "black", 0.04, 0.5, 0.66, 0.44, 0.8, 0.54, 1.0),
        ("poly", "pink", 0.42, 0.74, 0.58, 0.74, 0.5, 0.62),
        ("oval", "pink", 0.2, 0.0, 0.8, 0.7),
        ("oval", "white", 0.32, 0.12, 0.46, 0.3),
    ),
    "kite": (
        ("line", "black", 0.04, 0.56, 0.76, 0.3, 0.84, 0.4, 0.92, 0.1, 1.0),
        ("poly", "lime", 0.5, 0.0, 1.0, 0.32, 0.56, 0.82),
        ("poly", "red", 0.5, 0.0, 0.02, 0.36, 0.56, 0.82),
    ),
    "tower": (
        ("block", "grey", 0.18, 0.04, 0.82, 1.0),
        *(
            ("block", "yellow", x, y, x + 0.13, y + 0.11)
            for y in (0.12, 0.3, 0.48, 0.66)
            for x in (0.25, 0.435, 0.62)
        ),
        ("block", "black", 0.43, 0.84, 0.57, 1.0),
    ),
    "shirt": (
        ("poly", "green", 0.3, 0.04, 0.7, 0.04, 1.0, 0.24, 0.88, 0.48, 0.76, 0.4, 0.76, 1.0, 0.24,
         1.0, 0.24, 0.4, 0.12, 0.48, 0.0, 0.24),
        ("oval", "white", 0.38, 0.0, 0.62, 0.14),
        ("line", "white", 0.09, 0.42, 0.42, 0.52, 0.34, 0.52, 0.86),
    ),
    "star": (
        ("poly", "cyan", 0.5, 0.0, 0.64, 0.34, 1.0, 0.38, 0.73, 0.61, 0.82, 1.0, 0.5, 0.79, 0.18,
         1.0, 0.27, 0.61, 0.0, 0.38, 0.36, 0.34),
        ("oval", "white", 0.4, 0.42, 0.6, 0.62),
    ),
    "man": (
        ("block", "black", 0.3, 0.66, 0.47, 1.0),
        ("block", "black", 0.53, 0.66, 0.7, 1.0),
        ("block", "cloth", 0.26, 0.36, 0.74, 0.7),
        ("line", "cloth", 0.16, 0.26, 0.4, 0.1, 0.66),
        ("line", "cloth", 0.16, 0.74, 0.4, 0.9, 0.66),
        ("oval", "hair", 0.26, 0.0, 0.74, 0.3),
        ("oval", "skin", 0.29, 0.08, 0.71, 0.37),
    ),
    "woman": (
        ("poly", "hair", 0.3, 0.04, 0.7, 0.04, 0.84, 0.46, 0.16, 0.46),
        ("line", "skin", 0.13, 0.36, 0.8, 0.36, 1.0),
        ("line", "skin", 0.13, 0.64, 0.8, 0.64, 1.0),
        ("poly", "cloth", 0.34, 0.36, 0.66, 0.36, 0.92, 0.84, 0.08, 0.84),
        ("oval", "hair", 0.24, 0.0, 0.76, 0.3),
        ("oval", "skin", 0.31, 0.08, 0.69, 0.37),
    ),
}  # fmt: skip
PEOPLE = ("man", "woman")


@dataclass(frozen=True)
class Scene:
    """A picture to draw: what it shows, where, and the key of its random numbers."""

    path: str
    """Relative to the corpus folder."""
    nouns: tuple[str, ...]
    boxes: tuple[Box, ...]
    """Unit coordinates, one a noun."""
    seed: tuple[int, ...]


def draw_scene(root: Path, scene: Scene, size: int) -> None:
    """Write `scene` as a JPEG of size x size pixels; the folder exists."""
    rng = np.random.default_rng(scene.seed)
    canvas = Image.fromarray(_background(rng, 2 * size))
    pen = ImageDraw.Draw(canvas)
    for _ in range(rng.integers(3)):
        ends = rng.integers(0, 2 * size, 4).tolist()
        pen.line(ends, fill=tuple(rng.integers(120, 200, 3).tolist()), width=max(1, size // 48))
    for noun, box in zip(scene.nouns, scene.boxes, strict=True):
        _draw(pen, noun, [2 * size * edge for edge in box], rng)
    # Drawing at twice the size and averaging is cheap anti-aliasing.
    pixels = np.asarray(canvas.reduce(2), np.int16)
    pixels = pixels + rng.integers(-8, 9, pixels.shape, np.int16)
    image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
    image.save(root / scene.path, quality=92, subsampling=0)


def _background(rng: np.random.Generator, side: int) -> np.ndarray:
    """Two mild colours blended along a random direction, uint8 [side, side, 3]."""
    first, second = rng.integers(165, 238, (2, 3))
    across, down = np.cos(angle := rng.uniform(0, 2 * np.pi)), np.sin(angle)
    ramp = np.linspace(-0.5, 0.5, side)
    blend = (0.5 + 0.7 * (across * ramp[None, :] + down * ramp[:, None])).clip(0, 1)[..., None]
    return (first + blend * (second - first)).astype(np.uint8)


def _draw(pen: ImageDraw.ImageDraw, noun: str, box: Sequence[float], rng) -> None:
    """The strokes of `noun` inside `box` (canvas pixels)."""
    left, top, width, height = box[0], box[1], box[2] - box[0], box[3] - box[1]
    mirrored = noun not in PEOPLE and rng.random() < 0.5
    shift = rng.integers(-14, 15, 3)
    inks = INKS
    if noun in PEOPLE:
        # Chosen before the strokes: head, arms and legs have one skin.
        looks = {"skin": SKINS, "hair": HAIRS, "cloth": CLOTHES}
        inks = INKS | {part: looks[part][rng.integers(len(looks[part]))] for part in looks}
    for kind, ink, *numbers in STROKES[noun]:
        thickness = 1
        if kind in ("line", "hoop"):
            thickness = max(1, round(numbers.pop(0) * (width + height) / 2))
        xs = [left + width * (1 - x if mirrored else x) for x in numbers[0::2]]
        ys = [top + height * y for y in numbers[1::2]]
        colour = tuple((np.asarray(inks[ink]) + shift).clip(0, 255).tolist())
        if kind == "poly":
            pen.polygon(list(zip(xs, ys, strict=True)), fill=colour)
        elif kind == "line":
            pen.line(list(zip(xs, ys, strict=True)), fill=colour, width=thickness, joint="curve")
        else:
            corners = [min(xs), min(ys), max(xs), max(ys)]
            if kind == "oval":
                pen.ellipse(corners, fill=colour)
            elif kind == "hoop":
                pen.ellipse(corners, outline=colour, width=thickness)
            else:
                pen.rectangle(corners, fill=colour)
