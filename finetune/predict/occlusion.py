"""Where a run looked: how much its answer needs each part of the picture.

Occlusion (Zeiler and Fergus, ECCV 2014): a grey square covers one cell of a grid after the other;
what the probability of the answer loses is what that cell was worth. It asks nothing of a method,
so every one is looked into the same way, and two runs compare.
"""

import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from finetune.predict.extractor import Extractor
from finetune.predict.finished_run import Bad
from finetune.tasks.posts import Post
from shards.files import InputError
from shards.images import decoded

GREY = (127, 127, 127)
GRID = 7
SHOWN = 480
"""Longer side of the pictures that are covered and shown."""


def occlusion(extract: Extractor, post: Post, answer: str, grid: int = GRID) -> np.ndarray:
    """(grid, grid) float64: what the probability of relation `answer` loses without each cell.

    Raises:
        InputError: the run finds entities, or the post has no picture or entities.
    """
    run = extract.run
    if run.info.kind != "relation" or post.image is None or post.head is None:
        raise InputError("where a run looked: for a relation of two entities beside a picture")
    picture = thumbnail(post.image)
    # As files and in one call: the run reads them as it reads every post, in batches.
    with tempfile.TemporaryDirectory(prefix="covered-") as folder:
        posts = [replace(post, image=save(picture, Path(folder) / "whole.png"))]
        for row in range(grid):
            for column in range(grid):
                covered = picture.copy()
                covered.paste(GREY, cell(picture.size, grid, row, column))
                path = save(covered, Path(folder) / f"{row}-{column}.png")
                posts.append(replace(post, image=path))
        results = run.answers([(one, one.head, one.tail) for one in posts])
    run.cut_captions = 0  # said of the post itself
    place = run.info.labels.index(answer)
    shares = []
    for result in results:
        if isinstance(result, Bad):
            raise InputError(result.error)
        shares.append(float(result[1][place]))
    return shares[0] - np.array(shares[1:]).reshape(grid, grid)


def cell(size: tuple[int, int], grid: int, row: int, column: int) -> tuple[int, int, int, int]:
    """(left, top, right, bottom) in pixels; the cells cover the picture without overlap."""
    edges = [[round(side * k / grid) for k in range(grid + 1)] for side in size]
    return edges[0][column], edges[1][row], edges[0][column + 1], edges[1][row + 1]


def overlay(picture: Image.Image, losses: np.ndarray, alpha: float = 0.55) -> Image.Image:
    """The picture under a map of `losses` (grid, grid): the more an answer needs a place, the
    brighter it is.

    The cell that counts most is framed: on a bright picture the map is hard to see.
    Nothing is drawn where a place counts nothing or against the answer.
    """
    from matplotlib import colormaps

    scale = SHOWN / max(picture.size)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    picture = picture.convert("RGB").resize(size, Image.Resampling.BICUBIC)
    positive = losses.clip(0)
    strength = positive / positive.max() if positive.max() > 0 else positive
    grey = Image.fromarray((strength * 255).astype(np.uint8))
    smooth = np.asarray(grey.resize(picture.size, Image.Resampling.BICUBIC)) / 255
    colours = colormaps["inferno"](smooth)[..., :3] * 255
    weight = alpha * smooth[..., None]
    # Lit in proportion to its worth: where nothing counts, the pixels stay as they are.
    mixed = (1 - weight) * np.asarray(picture) + weight * colours
    mapped = Image.fromarray(mixed.round().astype(np.uint8))
    if positive.max() > 0:
        most = strongest(losses)
        box = cell(picture.size, len(losses), most["row"], most["column"])
        left, top, right, bottom = box[0], box[1], box[2] - 1, box[3] - 1
        draw = ImageDraw.Draw(mapped)
        draw.rectangle((left, top, right, bottom), outline="black", width=4)
        draw.rectangle((left + 1, top + 1, right - 1, bottom - 1), outline="white", width=2)
    return mapped


def save(picture: Image.Image, path: Path) -> Path:
    """Without loss, and fast."""
    picture.save(path, compress_level=1)
    return path


def strongest(losses: np.ndarray) -> Mapping[str, Any]:
    """The cell that counts most, and what the answer loses without it."""
    row, column = np.unravel_index(losses.argmax(), losses.shape)
    return {"row": int(row), "column": int(column), "loss": float(losses.max())}


def thumbnail(path: Path, side: int = SHOWN) -> Image.Image:
    """The picture, its longer side at most so many pixels."""
    picture = decoded(path)
    picture.thumbnail((side, side))
    return picture
