"""Which words of a row are looked for in its picture."""

import pytest

from finetune.data import grounding
from finetune.data.grounding import keywords, nouns
from finetune.tasks.mnre import RelationRow
from finetune.tasks.twitter import NERRow
from shards.files import InputError

# ---- keywords ------------------------------------------------------------------------------------


def relation_row(text, head, tail):
    return RelationRow(
        row=0, image_id="a.jpg", tokens=tuple(text.split()), head=head, tail=tail, relation="None"
    )


def tagged(tags):
    return lambda tokens: tags.split()


def test_keywords_entities_first_then_nouns():
    row = relation_row("RT @AFP : Bob visits the old Town Hall in Oslo", (3, 4), (9, 10))
    tag = tagged("PROPN PROPN PUNCT PROPN VERB DET ADJ NOUN PROPN ADP PROPN")
    assert keywords(row, tag) == [
        ("Bob", "head"),
        ("in", "tail"),
        ("AFP", "noun"),
        ("Town Hall", "noun"),
    ]
    row = relation_row("Bob visits the old Town Hall in Oslo", (0, 1), (7, 8))
    tag = tagged("PROPN VERB DET ADJ NOUN PROPN ADP PROPN")
    expected = [("Bob", "head"), ("Oslo", "tail"), ("Town Hall", "noun")]
    assert keywords(row, tag) == expected
    assert keywords(row, tag, limit=2) == expected[:2]
    assert keywords(row, None) == expected[:2]


def test_keywords_cleans_names_and_drops_repeats():
    row = relation_row("RT @NewYorker : KIM and .@Kim and kim", (0, 2), (5, 6))
    tag = tagged("PROPN PROPN PUNCT PROPN CCONJ PROPN CCONJ PROPN")
    assert keywords(row, tag) == [("NewYorker", "head"), ("Kim", "tail")]


def test_keywords_of_a_tweet_without_entities():
    row = NERRow(row=0, image_id="a.jpg", tokens=("A", "dog"), tags=("O", "O"))
    assert keywords(row, tagged("DET NOUN")) == [("dog", "noun")]
    assert keywords(row, None) == []


def test_nouns_skip_junk_and_entity_runs():
    tokens = ["RT", "#Dogs", "https://t.co/x", "2018", "!!", "New", "York", "Times", "Bob", "Smith"]
    tags = ["NOUN"] * len(tokens)
    assert nouns(tokens, tags, [(9, 10)]) == ["Dogs"]
    assert nouns(tokens, tags, []) == ["Dogs", "New York Times Bob Smith"]


def test_absent_spacy_model_is_one_line():
    with pytest.raises(InputError, match="python -m spacy download en_absent"):
        grounding.spacy_tagger("en_absent")
