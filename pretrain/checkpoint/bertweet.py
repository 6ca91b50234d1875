"""BERTweet's tokenizer, which `transformers` has in Python alone, in its fast form.

vocab.txt    `piece count` a line: `piece@@` inside a word, `piece` at its end
bpe.codes    `left right count` a line, ends of words as `</w>`
A tokenizer.json beside them is not read: the class reads these two alone.
"""

from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from pretrain.checkpoint.foreign import check_rows
from pretrain.model.bert import Bert
from pretrain.model.library import LibraryText
from shards.files import InputError

_END, _INSIDE = "</w>", "@@"
_WORDS = r"[^\s\x1c-\x1f]+\n?"
"""What Python takes for `\\S+\\n?`: a line's end belongs to the word before it."""


def fast_form(own: Any, directory: Path) -> PreTrainedTokenizerFast:
    """The same tokenizer with places in the text.

    A merge may lead to what vocab.txt does not hold; `transformers` reads such a piece as unknown,
    or as a piece spelled alike. Here it has a number of its own behind the others, whose row
    `copy_rows` makes that of the piece that `transformers` would read.

    Args:
        own: `transformers`' BertweetTokenizer.

    Raises:
        InputError: texts are to be normalised, merges are not pairs, a piece stands twice, or there
            are more than the model has rows.
    """
    if own.normalization:
        raise InputError(
            f"{directory}: `normalization` of BertweetTokenizer rewrites texts, whose entities "
            "would then lie elsewhere: not done here; give normalised texts (handles as @USER, "
            "links as HTTPURL, emojis as :name:) and set it to false in tokenizer_config.json"
        )
    if odd := [merge for merge in own.bpe_ranks if len(merge) != 2]:
        raise InputError(
            f"{directory / 'bpe.codes'}: `{' '.join(odd[0])} …` is no `left right count` "
            "(`save_pretrained` of transformers leaves the count out, and reads no merge of it "
            "afterwards); take the file as it was published"
        )
    merges = sorted(own.bpe_ranks, key=own.bpe_ranks.__getitem__)
    numbers = dict(own.encoder)
    if len({*numbers.values()}) < len(numbers):
        raise InputError(f"{directory / 'vocab.txt'}: damaged: a piece stands there twice")
    added: dict[str, int] = own.get_added_vocab()
    for piece in sorted(added, key=added.__getitem__):  # <mask>, which has the model's last row
        numbers.setdefault(piece, len(numbers))
    check_rows(numbers, directory)
    special = {*own.all_special_tokens, *added}
    vocab = {piece: numbers[piece] for piece in special}
    for piece in sorted(numbers.keys() - special, key=lambda piece: piece.endswith(_INSIDE)):
        symbol = f"{piece}{_END}"
        if piece.endswith(_INSIDE) and piece != _INSIDE:
            symbol = piece.removesuffix(_INSIDE)
        vocab[piece if symbol in vocab else symbol] = numbers[piece]
    copied: dict[int, int] = {}
    for left, right in merges:
        for symbol in (left, right, left + right):
            if symbol not in vocab:
                vocab[symbol] = len(vocab)
                is_end = symbol.endswith(_END)
                piece = symbol.removesuffix(_END) if is_end else symbol + _INSIDE
                copied[vocab[symbol]] = numbers.get(piece, own.unk_token_id)
    model = models.BPE(vocab, merges, unk_token=own.unk_token, end_of_word_suffix=_END)
    backend: Any = Tokenizer(model)
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(_WORDS), "removed", invert=True)
    backend.decoder = decoders.BPEDecoder(_END)
    begin, end = own.cls_token, own.sep_token
    backend.post_processor = processors.TemplateProcessing(
        f"{begin} $A {end}", f"{begin} $A {end} {end} $B {end}",
        [(begin, own.cls_token_id), (end, own.sep_token_id)],
    )  # fmt: skip
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, model_max_length=own.model_max_length,
        model_input_names=own.model_input_names, padding_side=own.padding_side,
        **own.special_tokens_map,
    )  # fmt: skip
    tokenizer.copied_rows = copied
    return tokenizer


@torch.no_grad()
def copy_rows(text: Bert | LibraryText, tokenizer: PreTrainedTokenizerBase) -> None:
    """Rows of the word table for the numbers that `fast_form` has given beyond it."""
    if copied := getattr(tokenizer, "copied_rows", None):
        text.resize_token_embeddings(len(tokenizer))
        table = text.get_input_embeddings().weight
        table[list(copied)] = table[list(copied.values())]
