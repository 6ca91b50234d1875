"""Texts and spans: the same row from every format, offsets in every unit, doubt is refused."""

import csv
import json
from pathlib import Path
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune.data.own_data import convert
from finetune.tasks.mnre import Mnre
from finetune.tasks.posts import APART, WHOLE_TAGS, BadPost, parse_line, parse_post, read_post
from finetune.tasks.relations import OwnRelations
from finetune.tasks.spans import UNITS, mentions, place_span, size_of
from finetune.tasks.twitter import read_rows
from shards.files import InputError

EMOJI = "😀😀 Bob met Ann in Rome"
CROOKED = ["\u202e", "\u2066", "\ufeff", "\u2028", "\x85", "e\u0301", "é", "ﬁ", "👩‍👩‍👧", "𝔘", "İ",
           "ß", "\u200d", "\xa0", ",", ";", "\t", "'", "[E]", "10:30",
           "#tag", "U.S.", "\ufe0f"]  # fmt: skip
WORDS = st.one_of(
    st.sampled_from(["Bob", "Oslo", "Ann", *CROOKED]),
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\r\n"), min_size=1,
            max_size=6),
)  # fmt: skip


@st.composite
def posts(draw):
    """(text, head, tail): spans of code points that hold a word."""
    words = draw(st.lists(WORDS, min_size=2, max_size=9))
    text = draw(st.sampled_from([" ", "", "  "])).join(words)
    spans = []
    for _ in range(2):
        start = draw(st.integers(0, max(len(text) - 1, 0)))
        spans.append((start, draw(st.integers(min(start + 1, len(text)), len(text)))))
    return text, *spans


def in_unit(text, span, unit):
    """By slicing: what another program that counts so would write."""
    return [size_of(text[:end], unit) for end in span]


@settings(max_examples=300, deadline=None)
@given(posts())
def test_every_unit_means_the_same_span(post):
    text, *spans = post
    for span in spans:
        for unit in UNITS:
            assert place_span(in_unit(text, span, unit), text, "head", unit) == span


@settings(max_examples=300, deadline=None)
@given(posts())
def test_rows_hold_the_marked_letters_in_every_unit(post):
    text, head, tail = post
    rows = []
    for unit in UNITS:
        ends = {"head": in_unit(text, head, unit), "tail": in_unit(text, tail, unit)}
        found = read_post({"text": text, "offsets": unit, **ends}, Path(), "mnre")
        rows.append(found if isinstance(found, BadPost) else (found.tokens, found.head, found.tail))
    if isinstance(rows[0], BadPost):  # blank: so it is, however it is counted
        assert all(isinstance(row, BadPost) for row in rows)
        assert not text[slice(*head)].strip() or not text[slice(*tail)].strip()
        return
    assert rows[0] == rows[1] == rows[2]
    tokens, *places = rows[0]
    assert "".join(tokens) == "".join(text.split())
    for span, place in zip((head, tail), places, strict=True):
        assert "".join(tokens[slice(*place)]) == "".join(text[slice(*span)].split())


def test_two_thousand_crooked_posts_are_one_row_in_every_format(tmp_path):
    """JSON lines = CSV = MNRE, of relations; accepted + refused = given, and no traceback."""
    random = Random(0)
    words = ["Bob", "Oslo", "and", "Ann", *CROOKED]
    records, refused = [], 0
    for number in range(2000):
        text = " ".join(random.choices(words, k=random.randint(2, 9)))
        spans = []
        for _ in range(2):
            start = random.randrange(len(text))
            spans.append([start, random.randint(start + 1, len(text))])
        record = {"text": text, "head": spans[0], "tail": spans[1], "relation": f"r{number % 3}"}
        record["offsets"] = "characters"
        if isinstance(read_post(record, Path(), "relations"), BadPost):
            refused += 1
        else:
            records.append(record)
    assert len(records) + refused == 2000 and len(records) > 1500
    source = tmp_path / "posts.jsonl"
    source.write_text(
        "".join(json.dumps(r, ensure_ascii=r["relation"] == "r0") + "\n" for r in records)
    )
    with (tmp_path / "posts.csv").open("w", encoding="utf-8-sig", newline="") as file:
        table = csv.writer(file)
        table.writerow(["text", "head_start", "head_end", "tail", "relation", "offsets"])
        for r in records:
            table.writerow(
                [r["text"], *r["head"], json.dumps(r["tail"]), r["relation"], "characters"]
            )
    rows = convert(source, "relations")
    assert convert(tmp_path / "posts.csv", "relations") == rows
    (tmp_path / "txt").mkdir()
    (tmp_path / "ours_rel2id.json").write_text('{"r0": 0, "r1": 1, "r2": 2}')
    literals = [
        {"token": r["tokens"], "h": {"pos": r["head"]}, "t": {"pos": r["tail"]},
         "img_id": "1.jpg", "relation": r["relation"]} for r in rows
    ]  # fmt: skip
    (tmp_path / "txt/ours_train.txt").write_text("".join(f"{line!r}\n" for line in literals))
    (tmp_path / "train.jsonl").write_text(
        "".join(json.dumps(row | {"image": "1.jpg"}, ensure_ascii=False) + "\n" for row in rows)
    )
    own = OwnRelations(tmp_path).read("train")
    assert own == Mnre(tmp_path).read("train") and len(own) == len(records)


