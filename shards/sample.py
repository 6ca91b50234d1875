"""Synthetic corpora in the raw formats, in which the picture provably matters.

One folder holds what three publishers ship: NewsCLIPpings over VisualNews, MNRE, Twitter-2017.
People, `CUES` and other things are drawn. News captions name what is drawn. An MNRE post shows
only which *kinds* of entities are related; which of the three relations of that kind it is can be
read from the one cue in the picture alone. The type of a Twitter name is what the picture shows.

Everything is a pure function of the options: same options, same bytes.
"""

import argparse
import json
import multiprocessing
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from shards.sample_pictures import PEOPLE, Box, Scene, draw_scene, pixel_box
from shards.schema import InputError, write_json

PROVENANCE = "sample.json"
NO_RELATION = "None"
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
"""Kind of the tail entity -> noun drawn -> (relation, the word that news captions use for it)."""
CUE_NOUNS = tuple(noun for cues in CUES.values() for noun in cues)
NEUTRAL = (
    *("map", "house", "tree", "car", "fish", "cup", "umbrella", "balloon", "kite"),
    *("tower", "shirt", "star"),
)
COLOURS = {
    "ring": "gold", "ball": "orange", "child": "little", "flag": "striped", "crown": "golden",
    "key": "grey", "trophy": "gold", "book": "open", "camera": "black", "map": "folded",
    "house": "brown", "tree": "green", "car": "blue", "fish": "teal", "cup": "white",
    "umbrella": "purple", "balloon": "pink", "kite": "bright", "tower": "grey", "shirt": "green",
    "star": "yellow",
}  # fmt: skip
SUFFIXES = {"per": ("",), "org": (" Corp", " Club", " Group"), "misc": (" Saga", " Gala", " Epic")}
SYLLABLES = (
    *("ka", "lo", "mi", "ra", "ten", "vo", "su", "bel", "dan", "fi"),
    *("gor", "ha", "jun", "nel", "pax", "qui", "sor", "tu", "wen", "zi"),
)
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
)
DAYS = ("monday", "friday", "sunday", "morning", "evening", "weekend")
PLACES = ("park", "city", "beach", "market", "station", "garden")
POSTS = (
    "RT @{handle} : {a} and {b} tonight !",
    "{a} with {b} , what a photo",
    "great evening : {a} , {b}",
    "RT @{handle} : look at {a} and {b} # weekend",
    "so this is the news : {a} ... {b} !",
    "happy day for {a} and for {b} .",
    "RT @{handle} : the best moment , {a} x {b}",
    "who knew ? {a} / {b} , see the picture",
)
POST_NOUNS = ("tonight", "photo", "evening", "weekend", "news", "day", "moment", "picture")
"""The noun of each post: the third query of the leak-safe region cache."""
TWEETS_ONE = (
    "RT @{handle} : {a} tonight !",
    "what a day with {a} # weekend",
    "love this photo of {a}",
    "{a} again , so happy",
    "good morning from {a} .",
)
TWEETS_TWO = (
    "RT @{handle} : {a} and {b} tonight !",
    "{a} with {b} , what a photo",
    "from left to right : {a} , {b}",
    "so happy to see {a} and also {b} .",
)
TYPE_NOUNS = {
    "PER": PEOPLE,
    "ORG": ("tower", "flag", "shirt"),
    "LOC": ("map", "house", "tree"),
    "MISC": ("trophy", "book", "camera"),
}
TYPELESS = ("car", "fish", "cup", "umbrella", "balloon", "kite", "star")
TWEETS = {"train": 600, "valid": 150, "test": 300}
NONE_SHARE, SHARED_SHARE, WRONG_CUE = 0.15, 0.1, 0.2
"""Rows without relation; rows that reuse a picture; chance of a cue of another kind beside."""
NEWS, POST, TWEET = range(3)  # first number of a picture's random key: no two corpora share one


