"""Tokenizers of other families, in the files that publishers give, on words given one by one."""

import ast
import json
from collections import Counter
from pathlib import Path

import pytest
from families import CAPTIONS, TOKENIZERS

from pretrain.checkpoint.hub import load_tokenizer
from shards.files import InputError

SPECIAL = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]


def byte_level_files(folder: Path) -> Path:
    """RoBERTa as first published: vocab.json, merges.txt, no length, no blank before words."""
    from tokenizers import ByteLevelBPETokenizer

    folder.mkdir()
    learned = ByteLevelBPETokenizer()
    learned.train_from_iterator(CAPTIONS, 330, special_tokens=SPECIAL, show_progress=False)
    learned.save_model(str(folder))
    settings = {"tokenizer_class": "RobertaTokenizer", "model_max_length": 1e30}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def sentencepiece_file(folder: Path, name: str, tokenizer_class: str, **options) -> Path:
    """A model of sentencepiece alone."""
    import sentencepiece

    folder.mkdir()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CAPTIONS), model_prefix=str(folder / "m"), vocab_size=80,
        hard_vocab_limit=False, character_coverage=1.0, minloglevel=2, **options,
    )  # fmt: skip
    (folder / "m.model").rename(folder / name)
    (folder / "m.vocab").unlink()
    settings = {"tokenizer_class": tokenizer_class}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


FILES = {
    "roberta": byte_level_files,
    "xlm-roberta": lambda folder: sentencepiece_file(
        folder, "sentencepiece.bpe.model", "XLMRobertaTokenizer"
    ),
    "deberta-v2": lambda folder: sentencepiece_file(
        folder, "spm.model", "DebertaV2Tokenizer", pad_id=0, bos_id=1, eos_id=2, unk_id=3,
        pad_piece="[PAD]", bos_piece="[CLS]", eos_piece="[SEP]", unk_piece="[UNK]",
    ),
}  # fmt: skip


@pytest.mark.parametrize("family", FILES)
def test_words_one_by_one_are_those_of_the_text(family, tmp_path):
    """Every word begins as it does inside a text, markers stay whole, and saved it is the same."""
    tokenizer = load_tokenizer(FILES[family](tmp_path / "files"))
    assert tokenizer.add_tokens(["[E1]", "[/E1]"], special_tokens=True) == 2
    words = ["Anna", "[E1]", "lives", "[/E1]", "in", "Oslo", "\u200b", "."]
    for again in range(2):
        encoded = tokenizer([words], is_split_into_words=True)
        ids, places = encoded["input_ids"][0], encoded.word_ids(0)
        pieces = [
            [ids[i] for i, place in enumerate(places) if place == number]
            for number in range(len(words))
        ]
        for number, word in enumerate(words):
            if word.startswith("["):
                assert pieces[number] == [tokenizer.convert_tokens_to_ids(word)]
            elif word.isalpha():
                alone = tokenizer(f"in {word}", add_special_tokens=False)["input_ids"]
                first = tokenizer("in", add_special_tokens=False)["input_ids"]
                assert alone == first + pieces[number], (word, again)
        tokenizer.save_pretrained(tmp_path / f"saved{again}")
        tokenizer = load_tokenizer(tmp_path / f"saved{again}")


