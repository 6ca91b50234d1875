"""Twitter readers: every trap of the published files, every damage with its line."""

import json
from collections import Counter

import pytest

from finetune.tasks.twitter import (
    PIECE_LABELS,
    WORD_LABELS,
    NERRow,
    entity_types,
    read_rows,
    split_path,
)
from pretrain.cli import InputError

GOOD = "IMGID:17\nBob\tB-PER\nin\tO\nOslo\tB-LOC\n\nIMGID:18\nthe\tO\nCup\tI-OTHER\n\n"


def write(tmp_path, content, name="train.txt"):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_rows(tmp_path):
    """OTHER becomes MISC, an orphan I- stays, the picture is <id>.jpg."""
    assert read_rows(write(tmp_path, GOOD)) == [
        NERRow(0, ("Bob", "in", "Oslo"), ("B-PER", "O", "B-LOC"), "17.jpg"),
        NERRow(1, ("the", "Cup"), ("O", "I-MISC"), "18.jpg"),
    ]


@pytest.mark.parametrize(
    "same",
    [
        GOOD.rstrip("\n"),
        GOOD.replace("\n", "\r\n"),
        "\ufeff" + GOOD,
        GOOD.replace("\n\n", "\n\n\n"),
    ],
    ids=["no last empty line", "windows lines", "byte order mark", "two empty lines"],
)
def test_harmless_variants(tmp_path, same):
    assert read_rows(write(tmp_path, same)) == read_rows(write(tmp_path, GOOD, "other.txt"))


def test_words_without_pieces_and_unicode_line_ends_are_words(tmp_path):
    """A variation selector, a soft hyphen and U+2028 each stay one word with its tag."""
    words = ["\ufe0f", "\u00ad", "a\u2028b", "\x85x"]
    path = write(tmp_path, "IMGID:1\n" + "".join(f"{word}\tO\n" for word in words) + "\n")
    assert read_rows(path)[0].tokens == tuple(words)


