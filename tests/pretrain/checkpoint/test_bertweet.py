"""BERTweet's fast form: the pieces and states of `transformers`' own, and where they lie."""

import json
import random
from collections import Counter
from itertools import pairwise

import pytest
import torch
from families import CAPTIONS
from tokenizers import Tokenizer, models
from transformers import AutoTokenizer, RobertaConfig, RobertaModel

from pretrain.checkpoint.hub import load_tokenizer, read_text_encoder
from pretrain.convert import main as convert
from pretrain.processor import batch_tokenizer
from shards.files import InputError

TWEETS = [
    "@USER lol hello @@ HTTPURL :cry:", "a@@ b@@@ @@@", "@@", "hello\n world\nagain \n\n x",
    "tabs\tand\u00a0blanks\u3000of\u2028all\x1ckinds\x85here", "日本語 café cafe\u0301 ❤\ufe0f",
    "lololololol aaaaaaaa aaa aa a", "don't can't #hash_tag $5.00",
    "<mask> mid<mask>dle <s> x </s>", "</w> x</w>y <unk>", "", "   ",
    "\U0001f937\U0001f3fd\u200d♀️ \U0001f469\u200d\U0001f469", *CAPTIONS[:20],
]  # fmt: skip


SPECIAL = ["<s>", "<pad>", "</s>", "<unk>"]


def learned(texts, count):
    """Merges of byte-pair encoding by the book, ends of words as </w>."""
    words = [[*word[:-1], f"{word[-1]}</w>"] for text in texts for word in text.split()]
    merges = []
    for _ in range(count):
        pairs = Counter(pair for word in words for pair in pairwise(word))
        if not pairs:
            break
        pair = max(pairs, key=lambda p: (pairs[p], p))
        merges.append(pair)
        for word in words:
            place = 0
            while place < len(word) - 1:
                if (word[place], word[place + 1]) == pair:
                    word[place : place + 2] = ["".join(pair)]
                place += 1
    return merges, words


def write_bertweet(folder, *, count=60, share=0.7, **settings):
    """vocab.txt and bpe.codes as published, a part of the pieces left out of the vocabulary."""
    texts = [tweet for tweet in TWEETS if "<" not in tweet] * 3 + CAPTIONS
    merges, words = learned(texts, count)
    symbols = {symbol for pair in merges for symbol in (*pair, "".join(pair))}
    symbols |= {symbol for word in words for symbol in word}
    pieces = {s.removesuffix("</w>") if s.endswith("</w>") else f"{s}@@" for s in symbols}
    draw = random.Random(0)
    pieces = [piece for piece in sorted(pieces) if piece.strip() and draw.random() < share]
    folder.mkdir()
    (folder / "vocab.txt").write_text("".join(f"{piece} 1\n" for piece in pieces), "utf-8")
    codes = "".join(f"{left} {right} {9999 - n}\n" for n, (left, right) in enumerate(merges))
    (folder / "bpe.codes").write_text(codes, "utf-8")
    if settings:
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    config = RobertaConfig(
        vocab_size=len(pieces) + 5, hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=48, max_position_embeddings=130, type_vocab_size=1,
        tokenizer_class="BertweetTokenizer", pad_token_id=1, bos_token_id=0, eos_token_id=2,
    )  # fmt: skip
    torch.manual_seed(0)
    RobertaModel(config).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("share", [0.5, 0.9, 1.0])
