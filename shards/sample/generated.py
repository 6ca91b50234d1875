"""Pictures generated from the texts of the synthetic relation rows, as TMR and CAMIM read them.

What a painter shows who has read a post and nothing else: people, and a thing of the other entity's
type. The photograph and the relation are no arguments.
"""

import ast
import zlib
from pathlib import Path

import numpy as np

from shards.files import replace_folder
from shards.sample.pictures import Scene
from shards.sample.world import (
    NEUTRAL,
    SUFFIXES,
    TYPE_NOUNS,
    arrange,
    draw_all,
    pick,
    pick_distinct,
    some_people,
)

FOLDER, STREAM = "diffusion_pic", 4
TYPE_OF_SUFFIX = {
    suffix.strip(): kind for kind, suffixes in SUFFIXES.items() for suffix in suffixes if suffix
}
THINGS = 3


def write_generated(mnre: Path, size: int, seed: int, workers: int) -> None:
    """`diffusion_pic/{split}/<img_id>` below `mnre`: one a picture, of the first post it came with.

    A picture's random numbers are those of its text under `seed`.
    """
    scenes: dict[str, Scene] = {}
    for split in ("train", "val", "test"):
        lines = (mnre / f"txt/ours_{split}.txt").read_text(encoding="utf-8").splitlines()
        for row in map(ast.literal_eval, lines):
            path = f"{split}/{row['img_id']}"
            key = (seed, STREAM, zlib.crc32(" ".join(row["token"]).encode()))
            scenes.setdefault(path, _imagined(path, row["t"]["name"], key))
    with replace_folder(mnre / FOLDER) as folder:
        draw_all(folder, list(scenes.values()), size, workers)


def _imagined(path: str, tail: str, key: tuple[int, ...]) -> Scene:
    rng = np.random.default_rng(key)
    kind = TYPE_OF_SUFFIX.get(tail.split()[-1], "per")
    people = some_people(rng, at_least=2 if kind == "per" else 1)
    things = [] if kind == "per" else [pick(rng, TYPE_NOUNS[kind.upper()])]
    others = [noun for noun in NEUTRAL if noun not in things]
    things += pick_distinct(rng, others, THINGS - len(things))
    return Scene(path, *arrange(rng, people, things), key)
