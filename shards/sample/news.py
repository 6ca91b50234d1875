"""Synthetic NewsCLIPpings over VisualNews: drawn scenes, captions that name what is drawn."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from shards.sample.pictures import PEOPLE, Scene
from shards.sample.world import (
    CUE_NOUNS,
    CUES,
    NEUTRAL,
    arrange,
    close_up,
    draw_all,
    made_up_name,
    pick,
    pick_distinct,
    seen_box,
    some_people,
    write_json_lines,
)

STREAM = 0  # second number of every random key here: no two corpora share one
SWAPS = 100
"""Rounds that look for a fitting twin; a handful of pictures may have none for all."""
SOURCES = ("guardian", "bbc", "usa_today", "washington_post")
TOPICS = ("sport", "world", "culture", "business")
CAPTIONS = (
    "{who} with {things} .",
    "{who} and {things} on {day} .",
    "photo of {who} near {things} .",
    "{things} beside {who} at the {place} .",
    "{who} seen with {things} this {day} .",
    "at the {place} {who} look at {things} .",
    "{things} and {who} .",
    "this {day} at the {place} : {who} , {things} .",
    "{who} pose with {things} in the {place} .",
    "news from the {place} : {things} next to {who} .",
    "this image shows {who} with {things} .",
)
CLOSE_UPS = (
    "{things} .",
    "this is an image of {things} .",
    "an image of {things} is shown here .",
    "{things} this {day} .",
    "at the {place} : {things} .",
    "news from the {place} : {things} .",
)
"""Captions of pictures without people. Here and in `ROLE` stand the words of the prompts: a text
tower that learns its English from these captions alone can then read a prompt."""
ROLE = " this image shows the relation of {} ."
DAYS = ("monday", "friday", "sunday", "morning", "evening", "weekend")
PLACES = ("park", "city", "beach", "market", "station", "garden")
LOOKS = {
    "ring": "gold", "ball": "orange", "child": "little", "flag": "striped", "crown": "golden",
    "key": "steel", "trophy": "gold", "book": "open", "camera": "black", "map": "folded",
    "house": "brown", "tree": "green", "car": "blue", "fish": "teal", "cup": "dark",
    "umbrella": "purple", "balloon": "pink", "kite": "bright", "tower": "tall", "shirt": "green",
    "star": "shiny",
}  # fmt: skip
CLOSE_UP = 0.5
"""Share of pictures that show one thing alone, as the pictures of many news items do."""
NAMED, DESCRIBED, WITH_NAME, WITH_ROLE, DETECTED = 0.95, 0.3, 0.4, 0.4, 0.9
"""Chances: a thing is in the caption; with its look; a person by name; a role; a box is found."""


def write_news(root: Path, pairs: int, size: int, seed: int, workers: int) -> dict[str, int]:
    """Write `news_clippings/` and `visual_news/` below `root`; rows by split.

    `visual_news/objects.jsonl` holds the boxes for `python -m shards detect --detector file`.
    """
    rng = np.random.default_rng((seed, STREAM))
    origin, articles = root / "visual_news/origin", list[dict]()
    scenes: list[Scene] = []
    pictures = {"train": pairs // 2, "val": pairs // 20, "test": pairs // 20}
    for split, number in pictures.items():
        first = len(scenes)
        for index in range(first, first + number):
            scenes.append(_scene(rng, index, seed))
            articles.append(_article(rng, index, scenes[-1]))
        rows = _annotations(rng, scenes[first:], first)
        path = root / f"news_clippings/data/merged_balanced/{split}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"annotations": rows, "source_datasets": ["sample"]}))
    draw_all(origin, scenes, size, workers)
    (origin / "data.json").write_text(json.dumps(articles))
    detections = [_detections(rng, index, scene, size) for index, scene in enumerate(scenes)]
    write_json_lines(root / "visual_news/objects.jsonl", detections)
    return {split: 2 * number for split, number in pictures.items()}


def _scene(rng: np.random.Generator, index: int, seed: int) -> Scene:
    source, number = SOURCES[index % 4], index // 4
    if rng.random() < CLOSE_UP:
        nouns, boxes = close_up(rng, pick(rng, (*CUE_NOUNS, *NEUTRAL)))
    else:
        things = pick_distinct(rng, CUE_NOUNS, int(rng.integers(1, 3)))
        things += pick_distinct(rng, NEUTRAL, int(rng.integers(1, 3)))
        nouns, boxes = arrange(rng, some_people(rng), things)
    path = f"{source}/images/{number // 1000:04d}/{number % 1000:03d}.jpg"
    return Scene(path, nouns, boxes, (seed, STREAM, index))


def _article(rng: np.random.Generator, index: int, scene: Scene) -> dict:
    """The element of `data.json` that belongs to a scene."""
    source = SOURCES[index % 4]
    return {
        "id": index + 1,
        "caption": _caption(rng, scene.nouns),
        "topic": pick(rng, TOPICS),
        "source": source,
        "image_path": f"./{scene.path}",
        "article_path": f"./{source}/articles/{index + 1}.txt",
    }


def _caption(rng: np.random.Generator, nouns: Sequence[str]) -> str:
    things = [noun for noun in nouns if noun not in PEOPLE]
    named = [noun for noun in things if rng.random() < NAMED] or things[:1]
    words = [f"{LOOKS[noun]} {noun}" if rng.random() < DESCRIBED else noun for noun in named]
    phrases = [f"{'an' if word[0] in 'aeiou' else 'a'} {word}" for word in words]
    phrases = pick_distinct(rng, phrases, len(phrases))
    people = [
        f"{noun} {made_up_name(rng)}" if rng.random() < WITH_NAME else f"a {noun}"
        for noun in nouns
        if noun in PEOPLE
    ]
    roles = [cues[noun][1] for noun in named for cues in CUES.values() if noun in cues]
    role = ROLE.format(pick(rng, roles)) if roles and people and rng.random() < WITH_ROLE else ""
    caption = pick(rng, CAPTIONS if people else CLOSE_UPS).format(
        who=" and ".join(people),
        things=" and ".join(filter(None, [" , ".join(phrases[:-1]), phrases[-1]])),
        day=pick(rng, DAYS),
        place=pick(rng, PLACES),
    )
    return caption + role


def _annotations(rng: np.random.Generator, scenes: Sequence[Scene], first: int) -> list[dict]:
    """Pristine rows, each followed by its twin: the same picture with another's caption.

    Every caption serves once in each way, so captions alone do not tell the two apart, and the
    picture behind a twin's caption differs in at least one cue (without cues: in its thing).
    """
    cues = [
        frozenset(CUE_NOUNS).intersection(scene.nouns) or frozenset(scene.nouns) for scene in scenes
    ]
    order = rng.permutation(len(scenes))
    for _ in range(SWAPS):
        # Among them rows that are their own twin: a right caption would be called false.
        wrong = [i for i, j in enumerate(order) if cues[i] == cues[j]]
        for i in wrong:
            k = rng.integers(len(order))
            order[i], order[k] = order[k], order[i]
    rows = []
    for i, j in enumerate(order.tolist()):
        mine, theirs = set(scenes[i].nouns), set(scenes[j].nouns)
        pair = {
            "image_id": first + i + 1,
            "similarity_score": len(mine & theirs) / len(mine | theirs),
            "source_dataset": 0,
        }
        rows.append({"id": first + i + 1, **pair, "falsified": False})
        rows.append({"id": first + j + 1, **pair, "falsified": True})
    return rows


def _detections(rng: np.random.Generator, index: int, scene: Scene, size: int) -> dict:
    """One line of the `file` detector: most objects, best first, things before people."""
    objects: list[dict] = []
    for noun, box in zip(scene.nouns, scene.boxes, strict=True):
        score = rng.uniform(0.4, 0.6) if noun in PEOPLE else rng.uniform(0.6, 0.95)
        seen = {"box": seen_box(rng, box, size), "score": round(score, 3), "label": noun}
        if rng.random() < DETECTED:
            objects.append(seen)
    objects.sort(key=lambda item: -item["score"])
    return {"image_id": index + 1, "image": scene.path, "size": [size, size], "objects": objects}
