"""Synthetic MNRE: the text tells the type of both entities, only the picture their relation."""

import json
from pathlib import Path

import numpy as np

from shards.sample.pictures import PEOPLE, Scene
from shards.sample.world import (
    CUE_NOUNS,
    CUES,
    NEUTRAL,
    SUFFIXES,
    arrange,
    draw_all,
    fill_template,
    made_up_name,
    pick,
    pick_distinct,
    seen_box,
    some_people,
    write_json_lines,
    write_lines,
)

STREAM, CAPTION_STREAM = 1, 3
NO_RELATION = "None"
POSTS = (
    ("RT @{handle} : {a} and {b} tonight !", "tonight"),
    ("{a} with {b} , what a photo", "photo"),
    ("great evening : {a} , {b}", "evening"),
    ("RT @{handle} : look at {a} and {b} # weekend", "weekend"),
    ("so this is the news : {a} ... {b} !", "news"),
    ("happy day for {a} and for {b} .", "day"),
    ("RT @{handle} : the best moment , {a} x {b}", "moment"),
    ("who knew ? {a} / {b} , see the picture", "picture"),
)
"""A post and its noun, the third query of the region cache."""
NONE, SHARED, OTHER_CUE, OTHER_CUE_NONE, TAIL_FIRST = 0.15, 0.05, 0.2, 0.5, 0.3
"""Chances: a row has no relation; a picture has two rows; it shows a cue that is about another
type of entity, beside the row's own cue or, second number, alone; the tail stands first."""
TOLD, MISTAKEN = 0.6, 0.1
"""Chances: the captioner names a thing; calls it by another thing's name. So captions help with a
picture, and do not replace it."""


def write_mnre(
    root: Path, rows: tuple[int, int, int], size: int, seed: int, workers: int
) -> dict[str, int]:
    """Write `mnre/` below `root`: text, pictures, captions, leak-safe region caches; rows by split.

    Captions are `caption/caption_{split}.txt`, one a picture, in CAMIM's format.
    """
    rng = np.random.default_rng((seed, STREAM))
    folder, counts = root / "mnre", dict[str, int]()
    scenes: list[Scene] = []
    folder.mkdir(parents=True)
    relations = [relation for cues in CUES.values() for relation, _ in cues.values()]
    relation2id = {name: number for number, name in enumerate([NO_RELATION, *relations])}
    (folder / "ours_rel2id.json").write_text(json.dumps(relation2id))
    header = {
        "tool": "shards sample",
        "model": "true boxes, each edge off by at most 0.02 of the picture",
        "revision": f"seed {seed}",
        "versions": {},
        "thresholds": {},
        "leaky": False,
    }
    for split, number in zip(("train", "val", "test"), rows, strict=True):
        lines, first = list[str](), len(scenes)
        regions: list[dict] = []
        while len(lines) < number:
            scene, posts = _posts(rng, split, len(scenes), seed, number - len(lines))
            scenes.append(scene)
            for row, noun in posts:
                regions.append({"row": len(lines), **_grounded(rng, row, noun, scene, size)})
                lines.append(repr(row))
        write_lines(folder / f"txt/ours_{split}.txt", lines)
        # A stream of its own: captions came later, and must not change what is drawn after them.
        words_rng = np.random.default_rng((seed, CAPTION_STREAM, first))
        captions = [repr(_captioned(words_rng, scene)) for scene in scenes[first:]]
        write_lines(folder / f"caption/caption_{split}.txt", captions)
        write_json_lines(folder / f"regions_vg_{split}.jsonl", [header, *regions])
        counts[split] = number
    draw_all(folder, scenes, size, workers)
    detections = [_detected(rng, scene, size) for scene in scenes]
    write_json_lines(folder / "regions_od.jsonl", [header, *detections])
    return counts


