"""A learned vocabulary: BERT's scheme, and the same one in every process."""

import subprocess
import sys

import pytest

from pretrain.data.tokenizer import LEARNERS, learn_tokenizer, learn_unigram
from shards.files import InputError

CAPTIONS = [
    "A golden crown and a ring .",
    "man Junpax with an umbrella .",
    "Qui Belsor , a teal fish",
]


@pytest.mark.parametrize("kind", LEARNERS)
def test_the_same_captions_give_the_same_vocabulary_in_every_process(kind):
    program = (
        f"from pretrain.data.tokenizer import LEARNERS; t = LEARNERS[{kind!r}]({CAPTIONS}, 90);"
        "print(sorted(t.get_vocab().items()))"
    )
    runs = [subprocess.check_output([sys.executable, "-c", program], text=True) for _ in range(2)]
    here = LEARNERS[kind](CAPTIONS, 90)
    assert runs[0] == runs[1] == f"{sorted(here.get_vocab().items())}\n"


def test_bert_scheme_survives_saving(tmp_path):
    from transformers import AutoTokenizer

    learn_tokenizer(CAPTIONS, 90).save_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    ids = tokenizer("a Golden RING", return_token_type_ids=False)["input_ids"]
    tokens = tokenizer.convert_ids_to_tokens(ids)
    assert (tokens[0], tokens[-1]) == ("[CLS]", "[SEP]") and "[UNK]" not in tokens
    assert tokenizer.decode(ids, skip_special_tokens=True) == "a golden ring"
    assert tokenizer.pad_token_id == 0


def test_unigram_pieces_are_those_of_sentencepiece(tmp_path):
    """Beside a model that sentencepiece trained by itself on the lower-case captions."""
    import sentencepiece
    from transformers import AutoTokenizer

    captions = CAPTIONS * 20
    learn_unigram(captions, 60).save_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(caption.lower() for caption in captions), vocab_size=60,
        model_prefix=str(tmp_path / "own"), hard_vocab_limit=False, character_coverage=1.0,
        pad_id=0, unk_id=1, bos_id=-1, eos_id=-1, control_symbols="[CLS],[SEP],[MASK]",
        minloglevel=2,
    )  # fmt: skip
    own = sentencepiece.SentencePieceProcessor(str(tmp_path / "own.model"))
    for text in ("A golden CROWN", "man  with umbrellas, and fish", "Qui ﬁsh x"):
        assert tokenizer.tokenize(text) == own.encode(text.lower(), out_type=str)
    encoded = tokenizer("A Golden RING", return_offsets_mapping=True)
    tokens = tokenizer.convert_ids_to_tokens(encoded["input_ids"])
    assert (tokens[0], tokens[-1]) == ("[CLS]", "[SEP]") and tokenizer.pad_token_id == 0
    spans = [place for place in encoded["offset_mapping"] if place[1] > place[0]]
    assert "".join("A Golden RING"[a:b] for a, b in spans).replace(" ", "") == "AGoldenRING"
    assert tokenizer.decode(encoded["input_ids"], skip_special_tokens=True) == "a golden ring"


@pytest.mark.parametrize(
    ("text", "message"), [("a dog", "smaller than required"), (" ", "no text")]
)
def test_what_unigram_cannot_learn_is_one_line(text, message):
    with pytest.raises(InputError, match=f"vocab_size 6: .*{message}") as told:
        learn_unigram([text], 6)
    assert "\n" not in str(told.value)
