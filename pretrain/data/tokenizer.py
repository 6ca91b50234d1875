"""A tokenizer learned from captions, for corpora that no published vocabulary fits."""

import io
from collections.abc import Iterable
from typing import TYPE_CHECKING

from transformers import PreTrainedTokenizerFast

from shards.files import InputError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

SPECIALS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def learn_tokenizer(captions: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """BERT's uncased scheme ([CLS] … [SEP], lower case, `##` pieces) over a vocabulary of our own.

    The same captions in the same order give the same vocabulary.
    """
    from tokenizers import Tokenizer, decoders, normalizers, pre_tokenizers, processors, trainers
    from tokenizers.models import WordPiece

    normalizer = normalizers.BertNormalizer(lowercase=True)
    words = pre_tokenizers.BertPreTokenizer()
    texts = [normalizer.normalize_str(caption) for caption in captions]
    # The trainer numbers `##` letters in the order of a hash map that differs from process to
    # process, and breaks ties by number. As special tokens they keep the numbers given here; the
    # tokenizer below takes the vocabulary alone.
    pieces = {
        f"##{letter}"
        for text in texts
        for word, _ in words.pre_tokenize_str(text)
        for letter in word[1:]
    }
    learned = Tokenizer(WordPiece(unk_token="[UNK]"))
    learned.pre_tokenizer = words
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size, special_tokens=[*SPECIALS, *sorted(pieces)], show_progress=False
    )
    learned.train_from_iterator(texts, trainer)

    vocabulary = learned.get_vocab()
    tokenizer = Tokenizer(WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizer, words
    tokenizer.decoder = decoders.WordPiece()
    cls, sep = ((name, vocabulary[name]) for name in ("[CLS]", "[SEP]"))
    tokenizer.post_processor = processors.BertProcessing(sep, cls)
    return _named(tokenizer)


def learn_unigram(captions: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """SentencePiece's unigram pieces (Kudo 2018) of NFKC text in lower case, blanks as ▁.

    The same captions in the same order give the same pieces: one thread, no sampling.

    Raises:
        InputError: more different letters than the vocabulary has room for, or no text.
    """
    import sentencepiece
    from tokenizers import Regex, Tokenizer, decoders, normalizers, pre_tokenizers, processors
    from tokenizers.models import Unigram

    normalizer = normalizers.Sequence(
        [normalizers.NFKC(), normalizers.Lowercase(), normalizers.Replace(Regex(r"\s+"), " "),
         normalizers.Strip()]
    )  # fmt: skip
    written = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=(normalizer.normalize_str(caption) for caption in captions),
            model_writer=written, model_type="unigram", vocab_size=vocab_size,
            hard_vocab_limit=False, character_coverage=1.0, normalization_rule_name="identity",
            num_threads=1,
            pad_id=0, unk_id=1, bos_id=-1, eos_id=-1, pad_piece=SPECIALS[0], unk_piece=SPECIALS[1],
            control_symbols=",".join(SPECIALS[2:]), minloglevel=2,
        )  # fmt: skip
    except RuntimeError as error:  # its only kind
        raise InputError(
            f"model.tokenizer unigram, model.vocab_size {vocab_size}: "
            f"{str(error).rpartition('] ')[2].strip() or 'no text to learn from'}"
        ) from error
    learned = sentencepiece.SentencePieceProcessor(model_proto=written.getvalue())
    numbers = range(learned.get_piece_size())
    pieces = [(learned.id_to_piece(number), learned.get_score(number)) for number in numbers]
    tokenizer = Tokenizer(Unigram(pieces, unk_id=1, byte_fallback=False))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizer, pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    names = [piece for piece, _ in pieces]
    cls, sep = ((name, names.index(name)) for name in ("[CLS]", "[SEP]"))
    tokenizer.post_processor = processors.BertProcessing(sep, cls)
    return _named(tokenizer)


LEARNERS = {"wordpiece": learn_tokenizer, "unigram": learn_unigram}
"""What `model.tokenizer` may name beside a directory."""


def _named(tokenizer: "Tokenizer") -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
    )
