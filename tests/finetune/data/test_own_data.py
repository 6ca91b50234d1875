"""Your own posts as task files: the tokens carry the marked characters, damage has a line."""

import json
import math

import numpy as np
import pytest
from transformers import AutoTokenizer

from finetune import registry
from finetune.__main__ import main
from finetune.data.check import dictionary
from finetune.data.own_data import convert
from finetune.tasks import metrics
from finetune.tasks.mnre import MARKERS, Mnre, mark_entities
from finetune.tasks.relations import OwnRelations
from finetune.tasks.twitter import NERRow, OwnEntities
from shards.files import InputError


def write(path, records):
    path.write_text("\n".join(json.dumps(r, ensure_ascii=False) for r in records) + "\n")
    return path


def test_relations_from_text_and_from_csv(tmp_path):
    first = {"text": "Bob in Oslo!", "head": "Bob", "tail": [7, 11], "relation": "lives"}
    second = {"text": "Zoë's Café, Rome", "head": [0, 3], "tail": "Rome", "relation": "None"}
    posts = [first | {"image": "1.jpg"}, second]
    rows = list(convert(write(tmp_path / "a.jsonl", posts), "relations"))
    assert rows[0] == {
        "tokens": ["Bob", "in", "Oslo", "!"], "head": [0, 1], "tail": [2, 3],
        "image": "1.jpg", "relation": "lives",
    }  # fmt: skip
    (tmp_path / "b.csv").write_text(
        "text,head,tail,relation,image\n"
        'Bob in Oslo!,Bob,"[7, 11]",lives,1.jpg\n"Zoë\'s Café, Rome","[0, 3]",Rome,None,\n'
    )
    assert list(convert(tmp_path / "b.csv", "relations")) == rows
    command = f"data convert {tmp_path}/b.csv --to relations --out {tmp_path}/mine/train.jsonl"
    main(command.split())
    task = OwnRelations(tmp_path / "mine")
    assert [(r.tokens[r.head[0]], r.tokens[r.tail[0]]) for r in task.read("train")] == [
        ("Bob", "Oslo"),
        ("Zoë", "Rome"),
    ]


def test_entities_survive_the_way_there_and_back(tmp_path):
    """200 random texts with random marks: the tagged tokens hold exactly the marked letters."""
    generator = np.random.default_rng(0)
    words = ["Bob", "naïve", "#tag", "@you", "a-b", "3.5", "…", "in", "Oslo,", "U.S."]
    posts = []
    for _ in range(200):
        text = " ".join(generator.choice(words, generator.integers(1, 9)))
        spans, start = [], 0
        while (start := start + int(generator.integers(4))) < len(text):
            end = min(len(text), start + int(generator.integers(1, 7)))
            if any(c.isalnum() for c in text[start:end]):
                spans.append([start, end, str(generator.choice(["PER", "LOC"]))])
            start = end
        posts.append({"text": text, "label": spans, "image": "x.jpg"})
    source = write(tmp_path / "posts.jsonl", posts)
    command = f"data convert {source} --to entities --offsets characters"
    main([*command.split(), "--out", f"{tmp_path}/ner/train.jsonl"])
    rows = OwnEntities(tmp_path / "ner").read("train")
    for post, row in zip(posts, rows, strict=True):
        found = metrics.entities(row.tags)
        tokens = ["".join(row.tokens[first : last + 1]) for _, first, last in found]
        marked = ["".join(post["text"][s:e].split()) for s, e, _ in sorted(post["label"])]
        assert tokens == marked
        assert "".join(row.tokens) == "".join(post["text"].split())


