"""Raw rows: all read, looked up, and either a record or a reject with its reason."""

import json
import os
from collections import Counter

import pytest

from shards.corpora import captions
from shards.files import InputError
from shards.newsclippings import iterate_json_array, newsclippings


def read(root, *subsets):
    return newsclippings(root / "nc", root / "vn", subsets or ["merged_balanced"], "train")


def annotate(root, rows, subset="merged_balanced"):
    path = root / "nc" / "data" / subset / "train.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"annotations": rows}))


@pytest.fixture
def tiny(tmp_path, picture):
    """VisualNews of two articles, 1 and 2; no annotations yet."""
    entries = [
        {"id": n, "caption": f" Text {n}. ", "image_path": f"./bbc/{n}.jpg", "source": "bbc"}
        for n in (1, 2)
    ]
    for n in (1, 2):
        picture(tmp_path / "vn" / "origin" / "bbc" / f"{n}.jpg")
    (tmp_path / "vn" / "origin" / "data.json").write_text(json.dumps(entries))
    return tmp_path


def test_rows_are_looked_up_by_id(tiny):
    rows = [
        {"id": 1, "image_id": 1, "similarity_score": 0.5, "falsified": False},
        {"id": 1, "image_id": 2, "similarity_score": "opaque", "falsified": True},
    ]
    annotate(tiny, rows)
    corpus = read(tiny)
    first, second = (corpus.record(row) for row in (0, 1))
    assert first._asdict() == {
        "row": 0,
        "image": "bbc/1.jpg",
        "caption": "Text 1.",
        "matched": True,
        "caption_id": "1",
        "image_id": "1",
        "source": "merged_balanced",
        "similarity": 0.5,
    }
    assert (second.image, second.caption_id, second.image_id) == ("bbc/2.jpg", "1", "2")
    assert (second.matched, second.similarity) == (False, None)
    assert corpus.pictures.root / first.image == tiny / "vn" / "origin" / "bbc" / "1.jpg"


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (5, "no JSON object"),
        ({"image_id": 1, "falsified": True}, "`id`"),
        ({"id": "1", "image_id": 1, "falsified": True}, "`id`"),
        ({"id": True, "image_id": 1, "falsified": True}, "`id`"),
        ({"id": 1, "image_id": -1, "falsified": True}, "`image_id`"),
        ({"id": 1, "image_id": 2**70, "falsified": True}, "`image_id`"),
        ({"id": 1, "image_id": 1}, "`falsified`"),
        ({"id": 1, "image_id": 1, "falsified": 0}, "`falsified`"),
        ({"id": 9, "image_id": 1, "falsified": True}, "no usable entry 9"),
        ({"id": 1, "image_id": 9, "falsified": True}, "no usable entry 9"),
    ],
)
def test_broken_annotations_are_rejects(tiny, row, reason):
    good = {"id": 1, "image_id": 1, "falsified": False}
    annotate(tiny, [good, row])
    corpus = read(tiny)
    assert corpus.numbers.tolist() == [0] and corpus.rows == 2
    (reject,) = corpus.rejects
    assert reject.row == 1 and reason in reject.reason
    assert corpus.where(reject.row) == "train.json of merged_balanced, annotation 1"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"caption": " \n"}, "no usable caption"),
        ({"caption": None}, "no usable entry"),
        ({"caption": "\ud800"}, "no usable caption"),
        ({"image_path": 3}, "no usable entry"),
        ({"image_path": "bbc/3.jpg"}, "missing"),
        ({"image_path": "bbc"}, "missing"),
        ({"image_path": "../../../etc/passwd"}, "leaves"),
        ({"image_path": "bbc/../../data.json"}, "leaves"),
        ({"image_path": "/etc/passwd"}, "leaves"),
        ({"image_path": "a\0b.jpg"}, "no usable image path"),
        ({"image_path": "x" * 5000}, "missing"),
        ({"image_path": ""}, "missing"),
    ],
)
def test_broken_articles_are_rejects(tiny, change, reason):
    entries = json.loads((tiny / "vn" / "origin" / "data.json").read_text())
    (tiny / "vn" / "origin" / "data.json").write_text(json.dumps([entries[0] | change, entries[1]]))
    annotate(tiny, [{"id": n, "image_id": n, "falsified": False} for n in (1, 2)])
    corpus = read(tiny)
    assert [corpus.record(row).caption_id for row in corpus.numbers.tolist()] == ["2"]
    assert reason in corpus.rejects[0].reason


