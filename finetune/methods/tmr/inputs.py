"""TMR's side inputs: pictures generated from the sentences, phrases, correlation scores.

A generated picture comes from the sentence, so it stays with its row whatever a view does to the
original; the scores of an original hold for the sentence it was posted with, so a row whose picture
a view replaced has none: a half.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from finetune.inputs.batch import Pictures
from finetune.inputs.pictures import Name, Part
from finetune.inputs.spec import Provider, Wanted
from finetune.inputs.split import LoadedSplit
from finetune.methods.tmr.config import TmrConfig
from finetune.methods.tmr.masked_entities import add_masked_entities
from finetune.tasks import side_files
from finetune.tasks.base import Box, Row, SideInput
from finetune.tasks.mnre import RelationRow
from finetune.tasks.splits import FILE_NAMES
from shards.files import InputError

PHRASE_LENGTHS = {"wordpiece": 16, "wordpiece5": 5}
"""Word pieces of a phrase, specials included."""
LOOKUP_LENGTH = 6
UNKNOWN_SCORE = 0.5
SCORES = (
    ("{split}_weight_%s.txt", "ner_{split}_weight_%s.txt"),
    (
        "dif_{split}_weight_%s.txt",
        "ner_diff_{split}_weight_%s.txt",
        "diff_ner_{split}_weight_%s.txt",
    ),
)
"""Of the original and of the generated picture: ours and TMR's of MNRE, then TMR's of Twitter (raw
shares of three classes, not normalised). %s: weak, strong."""
THEIRS = "IMGID:{}.png"
TWITTER_PHRASES = "ner15_grounding_text_{split}.json", "ner17_grounding_text_{split}.json"


def providers(config: TmrConfig) -> dict[str, Provider]:
    """The inputs that TMR alone reads, as its configuration has them."""
    phrases = partial(add_phrases, config)
    made = config.phrases != "community"
    published = "grounding phrases that TMR's authors published (of MNRE, they tell the label)"
    return {
        "generated": Provider(
            partial(add_generated, config),
            live="pictures generated from each sentence",
            visual=True,
            asks=("image_size",),
        ),
        "masked_entities": Provider(add_masked_entities, live=add_masked_entities),
        "phrases": Provider(phrases, live=phrases if made else published),
        "scores": Provider(
            partial(add_scores, config),
            live="correlation scores that TMR's authors published",
            visual=True,
        ),
    }


def add_generated(config: TmrConfig, loaded: LoadedSplit, wanted: Wanted) -> LoadedSplit:
    """`generated_pixels`, `generated_mask`, and with boxes the same of their regions.

    Raises:
        InputError: no folder, or more absent pictures than `--max_missing`.
    """
    folder = generated_folder(config.generated, wanted)
    names = as_stored(folder, [row.image_id for row in as_posted(loaded, wanted)])
    boxes: list[Sequence[Box]] = [()] * len(loaded.rows)
    if config.generated_boxes == "community" and config.regions:
        path = side_files.find(wanted.task.folder, "txt/mre_dif_{split}_dict.pth", wanted.split)
        source = side_files.read_generated_boxes(path)
        boxes = [row_boxes[: config.regions] for row_boxes in source.of(loaded.rows)]
        # They were found by phrases that name the gold types: the audit asks what their number
        # tells.
        traces = {"generated regions: number": [len(row_boxes) for row_boxes in boxes]}
        loaded = loaded.with_source(source, **traces)
    cuts: list[list[Name | None]] = [
        [] if name is None else [Part(name, box) for box in row_boxes]
        for name, row_boxes in zip(names, boxes, strict=True)
    ]
    asked = {name for name in [*names, *chain(*cuts)] if name is not None}
    store = wanted.pictures(folder, asked, wanted.spec.image_size)
    index = store.index_of(names)
    loaded = loaded.with_pictures("generated_pixels", Pictures(store, index, "generated_mask"))
    loaded = loaded.with_traces({"generated picture: present": (index >= 0).tolist()})
    if config.generated_boxes == "none" or not config.regions:
        return loaded
    slots = [row_cuts + [None] * (config.regions - len(row_cuts)) for row_cuts in cuts]
    index = np.array([store.index_of(places) for places in slots]).reshape(len(slots), -1)
    pictures = Pictures(store, index, "generated_region_mask")
    return loaded.with_pictures("generated_region_pixels", pictures)


def generated_folder(name: str, wanted: Wanted) -> Path:
    """Where the generated pictures of the split lie: `{--model.generated}/{split}` in the data.

    TMR's of Twitter-2017 lie in one folder for all splits.
    """
    root = wanted.task.folder / name
    if any(root.glob(THEIRS.format("*"))):
        return root
    for split in FILE_NAMES[wanted.split]:
        if (root / split).is_dir() or wanted.options.images == "blank":
            return root / split
    raise InputError(
        f"{root}/{wanted.split}: no generated pictures; make them (`python -m finetune generate "
        f"pictures --task {wanted.task.info.name} --data {wanted.task.folder}`), or leave that "
        "source out with --model.generated none"
    )


def as_stored(folder: Path, names: list[str | None]) -> list[str | None]:
    """The names as the folder has them: TMR's of Twitter are `IMGID:<id>.png`, some with a line
    break before the dot."""
    files = {path.name for path in folder.glob(THEIRS.format("*"))}
    if not files:
        return names
    stems = [name and name.rpartition(".")[0] for name in names]
    theirs = [(THEIRS.format(stem), THEIRS.format(f"{stem}\n")) for stem in stems]
    return [next((n for n in spellings if n in files), name)
            for spellings, name in zip(theirs, names, strict=True)]  # fmt: skip


def add_phrases(config: TmrConfig, loaded: LoadedSplit, wanted: Wanted) -> LoadedSplit:
    """`phrase_ids` and `phrase_mask`: what the regions of a row stand for, in words."""
    tokenizer = wanted.tokenizer
    if config.phrases == "community":
        source = read_phrases(wanted)
        phrases = source.of(as_posted(loaded, wanted))
        words = [len(phrase.split()) for phrase in phrases]
        loaded = loaded.with_source(source, **{"phrases: words": words})
    else:
        phrases = [entity_phrase(row) for row in loaded.rows]
    if config.phrase_encoding == "lookup6":
        ids = look_up(phrases, tokenizer)
        # As released: padding is attended to, here and in `wordpiece5` (`Tmr.read`).
        everything = np.ones_like(ids, dtype=bool)
        return loaded.with_column("phrase_ids", ids).with_column("phrase_mask", everything)
    length = PHRASE_LENGTHS[str(config.phrase_encoding)]
    if config.phrase_encoding == "wordpiece5":
        encoded = tokenizer(phrases, truncation=True, max_length=length, padding="max_length")
        mask = np.array(encoded["attention_mask"], dtype=bool)
        loaded = loaded.with_column("phrase_ids", np.array(encoded["input_ids"], dtype=np.int64))
        return loaded.with_column("phrase_mask", mask)
    pieces = tokenizer(phrases, truncation=True, max_length=length)["input_ids"]
    ragged = [np.array(ids, dtype=np.int64) for ids in pieces]
    return loaded.with_column("phrase_ids", ragged, mask="phrase_mask", fill=tokenizer.pad_token_id)


def read_phrases(wanted: Wanted) -> SideInput:
    """TMR's file: of MNRE keyed by row, which leaks, of Twitter by picture, which does not."""
    folder, split = wanted.task.folder, wanted.split
    if wanted.task.info.kind == "relation":
        path = side_files.find(folder, "txt/phrase_text_{split}.json", split)
        return side_files.read_phrases(path)
    first, second = TWITTER_PHRASES
    return side_files.read_image_phrases(side_files.find(folder, first, split, second))