@pytest.mark.parametrize(
    ("kind", "record", "message"),
    [
        ("relations", {"text": "Bob in Oslo", "relation": "x"}, "head and tail are missing"),
        ("relations", {"text": "Bob in Oslo", "head": "Bob", "tail": "Oslo"}, "relation is miss"),
        ("relations", {"text": "a a b", "head": "a", "tail": "b", "relation": "x"}, "occurs 2"),
        ("relations", {"text": "a b", "head": [0, 1], "tail": [2, 9], "relation": "x"}, "outside"),
        ("relations", {"text": "a b", "head": "a", "tail": "b", "relation": "x", "image": "i/a"},
         "image must be a file name"),
        ("entities", {"text": " ", "entities": []}, "text must be"),
        ("entities", {"text": "Bob"}, "entities must be a list"),
        ("entities", {"text": "Bob", "entities": [[0, 4, "PER"]]}, "outside 3 characters"),
        ("entities", {"text": "Bob", "entities": [[0, 2, "PER"], [1, 3, "LOC"]]}, "overlap at"),
        ("entities", {"text": "Bob", "entities": [[0, 2, "A B"]]}, "has a blank"),
        ("entities", {"text": "Bob", "entities": [[0, 2, "-PER"]]}, "begins with -"),
        ("entities", {"text": "a  b", "entities": [[1, 3, "X"]]}, "holds no word"),
    ],
)  # fmt: skip
def test_damage_is_one_line_with_its_place(tmp_path, kind, record, message):
    good = {"text": "a b", "head": "a", "tail": "b", "relation": "x", "entities": []}
    source = write(tmp_path / "posts.jsonl", [good, record])
    with pytest.raises(InputError, match=rf"posts\.jsonl: line 2: .*{message}"):
        list(convert(source, kind))


def test_damaged_csv(tmp_path):
    source = tmp_path / "posts.csv"
    source.write_text("text,head,relation\nBob,Bob\n")
    with pytest.raises(InputError, match=r"posts\.csv: line 2: 2 fields, the header names 3"):
        list(convert(source, "relations"))
    with pytest.raises(InputError, match="cannot be read"):
        list(convert(tmp_path / "no.csv", "relations"))


def test_posts_are_not_replaced_by_their_rows(tmp_path, capsys):
    path = write(
        tmp_path / "train.jsonl", [{"text": "a b", "head": "a", "tail": "b", "relation": "r"}]
    )
    before = path.read_bytes()
    (tmp_path / "link.jsonl").symlink_to(path)
    for out in (path, tmp_path / "link.jsonl"):
        with pytest.raises(SystemExit):
            main(["data", "convert", str(path), "--to", "relations", "--out", str(out)])
        assert "is the file of the posts" in capsys.readouterr().err
    assert path.read_bytes() == before


def test_what_is_not_read_is_said(tmp_path, capsys):
    """Columns of a table and keys of JSON lines, each with its number of posts."""
    post = {"text": "Bob in Oslo", "head": "Bob", "tail": "Oslo", "relation": "x"}
    posts = [post | {"author": "me", "tags": []}, post | {"author": "you"}]
    convert(write(tmp_path / "a.jsonl", posts), "relations")
    assert f"{tmp_path}/a.jsonl: not read: author of 2 posts, tags of 1" in capsys.readouterr().err
    table = tmp_path / "a.csv"
    table.write_text("text,head,tail,relation,relaton\nBob in Oslo,Bob,Oslo,x,y\n")
    convert(table, "relations")
    assert "a.csv: not read: relaton of 1 posts" in capsys.readouterr().err
    convert(write(tmp_path / "b.jsonl", [post]), "relations")
    assert capsys.readouterr().err == ""


def test_positions_after_a_windows_line_end(tmp_path):
    """A line end inside a cell is two characters, as in the file."""
    table = tmp_path / "a.csv"
    table.write_bytes(b'text,entities\r\n"Bob\r\nin Oslo","[[8, 12, ""LOC""]]"\r\n')
    (row,) = convert(table, "entities")
    assert row["tokens"] == ["Bob", "in", "Oslo"] and row["tags"] == ["O", "O", "B-LOC"]