def test_union_numbers_rows_over_all_subsets(news):
    corpus = read(news, "merged_balanced", "scene_resnet_place")
    assert corpus.numbers.tolist() == list(range(160)) and not corpus.rejects
    records = [corpus.record(row) for row in range(160)]
    assert Counter(r.source for r in records) == {"merged_balanced": 80, "scene_resnet_place": 80}
    assert corpus.where(81) == "train.json of scene_resnet_place, annotation 1"
    assert all(count == 0 for count in corpus.report["invariants"].values())
    assert corpus.report["coverage"]["bbc"] == {"rows": 80, "usable": 80}


def test_broken_invariants_are_counted(tiny):
    rows = [(1, 1, True), (1, 2, True), (2, 2, False), (2, 1, False), (2, 2, False)]
    annotate(tiny, [{"id": a, "image_id": b, "falsified": f} for a, b, f in rows])
    assert read(tiny).report["invariants"] == {
        "even row falsified, or odd row pristine": 2,
        "pristine row of two ids": 1,
        "falsified row of one id": 1,
        "matched rows minus mismatched rows": 1,
    }


def test_partial_corpus_is_reported_per_source(tiny):
    entries = json.loads((tiny / "vn" / "origin" / "data.json").read_text())
    path = "./usa_today/1.jpg"
    entries.append({"id": 3, "caption": "c", "image_path": path, "source": "usa_today"})
    (tiny / "vn" / "origin" / "data.json").write_text(json.dumps(entries))
    annotate(tiny, [{"id": n, "image_id": n, "falsified": False} for n in (1, 3, 4)])
    assert read(tiny).report["coverage"] == {
        "bbc": {"rows": 1, "usable": 1},
        "usa_today": {"rows": 1, "usable": 0},
        "unknown": {"rows": 1, "usable": 0},
    }


