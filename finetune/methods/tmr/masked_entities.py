"""Entities hidden behind one token each, `[unused4]` the head, `[unused5]` the tail.

A relation must then be told from what surrounds them (`mask_entity` of TMR's released code).
"""

import numpy as np

from finetune.inputs.spec import Wanted
from finetune.inputs.split import LoadedSplit
from finetune.tasks.mnre import HEAD_OPEN, MARKERS, TAIL_OPEN
from shards.files import InputError

HIDDEN = ("[unused4]", "[unused5]")
"""Reserved words of BERT."""


def mask_entities(ids: np.ndarray, markers: np.ndarray, hidden: np.ndarray) -> np.ndarray:
    """Word pieces (L,) with one token in the place of what each pair of markers encloses.

    Markers stay, also those of an entity inside the other.

    Args:
        markers: (4,) ids of `MARKERS`, each once in `ids`. hidden: (2,) ids for head and tail.
    """
    outside = np.ones(len(ids), dtype=bool)
    places = [int(np.argmax(ids == marker)) for marker in markers]
    for opening, closing in (places[:2], places[2:]):
        outside[opening + 1 : closing] = False
    outside[places] = True
    behind = np.array([places[0] + 1, places[2] + 1])
    return np.insert(ids, behind, hidden)[np.insert(outside, behind, True)]


def add_masked_entities(loaded: LoadedSplit, wanted: Wanted) -> LoadedSplit:
    """`input_ids`, `head_start`, `tail_start` anew.

    Raises:
        InputError: the vocabulary has no such words.
    """
    vocabulary = wanted.tokenizer.get_vocab()
    if lacking := [word for word in HIDDEN if word not in vocabulary]:
        raise InputError(
            f"--model.mask_entity: the tokenizer has no {lacking[0]}; begin with a BERT"
        )
    markers, hidden = (
        np.array([vocabulary[word] for word in words]) for words in (MARKERS, HIDDEN)
    )
    ids = [mask_entities(pieces, markers, hidden) for pieces in loaded.dataset.columns["input_ids"]]
    loaded = loaded.with_column("input_ids", ids)
    for name, marker in (("head_start", HEAD_OPEN), ("tail_start", TAIL_OPEN)):
        starts = np.array([int(np.argmax(pieces == vocabulary[marker])) for pieces in ids])
        loaded = loaded.with_column(name, starts)
    return loaded
