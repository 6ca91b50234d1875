"""What the page shows of one run: the answer to a post, in pieces of text, bars and a picture."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL.Image import Image

from finetune.predict import occlusion
from finetune.predict.extractor import Extractor
from finetune.tasks.mnre import Mnre
from finetune.tasks.posts import parse_post, positions
from shards.files import InputError
from shards.images import POST_PIXELS, RejectedImage, decoded, picture_size

LONGEST = 2_000
"""Characters of a post."""
EXAMPLES = 6
COLORS = ("blue", "green", "orange", "purple", "teal", "red", "yellow", "pink", "cyan", "lime")
"""Of entity types, in the order of the run's labels."""


@dataclass
class Pane:
    """What the page shows of one run."""

    bars: dict[str, float] = field(default_factory=dict)
    """Relation -> probability."""
    spans: list[tuple[str, str | None]] = field(default_factory=list)
    """Pieces of the text, with the name of those that have one."""
    colors: dict[str, str] = field(default_factory=dict)
    """Of names, one a type."""
    note: str = ""
    picture: Image | None = None
    """Where the run looked."""


def answer(
    extract: Extractor,
    text: str,
    head: str,
    tail: str,
    image: str | None,
    look: bool,
    caption: str = "",
    max_pixels: int = POST_PIXELS,
) -> Pane:
    """What the page shows of one run.

    Args:
        head, tail: words that occur once in the text, or [START, END] in characters, or nothing.
        caption: what the picture shows; blank: not said.
        max_pixels: of the picture, by its header: a larger one is not decoded.

    Raises:
        InputError: one line for the user.
    """
    if len(text or "") > LONGEST:
        raise InputError(f"a post of {len(text)} characters; this page reads {LONGEST}")
    if image:
        try:
            picture_size(image, max_pixels)
        except RejectedImage as error:
            raise InputError(f"image {Path(image).name}: {error.reason}") from None
    fields = {"head": head, "tail": tail, "caption": caption}
    record = {name: (value or "").strip() or None for name, value in fields.items()}
    record = {k: positions(v) if k != "caption" else v for k, v in record.items()}
    post = parse_post({"text": text or "", "image": image, **record}, Path(), extract.task)
    (post,) = extract.run.with_captions([post])  # once, not of every covered picture
    (prediction,) = extract.stream([post], top_k=5)
    if "error" in prediction:
        raise InputError(prediction["error"])
    marked = ((post.head, "head"), (post.tail, "tail"))
    spans = [(*post.characters(span), name) for span, name in marked if span]
    pane = Pane(spans=pieces(text, spans))
    # A post with entities marked has one relation; without, every pair of the entities found.
    if "entities" in prediction:
        show_entities(pane, extract, text, prediction)
    if "relations" in prediction:
        related = [pair for pair in prediction["relations"] if pair["related"]]
        pane.note += f", {len(related)} of {len(prediction['relations'])} pairs related"
        pane.bars = {
            f"{p['head']['text']} → {p['tail']['text']}: {p['relation']}": p["probability"]
            for p in sorted(related, key=lambda p: -p["probability"])[:5]
        }
    if "top" in prediction:
        pane.bars = {entry["relation"]: entry["probability"] for entry in prediction["top"]}
        if "cut" in prediction:
            pane.note = "Only the words nearest to head and tail were read. "
        if look and image:
            losses = occlusion.occlusion(extract, post, prediction["relation"])
            loss, share = 100 * occlusion.strongest(losses)["loss"], 100 * prediction["probability"]
            if loss < 0.05:
                pane.note += "No part of the picture speaks for this answer."
            else:
                pane.note += (
                    f"Without the framed part of the picture, {prediction['relation']} would lose "
                    f"{loss:.1f} of {share:.1f} %."
                )
                pane.picture = occlusion.overlay(decoded(image, max_pixels), losses)
    return pane


def show_entities(pane: Pane, extract: Extractor, text: str, prediction: dict[str, Any]) -> None:
    """The entities in the text, a colour a type, and how many there are."""
    named = [(entity, scored(entity)) for entity in prediction["entities"]]
    pane.spans = pieces(text, [(e["start"], e["end"], name) for e, name in named])
    labels = (extract.ner or extract.run).info.labels  # O, B-x, I-x, B-y, …
    colors = {label[2:]: COLORS[(i - 1) // 2 % len(COLORS)] for i, label in enumerate(labels)}
    pane.colors = {name: colors[entity["type"]] for entity, name in named}
    pane.note = f"{len(named)} entities"
    if prediction.get("cut"):
        unread = prediction["words_not_read"]
        pane.note += f"; the last {unread} words are beyond what this run reads"


def scored(entity: dict[str, Any]) -> str:
    """`PER 93%`, or `PER` alone where the run gives no score."""
    return entity["type"] + ("" if entity["score"] is None else f" {entity['score']:.0%}")


def pieces(text: str, spans: Sequence[tuple[int, int, str]]) -> list[tuple[str, str | None]]:
    """(text, label or None) pieces that make up `text`; a span inside another is left out."""
    cut: list[tuple[str, str | None]] = []
    end = 0
    for start, stop, name in sorted(spans):
        if start < end:
            continue
        cut += [(text[end:start], None), (text[start:stop], name)]
        end = stop
    return [piece for piece in [*cut, (text[end:], None)] if piece[0]]


def read_examples(folder: str) -> list[list[str]]:
    """[post, picture, head, tail] of some related validation rows that have their picture."""
    task = Mnre(Path(folder))
    examples: list[list[str]] = []
    for row in task.read("val"):
        picture = task.image_folder("val") / (row.image_id or "")
        text = " ".join(row.tokens)
        starts = [0]
        for token in row.tokens:
            starts.append(starts[-1] + len(token) + 1)
        marks = [
            mention(text, starts[first], starts[last] - 1) for first, last in (row.head, row.tail)
        ]
        if picture.is_file() and row.relation != task.info.negative:
            examples.append([text, str(picture.resolve()), *marks])
        if len(examples) == EXAMPLES:
            break
    return examples


def mention(text: str, start: int, end: int) -> str:
    """An entity as the page's fields take it: its words, or [START, END] where they occur again."""
    while start < end and text[start].isspace():
        start += 1
    while end > start and text[end - 1].isspace():
        end -= 1
    words = text[start:end]
    return words if words and text.count(words) == 1 else f"[{start}, {end}]"


def selected_words(selected: str, text: str) -> str | None:
    """The entity that is selected, as `mention` writes it; None: nothing is, or not in this text.

    Args:
        selected: START:END in characters.
    """
    ends = re.fullmatch(r"([0-9]{1,6}):([0-9]{1,6})", selected or "")
    start, end = (int(ends[1]), int(ends[2])) if ends else (0, 0)
    if end > len(text or "") or not text[start:end].strip():
        return None
    return mention(text, start, end)
