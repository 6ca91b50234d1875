"""HVPNeT's released way of marking entities, to repeat it; `mnre.mark_entities` is ours.

An entity that ends with the text gets no closing marker, and where the head follows the tail at
once, its marker opens before the tail's closes (README.md, Markers).
"""

from collections.abc import Sequence

import numpy as np

from finetune.inputs.spec import Provider, Wanted
from finetune.inputs.split import LoadedSplit
from finetune.tasks.mnre import HEAD_CLOSE, HEAD_OPEN, TAIL_CLOSE, TAIL_OPEN, Span
from shards.files import InputError


def mark_as_released(tokens: Sequence[str], head: Span, tail: Span) -> list[str]:
    """Before a token: head opens, head closes, tail opens, tail closes; after the last, nothing."""
    places = (
        (head[0], HEAD_OPEN),
        (head[1], HEAD_CLOSE),
        (tail[0], TAIL_OPEN),
        (tail[1], TAIL_CLOSE),
    )
    marked: list[str] = []
    for number, token in enumerate(tokens):
        marked += [marker for place, marker in places if place == number]
        marked.append(token)
    return marked


def add_released_markers(loaded: LoadedSplit, wanted: Wanted) -> LoadedSplit:
    """`input_ids`, `head_start`, `tail_start` anew; long texts lose their end, as released.

    Raises:
        InputError: with captions after the text, or where the cut loses an entity.
    """
    if wanted.options.captions and "caption" not in wanted.spec.needs:
        raise InputError("--model.markers released (profile legacy) takes no --captions")
    tokenizer, longest = wanted.tokenizer, wanted.options.max_length
    marked = [mark_as_released(row.tokens, row.head, row.tail) for row in loaded.rows]
    # Anew: the task has encoded the rows with markers of ours.
    ids = tokenizer(
        marked,
        is_split_into_words=True,
        truncation=True,
        max_length=longest,
        return_attention_mask=False,
    )["input_ids"]
    ids = [np.array(pieces) for pieces in ids]
    loaded = loaded.with_column("input_ids", ids)
    for name, marker in (("head_start", HEAD_OPEN), ("tail_start", TAIL_OPEN)):
        marker_id = tokenizer.convert_tokens_to_ids(marker)
        starts = [np.flatnonzero(pieces == marker_id) for pieces in ids]
        for row, places in zip(loaded.rows, starts, strict=True):
            if len(places) != 1:
                raise InputError(
                    f"row {row.row}: {len(places)} markers {marker} within {longest} word pieces; "
                    "raise --max_length, or --model.markers whole"
                )
        loaded = loaded.with_column(name, np.concatenate(starts))
    return loaded


PROVIDERS = {"released_markers": Provider(add_released_markers, live=add_released_markers)}