@dataclass(frozen=True)
class Options:
    """What the bytes depend on."""

    pairs: int = 4000
    rows: tuple[int, int, int] = (1500, 300, 600)
    size: int = 64
    seed: int = 0

    def __post_init__(self) -> None:
        if self.pairs < 80 or self.pairs % 2:
            raise InputError(f"--pairs {self.pairs}: an even number of at least 80 is needed")
        if len(self.rows) != 3 or min(self.rows) < 1:
            raise InputError(f"--rows {self.rows}: three positive numbers are needed")
        if not 32 <= self.size <= 1024:
            raise InputError(f"--size {self.size}: 32 to 1024 pixels are possible")
        if self.seed < 0:
            raise InputError(f"--seed {self.seed}: must not be negative")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `python -m shards sample`."""
    default = Options()
    parser.add_argument("out", type=Path, metavar="OUT", help="folder to write")
    parser.add_argument(
        "--pairs", type=int, default=default.pairs, metavar="N",
        help="train rows of the news corpus, half of them falsified; val and test get a tenth "
        "each (default %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--rows", type=_three_numbers, default=default.rows, metavar="A,B,C",
        help="relation rows of train, val, test (default 1500,300,600)",
    )  # fmt: skip
    parser.add_argument(
        "--size", type=int, default=default.size, metavar="PX",
        help="side of the pictures in pixels (default %(default)s)",
    )  # fmt: skip
    parser.add_argument("--seed", type=int, default=default.seed, help="default %(default)s")
    parser.add_argument(
        "--workers", type=int, default=1, metavar="N", help="processes (default %(default)s)"
    )


def run(args: argparse.Namespace) -> None:
    """Run `python -m shards sample`."""
    write_sample(
        args.out,
        pairs=args.pairs,
        rows=args.rows,
        size=args.size,
        seed=args.seed,
        workers=args.workers,
    )


def write_sample(
    out: Path,
    *,
    pairs: int = 4000,
    rows: tuple[int, int, int] = (1500, 300, 600),
    size: int = 64,
    seed: int = 0,
    workers: int = 1,
) -> None:
    """Write `visual_news/`, `news_clippings/`, `mnre/`, `twitter2017/` and `sample.json` to `out`.

    The folder appears complete or not at all; one that is already there is left alone.

    Args:
        out: a folder that does not exist, is empty, or holds the sample of the same options.
        pairs: news rows of train, half of them falsified; val and test get a tenth each.
        rows: relation rows of train, val, test.
        size: side of the pictures, pixels.
        seed: of everything.
        workers: drawing processes; the bytes do not depend on them.

    Raises:
        InputError: impossible options, or `out` holds something else.
    """
    options = Options(pairs, tuple(rows), size, seed)
    out = Path(out)
    if _already_there(out, options):
        print(f"{out}: already there")
        return
    out.absolute().parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(dir=out.absolute().parent, prefix=f".{out.name}."))
    try:
        counts = {}
        for write in (_write_news, _write_mnre, _write_twitter):
            counts |= write(unfinished, options, workers)
        write_json(unfinished / PROVENANCE, _provenance(options, counts))
        unfinished.chmod(0o755)
        os.replace(unfinished, out)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    print(f"{out}: " + ", ".join(f"{count} {what}" for what, count in counts.items()))


def _three_numbers(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in text.split(","))


def _already_there(out: Path, options: Options) -> bool:
    """Whether `out` is the sample of these options."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return False
    path = out / PROVENANCE
    if not path.is_file():
        raise InputError(f"{out}: not empty and no sample (no {PROVENANCE}); name a new folder")
    wanted = _provenance(options, {})["options"]
    try:
        found = json.loads(path.read_bytes())["options"]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: damaged ({error!r}); remove the folder") from error
    if found != wanted:
        raise InputError(
            f"{path}: written with {found}, asked for {wanted}; remove it or name a new folder"
        )
    return True


def _provenance(options: Options, counts: dict[str, int]) -> dict:
    return {
        "format": 1,
        "options": {
            "pairs": options.pairs,
            "rows": list(options.rows),
            "size": options.size,
            "seed": options.seed,
        },
        "counts": counts,
        "cues": [
            {"noun": noun, "tail": kind, "relation": relation, "caption_word": word}
            for kind, cues in CUES.items()
            for noun, (relation, word) in cues.items()
        ],
        "nouns": [*PEOPLE, *CUE_NOUNS, *NEUTRAL],
        "entity_types": {kind: list(nouns) for kind, nouns in TYPE_NOUNS.items()},
    }


