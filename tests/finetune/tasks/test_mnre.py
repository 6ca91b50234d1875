"""The MNRE reader: published counts, every damage with its line, markers and shortening."""

import json

import numpy as np
import pytest

from finetune.tasks.mnre import MARKERS, Mnre, mark_entities, shorten
from shards.files import InputError

GOOD = {
    "token": ["RT", "@x", ":", "Ann", "and", "Bob"],
    "h": {"name": "Ann", "pos": [3, 4]},
    "t": {"name": "Bob", "pos": [5, 6]},
    "img_id": "1.jpg",
    "relation": "/per/per/couple",
}
RELATIONS = {"None": 0, "/per/per/couple": 1}


def read(tmp_path, *lines):
    (tmp_path / "txt").mkdir()
    (tmp_path / "ours_rel2id.json").write_text(json.dumps(RELATIONS))
    (tmp_path / "txt/ours_val.txt").write_text("".join(f"{line}\n" for line in lines))
    return Mnre(tmp_path).read("val")


def test_good_line(tmp_path):
    *_, row = read(tmp_path, *[repr(GOOD)] * 7)
    assert (row.row, row.image_id, row.relation) == (6, "1.jpg", "/per/per/couple")
    assert (row.head, row.tail) == ((3, 4), (5, 6))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("", "not a Python literal"),
        (" ", "not a Python literal"),
        ("{'token': [", "not a Python literal"),
        ("__import__('os').system('true')", "not a Python literal"),
        ("{'a'}.pop()", "not a Python literal"),
        ("[1, 2]", "not a dict"),
        (json.dumps(GOOD)[:-1] + ", 'x': true}", "not a Python literal"),
        (repr({k: v for k, v in GOOD.items() if k != "token"}), "key 'token' is missing"),
        (repr({k: v for k, v in GOOD.items() if k != "h"}), "key 'h' is missing"),
        (repr({k: v for k, v in GOOD.items() if k != "t"}), "key 't' is missing"),
        (repr({k: v for k, v in GOOD.items() if k != "img_id"}), "key 'img_id' is missing"),
        (repr({k: v for k, v in GOOD.items() if k != "relation"}), "key 'relation' is missing"),
        (repr(GOOD | {"token": "RT Ann"}), "'token' is not a list of str"),
        (repr(GOOD | {"token": ["RT", "\ud83d"]}), "'token' holds half a character"),
        (repr(GOOD | {"token": ["RT", 3]}), "'token' is not a list of str"),
        (repr(GOOD | {"token": []}), "outside 0 tokens"),
        (repr(GOOD | {"img_id": 3}), "'img_id' is not a file name"),
        (repr(GOOD | {"img_id": ""}), "'img_id' is not a file name"),
        (repr(GOOD | {"img_id": "../../etc/passwd"}), "'img_id' is not a file name"),
        (repr(GOOD | {"relation": "/per/per/rival"}), "relation '/per/per/rival' is not in"),
        (repr(GOOD | {"relation": 1}), "relation 1 is not in"),
        (repr(GOOD | {"h": [3, 4]}), "'h' pos must be [start, end)"),
        (repr(GOOD | {"h": {"name": "Ann"}}), "'h' pos must be [start, end)"),
        (repr(GOOD | {"h": {"name": "Ann", "pos": [3]}}), "'h' pos must be [start, end)"),
        (
            repr(GOOD | {"h": {"name": "Ann", "pos": ["3", "4"]}}),
            "'h' pos must be [start, end) in tokens",
        ),
        (
            repr(GOOD | {"h": {"name": "Ann", "pos": [True, 4]}}),
            "'h' pos must be [start, end) in tokens",
        ),
        (repr(GOOD | {"t": {"name": "Bob", "pos": [5, 5]}}), "'t' pos [5, 5) is empty"),
        (repr(GOOD | {"t": {"name": "Bob", "pos": [6, 5]}}), "'t' pos [6, 5) is empty"),
        (repr(GOOD | {"t": {"name": "Bob", "pos": [5, 7]}}), "outside 6 tokens"),
        (repr(GOOD | {"t": {"name": "Bob", "pos": [-1, 2]}}), "outside 6 tokens"),
        ("(" * 500 + ")" * 500, "not a Python literal"),
    ],
)
def test_damaged_line(tmp_path, line, message):
    """One line: file, line number counted from 1, what is wrong."""
    with pytest.raises(InputError) as error:
        read(tmp_path, *[repr(GOOD)] * 6, line, repr(GOOD))
    text = str(error.value)
    assert "ours_val.txt: line 7: " in text and message in text and "\n" not in text