@pytest.mark.parametrize("content", ["", "[", "{}", '{"annotations": {}}', "[[[", "\xff"])
def test_broken_annotation_file(tiny, content):
    annotate(tiny, [])
    (tiny / "nc/data/merged_balanced/train.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(InputError, match=r"merged_balanced/train\.json"):
        read(tiny)


def test_missing_subset_names_those_present(news):
    with pytest.raises(InputError, match="merged_balanced"):
        read(news, "person_sbert_text_text")


@pytest.mark.parametrize("chunk", [1, 2, 7, 64, 1 << 20])
def test_json_array_is_streamed(tmp_path, chunk):
    elements = [{"id": n, "text": 'a"]},{[\\' * n, "ü": [1, {"x": None}]} for n in range(20)]
    path = tmp_path / "data.json"
    for indent in (None, 2):
        path.write_text(json.dumps(elements, indent=indent, ensure_ascii=bool(indent)))
        assert list(iterate_json_array(path, chunk)) == elements
    path.write_text(" [ ] ")
    assert list(iterate_json_array(path, chunk)) == []


@pytest.mark.parametrize(
    "content", ["", " ", "{}", "[{}", "[{},", '[{"a":1} {"b":2}]', '[{"a"', "[,]"]
)
@pytest.mark.parametrize("chunk", [1, 1 << 20])
def test_broken_json_array(tmp_path, content, chunk):
    (tmp_path / "data.json").write_text(content)
    with pytest.raises(InputError, match=r"data\.json"):
        list(iterate_json_array(tmp_path / "data.json", chunk))


def test_mismatch_takes_a_caption_of_another_picture(caption_csv):
    corpus = captions(*caption_csv, mismatch=0.5)
    records = [corpus.record(row) for row in corpus.numbers.tolist()]
    assert len(records) == 60 and sum(record.matched for record in records) == 30
    for record in records:
        of = record.caption.rsplit(" ", 1)[1]
        assert (record.image == f"{of}.v1.jpg") == record.matched
    # Equal captions share their id, and different ones do not.
    assert len({(r.caption, r.caption_id) for r in records}) == len({r.caption for r in records})


def test_mismatch_never_takes_an_equal_caption(tmp_path, picture):
    picture(tmp_path / "a.jpg"), picture(tmp_path / "b.jpg")
    (tmp_path / "c.csv").write_text("image,caption\na.jpg,same\nb.jpg,same\n")
    with pytest.raises(InputError, match="--mismatch 0"):
        captions(tmp_path, tmp_path / "c.csv", mismatch=1.0)


def test_fractions_part_the_pictures(caption_csv):
    parts = [captions(*caption_csv, fraction=part) for part in ((0, 0.5), (0.5, 0.9), (0.9, 1))]
    images = [{c.record(row).image for row in c.numbers.tolist()} for c in parts]
    assert [len(part) for part in images] == [10, 8, 2]
    assert len(set.union(*images)) == 20
    # A wrong caption must not come out of the other part either.
    for corpus, own in zip(parts, images, strict=True):
        for row in corpus.numbers.tolist():
            assert corpus.record(row).caption.rsplit(" ", 1)[1] + ".v1.jpg" in own
    again = captions(*caption_csv, fraction=(0, 0.5))
    assert again.numbers.tolist() == parts[0].numbers.tolist()
    other = captions(*caption_csv, fraction=(0, 0.5), seed=1)
    assert other.numbers.tolist() != parts[0].numbers.tolist()


def test_broken_csv_rows_are_rejects(tmp_path, picture):
    picture(tmp_path / "ü 1.jpg")
    content = "image,caption\nü 1.jpg,fine\nü 1.jpg,\nü 1.jpg\nnone.jpg,x\n../c.csv,x\n,x\n"
    (tmp_path / "c.csv").write_bytes(content.encode() + b"\xc3\xbc 1.jpg,\xff\n")
    corpus = captions(tmp_path, tmp_path / "c.csv", mismatch=0)
    assert [corpus.record(row).caption for row in corpus.numbers.tolist()] == ["fine"]
    reasons = [(corpus.where(reject.row), reject.reason) for reject in corpus.rejects]
    assert reasons == [
        ("c.csv line 3", "no usable caption"),
        ("c.csv line 4", "1 field, the header names 2"),
        ("c.csv line 5", "image file is missing"),
        ("c.csv line 6", "image path leaves the image folder"),
        ("c.csv line 7", "no usable image path"),
        ("c.csv line 8", "byte 0xff is no UTF-8; --encoding names another"),
    ]


@pytest.mark.parametrize("content", ["", "picture,text\na,b\n", "image\na\n"])
def test_csv_without_its_header(tmp_path, content):
    (tmp_path / "c.csv").write_text(content)
    with pytest.raises(InputError, match=r"c\.csv.*header"):
        captions(tmp_path, tmp_path / "c.csv")
    os.remove(tmp_path / "c.csv")
    with pytest.raises(InputError, match=r"c\.csv"):
        captions(tmp_path, tmp_path / "c.csv")


def test_one_picture_spelled_two_ways_is_one(tmp_path, picture):
    picture(tmp_path / "1.jpg")
    (tmp_path / "c.csv").write_text("image,caption\n1.jpg,A dog\n./1.jpg,A brown dog\n")
    with pytest.raises(InputError, match=r"no wrong caption found for image 1\.jpg"):
        captions(tmp_path, tmp_path / "c.csv", mismatch=1)
    corpus = captions(tmp_path, tmp_path / "c.csv", mismatch=0)
    assert {corpus.record(row).image_id for row in (0, 1)} == {"1.jpg"}
    assert corpus.report["pictures"] == "1 of 1"


def test_the_share_of_wrong_and_unused_captions_is_said(caption_csv):
    corpus = captions(*caption_csv, mismatch=0.5)
    records = [corpus.record(row) for row in corpus.numbers.tolist()]
    assert corpus.report["mismatched rows"] == "30 of 60 (--mismatch 0.5)"
    carried = {record.caption for record in records}
    assert corpus.report["captions that no row carries"] == 60 - len(carried) > 0