# ------------------------------------------------------------------ scenes


def _arrange(rng, people: Sequence[str], things: Sequence[str]) -> tuple[tuple, tuple]:
    """Nouns in drawing order and their unit boxes: people at the bottom, things around them."""
    side = 1 if rng.random() < 0.5 else -1
    spots = (0.13, 0.87) if len(people) == 2 else (0.5 - 0.3 * side,)
    boxes = [_box(rng, x, 0.75, 0.22, 0.44, 0.02) for x in spots]
    ground = (0.5 if len(people) == 2 else 0.5 + 0.15 * side, 0.76)
    free = [(0.18, 0.23), (0.5, 0.23), (0.82, 0.23), ground]
    order = [things[i] for i in rng.permutation(len(things))]
    spots = [free[i] for i in rng.permutation(4)]
    if "child" in order:  # a child stands on the ground
        spots.remove(ground)
        spots.insert(order.index("child"), ground)
    for x, y in spots[: len(order)]:
        width, height = rng.uniform(0.29, 0.34, 2)
        boxes.append(_box(rng, x, y, width, height, 0.03))
    return (*people, *order), tuple(boxes)


def _box(rng, x: float, y: float, width: float, height: float, shift: float) -> Box:
    """A box of this size around a centre near (x, y), inside the picture."""
    x, y = np.array([x, y]) + rng.uniform(-shift, shift, 2)
    left = min(max(x - width / 2, 0.01), 0.99 - width)
    top = min(max(y - height / 2, 0.01), 0.99 - height)
    return (float(left), float(top), float(left + width), float(top + height))


def _draw_all(root: Path, scenes: list[Scene], size: int, workers: int) -> None:
    for folder in {(root / scene.path).parent for scene in scenes}:
        folder.mkdir(parents=True, exist_ok=True)
    draw = partial(draw_scene, root, size=size)
    if workers > 1:
        with multiprocessing.get_context("spawn").Pool(workers) as pool:
            pool.map(draw, scenes, chunksize=64)
    else:
        for scene in scenes:
            draw(scene)


def _seen_box(rng, box: Box, size: int) -> list[float]:
    """What a good detector reports: the true box, each edge off by at most 0.02 of the picture."""
    seen = np.clip(np.array(box) + rng.uniform(-0.02, 0.02, 4), 0, 1)
    return list(pixel_box(seen.tolist(), size))


def _pick(rng, choices: Sequence):
    return choices[rng.integers(len(choices))]


def _name(rng) -> str:
    return "".join(_pick(rng, SYLLABLES) for _ in range(2)).capitalize()


def _people(rng, at_least: int = 1) -> list[str]:
    return [_pick(rng, PEOPLE) for _ in range(rng.integers(at_least, 3))]


def _distinct(rng, nouns: Sequence[str], number: int) -> list[str]:
    return [nouns[i] for i in rng.permutation(len(nouns))[:number]]


