"""A WordPiece tokenizer learned from captions, for corpora that no published vocabulary fits."""

from collections.abc import Iterable

from transformers import PreTrainedTokenizerFast

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
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
    )