def test_all_damaged_lines_are_listed_at_once(tmp_path):
    """The first twenty with their reasons, then a count."""
    damaged = [repr(GOOD | {"img_id": ""}), "(", repr(GOOD | {"h": {"pos": [3, 9]}})] * 8
    with pytest.raises(InputError) as error:
        read(tmp_path, repr(GOOD), *damaged, repr(GOOD))
    first, *lines = str(error.value).split("\n  ")
    assert first == f"{tmp_path}/txt/ours_val.txt: 24 of 26 rows cannot be read:"
    assert lines[:3] == [
        "line 2: 'img_id' is not a file name",
        "line 3: not a Python literal",
        "line 4: 'h' pos [3, 9) is empty or outside 6 tokens",
    ]
    assert len(lines) == 21 and lines[-1] == "and 4 more"


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "{}",
        '{"None": "0"}',
        '{"None": 1}',
        '{"None": 0, "a": 0}',
        '{"None": true}',
        "{",
        '{"": 0}',
        '{"None": 0, " ": 1}',
    ],
)
def test_damaged_relations(tmp_path, content):
    (tmp_path / "ours_rel2id.json").write_text(content)
    with pytest.raises(InputError, match=r"ours_rel2id\.json"):
        Mnre(tmp_path)


def test_missing_folder_and_split(tmp_path, mnre_folder):
    with pytest.raises(InputError, match=r"ours_rel2id\.json: missing"):
        Mnre(tmp_path / "nothing")
    (mnre_folder / "txt" / "ours_val.txt").unlink()
    with pytest.raises(InputError, match=r"ours_val\.txt: missing"):
        Mnre(mnre_folder).read("val")
    (mnre_folder / "txt" / "ours_val.txt").write_text("")
    with pytest.raises(InputError, match="empty"):
        Mnre(mnre_folder).read("val")


def test_mark_at_the_start_and_empty_lines_at_the_end(mnre_folder):
    path = mnre_folder / "txt" / "ours_val.txt"
    plain = Mnre(mnre_folder).read("val")
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n") + b"\r\n\n")
    assert Mnre(mnre_folder).read("val") == plain


def test_bytes_that_are_no_utf8_name_their_line(mnre_folder):
    path = mnre_folder / "txt" / "ours_val.txt"
    path.write_bytes(path.read_bytes().replace(b"RT", b"R\xff", 1))
    with pytest.raises(InputError, match="line 1: byte 0xff"):
        Mnre(mnre_folder).read("val")


def test_dev_is_val(mnre_folder):
    (mnre_folder / "txt" / "ours_val.txt").rename(mnre_folder / "txt" / "ours_dev.txt")
    assert len(Mnre(mnre_folder).read("val")) == 30


def test_other_name_is_counted_aloud(mnre_folder, caplog):
    path = mnre_folder / "txt" / "ours_val.txt"
    first, *rest = path.read_text().splitlines()
    path.write_text("\n".join([first.replace("'name': '", "'name': 'Mr. ", 1), *rest]))
    with caplog.at_level("WARNING"):
        assert len(Mnre(mnre_folder).read("val")) == 30
    assert "in 1 rows (first: line 1)" in caplog.text