def _posts(
    rng: np.random.Generator, split: str, index: int, seed: int, limit: int
) -> tuple[Scene, list[tuple[dict, str]]]:
    """A picture and its one or two rows (at most `limit`), each with the noun of its text.

    The number of things drawn is chance alone: it must not give away whether a cue is there.
    """
    types = pick_distinct(rng, tuple(CUES), len(CUES))
    number = 2 if limit > 1 and rng.random() < SHARED else 1
    cues = [
        pick(rng, tuple(CUES[tail])) if rng.random() >= NONE else None for tail in types[:number]
    ]
    drawn = [cue for cue in cues if cue]
    if number == 1 and rng.random() < (OTHER_CUE if drawn else OTHER_CUE_NONE):
        drawn.append(pick(rng, tuple(CUES[types[1]])))
    drawn += pick_distinct(rng, NEUTRAL, int(rng.integers(3, 5)) - len(drawn))
    people = some_people(rng, at_least=2 if "per" in types[:number] else 1)
    nouns, boxes = arrange(rng, people, drawn)
    image = f"sample_{index:05d}.jpg"
    scene = Scene(f"img_org/{split}/{image}", nouns, boxes, (seed, STREAM, index))
    posts = []
    for tail, cue in zip(types[:number], cues, strict=True):
        row, noun = _post(rng, tail)
        relation = CUES[tail][cue][0] if cue else NO_RELATION
        posts.append((row | {"img_id": image, "relation": relation}, noun))
    return scene, posts


def _post(rng: np.random.Generator, tail_type: str) -> tuple[dict, str]:
    """The text of a row, and its noun. The relation is no argument: it cannot show."""
    template, noun = pick(rng, POSTS)
    names = [made_up_name(rng), made_up_name(rng) + pick(rng, SUFFIXES[tail_type])]
    order = -1 if rng.random() < TAIL_FIRST else 1
    tokens, spans = fill_template(rng, template, names[::order])
    head, tail = (
        {"name": name, "pos": list(span)} for name, span in zip(names, spans[::order], strict=True)
    )
    return {"token": tokens, "h": head, "t": tail}, noun


def _grounded(rng: np.random.Generator, row: dict, noun: str, scene: Scene, size: int) -> dict:
    """Boxes of three queries, chosen by drawing order and entity type, never by the relation."""
    people = sum(drawn in PEOPLE for drawn in scene.nouns)
    is_person = len(row["t"]["name"].split()) == 1
    queries = (
        ("head", row["h"]["name"], 0),
        ("tail", row["t"]["name"], people - 1 if is_person else people),
        ("noun", noun, people + 1),
    )
    regions = [
        {
            "box": seen_box(rng, scene.boxes[index], size),
            "score": round(rng.uniform(0.3, 0.9), 3),
            "phrase": phrase,
            "kind": kind,
        }
        for kind, phrase, index in queries
    ]
    return {"img_id": row["img_id"], "size": [size, size], "vg": regions}


def _captioned(rng: np.random.Generator, scene: Scene) -> dict[str, str]:
    """What a hasty captioner says of a picture: everybody, some of the things, now and then wrong.

    Drawn from the picture alone, with random numbers of its own.
    """
    named_nouns = [noun for noun in scene.nouns if noun in PEOPLE]
    for noun in scene.nouns[len(named_nouns) :]:
        named = pick(rng, (*CUE_NOUNS, *NEUTRAL)) if rng.random() < MISTAKEN else noun
        if rng.random() < TOLD:
            named_nouns.append(named)
    article = ["an" if noun[0] in "aeiou" else "a" for noun in named_nouns]
    parts = [f"{a} {noun}" for a, noun in zip(article, named_nouns, strict=True)]
    text = " and ".join(filter(None, [" , ".join(parts[:-1]), parts[-1]]))
    return {"img_id": Path(scene.path).name, "text": f"{text} ."}


def _detected(rng: np.random.Generator, scene: Scene, size: int) -> dict:
    """The three largest objects."""
    areas = [(x2 - x1) * (y2 - y1) for x1, y1, x2, y2 in scene.boxes]
    objects = [
        {
            "box": seen_box(rng, scene.boxes[index], size),
            "score": round(0.5 + areas[index], 3),
            "label": scene.nouns[index],
        }
        for index in sorted(range(len(areas)), key=lambda i: -areas[i])[:3]
    ]
    return {"img_id": Path(scene.path).name, "size": [size, size], "od": objects}