def bert_files(folder: Path, settings: dict, **parts) -> Path:
    """A WordPiece vocabulary in tokenizer.json, with normalizer and pre-tokenizer as given."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "Anna", "anna", "met", "user", "#oslo"]
    tokenizer = Tokenizer(models.WordPiece({w: i for i, w in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.normalizer = parts.get("normalizer", normalizers.BertNormalizer(lowercase=False))
    tokenizer.pre_tokenizer = parts.get("words", pre_tokenizers.BertPreTokenizer())
    if parts.get("ends", True):
        tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    folder.mkdir()
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "BertTokenizer"} | settings
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def test_texts_are_split_as_the_file_says(tmp_path):
    """Handles made one word and words split at blanks, as tokenizer.json alone knows: when first
    read, when saved and read again, and by who reads it with `transformers` only."""
    from tokenizers import Regex, Tokenizer, normalizers, pre_tokenizers
    from transformers import AutoTokenizer

    normalizer = normalizers.Sequence(
        [normalizers.Replace(Regex(r"@\w+"), "user"), normalizers.BertNormalizer(lowercase=True)]
    )
    words = pre_tokenizers.WhitespaceSplit()
    folder = bert_files(tmp_path / "bert", {}, normalizer=normalizer, words=words)
    text = "Anna met @bob #oslo"
    pieces = ["[CLS]", "anna", "met", "user", "#oslo", "[SEP]"]
    assert Tokenizer.from_file(str(folder / "tokenizer.json")).encode(text).tokens == pieces
    tokenizer = load_tokenizer(folder)
    tokenizer.save_pretrained(tmp_path / "saved")
    again = (load_tokenizer(tmp_path / "saved"), AutoTokenizer.from_pretrained(tmp_path / "saved"))
    for reader in (tokenizer, *again):
        encoded = reader([text, "met"], padding=True)
        assert encoded.tokens(0) == pieces
        assert encoded["input_ids"][1] == [2, 7, 3, 0, 0, 0]
        assert set(encoded) == {"input_ids", "token_type_ids", "attention_mask"}


@pytest.mark.parametrize(
    ("settings", "piece"),
    [({}, "Anna"), ({"do_lower_case": False}, "Anna"), ({"do_lower_case": True}, "anna")],
)
def test_capitals_count_where_the_file_says_so_or_the_settings(settings, piece, tmp_path):
    assert load_tokenizer(bert_files(tmp_path / "bert", settings)).tokenize("Anna") == [piece]


@pytest.mark.parametrize("settings", [{}, {"do_lower_case": True}])
def test_what_the_file_leaves_open_is_the_class_s(settings, tmp_path):
    """[CLS] and [SEP], where it names none, and lower case, where the settings want it."""
    from tokenizers import pre_tokenizers

    words = pre_tokenizers.WhitespaceSplit()
    tokenizer = load_tokenizer(bert_files(tmp_path / "bert", settings, words=words, ends=False))
    tokenizer.save_pretrained(tmp_path / "saved")
    pieces = ["[CLS]", "anna" if settings else "Anna", "#oslo", "[SEP]"]
    for reader in (tokenizer, load_tokenizer(tmp_path / "saved")):
        assert reader("Anna #oslo").tokens() == pieces


def test_siglips_file_is_read_where_its_class_has_no_fast_form(tmp_path):
    """Lower case, no punctuation, as its own class does in Python; saved it is the same."""
    import re
    import string

    from sentencepiece import SentencePieceProcessor
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import AutoTokenizer

    folder = sentencepiece_file(
        tmp_path / "siglip", "spiece.model", "SiglipTokenizer", add_dummy_prefix=False, pad_id=0,
        eos_id=1, unk_id=2, bos_id=-1, normalization_rule_name="nmt_nfkc_cf",
    )  # fmt: skip
    learned = SentencePieceProcessor(str(folder / "spiece.model"))
    pieces = [(learned.id_to_piece(i), learned.get_score(i)) for i in range(len(learned))]
    file = Tokenizer(models.Unigram(pieces, unk_id=2))
    punctuation, blanks = Regex(f"[{re.escape(string.punctuation)}]"), Regex(r"\s+")
    file.normalizer = normalizers.Sequence(
        [normalizers.Lowercase(), normalizers.Replace(punctuation, ""),
         normalizers.Replace(blanks, " "), normalizers.Strip()]
    )  # fmt: skip
    file.pre_tokenizer = pre_tokenizers.Metaspace()
    file.post_processor = processors.TemplateProcessing("$A </s>", None, [("</s>", 1)])
    file.save(str(folder / "tokenizer.json"))
    own, tokenizer = AutoTokenizer.from_pretrained(folder), load_tokenizer(folder)
    assert not own.is_fast
    tokenizer.save_pretrained(tmp_path / "saved")
    for reader in (tokenizer, load_tokenizer(tmp_path / "saved")):
        for text in ("Anna  lives, in Oslo!", "a", "Bob's (red) crown"):
            assert reader(text)["input_ids"] == own(text)["input_ids"]


def test_a_tokenizer_without_its_fast_form_is_refused(tmp_path):
    folder = sentencepiece_file(tmp_path / "siglip", "spiece.model", "SiglipTokenizer")
    with pytest.raises(InputError, match="SiglipTokenizer is a tokenizer without a fast form"):
        load_tokenizer(folder)


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_every_word_of_real_rows_is_found_in_its_pieces(kind, shared_data):
    """A word's characters, recovered from where its pieces lie in the text, are the word. Of 16
    words BERT's normalisation leaves nothing: variation selectors and a joiner by themselves."""
    tokenizer = TOKENIZERS[kind]()
    rows = [
        [line.split("\t")[0].rstrip("\n") for line in block.split("\n")[1:] if line.strip()]
        for block in (shared_data / "twitter2017/valid.txt").read_text("utf-8").split("\n\n")
        if block.strip()
    ]
    encoded = tokenizer(rows, is_split_into_words=True, return_offsets_mapping=True)
    lost = []
    for row, words in enumerate(rows):
        spans: dict[int, list[tuple[int, int]]] = {}
        for place, span in zip(encoded.word_ids(row), encoded["offset_mapping"][row], strict=True):
            if place is not None and span[1] > span[0]:
                spans.setdefault(place, []).append(span)
        for number, word in enumerate(words):
            ends = spans.get(number, [(0, 0)])
            if word[ends[0][0] : ends[-1][1]].strip() != word.strip():
                lost.append((row, word))
    expected = {"\ufe0f": 15, "\u200d": 1} if kind == "wordpiece" else {}
    assert Counter(word for _, word in lost) == expected, lost[:8]


