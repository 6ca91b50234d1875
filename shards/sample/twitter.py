"""Synthetic Twitter-2017: a made-up name's type is what the picture shows, left to right."""

from pathlib import Path

import numpy as np

from shards.sample.pictures import PEOPLE, Scene
from shards.sample.world import (
    TYPE_NOUNS,
    draw_all,
    fill_template,
    made_up_name,
    pick,
    pick_distinct,
    place,
    write_lines,
)

STREAM = 2
SENTENCES = {"train": 600, "valid": 150, "test": 300}
ONE_NAME = (
    "RT @{handle} : {a} tonight !",
    "what a day with {a} # weekend",
    "love this photo of {a}",
    "{a} again , so happy",
    "good morning from {a} .",
)
TWO_NAMES = (
    "RT @{handle} : {a} and {b} tonight !",
    "{a} with {b} , what a photo",
    "from left to right : {a} , {b}",
    "so happy to see {a} and also {b} .",
)
TYPELESS = ("car", "fish", "cup", "umbrella", "balloon", "kite", "star")
TWO, SURNAME = 0.4, 0.3
"""Chances: a sentence has two names; a name has two words."""


def write_twitter(root: Path, size: int, seed: int, workers: int) -> dict[str, int]:
    """Write `twitter2017/` below `root`; sentences by split."""
    rng = np.random.default_rng((seed, STREAM))
    folder, scenes = root / "twitter2017", list[Scene]()
    for split, number in SENTENCES.items():
        lines = []
        for _ in range(number):
            index = len(scenes) + 1
            types = pick_distinct(rng, tuple(TYPE_NOUNS), 2 if rng.random() < TWO else 1)
            scenes.append(_scene(rng, types, index, seed))
            lines += [f"IMGID:{index}", *_tagged(rng, types), ""]
        write_lines(folder / f"{split}.txt", lines)
    draw_all(folder, scenes, size, workers)
    return dict(SENTENCES)


def _scene(rng: np.random.Generator, types: list[str], index: int, seed: int) -> Scene:
    """Large subjects in the order of their names; above them up to two things of no type."""
    nouns, boxes = [], []
    for entity_type, x in zip(types, (0.5,) if len(types) == 1 else (0.25, 0.75), strict=True):
        nouns.append(pick(rng, TYPE_NOUNS[entity_type]))
        sides = (0.28, 0.56) if nouns[-1] in PEOPLE else rng.uniform(0.38, 0.46, 2)
        boxes.append(place(rng, x, 0.7, *sides))
    extra = pick_distinct(rng, TYPELESS, int(rng.integers(3)))
    nouns += extra
    boxes += [place(rng, x, 0.18, 0.26, 0.26) for x in pick_distinct(rng, (0.2, 0.8), len(extra))]
    path = f"twitter2017_images/{index}.jpg"
    return Scene(path, tuple(nouns), tuple(boxes), (seed, STREAM, index))


def _tagged(rng: np.random.Generator, types: list[str]) -> list[str]:
    """`token<TAB>tag` lines; nothing but the tags depends on the types."""
    words = [2 if rng.random() < SURNAME else 1 for _ in types]
    names = [" ".join(made_up_name(rng) for _ in range(number)) for number in words]
    template = pick(rng, TWO_NAMES if len(types) == 2 else ONE_NAME)
    tokens, spans = fill_template(rng, template, names)
    tags = ["O"] * len(tokens)
    for entity_type, (start, end) in zip(types, spans, strict=True):
        tags[start:end] = [f"B-{entity_type}", *[f"I-{entity_type}"] * (end - start - 1)]
    return [f"{token}\t{tag}" for token, tag in zip(tokens, tags, strict=True)]
