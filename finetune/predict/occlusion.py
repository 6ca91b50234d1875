"""Where a run looked: how much its answer needs each part of the picture, and what it attends to.

Occlusion (Zeiler and Fergus, ECCV 2014): a grey square covers one cell of a grid after the other;
what the probability of the answer loses is what that cell was worth. It asks nothing of a method,
so every one is looked into the same way, and two runs compare.
"""

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from finetune.predict.extractor import Extractor
from finetune.predict.finished_run import Bad
from finetune.tasks.posts import Post
from shards.files import InputError

Panel = tuple[str, Image.Image]
"""Lines above a picture, and the picture."""
GREY = (127, 127, 127)
GRID = 7
SHOWN = 480
"""Longer side of the pictures that are covered and shown."""
NOTHING = 0.005
"""A loss of probability that rounding could be."""


@dataclass(frozen=True)
class Look:
    """One run before one post."""

    said: str
    """Its relation and the probability."""
    needs: str
    """What the answer loses without the cell of the picture that counts most."""
    panels: list[Panel]


def look(name: str, extract: Extractor, post: Post) -> Look:
    """What the run's answer needs of the picture; of a run that attends, also where to.

    Raises:
        InputError: the run finds entities, or cannot read the post.
    """
    (post,) = extract.run.with_captions([post])  # of the whole picture, before parts are covered
    with Watched(extract.run.method) as seen:
        (answer,) = extract.answer([post], top_k=1)
    if "error" in answer:
        raise InputError(f"{name}: {answer['error']}")
    worth = occlusion(extract, post, answer["relation"])
    most = strongest(worth)["loss"]
    if most < NOTHING:  # else the map would show noise, stretched to full brightness
        worth = worth * 0
    needs = f"a cell: up to {most:.2f}" if most >= NOTHING else "loses nothing"
    said = f"{short(answer['relation'])} {answer['probability']:.2f}"
    panel = f"{fitted(name)}\n{said}\n{needs}", overlay(thumbnail(post.image), worth)
    return Look(said, needs, [panel, *attention(extract.run.method, seen.batch, name)])


def occlusion(extract: Extractor, post: Post, answer: str, grid: int = GRID) -> np.ndarray:
    """(grid, grid) float64: what the probability of relation `answer` loses without each cell.

    Raises:
        InputError: the run finds entities, or the post has no picture or entities.
    """
    run = extract.run
    if run.info.kind != "relation" or post.image is None or post.head is None:
        raise InputError("where a run looked: for a relation of two entities beside a picture")
    with Image.open(post.image) as picture:
        picture = picture.convert("RGB")
    picture.thumbnail((SHOWN, SHOWN))
    with tempfile.TemporaryDirectory(prefix="covered-") as folder:
        posts = [replace(post, image=save(picture, Path(folder) / "whole.png"))]
        for row in range(grid):
            for column in range(grid):
                covered = picture.copy()
                covered.paste(GREY, cell(picture.size, grid, row, column))
                path = save(covered, Path(folder) / f"{row}-{column}.png")
                posts.append(replace(post, image=path))
        results = run.answers([(one, one.head, one.tail) for one in posts])
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


def overlay(picture: Image.Image, worth: np.ndarray, alpha: float = 0.55) -> Image.Image:
    """The picture under a map of `worth`: the more its answer needs a place, the brighter it is.

    The cell that counts most is framed: on a bright picture the map is hard to see.
    Nothing is drawn where a place counts nothing or against the answer.
    """
    from matplotlib import colormaps

    scale = SHOWN / max(picture.size)
    size = tuple(max(1, round(side * scale)) for side in picture.size)
    picture = picture.convert("RGB").resize(size, Image.Resampling.BICUBIC)
    positive = worth.clip(0)
    strength = positive / positive.max() if positive.max() > 0 else positive
    grey = Image.fromarray((strength * 255).astype(np.uint8))
    smooth = np.asarray(grey.resize(picture.size, Image.Resampling.BICUBIC)) / 255
    colours = colormaps["inferno"](smooth)[..., :3] * 255
    weight = alpha * smooth[..., None]
    mixed = (1 - weight) * np.asarray(picture) + weight * colours
    mapped = Image.fromarray(mixed.round().astype(np.uint8))
    if positive.max() > 0:
        most = strongest(worth)
        box = cell(picture.size, len(worth), most["row"], most["column"])
        left, top, right, bottom = box[0], box[1], box[2] - 1, box[3] - 1
        draw = ImageDraw.Draw(mapped)
        draw.rectangle((left, top, right, bottom), outline="black", width=4)
        draw.rectangle((left + 1, top + 1, right - 1, bottom - 1), outline="white", width=2)
    return mapped


def save(picture: Image.Image, path: Path) -> Path:
    """Without loss, and fast."""
    picture.save(path, compress_level=1)
    return path


def strongest(worth: np.ndarray) -> Mapping[str, Any]:
    """The cell that counts most, and what the answer loses without it."""
    row, column = np.unravel_index(worth.argmax(), worth.shape)
    return {"row": int(row), "column": int(column), "loss": float(worth.max())}


class Watched:
    """While it is open, the last batch that a method read is kept."""

    def __init__(self, method: Any) -> None:
        self.method, self.batch = method, None

    def __enter__(self) -> "Watched":
        self.hook = self.method.register_forward_pre_hook(self.keep)
        return self

    def keep(self, method: Any, inputs: tuple[Any, ...]) -> None:
        """The hook."""
        (self.batch,) = inputs

    def __exit__(self, *error: object) -> None:
        self.hook.remove()


def attention(method: Any, batch: Any, name: str) -> list[Panel]:
    """FocalMRE, Figure 4: the copies whose gate is most and least open; none of other methods."""
    if not hasattr(method, "glance") or batch.pixel_values is None:
        return []
    try:
        glance = method.glance(batch)
    except ValueError:  # this run has no attention, or no gate
        return []
    gate = glance.gate[0].mean(dim=-1)
    order = gate.argsort(descending=True).tolist()
    chosen = {order[0]: "most open"}
    if len({tuple(p.flatten().tolist()) for p in glance.pictures[0]}) > 1:
        chosen[order[-1]] = "least open"
    panels = []
    for copy, which in chosen.items():
        weights = glance.weights[0, copy].mean(dim=0).float().cpu().numpy()
        side = round(len(weights) ** 0.5)
        pixels = glance.pictures[0, copy].permute(1, 2, 0).cpu().numpy()
        title = f"{fitted(name)}\nattention\ngate {float(gate[copy]):.2f}"
        title += f" ({which})" if len(chosen) > 1 else ""
        panels.append((title, overlay(Image.fromarray(pixels), weights.reshape(side, side))))
    return panels


def thumbnail(path: Path, side: int = SHOWN) -> Image.Image:
    """The picture, its longer side at most so many pixels."""
    with Image.open(path) as picture:
        picture = picture.convert("RGB")
    picture.thumbnail((side, side))
    return picture


def fitted(name: str, most: int = 22) -> str:
    """The end of a name that is too long for a panel."""
    return name if len(name) <= most else "…" + name[1 - most :]


def short(relation: str) -> str:
    """/per/org/member_of -> member_of"""
    return relation.rsplit("/", 1)[-1]
