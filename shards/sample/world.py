"""The world of the synthetic corpora: its nouns, its made-up names, and where things stand."""

import json
import multiprocessing
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from shards.sample.pictures import PEOPLE, Box, Scene, draw_scene

CUES = {
    "per": {
        "ring": ("/per/per/couple", "spouse"),
        "ball": ("/per/per/peer", "teammate"),
        "child": ("/per/per/parent", "parent"),
    },
    "org": {
        "flag": ("/per/org/member_of", "member"),
        "crown": ("/per/org/leader_of", "leader"),
        "key": ("/per/org/founder_of", "founder"),
    },
    "misc": {
        "trophy": ("/per/misc/awarded", "winner"),
        "book": ("/per/misc/author_of", "author"),
        "camera": ("/per/misc/present_in", "actor"),
    },
}
"""Type of the tail entity -> noun drawn -> (relation, the word that news captions use for it)."""
CUE_NOUNS = tuple(noun for cues in CUES.values() for noun in cues)
NEUTRAL = (
    *("map", "house", "tree", "car", "fish", "cup", "umbrella", "balloon", "kite"),
    *("tower", "shirt", "star"),
)
SUFFIXES = {"per": ("",), "org": (" Corp", " Club", " Group"), "misc": (" Saga", " Gala", " Epic")}
"""Type of a relation's tail -> how its name ends."""
TYPE_NOUNS = {
    "PER": PEOPLE,
    "ORG": ("tower", "flag", "shirt"),
    "LOC": ("map", "house", "tree"),
    "MISC": ("trophy", "book", "camera"),
}
"""Type of a tweet's name -> what its picture shows."""
SYLLABLES = (
    *("ka", "lo", "mi", "ra", "ten", "vo", "su", "bel", "dan", "fi"),
    *("gor", "ha", "jun", "nel", "pax", "qui", "sor", "tu", "wen", "zi"),
)


def pick(rng: np.random.Generator, choices: Sequence) -> Any:
    """One of `choices`."""
    return choices[int(rng.integers(len(choices)))]


def pick_distinct(rng: np.random.Generator, choices: Sequence, number: int) -> list:
    """`number` different ones of `choices`, in random order."""
    return [choices[i] for i in rng.permutation(len(choices))[:number]]


def made_up_name(rng: np.random.Generator) -> str:
    """One capitalised word."""
    return (pick(rng, SYLLABLES) + pick(rng, SYLLABLES)).capitalize()


def some_people(rng: np.random.Generator, at_least: int = 1) -> list[str]:
    """One or two men or women."""
    return [pick(rng, PEOPLE) for _ in range(rng.integers(at_least, 3))]


def arrange(
    rng: np.random.Generator, people: Sequence[str], things: Sequence[str]
) -> tuple[tuple[str, ...], tuple[Box, ...]]:
    """Nouns in drawing order (people first, left to right) and their unit boxes.

    At most four things, in random order: three places above, one on the ground. People stand at
    the bottom. Order and place depend on nothing but chance, except that a child does not fly.
    """
    side = 1 if rng.random() < 0.5 else -1
    feet = (0.13, 0.87) if len(people) == 2 else (0.5 - 0.3 * side,)
    boxes = [place(rng, x, 0.76, 0.2, 0.42) for x in feet]
    ground = (0.5 if len(people) == 2 else 0.5 + 0.15 * side, 0.76)
    free = pick_distinct(rng, [(0.17, 0.22), (0.5, 0.22), (0.83, 0.22), ground], 4)
    order = pick_distinct(rng, things, len(things))
    if "child" in order:
        free.remove(ground)
        free.insert(order.index("child"), ground)
    for x, y in free[: len(order)]:
        boxes.append(place(rng, x, y, *rng.uniform(0.28, 0.33, 2)))
    return (*people, *order), tuple(boxes)


def close_up(rng: np.random.Generator, thing: str) -> tuple[tuple[str, ...], tuple[Box, ...]]:
    """One thing alone, anywhere and of any size: its noun and unit box."""
    side = rng.uniform(0.3, 0.9)
    x, y = rng.uniform(side / 2, 1 - side / 2, 2)
    return (thing,), (place(rng, x, y, side, side),)


def place(rng: np.random.Generator, x: float, y: float, width: float, height: float) -> Box:
    """A unit box of this size with its centre near (x, y), inside the picture."""
    x, y = x + rng.uniform(-0.02, 0.02), y + rng.uniform(-0.03, 0.03)
    left = min(max(x - width / 2, 0.01), 0.99 - width)
    top = min(max(y - height / 2, 0.01), 0.99 - height)
    return (float(left), float(top), float(left + width), float(top + height))


def seen_box(rng: np.random.Generator, box: Box, size: int) -> list[float]:
    """What a good detector reports, in pixels: each edge off by at most 0.02 of the picture."""
    seen = np.clip(np.array(box) + rng.uniform(-0.02, 0.02, 4), 0, 1)
    return (size * seen).round(1).tolist()


def draw_all(root: Path, scenes: Sequence[Scene], size: int, workers: int) -> None:
    """Draw every scene below `root`; the bytes do not depend on the number of workers."""
    for folder in {(root / scene.path).parent for scene in scenes}:
        folder.mkdir(parents=True, exist_ok=True)
    draw = partial(draw_scene, root, size=size)
    if workers == 1:
        for scene in scenes:
            draw(scene)
        return
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        pool.map(draw, scenes, chunksize=64)


def fill_template(
    rng: np.random.Generator, template: str, names: Sequence[str]
) -> tuple[list[str], list[tuple[int, int]]]:
    """Tokens of a filled post, and the span [start, end) of each name, in text order."""
    tokens: list[str] = []
    spans: list[tuple[int, int]] = []
    for word in template.split():
        if word in ("{a}", "{b}"):
            name = names[len(spans)].split()
            spans.append((len(tokens), len(tokens) + len(name)))
            tokens += name
        else:
            tokens.append(word.format(handle=made_up_name(rng).lower()))
    return tokens, spans


def write_lines(path: Path, lines: Sequence[str]) -> None:
    """A text file of these lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def write_json_lines(path: Path, records: Sequence[dict]) -> None:
    """One JSON object a line."""
    write_lines(path, [json.dumps(record) for record in records])