def test_crooked_tokens_are_the_same_in_conll_and_json_lines(tmp_path):
    random = Random(1)
    words = [word for word in ["Bob", *CROOKED] if word.strip() and "\t" not in word]
    sentences = [random.choices(words, k=random.randint(1, 9)) for _ in range(300)]
    tags = [[random.choice(["O", "B-PER", "I-LOC"]) for _ in words] for words in sentences]
    pairs = list(zip(sentences, tags, strict=True))
    blocks = ["".join(f"{w}\t{t}\n" for w, t in zip(*pair, strict=True)) for pair in pairs]
    (tmp_path / "a.txt").write_text("".join(f"IMGID:1\n{block}\n" for block in blocks))
    rows = [{"tokens": words, "tags": tags, "image": "1.jpg"} for words, tags in pairs]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert read_rows(tmp_path / "a.txt") == read_rows(tmp_path / "a.jsonl")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
    | st.sampled_from(["Bob", "10:30", "\ud83d", "a\0b"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
        st.sampled_from(["start", "end", "text", "\ud83d"]), inner, max_size=3),
    max_leaves=6,
)  # fmt: skip


@settings(max_examples=500, deadline=None)
@given(
    st.dictionaries(
        st.sampled_from(["text", "tokens", "head", "tail", "id", "offsets", "caption", "head_start",
                         "head_end", "x"]), JSON, max_size=6)
)  # fmt: skip
def test_no_json_gives_a_traceback(record):
    """A post, or a reason in its place; what comes back can be written."""
    answer = parse_line(json.dumps(record), Path(), "mnre")
    text = answer.error if isinstance(answer, BadPost) else answer.text
    json.dumps([text, answer.id], ensure_ascii=False, allow_nan=False).encode()


@pytest.mark.parametrize(
    ("head", "message"),
    [
        ([5, 8], r"\[5, 8\] reads 'b m' in characters, 'Bob' in utf-16; say which"),
        ({"start": 5, "end": 8, "text": "Bob"}, "in utf-16 it reads that: --offsets utf-16"),
        ({"start": 3, "end": 6, "text": "Ann"}, "reads 'Bob' in characters, but its text is 'Ann'"),
        ("3:6", r"does not occur in the text; positions are written \[3, 6\]"),
    ],
)
def test_doubt_is_refused_with_both_readings(head, message):
    with pytest.raises(InputError, match=message):
        parse_post({"text": EMOJI, "head": head, "tail": "Ann"}, Path(), "mnre")


@pytest.mark.parametrize(
    "head",
    ["Bob", [3, 6], {"start": 3, "end": 6, "text": "Bob"}, {"text": "Bob"}],
)
def test_ways_to_name_an_entity(head):
    post = parse_post({"text": EMOJI, "head": head, "tail": "Ann"}, Path(), "mnre")
    assert post.mention(post.head) == {"text": "Bob", "start": 3, "end": 6}


@pytest.mark.parametrize("blank", ["\t", "\xa0", "\u3000", "\r\n", " \u2028 "])
def test_a_name_is_found_across_any_blank(blank):
    text = f"RT Ann{blank}Smith and Bob"
    for head in ("Ann Smith", f"Ann{blank}Smith"):
        post = parse_post({"text": text, "head": head, "tail": "Bob"}, Path(), "mnre")
        assert post.mention(post.head)["text"] == f"Ann{blank}Smith"
        assert [post.tokens[i] for i in range(*post.head)] == ["Ann", "Smith"]


@pytest.mark.parametrize("offsets", ["utf16", "", 8, ["bytes"]])
def test_unknown_offsets_are_refused_beside_words_and_tokens(tmp_path, offsets):
    for post in ({"text": "Ann, Bob", "head": "Ann", "tail": "Bob"},
                 {"tokens": ["Ann", "Bob"], "head": [0, 1], "tail": [1, 2]}):  # fmt: skip
        with pytest.raises(InputError, match="offsets must be one of characters, utf-16, bytes"):
            parse_post(post | {"offsets": offsets}, Path(), "mnre")
    source = tmp_path / "posts.jsonl"
    source.write_text(json.dumps({"text": "no entity", "entities": [], "offsets": offsets}))
    with pytest.raises(InputError, match="offsets must be one of"):
        convert(source, "entities")