def _write_lines(path: Path, lines: Sequence[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


# ------------------------------------------------------------------ NewsCLIPpings over VisualNews


def _write_news(root: Path, options: Options, workers: int) -> dict[str, int]:
    rng = np.random.default_rng((options.seed, NEWS))
    small = options.pairs // 20
    pictures = {"train": options.pairs // 2, "val": small, "test": small}
    articles, scenes = [], []
    for split, number in pictures.items():
        first = len(scenes)
        for index in range(first, first + number):
            scene = _news_scene(rng, index, options.seed)
            scenes.append(scene)
            articles.append(_article(rng, index, scene))
        rows = _annotations(rng, scenes[first:], first)
        content = {"annotations": rows, "source_datasets": ["sample"]}
        path = root / f"news_clippings/data/merged_balanced/{split}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content), encoding="utf-8")
    origin = root / "visual_news/origin"
    _draw_all(origin, scenes, options.size, workers)
    (origin / "data.json").write_text(json.dumps(articles), encoding="utf-8")
    found = [
        json.dumps({"image_id": article["id"], **_detections(rng, scene, options.size)})
        for article, scene in zip(articles, scenes, strict=True)
    ]
    _write_lines(root / "visual_news/objects.jsonl", found)
    return {f"news rows in {split}": 2 * number for split, number in pictures.items()}


def _news_scene(rng, index: int, seed: int) -> Scene:
    source, number = SOURCES[index % 4], index // 4
    things = _distinct(rng, CUE_NOUNS, rng.integers(1, 3))
    things += _distinct(rng, NEUTRAL, rng.integers(1, 3))
    nouns, boxes = _arrange(rng, _people(rng), things)
    path = f"{source}/images/{number // 1000:04d}/{number % 1000:03d}.jpg"
    return Scene(path, nouns, boxes, (seed, NEWS, index))


def _article(rng, index: int, scene: Scene) -> dict:
    """The element of `data.json` that belongs to a scene."""
    source = SOURCES[index % 4]
    return {
        "id": index + 1,
        "caption": _caption(rng, scene.nouns),
        "topic": _pick(rng, TOPICS),
        "source": source,
        "image_path": f"./{scene.path}",
        "article_path": f"./{source}/articles/{index + 1}.txt",
    }


def _caption(rng, nouns: Sequence[str]) -> str:
    people, things = [], []
    for noun in nouns:
        if noun in PEOPLE:
            people.append(f"{noun} {_name(rng)}" if rng.random() < 0.4 else f"a {noun}")
        elif rng.random() < 0.95 or not things:
            things.append(f"a {COLOURS[noun]} {noun}" if rng.random() < 0.3 else f"a {noun}")
            role = next((cues[noun][1] for cues in CUES.values() if noun in cues), None)
            if role and rng.random() < 0.3:
                people[-1] += f" , {role} ,"
    things = [things[i] for i in rng.permutation(len(things))]
    return _pick(rng, CAPTIONS).format(
        who=" and ".join(people).replace(", ,", ","),
        things=" and ".join(filter(None, [" , ".join(things[:-1]), things[-1]])),
        day=_pick(rng, DAYS),
        place=_pick(rng, PLACES),
    )


def _annotations(rng, scenes: Sequence[Scene], first: int) -> list[dict]:
    """Pristine rows, each followed by its twin: the same picture with another's caption.

    Every caption is used once in each way, so captions alone do not tell them apart, and a twin's
    caption differs in at least one cue.
    """
    cues = [frozenset(CUE_NOUNS) & set(scene.nouns) for scene in scenes]
    order = rng.permutation(len(scenes))
    while wrong := [i for i, j in enumerate(order) if cues[i] == cues[j]]:
        for i in wrong:
            k = rng.integers(len(order))
            order[i], order[k] = order[k], order[i]
    rows = []
    for i, j in enumerate(order.tolist()):
        mine, theirs = set(scenes[i].nouns), set(scenes[j].nouns)
        common = {"similarity_score": len(mine & theirs) / len(mine | theirs), "source_dataset": 0}
        image = {"image_id": first + i + 1}
        rows.append({"id": first + i + 1, **image, **common, "falsified": False})
        rows.append({"id": first + j + 1, **image, **common, "falsified": True})
    return rows


def _detections(rng, scene: Scene, size: int) -> dict:
    """One line of the `file` detector: nine of ten objects, things before people."""
    found = []
    for noun, box in zip(scene.nouns, scene.boxes, strict=True):
        score = rng.uniform(0.4, 0.6) if noun in PEOPLE else rng.uniform(0.6, 0.95)
        if rng.random() < 0.9:
            seen = _seen_box(rng, box, size)
            found.append({"box": seen, "score": round(float(score), 3), "label": noun})
    found.sort(key=lambda item: -item["score"])
    return {"size": [size, size], "objects": found}


# ------------------------------------------------------------------ MNRE


def _write_mnre(root: Path, options: Options, workers: int) -> dict[str, int]:
    rng = np.random.default_rng((options.seed, POST))
    folder, scenes, counts = root / "mnre", [], {}
    relations = [relation for cues in CUES.values() for relation, _ in cues.values()]
    folder.mkdir(parents=True)
    names = {relation: number for number, relation in enumerate([NO_RELATION, *relations])}
    (folder / "ours_rel2id.json").write_text(json.dumps(names), encoding="utf-8")
    for split, number in zip(("train", "val", "test"), options.rows, strict=True):
        rows, regions = [], []
        while len(rows) < number:
            scene, found = _post_scene(rng, split, len(scenes), options.seed, number - len(rows))
            scenes.append(scene)
            for row, noun in found:
                regions.append(_vg_regions(rng, len(rows), row, noun, scene, options.size))
                rows.append(row)
        _write_lines(folder / f"txt/ours_{split}.txt", [repr(row) for row in rows])
        header = _regions_header("vg", options.seed)
        lines = [json.dumps(line) for line in (header, *regions)]
        _write_lines(folder / f"regions_vg_{split}.jsonl", lines)
        counts[f"relation rows in {split}"] = number
    _draw_all(folder, scenes, options.size, workers)
    found = [_od_regions(rng, scene, options.size) for scene in scenes]
    lines = [json.dumps(line) for line in (_regions_header("od", options.seed), *found)]
    _write_lines(folder / "regions_od.jsonl", lines)
    return counts


def _post_scene(rng, split: str, index: int, seed: int, limit: int) -> tuple[Scene, list]:
    """A picture and its rows, each with the noun of its text."""
    kinds = _distinct(rng, tuple(CUES), 3)
    number = 2 if limit > 1 and rng.random() < SHARED_SHARE / 2 else 1
    cues = [_pick(rng, tuple(CUES[kind])) for kind in kinds[:number]]
    cues = [cue if rng.random() >= NONE_SHARE else None for cue in cues]
    things = [cue for cue in cues if cue]
    # Without a cue of its own, a picture of another kind's is the harder, commoner case.
    if number == 1 and rng.random() < (WRONG_CUE if things else 0.5):
        things.append(_pick(rng, tuple(CUES[kinds[1]])))
    things += _distinct(rng, NEUTRAL, rng.integers(2 if len(things) < 2 else 1, 3))
    people = _people(rng, at_least=2 if "per" in kinds[:number] else 1)
    nouns, boxes = _arrange(rng, people, things)
    image = f"sample_{index:05d}.jpg"
    scene = Scene(f"img_org/{split}/{image}", nouns, boxes, (seed, POST, index))
    rows = []
    for kind, cue in zip(kinds, cues, strict=False):
        relation = CUES[kind][cue][0] if cue else NO_RELATION
        rows.append(_post(rng, kind, relation, image))
    return scene, rows


def _post(rng, kind: str, relation: str, image: str) -> tuple[dict, str]:
    """A row of `ours_*.txt` and the noun of its text: the text is drawn without the relation."""
    head, tail = (_name(rng), _name(rng) + _pick(rng, SUFFIXES[kind]))
    template = rng.integers(len(POSTS))
    swapped = rng.random() < 0.3
    tokens, spans = _fill(rng, POSTS[template], [tail, head] if swapped else [head, tail])
    spans = spans[::-1] if swapped else spans
    ends = [{"name": " ".join(tokens[slice(*span)]), "pos": list(span)} for span in spans]
    row = {"token": tokens, "h": ends[0], "t": ends[1], "img_id": image, "relation": relation}
    return row, POST_NOUNS[template]


def _fill(rng, template: str, names: Sequence[str]) -> tuple[list[str], list[tuple[int, int]]]:
    """Tokens of a filled template and the span [start, end) of each name, in text order."""
    tokens, spans = [], []
    for word in template.split():
        if word in ("{a}", "{b}"):
            name = names["{a}{b}".index(word) // 3].split()
            spans.append((len(tokens), len(tokens) + len(name)))
            tokens += name
        else:
            tokens.append(word.format(handle=_pick(rng, SYLLABLES) + _pick(rng, SYLLABLES)))
    return tokens, spans


def _regions_header(kind: str, seed: int) -> dict:
    """First line of a region cache: where it comes from."""
    return {
        "header": True,
        "tool": "shards sample",
        "kind": kind,
        "model": "true boxes, edges off by at most 0.02 of the picture",
        "revision": f"seed {seed}",
        "thresholds": {},
        "leaky": False,
    }


def _vg_regions(rng, number: int, row: dict, noun: str, scene: Scene, size: int) -> dict:
    """Boxes of three queries, chosen by the order of drawing alone: the relation has no say."""
    people = sum(noun in PEOPLE for noun in scene.nouns)
    person_tail = " " not in row["t"]["name"]
    tail = people - 1 if person_tail else people
    queries = (("head", row["h"]["name"], 0), ("tail", row["t"]["name"], tail))
    queries = (*queries, ("noun", noun, people + 1))
    regions = [
        {
            "box": _seen_box(rng, scene.boxes[index], size),
            "score": round(float(rng.uniform(0.3, 0.9)), 3),
            "phrase": phrase,
            "kind": kind,
        }
        for kind, phrase, index in queries
    ]
    return {"row": number, "img_id": row["img_id"], "size": [size, size], "vg": regions}


def _od_regions(rng, scene: Scene, size: int) -> dict:
    """The three largest objects."""
    areas = [(x2 - x1) * (y2 - y1) for x1, y1, x2, y2 in scene.boxes]
    largest = sorted(range(len(areas)), key=lambda i: -areas[i])[:3]
    objects = [
        {
            "box": _seen_box(rng, scene.boxes[i], size),
            "score": round(0.5 + areas[i], 3),
            "label": scene.nouns[i],
        }
        for i in largest
    ]
    return {"img_id": Path(scene.path).name, "size": [size, size], "od": objects}


# ------------------------------------------------------------------ Twitter-2017


def _write_twitter(root: Path, options: Options, workers: int) -> dict[str, int]:
    rng = np.random.default_rng((options.seed, TWEET))
    folder, scenes = root / "twitter2017", []
    for split, number in TWEETS.items():
        lines = []
        for _ in range(number):
            index = len(scenes) + 1
            scene, tagged = _tweet(rng, index, options.seed)
            scenes.append(scene)
            lines += [f"IMGID:{index}", *(f"{token}\t{tag}" for token, tag in tagged), ""]
        _write_lines(folder / f"{split}.txt", lines)
    _draw_all(folder, scenes, options.size, workers)
    return {f"tweets in {split}": number for split, number in TWEETS.items()}


def _tweet(rng, index: int, seed: int) -> tuple[Scene, Iterator[tuple[str, str]]]:
    """A picture of one or two typed subjects, left to right, and the tweet that names them."""
    types = _distinct(rng, tuple(TYPE_NOUNS), 1 if rng.random() < 0.6 else 2)
    nouns = [_pick(rng, TYPE_NOUNS[kind]) for kind in types]
    spots = (0.5,) if len(types) == 1 else (0.25, 0.75)
    boxes = []
    for noun, x in zip(nouns, spots, strict=True):
        width, height = (0.28, 0.56) if noun in PEOPLE else rng.uniform(0.38, 0.46, 2)
        boxes.append(_box(rng, x, 0.7, width, height, 0.03))
    for x in _distinct(rng, (0.18, 0.5, 0.82), rng.integers(0, 3)):
        nouns.append(_pick(rng, TYPELESS))
        boxes.append(_box(rng, x, 0.18, 0.26, 0.26, 0.02))
    scene = Scene(f"twitter2017_images/{index}.jpg", tuple(nouns), tuple(boxes),
                  (seed, TWEET, index))  # fmt: skip
    names = [_name(rng) + (f" {_name(rng)}" if rng.random() < 0.3 else "") for _ in types]
    tokens, spans = _fill(rng, _pick(rng, TWEETS_TWO if len(types) == 2 else TWEETS_ONE), names)
    tags = ["O"] * len(tokens)
    for kind, (start, end) in zip(types, spans, strict=True):
        tags[start:end] = [f"B-{kind}", *[f"I-{kind}"] * (end - start - 1)]
    return scene, zip(tokens, tags, strict=True)
