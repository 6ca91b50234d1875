"""The rules by which views are drawn: rows in, changes out, a function of the rows and the seed.

Align-noise, aug-noise, fraction and k-shot follow FocalMRE, image-drop DGF-PT. Levels are nested:
what 5 % changes, 10 % changes too, because each takes a prefix of one permutation.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from typing import Any, Literal

import numpy as np

from finetune.inputs.view import Change
from finetune.tasks.base import Row
from finetune.tasks.region_cache import Region, Regions
from shards.files import InputError


def align_noise(
    rows: Sequence[Row],
    ratio: Fraction,
    seed: int,
    *,
    unit: Literal["row", "tweet"] = "row",
    grounded: Mapping[int, Regions] | None = None,
) -> dict[int, Change]:
    """Give round(ratio · N) units each the picture of another one, never an equal picture.

    The chosen units, in the order of a permutation, pass their pictures on in a circle; a unit that
    would get its own picture swaps with a later one.

    Args:
        rows: those without a picture are left alone.
        unit: "tweet" moves all rows of a picture together.
        grounded: cached regions by row; the donor's row lends its boxes along with its picture.
    """
    groups: dict[Any, list[Row]] = defaultdict(list)
    for row in rows:
        if row.image_id is not None:
            groups[row.image_id if unit == "tweet" else row.row].append(row)
    units = list(groups.values())
    order = _generator(seed).permutation(len(units)).tolist()
    count = round(ratio * len(units))
    pictures = [group[0].image_id for group in units]
    donors = _circle(order[:count], order[count:], pictures)
    changes = {}
    for taker, donor in zip(order[:count], donors, strict=True):
        lender = units[donor][0]
        vg = None if grounded is None else grounded[lender.row].regions
        for row in units[taker]:
            changes[row.row] = Change(image_id=lender.image_id, vg=vg)
    return changes


def _circle(chosen: list[int], others: list[int], pictures: Sequence[str | None]) -> list[int]:
    """A donor for each chosen unit whose picture differs from its own."""
    donors = chosen[1:] + chosen[:1]
    for k, taker in enumerate(chosen):
        later = ((k + step) % len(chosen) for step in range(1, len(chosen)))
        while pictures[donors[k]] == pictures[taker]:
            other = next(later, None)
            if other is None:  # nobody to swap with: a donor from outside
                outside = (unit for unit in others if pictures[unit] != pictures[taker])
                donors[k] = next(outside, -1)
                if donors[k] < 0:
                    raise InputError("align-noise: too few different pictures to exchange")
            elif (
                pictures[donors[k]] != pictures[chosen[other]]
                and pictures[donors[other]] != pictures[taker]
            ):
                donors[k], donors[other] = donors[other], donors[k]
    return donors


def aug_noise(
    rows: Sequence[Row],
    grounded: Mapping[int, Regions],
    detected: Mapping[str, Regions],
    ratio: Fraction,
    seed: int,
    *,
    p_modify: float = 0.5,
    num_grounded: int | None = None,
    num_detected: int | None = None,
) -> dict[int, Change]:
    """Spoil round(ratio · N) of all regions: each becomes a random box, or is deleted.

    A deletion leaves its place empty: neither does the next region of the cache take it, nor do
    those behind it move, whose places methods weigh.

    A detected region counts once in every row that shows its picture. A random box lies in the same
    picture, has IoU at most 0.1 with every true region of the row (of 50 tries, else the lowest),
    an area of 5 to 50 % of the picture, and an aspect ratio between 0.5 and 2.

    Args:
        p_modify: chance of a random box rather than deletion; 1 or 0 for one kind alone.
        num_grounded, num_detected: regions of a row that the method sees, the first ones; others
            are left alone and do not count. None: all.
    """
    seen = {"vg": num_grounded, "od": num_detected}
    true: dict[int, dict[str, Regions]] = {}
    for row in rows:
        true[row.row] = {"vg": grounded[row.row]} if row.row in grounded else {}
        if row.image_id is not None and row.image_id in detected:
            true[row.row]["od"] = detected[row.image_id]
    everything = [
        (row, kind, place)
        for row, kinds in true.items()
        for kind, entry in kinds.items()
        for place in range(len(entry.regions[: seen[kind]]))
    ]
    generator = _generator(seed)
    order = generator.permutation(len(everything)).tolist()
    spoilt: dict[int, dict[str, dict[int, Region | None]]] = defaultdict(lambda: defaultdict(dict))
    # One generator all along: a larger share begins with the boxes of a smaller one.
    for index in order[: round(ratio * len(everything))]:
        row, kind, place = everything[index]
        entry = true[row][kind]
        boxes = np.array([r.box for e in true[row].values() for r in e.regions])
        modify = generator.random() < p_modify
        spoilt[row][kind][place] = (
            replace(entry.regions[place], box=random_box(entry.size, boxes, generator))
            if modify
            else None
        )
    return {row: _spoilt(true[row], kinds) for row, kinds in spoilt.items()}


def _spoilt(
    true: Mapping[str, Regions], spoilt: Mapping[str, Mapping[int, Region | None]]
) -> Change:
    """The regions of a row after its spoilt ones (None: deleted) have taken their places."""
    after = {
        kind: tuple(places.get(place, old) for place, old in enumerate(true[kind].regions))
        for kind, places in spoilt.items()
    }
    return Change(vg=after.get("vg"), od=after.get("od"))


def random_box(
    size: tuple[int, int], avoid: np.ndarray, generator: np.random.Generator
) -> tuple[float, float, float, float]:
    """A box in a picture of `size` (W, H) with IoU at most 0.1 with each of `avoid` (n, 4).

    Where 50 tries fail, the one that came nearest. Boxes that exceed the picture are cut to it.
    """
    width, height = size
    best, lowest = (0.0, 0.0, float(width), float(height)), np.inf
    for _ in range(50):
        area = generator.uniform(0.05, 0.5) * width * height
        aspect = generator.uniform(0.5, 2)
        w, h = min(width, np.sqrt(area * aspect)), min(height, np.sqrt(area / aspect))
        x, y = generator.random() * (width - w), generator.random() * (height - h)
        left, top, right, bottom = (round(float(side), 2) for side in (x, y, x + w, y + h))
        box = left, top, right, bottom
        overlap = iou(np.array(box), avoid).max(initial=0.0)
        if overlap < lowest:
            best, lowest = box, overlap
        if lowest <= 0.1:
            break
    return best


def iou(box: np.ndarray, others: np.ndarray) -> np.ndarray:
    """(n,) intersection over union of one box (4,) with others (n, 4)."""
    others = others.reshape(-1, 4)
    sides = np.minimum(box[2:], others[:, 2:]) - np.maximum(box[:2], others[:, :2])
    common = sides.clip(0).prod(axis=1)
    areas = (others[:, 2:] - others[:, :2]).prod(axis=1)
    return common / ((box[2:] - box[:2]).prod() + areas - common)


def fraction(
    rows: Sequence[Row], ratio: Fraction, seed: int, *, stratified: bool = False
) -> dict[int, Change]:
    """Keep floor(ratio · N) rows, drawn without replacement; the others are dropped.

    Args:
        stratified: keep the share of each relation.
    """
    order = _generator(seed).permutation(len(rows)).tolist()
    if stratified:
        # A row's rank within its relation, as a share: sorting by it takes all relations evenly.
        sizes, ranks = Counter(_label(row) for row in rows), {}
        drawn: Counter[str] = Counter()
        for index in order:
            label = _label(rows[index])
            ranks[index] = (drawn[label] + 0.5) / sizes[label]
            drawn[label] += 1
        order.sort(key=ranks.__getitem__)
    return _drop(rows, order[: int(ratio * len(rows))])


def kshot(
    rows: Sequence[Row], shots: int, seed: int, *, unlimited: str | None = None
) -> dict[int, Change]:
    """Keep `shots` rows of each relation, all where there are fewer; the others are dropped.

    Args:
        unlimited: a label of which all rows stay.
    """
    drawn: Counter[str] = Counter()
    places = []
    for index in _generator(seed).permutation(len(rows)).tolist():
        label = _label(rows[index])
        if drawn[label] < shots or label == unlimited:
            places.append(index)
            drawn[label] += 1
    return _drop(rows, places)


def image_drop(rows: Sequence[Row], keep: Fraction, seed: int) -> dict[int, Change]:
    """Keep round(keep · pictures); every row of the other pictures has none."""
    pictures = list(dict.fromkeys(row.image_id for row in rows if row.image_id is not None))
    order = _generator(seed).permutation(len(pictures)).tolist()
    staying = {pictures[index] for index in order[: round(keep * len(pictures))]}
    return {row.row: Change(no_image=True) for row in rows if row.image_id not in staying}


def region_grid(
    rows: Sequence[Row],
    grounded: Mapping[int, Regions],
    detected: Mapping[str, Regions],
    num_grounded: int,
    num_detected: int,
) -> dict[int, Change]:
    """Only the first regions of each kind, in cache order; rows that have no more are unchanged."""
    changes = {}
    for row in rows:
        vg, od = grounded.get(row.row), detected.get(row.image_id or "")
        fewer = Change(
            vg=vg.regions[:num_grounded] if vg and len(vg.regions) > num_grounded else None,
            od=od.regions[:num_detected] if od and len(od.regions) > num_detected else None,
        )
        if fewer != Change():
            changes[row.row] = fewer
    return changes


def _generator(seed: int) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(seed))


def _drop(rows: Sequence[Row], places: Iterable[int]) -> dict[int, Change]:
    """All rows but those at these places."""
    staying = set(places)
    return {row.row: Change(drop=True) for place, row in enumerate(rows) if place not in staying}


def _label(row: Any) -> str:
    """The row's relation; rows of an entity task have none to balance by."""
    if not hasattr(row, "relation"):
        raise InputError("kshot and --stratified need a task with one relation a row")
    return row.relation