def test_times_and_scores_are_words(tmp_path):
    for text, head, tail in [
        ("Meet Bob Smith at 10:30 in the Oslo Opera house", "10:30", "Oslo"),
        ("Chelsea 2:1 Arsenal", "2:1", "Arsenal"),
    ]:
        post = parse_post({"text": text, "head": head, "tail": tail}, Path(), "mnre")
        assert post.mention(post.head)["text"] == head


def test_repeated_mentions_are_listed_or_chosen(tmp_path):
    record = {"text": "Ann , Bob and Ann", "head": "Bob", "tail": "Ann", "relation": "x"}
    source = tmp_path / "posts.jsonl"
    source.write_text((json.dumps(record) + "\n") * 25)
    with pytest.raises(InputError) as error:
        convert(source, "relations")
    lines = str(error.value).splitlines()
    assert "25 of 25 rows" in lines[0] and len(lines) == 22 and "and 5 more" in lines[-1]
    assert convert(source, "relations", occurrence="first")[0]["tail"] == [0, 1]
    assert convert(source, "relations", occurrence="nearest")[0]["tail"] == [0, 1]
    source.write_text(json.dumps(record | {"text": "Ann and then Bob , Ann", "head": "Bob"}))
    assert convert(source, "relations", occurrence="nearest")[0]["tail"] == [5, 6]
    source.write_text(json.dumps(record | {"head": "Ann"}))
    for occurrence in ("first", "nearest"):
        row = convert(source, "relations", occurrence=occurrence)[0]
        assert sorted([row["head"], row["tail"]]) == [[0, 1], [4, 5]]


def test_refused_posts_keep_their_id():
    found = parse_line(
        r'{"text": "Bob \ud83d Ann", "head": "Bob", "tail": "Ann", "id": 7}', Path(), ""
    )
    assert found == BadPost(
        "text holds half a character (the surrogate U+D83D alone, after 4 characters)", 7
    )


def test_entities_of_other_tools(tmp_path):
    source = tmp_path / "posts.jsonl"
    forms = [[5, 8, "PER"], [5, 8, "PER", "Bob"],
             {"id": 1, "label": "PER", "start_offset": 5, "end_offset": 8}]  # fmt: skip
    source.write_text("".join(json.dumps({"text": EMOJI, "entities": [f]}) + "\n" for f in forms))
    with pytest.raises(InputError, match=r"3 of 3 rows cannot be read:\n  line 1: .*utf-16"):
        convert(source, "entities")
    for row in convert(source, "entities", offsets="utf-16"):
        assert row["tags"][row["tokens"].index("Bob")] == "B-PER" and len(set(row["tags"])) == 2


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("txt;rel\nBob;x\n", "the header must name `relation` and `text`"),
        ("text;relation\nBob in Oslo;x\n", "the header names none of head, head_start"),
    ],
)
def test_headers_that_lack_a_column(tmp_path, content, message):
    (tmp_path / "posts.csv").write_text(content)
    with pytest.raises(InputError, match=message):
        convert(tmp_path / "posts.csv", "relations")


def test_semicolons_are_found(tmp_path):
    (tmp_path / "posts.csv").write_text("text;head;tail;relation\nBob, in Oslo;Bob;Oslo;x\n")
    assert convert(tmp_path / "posts.csv", "relations")[0]["tail"] == [3, 4]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("\u0939\u093f\u0928\u094d\u0926\u0940 \u092e\u0947\u0902", 2),  # Hindi
        ("cafe\u0301 Bob", 2),  # as macOS writes names of files
        ("\u0e23\u0e16\u0e44\u0e1f\u0e1f\u0e49\u0e32", 1),  # Thai
        ("\u0643\u064e\u062a\u064e\u0628\u064e #\u0643\u064e\u062a\u064e\u0628\u064e", 2),  # Arabic
        ("\u2764\ufe0fBob", 3),  # a heart, its look, a name
    ],
)
def test_marks_belong_to_the_letter_before_them(text, words):
    """A word is not cut inside, and no entity is found that ends before an accent."""
    for pattern in (WHOLE_TAGS, APART):
        tokens = pattern.findall(text.replace("#", ""))
        assert len(tokens) == words and "".join(tokens) == text.replace("#", "").replace(" ", "")
    assert len(WHOLE_TAGS.findall(text)) == words
    assert mentions("cafe", text) == [] and len(mentions("Bob", text)) == text.count("Bob")
    assert mentions("e\u0301", text) == []