DAMAGE = {
    "word before IMGID": ("Bob\tB-PER\n\n", 1, "before the tweet's IMGID"),
    "lost empty line": (GOOD.replace("\n\nIMGID", "\nIMGID"), 5, "inside a tweet"),
    "no words": ("IMGID:1\n\nIMGID:2\nx\tO\n\n", 2, "without words"),
    "cut after IMGID": (GOOD + "IMGID:19", None, "cut"),
    "empty id": (GOOD.replace("IMGID:18", "IMGID:"), 6, "picture's id"),
    "id with a folder": (GOOD.replace("IMGID:18", "IMGID:../18"), 6, "picture's id"),
    "no tab": (GOOD.replace("in\tO", "in O"), 3, "word<TAB>tag"),
    "two tabs": (GOOD.replace("in\tO", "in\tO\tO"), 3, "tag"),
    "no tag": (GOOD.replace("in\tO", "in\t"), 3, "word<TAB>tag"),
    "no word": (GOOD.replace("in\tO", "\tO"), 3, "word<TAB>tag"),
    "blank word": (GOOD.replace("in\tO", " \tO"), 3, "word<TAB>tag"),
    "unknown type": (GOOD.replace("B-LOC", "B-XYZ"), 4, "unknown type"),
    "cut tag": (GOOD.replace("B-LOC", "B-"), 4, "is not O"),
    "lower case tag": (GOOD.replace("in\tO", "in\to"), 3, "is not O"),
    "BIOES tag": (GOOD.replace("B-LOC", "S-LOC"), 4, "is not O"),
    "tag with a blank": (GOOD.replace("B-LOC", "B-LOC "), 4, "type"),
    "not UTF-8": (GOOD.encode().replace(b"Oslo", b"Osl\xff"), 4, "not UTF-8"),
    "empty file": ("", None, "no tweet"),
    "only empty lines": ("\n\n\n", None, "no tweet"),
    "binary": (b"\x89PNG\r\n\x1a\n\x00\x00", 1, "not UTF-8"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_names_the_line(tmp_path, name):
    content, line, message = DAMAGE[name]
    path = write(tmp_path, content)
    with pytest.raises(InputError) as caught:
        read_rows(path)
    text = str(caught.value)
    assert message in text and "\n" not in text
    assert text.startswith(f"{path}:{line}:" if line else str(path))


OWN = {"tokens": ["Bob", "in", "Oslo"], "tags": ["B-PERSON", "O", "B-PLACE"], "image": "17.png"}
OWN_DAMAGE = {
    "not JSON": "{'tokens': []}",
    "not an object": "[]",
    "missing key": json.dumps({"tokens": ["a"]}),
    "unknown key": json.dumps(OWN | {"img": "x"}),
    "lengths": json.dumps(OWN | {"tags": ["O"]}),
    "no tokens": json.dumps(OWN | {"tokens": [], "tags": []}),
    "empty word": json.dumps(OWN | {"tokens": ["", "in", "Oslo"]}),
    "number for a word": json.dumps(OWN | {"tokens": [1, "in", "Oslo"]}),
    "string for a list": json.dumps(OWN | {"tokens": "Bob"}),
    "image a number": json.dumps(OWN | {"image": 17}),
    "image empty": json.dumps(OWN | {"image": ""}),
    "odd tag": json.dumps(OWN | {"tags": ["B-PERSON", "0", "B-PLACE"]}),
    "cut line": json.dumps(OWN)[:-5],
}


def test_own_data(tmp_path):
    lines = [json.dumps(OWN), json.dumps({"tokens": ["x"], "tags": ["O"]})]
    path = write(tmp_path, "\n".join(lines) + "\n", "val.jsonl")
    rows = read_rows(path, types=None)
    assert rows[0] == NERRow(0, ("Bob", "in", "Oslo"), ("B-PERSON", "O", "B-PLACE"), "17.png")
    assert rows[1] == NERRow(1, ("x",), ("O",), None)
    assert entity_types(rows) == ("PERSON", "PLACE")
    assert split_path(tmp_path, "val") == path


@pytest.mark.parametrize("name", OWN_DAMAGE)
def test_own_damage_names_the_line(tmp_path, name):
    path = write(tmp_path, json.dumps(OWN) + "\n" + OWN_DAMAGE[name] + "\n", "train.jsonl")
    with pytest.raises(InputError) as caught:
        read_rows(path, types=None)
    assert str(caught.value).startswith(f"{path}:2:") and "\n" not in str(caught.value)


def test_split_names(tmp_path):
    with pytest.raises(InputError, match=r"no val split.*valid\.txt"):
        split_path(tmp_path, "val")
    for name in ("valid.txt", "val.txt", "dev.txt"):
        path = write(tmp_path, GOOD, name)
        assert split_path(tmp_path, "val") == path
        path.unlink()
    write(tmp_path, GOOD, "valid.txt")
    write(tmp_path, GOOD, "dev.txt")
    assert split_path(tmp_path, "val").name == "valid.txt"
    write(tmp_path, GOOD + GOOD, "dev.txt")
    with pytest.raises(InputError, match="differ"):
        split_path(tmp_path, "val")


def test_missing_file(tmp_path):
    with pytest.raises(InputError, match="cannot be read"):
        read_rows(tmp_path / "train.txt")


def test_label_ids_of_the_authors():
    """specs/hvpnet.md §1.3."""
    ids = {label: number for number, label in enumerate(PIECE_LABELS)}
    assert ids["PAD"] == 0 and ids["O"] == 1 and ids["B-MISC"] == 2 and ids["I-PER"] == 5
    assert ids["B-ORG"] == 6 and ids["I-LOC"] == 9 and ids["X"] == 10 and ids["[SEP]"] == 12
    assert WORD_LABELS[0] == "O" and len(WORD_LABELS) == 9


@pytest.mark.parametrize(
    ("year", "split", "rows", "begins", "orphans"),
    [
        ("2015", "train", 4000, 6170, 182),
        ("2015", "val", 1000, 1541, 53),
        ("2017", "train", 3373, 6049, 0),
        ("2017", "val", 723, 1324, 0),
    ],
)
def test_real_files(shared_data, year, split, rows, begins, orphans):
    """The counts of specs/hvpnet.md §1.3."""
    read = read_rows(split_path(shared_data / f"twitter{year}", split))
    tags = Counter(tag for row in read for tag in row.tags)
    assert len(read) == rows
    assert sum(count for tag, count in tags.items() if tag[0] == "B") == begins
    assert set(tags) <= set(WORD_LABELS)
    found = 0
    for row in read:
        for before, tag in zip(("O", *row.tags), row.tags, strict=False):
            found += tag[0] == "I" and before[2:] != tag[2:]
    assert found == orphans
