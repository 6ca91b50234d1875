"""TMR's side inputs: pictures generated from the sentences, phrases, correlation scores.

A generated picture comes from the sentence, so it stays with its row whatever a view does to the
original; the scores of an original hold for the sentence it was posted with, so a row whose picture
a view replaced has none: a half.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from finetune.batch import Pictures
from finetune.tasks import side_inputs
from finetune.tasks.base import Row
from finetune.tasks.images import blank_store, cut_name, open_images
from pretrain.cli import InputError

if TYPE_CHECKING:  # what loads the rows imports this file
    from finetune.loaded import LoadedSplit, Wanted

PHRASE_LENGTH = 16
"""Word pieces of a phrase, specials included."""
LOOKUP_LENGTH = 6
UNKNOWN_SCORE = 0.5


def add_generated(loaded: LoadedSplit, wanted: Wanted) -> LoadedSplit:
    """`generated_pixels`, `generated_mask`, and with boxes the same of their regions.

    Raises:
        InputError: no folder, or more absent pictures than `--max_missing`.
    """
    method, options = wanted.method, wanted.options
    folder = generated_folder(wanted)
    posted = {row.row: row.image_id for row in wanted.original}
    names = [posted[row.row] for row in loaded.rows]
    boxes: list[Sequence[side_inputs.Box]] = [()] * len(loaded.rows)
    if method.settings.generated_boxes == "community" and method.settings.regions:
        path = side_inputs.find(wanted.task.folder, "txt/mre_dif_{split}_dict.pth", wanted.split)
        source = side_inputs.read_generated_boxes(path)
        boxes = [found[: method.settings.regions] for found in source.of(loaded.rows)]
        traces = {"generated regions: number": [len(found) for found in boxes]}
        loaded = loaded.with_source(source, **traces)
    cuts = [
        [cut_name(name, box) for box in found] for name, found in zip(names, boxes, strict=True)
    ]
    wanted_names = {*names, *(cut for found in cuts for cut in found)}
    if options.images == "blank":
        store = blank_store(folder, wanted_names, size=method.image_size)
    else:
        store = open_images(
            folder,
            wanted_names,
            size=method.image_size,
            resize=method.image_resize,
            cache=options.cache,
        )
        store.require(options.max_missing)
    index = store.index_of(names)
    loaded = loaded.with_pictures("generated_pixels", Pictures(store, index, "generated_mask"))
    traces = {**loaded.traces, "generated picture: present": (index >= 0).tolist()}
    loaded = replace(loaded, traces=traces)
    if method.settings.generated_boxes == "none" or not method.settings.regions:
        return loaded
    slots = [found + [None] * (method.settings.regions - len(found)) for found in cuts]
    index = np.array([store.index_of(places) for places in slots]).reshape(len(slots), -1)
    pictures = Pictures(store, index, "generated_region_mask")
    return loaded.with_pictures("generated_region_pixels", pictures)


def generated_folder(wanted: Wanted) -> Path:
    """Where the generated pictures of the split lie: `{--model.generated}/{split}` in the data."""
    root = wanted.task.folder / wanted.method.settings.generated
    for name in side_inputs.SPLIT_NAMES[wanted.split]:
        if (root / name).is_dir() or wanted.options.images == "blank":
            return root / name
    raise InputError(
        f"{root}/{wanted.split}: no generated pictures; make them (`python -m finetune generate "
        f"pictures --data {wanted.task.folder}`), or leave that source out with "
        "--model.generated none"
    )


def add_phrases(loaded: LoadedSplit, wanted: Wanted) -> LoadedSplit:
    """`phrase_ids` and `phrase_mask`: what the regions of a row stand for, in words."""
    if wanted.method.settings.phrases == "community":
        pattern = "txt/phrase_text_{split}.json"
        source = side_inputs.read_phrases(
            side_inputs.find(wanted.task.folder, pattern, wanted.split)
        )
        phrases = source.of(loaded.rows)
        words = [len(phrase.split()) for phrase in phrases]
        loaded = loaded.with_source(source, **{"phrases: words": words})
    else:
        phrases = [entity_phrase(row) for row in loaded.rows]
    if wanted.method.settings.phrase_encoding == "lookup6":
        ids = look_up(phrases, wanted.tokenizer)
        everything = np.ones_like(ids, dtype=bool)
        return loaded.with_column("phrase_ids", ids).with_column("phrase_mask", everything)
    pieces = wanted.tokenizer(phrases, truncation=True, max_length=PHRASE_LENGTH)["input_ids"]
    return loaded.with_column("phrase_ids", [np.array(ids, dtype=np.int64) for ids in pieces])


def entity_phrase(row: Any) -> str:
    """The words of head and tail, without the @ of a user name. Tells no label: no types."""
    mentions = [row.tokens[start:end] for start, end in (row.head, row.tail)]
    return " ".join(word.removeprefix("@") for words in mentions for word in words)


def look_up(phrases: Sequence[str], tokenizer: Any) -> np.ndarray:
    """(N, 6) ids of whole words as they stand, padding 0 (released code); mostly unknown ones."""
    vocabulary, unknown = tokenizer.get_vocab(), tokenizer.unk_token_id
    ids = np.zeros((len(phrases), LOOKUP_LENGTH), dtype=np.int64)
    for row, phrase in enumerate(phrases):
        words = phrase.split(" ")[:LOOKUP_LENGTH]
        ids[row, : len(words)] = [vocabulary.get(word, unknown) for word in words]
    return ids


def add_scores(loaded: LoadedSplit, wanted: Wanted) -> LoadedSplit:
    """`scores` (N, 2, 2): of the original and of the generated picture, [weak, strong]."""
    folder = wanted.task.folder / wanted.method.settings.scores
    posted = {row.row: row.image_id for row in wanted.original}
    rows: list[Row] = [replace(row, image_id=posted[row.row]) for row in loaded.rows]
    scores = np.full((len(rows), 2, 2), UNKNOWN_SCORE, dtype=np.float32)
    sources = ("",) if wanted.method.settings.generated == "none" else ("", "dif_")
    for k, which in enumerate(sources):
        for j, strength in enumerate(("weak", "strong")):
            pattern = f"{which}{{split}}_weight_{strength}.txt"
            source = side_inputs.read_scores(side_inputs.find(folder, pattern, wanted.split))
            scores[:, k, j] = source.of(rows)
            loaded = loaded.with_source(source)
    replaced = [row.image_id != posted[row.row] for row in loaded.rows]
    scores[np.array(replaced, dtype=bool), 0] = UNKNOWN_SCORE
    return loaded.with_column("scores", scores)


def add_image_ids(loaded: LoadedSplit, wanted: Wanted) -> LoadedSplit:
    """`image_ids`: rows that show the same picture have the same number; without one, its own."""
    numbers: dict[Any, int] = {}
    keys = [row.row if row.image_id is None else row.image_id for row in loaded.rows]
    ids = np.array([numbers.setdefault(key, len(numbers)) for key in keys], dtype=np.int64)
    return loaded.with_column("image_ids", ids)