def entity_phrase(row: RelationRow) -> str:
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


def add_scores(config: TmrConfig, loaded: LoadedSplit, wanted: Wanted) -> LoadedSplit:
    """`scores` (N, 2, 2): of the original and of the generated picture, [weak, strong]."""
    folder = wanted.task.folder / config.scores
    rows = as_posted(loaded, wanted)
    has_picture = np.array([row.image_id is not None for row in rows], dtype=bool)
    with_picture = [row for row in rows if row.image_id is not None]
    scores = np.full((len(rows), 2, 2), UNKNOWN_SCORE, dtype=np.float32)
    for k, patterns in enumerate(SCORES):
        if k and config.generated == "none":
            break
        for j, strength in enumerate(("weak", "strong")):
            first, *others = (pattern.replace("%s", strength) for pattern in patterns)
            source = side_files.read_scores(side_files.find(folder, first, wanted.split, *others))
            scores[has_picture, k, j] = source.of(with_picture)
            loaded = loaded.with_source(source)
    replaced = [now.image_id != row.image_id for now, row in zip(loaded.rows, rows, strict=True)]
    scores[np.array(replaced, dtype=bool), 0] = UNKNOWN_SCORE
    return loaded.with_column("scores", scores)


def as_posted(loaded: LoadedSplit, wanted: Wanted) -> list[Row]:
    """The rows with the pictures that they came with, whatever a view has made of those."""
    posted = {row.row: row.image_id for row in wanted.original}
    return [replace(row, image_id=posted[row.row]) for row in loaded.rows]
