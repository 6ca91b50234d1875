"""Captions as inputs: after the post, or as a segment of their own (`caption_ids`).

A row whose picture a view took away has no caption either: an empty one. `--captions none`: every
caption is empty.
"""

import logging
from dataclasses import replace
from typing import Any

import numpy as np

from finetune.inputs.spec import Wanted
from finetune.inputs.split import LoadedSplit
from finetune.tasks import side_files
from pretrain import distributed
from shards.files import InputError

LOG = logging.getLogger(__name__)


def add_caption_tokens(loaded: LoadedSplit, wanted: Wanted) -> LoadedSplit:
    """`caption_ids`: `[CLS] caption [SEP]`, at most `--max_caption_length` word pieces.

    Raises:
        InputError: no captions were named, one is missing, or they may be longer than the method's
            padding.
    """
    if wanted.options.captions is None:
        raise InputError(
            "this method reads captions: --captions NAME for caption/NAME_{split}.txt in --data "
            "(CAMIM's caption, minicpm, cogvlm, BLIP, instruct, llavanext), a path with {split}, "
            "or none for empty ones"
        )
    longest, spec = wanted.options.max_caption_length, wanted.spec
    positions = spec.positions or longest
    if not 2 <= longest <= positions:  # [CLS] and [SEP] at least
        raise InputError(f"--max_caption_length {longest}: must be 2 to {positions} word pieces")
    if spec.longest_caption is not None and longest > spec.longest_caption:
        raise InputError(
            f"--max_caption_length {longest}: {spec.method}, as it is set (profile legacy), makes "
            f"every caption {spec.longest_caption} word pieces; give {spec.longest_caption}"
        )
    loaded, texts = read_captions(loaded, wanted)
    encoded = wanted.tokenizer(texts, truncation=True, max_length=longest)
    loaded = count_cut(loaded, encoded, wanted)
    ids = [np.array(pieces, dtype=np.int64) for pieces in encoded["input_ids"]]
    return loaded.with_column(
        "caption_ids", ids, mask="caption_mask", fill=wanted.tokenizer.pad_token_id
    )


def append_captions(loaded: LoadedSplit, wanted: Wanted) -> LoadedSplit:
    """`[CLS] post [SEP] caption [SEP]`: the picture in words, for whatever reads text."""
    if wanted.options.captions == "none":
        return loaded
    tokenizer = wanted.tokenizer
    if tokenizer.sep_token_id is None:
        raise InputError(
            "--captions: this language model knows no [SEP] to put after the post; where a method "
            "reads captions as a text of their own, say so (dgfpt: --model.caption_weight 0.4)"
        )
    loaded, texts = read_captions(loaded, wanted)
    captions = tokenizer(
        texts,
        add_special_tokens=False,
        truncation=True,
        max_length=wanted.options.max_caption_length,
    )
    loaded = count_cut(loaded, captions, wanted)
    end = [tokenizer.sep_token_id]  # the post has its [CLS] and [SEP] already
    ids = [
        np.concatenate([post, np.array(caption + end)])
        for post, caption in zip(
            loaded.dataset.columns["input_ids"], captions["input_ids"], strict=True
        )
    ]
    return loaded.with_column("input_ids", ids)


def count_cut(loaded: LoadedSplit, encoded: Any, wanted: Wanted) -> LoadedSplit:
    """The split, which knows how many captions the tokenizer shortened; of a file they are said
    now, of posts, which come in chunks, by who answers them."""
    cut = sum(bool(one.overflowing) for one in encoded.encodings or ())
    if cut and "caption" not in wanted.given and distributed.is_main():
        LOG.warning(
            "%s: %d of %d captions are longer than --max_caption_length %d and lose their end",
            wanted.split, cut, len(encoded.encodings), wanted.options.max_caption_length,
        )  # fmt: skip
    return replace(loaded, cut_captions=cut)


def read_captions(loaded: LoadedSplit, wanted: Wanted) -> tuple[LoadedSplit, list[str]]:
    """The text of each row, from `caption/NAME_{split}.txt` in the data or a path, and the split
    with that file on its record."""
    name = str(wanted.options.captions)
    if name == "none":
        return loaded, [""] * len(loaded.rows)
    source, rows = wanted.given.get("caption"), loaded.rows  # a post's caption may stand alone
    if source is None:
        rows = [row for row in rows if row.image_id is not None]
        by_name = "{split}" not in name
        pattern = f"caption/{name}_{{split}}.txt" if by_name else name
        folder = wanted.task.folder if by_name else "."
        source = side_files.read_captions(side_files.find(folder, pattern, wanted.split))
    by_row = dict(zip([row.row for row in rows], source.of(rows), strict=True))
    texts = [by_row.get(row.row, "") for row in loaded.rows]
    return loaded.with_source(source, **{"caption: present": [bool(text) for text in texts]}), texts
