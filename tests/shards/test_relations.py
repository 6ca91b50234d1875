"""The shipped relation list follows its rule."""

import pytest

from shards.files import InputError
from shards.relations import SHIPPED, choose, relation_labels


def test_the_shipped_list():
    labels = relation_labels()
    assert len(labels) == len(set(labels)) == 1000
    assert {"spouse", "place of birth", "award received", "member of", "child"} <= set(labels)
    assert all(label == label.strip() and label.isprintable() for label in labels)
    assert not [
        label
        for label in labels
        if any(word in label.lower() for word in ("wiki", "identifier", "sandbox"))
    ]


def test_the_rule_gives_the_shipped_list(shared_data):
    chosen = choose(shared_data / "wikidata_item_properties.tsv", 1000)
    lines = SHIPPED.read_text(encoding="utf-8").splitlines()[1:]
    assert [f"{number}\t{label}" for number, label in chosen] == lines


def test_the_rule(tmp_path):
    rows = [
        "P20\tplace of death\tplace where someone died",
        "P19\tplace of birth\tplace where someone was born",
        "P21\tBAMID identifier\tsomething",
        "P22\ttopic's main Wikimedia portal\tportal",
        "P23\tpart of\tWikimedia category of parts",
        "P24\tplace of birth\tthe same label again",
        "P25\ta label of more than six whole words\tx",
        "P30\t\u200econtinent\tcontinent of the subject",
    ]
    path = tmp_path / "p.tsv"
    path.write_text("id\tlabel\tdescription\n" + "\n".join(rows))
    expected = [("P19", "place of birth"), ("P20", "place of death"), ("P30", "continent")]
    assert choose(path, 3) == expected
    with pytest.raises(InputError, match="only 3"):
        choose(path, 4)
    path.write_text("a\tb\n1\t2\n")
    with pytest.raises(InputError, match="header"):
        choose(path, 1)


def test_a_list_of_the_users(tmp_path):
    (tmp_path / "r.txt").write_text("works for\nlives in\n")
    assert relation_labels(tmp_path / "r.txt") == ["works for", "lives in"]
