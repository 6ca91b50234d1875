"""FocalMRE, Figure 4: where the two entities look in each marked copy of a row's picture.

Beside the picture itself: the plain copy, then one copy a region with its frame, all of them in the
run's own order. Each is lit where head and tail attend to it on average (the scale is its own), and
says how far the gate is open, and how many times an even share the best patch gets (peak). The
paper's colours from blue to red would hide the frames. The raw numbers go with it.

R: copies of the picture, K: patches.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from finetune.inputs.batch import Batch
from finetune.methods.focalmre.model import FocalMRE, Glance
from finetune.predict.occlusion import SHOWN
from finetune.report.galleries import Panel, short, with_entities
from finetune.run.open_run import open_run
from finetune.tasks.mnre import RelationRow
from finetune.tasks.splits import BY_OPTION
from pretrain import distributed
from shards.files import InputError

NAMES = {"vg": "grounded", "od": "detected"}
PER_COPY = ("pictures", "weights", "gates")
DARKEST = 0.3
"""Brightness of what is attended to least."""


@dataclass(frozen=True)
class Attended:
    """One row before one run."""

    heading: str
    """The text with its entities, the right relation and the run's."""
    panels: list[Panel]
    arrays: Mapping[str, np.ndarray]
    """`pictures` (1+R, S, S, 3) uint8, the plain one first; `weights` (1+R, 2, K) of head and tail;
    `gates` (1+R, 2); `fusion_KIND`, equation 5's weights."""


@torch.inference_mode()
def attend(run: str, data: Path, split: str, row: int) -> Attended:
    """A row of a split, with the regions that the run was trained with.

    Args:
        row: its number in the file, from 0.

    Raises:
        InputError: not a run of FocalMRE with attention and gate, or no such row with a picture.
    """
    seed = open_run(run)
    method, inputs = seed.method, seed.description.inputs
    if not isinstance(method, FocalMRE) or inputs["images"] == "none" or not method.region_slots:
        raise InputError(f"{run}: attention is shown of runs of focalmre that see pictures")
    task, loaded = seed.load(data, BY_OPTION[split])
    places = [i for i, candidate in enumerate(loaded.rows) if candidate.row == row]
    if not places or loaded.rows[places[0]].image_id is None:
        raise InputError(f"--row {row}: {split} has no such row with a picture; they count from 0")
    batch = loaded.dataset.collate(np.array(places)).to(distributed.device())
    try:
        framed, plain = method.glance(batch), method.glance(without_frames(batch))
    except ValueError as error:
        raise InputError(f"{run}: {error}") from None
    answer = task.info.labels[int(method(batch).logits.argmax())]
    numbers = arrays(plain, framed)
    names = ["no frame", *copy_names(method)]
    return Attended(heading(loaded.rows[places[0]], answer), panels(names, numbers), numbers)


def without_frames(batch: Batch) -> Batch:
    """The same rows as if no region had been found."""
    if batch.region_mask is None:
        return batch
    return replace(batch, region_mask=torch.zeros_like(batch.region_mask))


def arrays(plain: Glance, framed: Glance) -> dict[str, np.ndarray]:
    """The numbers of `Attended`, of the first row: its plain picture, then the marked copies."""

    unmarked, marked = first_row(plain), first_row(framed)
    return {
        **{key: np.concatenate([unmarked[key][:1], marked[key]]) for key in marked},
        **{f"fusion_{k}": w.float().cpu().numpy() for k, w in framed.fusion.items()},
    }


def first_row(glance: Glance) -> dict[str, np.ndarray]:
    """`pictures` (R, S, S, 3) uint8, `weights` (R, 2, K) and `gates` (R, 2) of its first row."""
    return {
        "pictures": glance.pictures[0].permute(0, 2, 3, 1).cpu().numpy(),
        "weights": glance.weights[0].float().cpu().numpy(),
        "gates": glance.gate[0].float().cpu().numpy(),
    }


def copy_names(method: FocalMRE) -> list[str]:
    """What each of the R copies shows, in their order."""
    if method.one_picture:
        return ["both kinds"]
    return [
        NAMES[kind] + (f" {number}" if copies > 1 else "")
        for kind, copies in method.copies.items()
        for number in range(1, copies + 1)
    ]


def panels(names: list[str], numbers: Mapping[str, np.ndarray]) -> list[Panel]:
    """The picture, and each copy in the light of what head and tail attend to, on average."""
    copies = zip(names, *(numbers[key] for key in PER_COPY), strict=True)
    whole = enlarged(numbers["pictures"][0])
    return [("the picture", whole), *(copy_panel(*copy) for copy in copies)]


def attention(method: Any, batch: Batch, name: str) -> list[Panel]:
    """Of the first row, the copies whose gate is most and least open; none of other methods."""
    if not hasattr(method, "glance") or batch.pixel_values is None:
        return []
    try:
        glance = method.glance(batch)
    except ValueError:  # this run has no attention, or no gate
        return []
    numbers = first_row(glance)
    order = numbers["gates"].mean(axis=1).argsort(kind="stable")
    extremes = {int(order[-1]): "most open"}
    if (numbers["pictures"] != numbers["pictures"][0]).any():  # else all copies are the same
        extremes[int(order[0])] = "least open"
    return [
        copy_panel(f"{name}\n{gate}", *(numbers[key][i] for key in PER_COPY))
        for i, gate in extremes.items()
    ]


def copy_panel(name: str, pixels: np.ndarray, weights: np.ndarray, gates: np.ndarray) -> Panel:
    """One copy in the light of what head and tail attend to, on average.

    Args:
        pixels: (S, S, 3) uint8. weights: (2, K). gates: (2,).
    """
    mean = weights.mean(axis=0)
    side = round(len(mean) ** 0.5)
    title = f"{name}\ngate {gates.mean():.2f}, peak {mean.max() * len(mean):.1f}×"
    return title, lit(enlarged(pixels), mean.reshape(side, side))


def lit(picture: Image.Image, weights: np.ndarray) -> Image.Image:
    """The picture, dark where weights (side, side) are least and as it is where they are most."""
    spread = np.ptp(weights)
    shares = (weights - weights.min()) / spread if spread > 0 else np.ones_like(weights)
    grey = Image.fromarray((shares * 255).astype(np.uint8))
    light = np.asarray(grey.resize(picture.size, Image.Resampling.BICUBIC)) / 255
    light = DARKEST + (1 - DARKEST) * light[..., None]
    return Image.fromarray((np.asarray(picture) * light).round().astype(np.uint8))


def enlarged(pixels: np.ndarray) -> Image.Image:
    """Small pictures keep their pixels' edges, so that a frame stays a frame."""
    picture = Image.fromarray(pixels)
    factor = max(1, SHOWN // max(picture.size))
    size = (picture.width * factor, picture.height * factor)
    return picture.resize(size, Image.Resampling.NEAREST)


def heading(row: RelationRow, answer: str) -> str:
    """Text, gold and answer in a line."""
    text = with_entities(row.tokens, row.head, row.tail)
    return f"{text} — {short(row.relation)}, said: {short(answer)}"
