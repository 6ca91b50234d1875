"""The same captions in each format that is read; what is damaged is a reject with its place."""

import json
import re
from pathlib import Path

import pytest

from shards.boxes import FileDetector
from shards.caption_files import CaptionRow, read_caption_rows
from shards.corpora import captions
from shards.files import InputError
from shards.records import Refused
from shards.schema import PictureMeta

ROWS = [("1.jpg", "A dog, brown."), ("1.jpg", 'It "barks"'), ("b/2.jpg", "Zwei Hünde")]


def coco(rows) -> dict:
    names = list(dict.fromkeys(image for image, _ in rows))
    return {
        "images": [{"id": 7 + n, "file_name": name} for n, name in enumerate(names)],
        "annotations": [
            {"id": n, "image_id": 7 + names.index(image), "caption": text}
            for n, (image, text) in enumerate(rows)
        ],
    }


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", 'image,caption\n1.jpg,"A dog, brown."\n1.jpg,"It ""barks"""\nb/2.jpg,Zwei Hünde'),
        (
            "a.tsv",
            'image\tcaption\n1.jpg\tA dog, brown.\n1.jpg\t"It ""barks"""\nb/2.jpg\tZwei Hünde',
        ),
        (
            "results.csv",
            "image_name| comment_number| comment\n1.jpg| 0| A dog, brown.\n"
            '1.jpg| 1| "It ""barks"""\nb/2.jpg| 0| Zwei Hünde\n',
        ),
        ("a.jsonl", "\n".join(json.dumps({"image": i, "caption": c}) for i, c in ROWS)),
        ("captions_val.json", json.dumps(coco(ROWS))),
    ],
)
def test_every_format_gives_the_same_rows(tmp_path, name, content):
    (tmp_path / name).write_text(content, encoding="utf-8")
    rows = read_caption_rows(tmp_path / name)
    assert all(isinstance(row, CaptionRow) for row in rows)
    read = [(row.image, row.caption.strip().strip('"').replace('""', '"')) for row in rows]
    assert read == [(image, caption.strip('"')) for image, caption in ROWS]


def test_flickr30k_s_row_without_a_delimiter_is_a_reject(tmp_path):
    """As the published file has one."""
    (tmp_path / "results.csv").write_text(
        "image_name| comment_number| comment\n1.jpg| 3| A dog .\n1.jpg| 4   A dog runs .\n"
    )
    first, second = read_caption_rows(tmp_path / "results.csv")
    assert first == CaptionRow(2, "1.jpg", " A dog .")
    assert second == Refused(3, "2 fields, the header names 3")


def test_damaged_entries_are_rejects_with_their_place(tmp_path, picture):
    picture(tmp_path / "1.jpg")
    content = coco([("1.jpg", "fine"), ("1.jpg", 5), ("1.jpg", "lost")])
    content["annotations"][2]["image_id"] = 99
    (tmp_path / "c.json").write_text(json.dumps(content))
    (tmp_path / "c.jsonl").write_text('{"image": "1.jpg", "caption": "fine"}\n{"image": 1}\n{\n')
    for name, unit, reasons in (
        ("c.json", "annotation", ["`caption` is missing", "`image_id` 99 is no image"]),
        ("c.jsonl", "line", ["needs the texts", "not valid JSON"]),
    ):
        corpus = captions(tmp_path, tmp_path / name, mismatch=0)
        assert [corpus.record(row).caption for row in corpus.numbers.tolist()] == ["fine"]
        assert corpus.rows == 3
        for number, (reject, reason) in enumerate(zip(corpus.rejects, reasons, strict=True)):
            assert corpus.where(reject.row) == f"{name} {unit} {number + 2}"
            assert reason in reject.reason


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("c.json", "[]", "not a JSON object"),
        ("c.json", "{}", "no lists `images` and `annotations`"),
        ("c.json", '{"images": [{}], "annotations": []}', "image 1 has no `id`"),
        ("c.json", '{"images": [{"id": 1}, {"id": 1}], "annotations": []}', "appears twice"),
        ("c.csv", "a,b\n1,2\n", "the header must name `image` and `caption`"),
    ],
)
def test_files_that_are_none(tmp_path, name, content, problem):
    (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match=problem.replace("[", r"\[")):
        read_caption_rows(tmp_path / name)
    with pytest.raises(InputError, match="not of JSON"):
        read_caption_rows(tmp_path / "c.jsonl", delimiter="tab")


def test_the_page_of_formats_says_what_is_read(tmp_path):
    """Each example of shards/README.md is taken as it stands."""
    text = (Path(__file__).parents[2] / "shards/README.md").read_text(encoding="utf-8")
    _, table, reject, _, sample, boxes = re.findall(r"^```\n(.*?)^```$", text, re.M | re.S)
    (tmp_path / "c.csv").write_text(table)
    rows = read_caption_rows(tmp_path / "c.csv")
    assert rows == [
        CaptionRow(2, "1.jpg", "A dog, brown."), CaptionRow(3, "b/2.jpg", "Two men on a bench ."),
    ]  # fmt: skip
    (tmp_path / "c.jsonl").write_text(re.search(r"^\.jsonl +(.*)$", text, re.M)[1])
    assert read_caption_rows(tmp_path / "c.jsonl") == [CaptionRow(1, "1.jpg", "A dog, brown.")]
    assert json.loads(reject).keys() == {"row", "where", "reason"}
    picture = PictureMeta.parse(sample.encode(), "sample")
    assert [pair.matched for pair in picture.pairs] == [True, False]
    (tmp_path / "b.jsonl").write_text(boxes)
    assert FileDetector(tmp_path / "b.jsonl")