def entities_of_real_rows(data: Path) -> list[tuple[list[str], list[tuple[int, int]]]]:
    """(words with markers, entities as ranges of them): MNRE's and Twitter-2017's validation."""
    rows = []
    for line in (data / "mnre/txt/ours_val.txt").read_text("utf-8").splitlines():
        row = ast.literal_eval(line)
        words, entities = row["token"], []
        for number, start, end in sorted(
            ((number, *row[side]["pos"]) for number, side in ((1, "h"), (2, "t"))),
            key=lambda item: -item[1],
        ):
            words = [*words[:start], f"[E{number}]", *words[start:end], f"[/E{number}]",
                     *words[end:]]  # fmt: skip
            entities = [(s + 2, e + 2) for s, e in entities] + [(start + 1, end + 1)]
        rows.append((words, entities))
    for block in (data / "twitter2017/valid.txt").read_text("utf-8").split("\n\n"):
        pairs = [line.split("\t") for line in block.split("\n")[1:] if line.strip()]
        words, tags = [pair[0] for pair in pairs], [pair[-1].strip() for pair in pairs]
        starts = [number for number, tag in enumerate(tags) if tag.startswith("B-")]
        ends = [
            next((n for n in range(s + 1, len(tags)) if not tags[n].startswith("I-")), len(tags))
            for s in starts
        ]
        rows.append((words, list(zip(starts, ends, strict=True))))
    return [row for row in rows if row[0]]


@pytest.mark.parametrize("kind", [*TOKENIZERS, *FILES])
def test_the_characters_of_every_real_entity_are_those_of_its_pieces(kind, shared_data, tmp_path):
    """All 3,248 and 1,324, between their markers: from the first letter to the last."""
    if kind in FILES:
        tokenizer = load_tokenizer(FILES[kind](tmp_path / "files"))
    else:
        TOKENIZERS[kind]().save_pretrained(tmp_path)
        tokenizer = load_tokenizer(tmp_path)
    tokenizer.add_tokens(["[E1]", "[/E1]", "[E2]", "[/E2]"], special_tokens=True)
    rows = entities_of_real_rows(shared_data)
    encoded = tokenizer(
        [words for words, _ in rows], is_split_into_words=True, return_offsets_mapping=True
    )
    count, lost = 0, []
    for row, (words, entities) in enumerate(rows):
        spans: dict[int, list[tuple[int, int]]] = {}
        for place, span in zip(encoded.word_ids(row), encoded["offset_mapping"][row], strict=True):
            if place is not None and span[1] > span[0]:
                spans.setdefault(place, []).append(span)
        for start, end in entities:
            count += 1
            for number in range(start, end):
                reached = 0
                for left, right in spans.get(number, []):
                    reached = max(reached, right) if left <= reached else -1
                if reached != len(words[number]):
                    lost.append((words[number], spans.get(number)))
    assert count == 3248 + 1324
    assert not lost, lost[:5]