@pytest.mark.parametrize(
    ("head", "tail", "expected"),
    [
        ((0, 1), (2, 4), "[E1] a [/E1] b [E2] c d [/E2]"),  # ends at the last token
        ((2, 3), (1, 2), "a [E2] b [/E2] [E1] c [/E1] d"),  # adjacent, tail first: hvpnet.md §2.1
        ((0, 2), (0, 4), "[E2] [E1] a b [/E1] c d [/E2]"),  # same start: the longer one outside
        ((0, 4), (2, 4), "[E1] a b [E2] c d [/E2] [/E1]"),  # same end
        ((0, 4), (1, 2), "[E1] a [E2] b [/E2] c d [/E1]"),  # nested
        ((0, 3), (1, 4), "[E1] a [E2] b c [/E1] d [/E2]"),  # crossing
        ((0, 1), (1, 2), "[E1] a [/E1] [E2] b [/E2] c d"),  # adjacent
    ],
)
def test_markers(head, tail, expected):
    assert mark_entities(list("abcd"), head, tail) == expected.split()


def test_shorten_keeps_markers_entities_and_neighbours():
    """[CLS] 10…29 [SEP] with markers 1-4 around 20 and 28, cut to 10."""
    markers = np.array([1, 2, 3, 4])
    ids = np.array([100, *range(10, 20), 1, 20, 2, *range(21, 28), 3, 28, 4, 29, 101])
    short = shorten(ids, markers, 10)
    assert short.tolist() == [100, 19, 1, 20, 2, 21, 3, 28, 4, 101]
    assert shorten(ids, markers, len(ids)).tolist() == ids.tolist()
    assert [len(shorten(ids, markers, n)) for n in range(8, len(ids))] == list(range(8, len(ids)))


def test_encoded_positions_are_the_markers(mnre_folder, tiny_model):
    """Also where the text must be shortened."""
    from pretrain.checkpoint.hub import load_fusion

    task = Mnre(mnre_folder)
    _, tokenizer = load_fusion(tiny_model)
    tokenizer.add_tokens(list(MARKERS), special_tokens=True)
    for max_length in (80, 9):
        columns = task.encode(task.read("train"), tokenizer, max_length)
        ids = columns["input_ids"]
        assert max(map(len, ids)) <= max_length
        for column, marker in (("head_start", "[E1]"), ("tail_start", "[E2]")):
            found = [int(ids[i][position]) for i, position in enumerate(columns[column])]
            assert tokenizer.convert_ids_to_tokens(sorted(set(found))) == [marker]


def test_text_that_holds_a_marker_is_refused(mnre_folder, tiny_model):
    from pretrain.checkpoint.hub import load_fusion

    path = mnre_folder / "txt" / "ours_val.txt"
    path.write_text(path.read_text().replace("'@x'", "'[E1]'", 1))
    task = Mnre(mnre_folder)
    _, tokenizer = load_fusion(tiny_model)
    tokenizer.add_tokens(list(MARKERS), special_tokens=True)
    with pytest.raises(InputError, match="row 0"):
        task.encode(task.read("val"), tokenizer, 80)


def test_published_files(shared_data):
    """The figures of hvpnet.md §1.1 on the real rows."""
    task = Mnre(shared_data / "mnre")
    assert task.info.negative == "None" == task.info.labels[0] and len(task.info.labels) == 23
    expected = {"train": (12_247, 7_356, 7_744, 59, 104), "val": (1_624, 931, 1_000, 3, 16)}
    for split, counts in expected.items():
        rows = task.read(split)
        overlapping = sum(
            max(row.head[0], row.tail[0]) < min(row.head[1], row.tail[1]) for row in rows
        )
        final = sum(max(row.head[1], row.tail[1]) == len(row.tokens) for row in rows)
        images = len({row.image_id for row in rows})
        unrelated = sum(row.relation == "None" for row in rows)
        assert (len(rows), images, unrelated, overlapping, final) == counts
        assert max(len(row.tokens) for row in rows) <= 35
        for row in rows:
            marked = mark_entities(row.tokens, row.head, row.tail)
            assert len(marked) == len(row.tokens) + 4
            assert marked.index("[E1]") < marked.index("[/E1]")
            assert marked.index("[E2]") < marked.index("[/E2]")
    assert task.split_file("test") is None