def test_pieces_are_those_of_the_class_in_python(share, tmp_path):
    """With merges that lead out of the vocabulary, too; a file of a class that never was lies
    there, as in the published directory."""
    folder = write_bertweet(tmp_path / "bertweet", share=share)
    own = AutoTokenizer.from_pretrained(folder)
    other = Tokenizer(
        models.WordLevel({piece: n for n, piece in enumerate([*SPECIAL, *map(str, range(999))])})
    )
    other.add_special_tokens([*SPECIAL, "<mask>"])
    other.save(str(folder / "tokenizer.json"))
    tokenizer = load_tokenizer(folder)
    copied = tokenizer.copied_rows
    assert not own.is_fast and own.mask_token_id == len(own) - 1 == tokenizer.mask_token_id
    assert bool(copied) == (share < 1)
    tokenizer.save_pretrained(tmp_path / "saved")
    letters, draw = sorted(set("".join(TWEETS))), random.Random(1)
    crooked = ["".join(draw.choices(letters, k=draw.randint(1, 40))) for _ in range(300)]
    for reader in (tokenizer, load_tokenizer(tmp_path / "saved")):
        for tweet in [*TWEETS, *crooked]:
            encoded, expected = reader(tweet), own(tweet)["input_ids"]
            assert [copied.get(n, n) for n in encoded["input_ids"]] == expected, tweet
            spans = [span for span in encoded.encodings[0].offsets if span[1] > span[0]]
            assert len(spans) == len(expected) - 2
            seen = "".join(tweet[left:right] for left, right in spans)
            assert "".join(seen.split()) == "".join(tweet.split())
    for first, second in pairwise(tweet for tweet in TWEETS if tweet):
        encoded = tokenizer(first, second)
        assert [copied.get(n, n) for n in encoded["input_ids"]] == own(first, second)["input_ids"]
        assert not any(encoded.get("token_type_ids", []))
    assert tokenizer.decode(tokenizer("hello man")["input_ids"], skip_special_tokens=True) == (
        "hello man"
    )


def test_states_are_those_of_transformers(tmp_path, capsys):
    """Through `convert` and as a method's first weights; markers and words one by one."""
    folder = write_bertweet(tmp_path / "bertweet", share=0.7)
    own, theirs = AutoTokenizer.from_pretrained(folder), RobertaModel.from_pretrained(folder).eval()
    text, tokenizer = read_text_encoder(folder)
    text.eval()
    rows = batch_tokenizer(tokenizer, 128).encode_batch(TWEETS)
    ids, mask = (torch.tensor([getattr(row, n) for row in rows]) for n in ("ids", "attention_mask"))
    assert ids.max() >= theirs.config.vocab_size
    expected = own(TWEETS, padding=True, return_tensors="pt")
    length = expected["input_ids"].shape[1]
    with torch.no_grad():
        states = theirs(**expected).last_hidden_state
        ours = text(ids, mask).last_hidden_state[:, :length]
    shown = expected["attention_mask"] == 1
    torch.testing.assert_close(ours[shown], states[shown], rtol=1e-5, atol=1e-5)

    tokenizer.add_tokens(["[E1]", "[/E1]"], special_tokens=True)
    words = ["hello", "[E1]", "two", "@USER", "[/E1]", "@@", "crown."]
    encoded = tokenizer([words], is_split_into_words=True, return_offsets_mapping=True)
    for number, word in enumerate(words):
        at = [place for place, of in enumerate(encoded.word_ids(0)) if of == number]
        spans = [encoded["offset_mapping"][0][place] for place in at]
        assert "".join(word[left:right] for left, right in spans) == word
        if word.startswith("["):
            assert [encoded["input_ids"][0][at[0]]] == tokenizer.convert_tokens_to_ids([word])

    convert([str(folder), str(tmp_path / "out"), "--vision", vision(tmp_path)])
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert config["vocab_size"] == len(load_tokenizer(folder)) > theirs.config.vocab_size


def vision(folder):
    from families import write_vision

    return str(write_vision("plain", folder / "vision"))


@pytest.mark.parametrize(
    ("settings", "spoil", "message"),
    [
        ({"normalization": True}, None, "`normalization` of BertweetTokenizer rewrites texts"),
        ({}, lambda own, folder: own.save_pretrained(folder), "is no `left right count`"),
        ({}, lambda own, folder: (folder / "vocab.txt").open("a").write("zz 1\nzz 1\n"),
         "rows for|stands there twice"),
        ({}, lambda own, folder: (folder / "vocab.txt").open("a").write("zz\n"),
         "its tokenizer cannot be loaded"),
    ],
)  # fmt: skip
def test_what_is_not_done_is_one_line(settings, spoil, message, tmp_path):
    folder = write_bertweet(tmp_path / "bertweet", **settings)
    if spoil:
        spoil(AutoTokenizer.from_pretrained(folder), folder)
    with pytest.raises(InputError, match=message):
        load_tokenizer(folder)