def test_check_counts_word_pieces(mnre_folder, tiny_model, capsys):
    """With the marks of the entities and both ends, as training cuts them."""
    command = f"data check --task mnre --data {mnre_folder} --tokenizer {tiny_model}"
    main(command.split())
    printed = capsys.readouterr().out
    task, tokenizer = Mnre(mnre_folder), AutoTokenizer.from_pretrained(tiny_model)
    tokenizer.add_tokens(list(MARKERS), special_tokens=True)
    lengths = sorted(
        len(tokenizer(" ".join(mark_entities(row.tokens, row.head, row.tail)))["input_ids"])
        for row in task.read("train")
    )
    middle, most = lengths[math.ceil(len(lengths) / 2) - 1], lengths[math.ceil(0.95 * 120) - 1]
    line = f"word pieces a row: median {middle}, 95 % up to {most}, longest {lengths[-1]}"
    assert line in printed


def test_dictionary_of_entities():
    """The longest entry wins, with its commonest type; what train has not is not found."""

    def row(text, tags):
        return NERRow(row=0, image_id=None, tokens=tuple(text.split()), tags=tuple(tags.split()))

    train = [
        row("New York loves York", "B-LOC I-LOC O B-PER"),
        row("York and York", "B-LOC O B-LOC"),
    ]
    val = [row("York or New York or Oslo", "B-LOC O B-LOC I-LOC O B-LOC")]
    (line,) = dictionary({"train": train, "val": val})
    assert line.startswith("val: the 2 entities of train, looked up, reach F1 80.0 ")
    assert dictionary({"val": val}) == []


@pytest.mark.parametrize(("year", "f1"), [("2015", "30.2"), ("2017", "62.8")])
def test_dictionary_on_real_tweets(shared_data, year, f1):
    task = registry.load("tasks", f"twitter{year}")(shared_data / f"twitter{year}")
    (line,) = dictionary({split: task.read(split) for split in ("train", "val")})
    assert f"reach F1 {f1} " in line


def test_check_counts_what_is_there(mnre_folder, capsys):
    (mnre_folder / "img_org/val/val3.jpg").unlink()
    main(["data", "check", "--task", "mnre", "--data", str(mnre_folder)])
    printed = capsys.readouterr().out
    assert "120 rows" in printed and "29 there, 1 missing, for example val3.jpg" in printed
    assert "train: 120 rows, 120 pictures, " in printed


def test_check_states_what_can_be_read_in_two_ways(tmp_path, capsys):
    """IOB1 tags have their types; an orphan I-, a contradiction and a row without picture count."""
    (tmp_path / "ner").mkdir()
    tagged = {"tokens": ["Bob", "in", "Oslo"], "tags": ["I-PER", "O", "I-LOC"]}
    write(tmp_path / "ner/train.jsonl", [tagged, tagged | {"tags": ["O", "O", "I-LOC"]}])
    main(["data", "check", "--task", "entities", "--data", str(tmp_path / "ner")])
    printed = capsys.readouterr().out
    assert "LOC 2, PER 1" in printed and "0 pictures (2 rows without one)" in printed
    assert "1 (first: 1 and 2) repeated with another answer" in printed
    assert "3 I- tags after O, in 2 posts" in printed


def test_check_of_a_folder_without_splits(tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["data", "check", "--task", "twitter2017", "--data", str(tmp_path)])
    assert "no split of the task twitter2017" in capsys.readouterr().err


def test_check_lists_the_damage_of_every_split(mnre_folder, capsys):
    for split, line in (("train", 4), ("test", 2)):
        path = mnre_folder / f"txt/ours_{split}.txt"
        lines = path.read_text().splitlines()
        lines[line - 1] = "{no row"
        path.write_text("\n".join(lines) + "\n")
    with pytest.raises(SystemExit, match="2"):
        main(["data", "check", "--task", "mnre", "--data", str(mnre_folder)])
    errors = capsys.readouterr().err
    assert "ours_train.txt: line 4" in errors and "ours_test.txt: line 2" in errors
