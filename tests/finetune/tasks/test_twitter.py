"""Twitter readers: every trap of the published files, every damage with its line."""

import json
from collections import Counter

import pytest

from finetune.tasks.twitter import (
    NERRow,
    OwnEntities,
    Twitter2015,
    Twitter2017,
    bio_labels,
    entity_types,
    read_rows,
)
from shards.files import InputError

WORD_LABELS = bio_labels()
GOOD = "IMGID:17\nBob\tB-PER\nin\tO\nOslo\tB-LOC\n\nIMGID:18\nthe\tO\nCup\tI-OTHER\n\n"


def ner_row(row, tokens, tags, image_id):
    return NERRow(row=row, tokens=tokens, tags=tags, image_id=image_id)


def write(tmp_path, content, name="train.txt"):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_rows(tmp_path):
    """OTHER becomes MISC, an orphan I- stays, the picture is <id>.jpg."""
    assert read_rows(write(tmp_path, GOOD)) == [
        ner_row(0, ("Bob", "in", "Oslo"), ("B-PER", "O", "B-LOC"), "17.jpg"),
        ner_row(1, ("the", "Cup"), ("O", "I-MISC"), "18.jpg"),
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
    "no words": ("IMGID:1\n\nIMGID:2\nx\tO\n\n", 1, "without words"),
    "cut after IMGID": (GOOD + "IMGID:19", 10, "cut"),
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
    "not UTF-8": (GOOD.encode().replace(b"Oslo", b"Osl\xff"), 4, "0xff at position 3 is no UTF-8"),
    "empty file": ("", None, "no tweet"),
    "only empty lines": ("\n\n\n", None, "no tweet"),
    "binary": (b"\x89PNG\r\n\x1a\n\x00\x00", 1, "0x89 at position 0 is no UTF-8"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_names_the_line(tmp_path, name):
    content, line, message = DAMAGE[name]
    path = write(tmp_path, content)
    with pytest.raises(InputError) as caught:
        read_rows(path)
    text = str(caught.value)
    assert message in text and "\n" not in text
    assert text.startswith(f"{path}: line {line}: " if line else str(path))


def test_every_damaged_tweet_is_listed(tmp_path):
    """One line a tweet, whatever else is wrong with it; the sound ones between are counted."""
    damaged = ["IMGID:1\nBob\tB-PER\nin\n", "x\tO\ny\tO\n", "IMGID:3\nx\tQ\n"]
    damaged.insert(1, "IMGID:2\nok\tO\n")
    with pytest.raises(InputError) as caught:
        read_rows(write(tmp_path, "\n".join(damaged)))
    first, *lines = str(caught.value).split("\n  ")
    assert first.endswith(": 3 of 4 rows cannot be read:")
    assert [line.partition(": ")[0] for line in lines] == ["line 3", "line 8", "line 12"]


OWN = {"tokens": ["Bob", "in", "Oslo"], "tags": ["B-PERSON", "O", "B-PLACE"], "image": "17.png"}
OWN_DAMAGE = {
    "half a character": json.dumps(OWN | {"tokens": ["Bob", "\ud83d", "Oslo"]}),
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
    assert rows[0] == ner_row(0, ("Bob", "in", "Oslo"), ("B-PERSON", "O", "B-PLACE"), "17.png")
    assert rows[1] == ner_row(1, ("x",), ("O",), None)
    assert entity_types(rows) == ("PERSON", "PLACE")


@pytest.mark.parametrize("name", OWN_DAMAGE)
def test_own_damage_names_the_line(tmp_path, name):
    path = write(tmp_path, json.dumps(OWN) + "\n" + OWN_DAMAGE[name] + "\n", "train.jsonl")
    with pytest.raises(InputError) as caught:
        read_rows(path, types=None)
    assert str(caught.value).startswith(f"{path}: line 2: ") and "\n" not in str(caught.value)


def test_split_names(tmp_path):
    task = Twitter2015(tmp_path)
    assert task.split_file("val") is None
    with pytest.raises(InputError, match=r"no val split.*valid\.txt"):
        task.read("val")
    for name in ("valid.txt", "val.txt", "dev.txt"):
        path = write(tmp_path, GOOD, name)
        assert task.split_file("val") == path
        path.unlink()
    write(tmp_path, GOOD, "valid.txt")
    write(tmp_path, GOOD, "dev.txt")
    assert task.split_file("val").name == "dev.txt"
    write(tmp_path, GOOD + GOOD, "dev.txt")
    with pytest.raises(InputError, match="differ"):
        task.split_file("val")


def test_missing_file(tmp_path):
    with pytest.raises(InputError, match="cannot be read"):
        read_rows(tmp_path / "train.txt")


class WordTokenizer:
    """Cuts a word into its characters; `~` has no piece. The parts of the interface in use."""

    def __call__(self, sentences, is_split_into_words, truncation, max_length, **_):
        assert is_split_into_words and truncation
        self.words = []
        for words in sentences:
            pieces = [n for n, word in enumerate(words) for c in word if c != "~"]
            self.words.append([None, *pieces[: max_length - 2], None])
        return self

    def word_ids(self, index):
        return self.words[index]

    def __getitem__(self, key):
        assert key == "input_ids"
        return [[9 if w is None else w for w in words] for words in self.words]


def test_encode_keeps_every_word(tmp_path):
    """A word without pieces points at [CLS]; words beyond the limit are cut, and scored as O."""
    write(tmp_path, "IMGID:1\nab\tB-PER\n~\tO\ncd\tB-LOC\n~\tO\n\n")
    task = Twitter2017(tmp_path)
    rows = task.read("train")
    columns = task.encode(rows, WordTokenizer(), max_length=80)
    assert columns.pop("unread").tolist() == [0]
    assert [column[0].tolist() for column in columns.values()] == [
        [9, 0, 0, 2, 2, 9],
        [1, 0, 3, 0],
        [True] * 4,
        [WORD_LABELS.index(tag) for tag in ("B-PER", "O", "B-LOC", "O")],
    ]
    cut = task.encode(rows, WordTokenizer(), max_length=4)
    assert cut["word_starts"][0].tolist() == [1] and len(cut["labels"][0]) == 1
    predicted = [task.to_answer([WORD_LABELS.index("B-PER")])]
    assert task.score(task.gold(rows), predicted)["recall"] == 50
    assert task.score(task.gold(rows), predicted)["precision"] == 100


def test_own_entities_task(tmp_path):
    write(tmp_path, json.dumps(OWN) + "\n", "train.jsonl")
    task = OwnEntities(tmp_path)
    assert task.info.labels == ("O", "B-PERSON", "I-PERSON", "B-PLACE", "I-PLACE")
    write(tmp_path, json.dumps(OWN | {"tags": ["B-THING", "O", "O"]}) + "\n", "val.jsonl")
    with pytest.raises(InputError, match="unknown type"):
        task.read("val")


def test_image_folder(tmp_path):
    """HVPNeT keeps the pictures beside the text folder; inside is fine, too."""
    task = Twitter2015(tmp_path / "twitter2015")
    assert task.image_folder("val") == tmp_path / "twitter2015" / "twitter2015_images"
    (tmp_path / "twitter2015_images").mkdir()
    assert task.image_folder("val") == tmp_path / "twitter2015_images"


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
    read = (Twitter2015 if year == "2015" else Twitter2017)(shared_data / f"twitter{year}").read(
        split
    )
    tags = Counter(tag for row in read for tag in row.tags)
    assert len(read) == rows
    assert sum(count for tag, count in tags.items() if tag[0] == "B") == begins
    assert set(tags) <= set(WORD_LABELS)
    found = 0
    for row in read:
        for before, tag in zip(("O", *row.tags), row.tags, strict=False):
            found += tag[0] == "I" and before[2:] != tag[2:]
    assert found == orphans
