"""Damaged inputs, several hundred generated ones: every case is named, none is lost, none crashes.

Where rows are independent, one corpus holds a case per row, and all of them must be accounted for.
"""

import io
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from shards.__main__ import main
from shards.corpora import captions
from shards.files import InputError
from shards.newsclippings import newsclippings
from shards.stream import ShardReader
from shards.verify import check
from shards.write import build

WRONG_VALUES = [
    *(None, True, False, 0, -1, 5.5, 2**80, float("nan"), float("inf"), "", " ", "\0", "7"),
    *("\ud800", "\u202e ünï 漢字 🎉", "x" * 5000, [], [7], {}, {"id": 7}, "../../../etc/passwd"),
    *("/etc/passwd", "..", ".", "bbc/../../data.json", "bbc/0.jpg/x", "C:\\x.jpg", "file:///x"),
]


def encode(image: Image.Image, format: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def damaged_pictures() -> list[tuple[str, bytes]]:
    """(suffix, content) of 274 broken or odd picture files."""
    random = np.random.default_rng(0)
    pixels = random.integers(0, 255, (40, 56, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    exif = Image.Exif()
    exif[0x0112] = 6
    whole = {
        "jpg": encode(image, "JPEG", exif=exif),
        "jpeg": encode(image.convert("CMYK"), "JPEG"),
        "png": encode(image.convert("RGBA"), "PNG"),
        "webp": encode(image, "WEBP"),
        "tif": encode(image, "TIFF", compression="tiff_lzw"),
        "bmp": encode(image, "BMP"),
    }
    cases = list(whole.items())
    for suffix, content in whole.items():
        for cut in random.integers(0, len(content), 12):
            cases.append((suffix, content[:cut]))
        # The first bytes hold the header, where a flip can promise absurd sizes.
        for place in [*range(2, 40, 3), *random.integers(0, len(content), 12)]:
            broken = bytearray(content)
            broken[place] ^= int(random.integers(1, 256))
            cases.append((suffix, bytes(broken)))
        for place in random.integers(0, len(content), 6):
            noise = random.integers(0, 256, 16, dtype=np.uint8).tobytes()
            cases.append((suffix, content[:place] + noise + content[place + 16 :]))
    cases += [("jpg", random.bytes(n)) for n in (1, 2, 10, 1000)]
    cases += [("jpg", encode(image, "GIF")), ("jpg", b""), ("jpg", b"<html>"), ("jpg", b"GIF89a")]
    cases += [("png", encode(Image.new("1", (9000, 9000)), "PNG")), ("jpg", b"\xff\xd8\xff\xd9")]
    return cases


def test_pictures(tmp_path):
    cases = damaged_pictures()
    assert len(cases) >= 250
    lines = ["image,caption"]
    for number, (suffix, content) in enumerate(cases):
        (tmp_path / f"{number}.{suffix}").write_bytes(content)
        lines.append(f"{number}.{suffix},case {number}")
    (tmp_path / "c.csv").write_text("\n".join(lines))
    index = build(captions(tmp_path, tmp_path / "c.csv", mismatch=0), tmp_path / "out")
    assert index.rows == len(cases) == index.samples + index.rejects
    rejects = [json.loads(x) for x in (tmp_path / "out" / "rejects.jsonl").read_text().splitlines()]
    reader = ShardReader(tmp_path / "out")
    kept = [s.key for n in range(len(reader.index.shards)) for s in reader.samples(n)]
    rows = sorted([reject["row"] for reject in rejects] + [int(key[-8:]) for key in kept])
    assert rows == list(range(len(cases)))
    assert all(reject["reason"] and reject["where"] for reject in rejects)
    assert index.rejects > 100 and index.samples > 50
    assert list(check(tmp_path / "out")) == []  # what got in can be decoded


def test_values_of_news_rows(news, tmp_path):
    """Every field of an annotation and of an article, with every wrong value."""
    shutil.copytree(news, tmp_path, dirs_exist_ok=True)
    origin = tmp_path / "vn" / "origin"
    article = json.loads((origin / "data.json").read_text())[0]
    articles, rows = [article], []
    good = {"id": 0, "image_id": 0, "similarity_score": 0.5, "falsified": False}
    for field in good:
        rows += [good | {field: value} for value in WRONG_VALUES]
        rows.append({k: v for k, v in good.items() if k != field})
    rows += WRONG_VALUES
    for field in ("caption", "image_path", "source", "id"):
        for value in WRONG_VALUES:
            number = 1000 + len(articles)
            articles.append(article | {"id": number} | {field: value})
            rows.append(good | {"id": number, "image_id": number})
    articles += WRONG_VALUES
    (origin / "data.json").write_text(json.dumps(articles))
    path = tmp_path / "nc" / "data" / "merged_balanced" / "train.json"
    path.write_text(json.dumps({"annotations": rows}))
    corpus = newsclippings(tmp_path / "nc", tmp_path / "vn", ["merged_balanced"], "train")
    index = build(corpus, tmp_path / "out")
    assert index.rows == len(rows) == index.samples + index.rejects
    assert len(rows) > 200 and index.rejects > 120
    assert list(check(tmp_path / "out")) == []


def run(capsys, *arguments) -> tuple[int, str]:
    """(exit status, output) of a command; an error must be one line, and a line below it for each
    bad row of a file, and no traceback."""
    code = 0
    try:
        main([str(argument) for argument in arguments])
    except SystemExit as stopped:
        code = stopped.code
    output = capsys.readouterr()
    assert code in (0, 2) and "Traceback" not in output.err
    if code:
        first, *rows = output.err.splitlines()
        assert first.startswith("error: ") and all(row.startswith("  ") for row in rows)
    return code, output.out + output.err


def damages(content: bytes, number: int, seed: int) -> list[bytes]:
    """Cuts, flips, insertions and doubled parts, each unlike the original."""
    random, cases = np.random.default_rng(seed), [b"", b"\0" * 100, b"\xff\xfe{}", b"[" * 5000]
    while len(cases) < number:
        at, other = sorted(int(place) for place in random.integers(0, len(content), 2))
        broken = bytearray(content)
        broken[at] ^= int(random.integers(1, 256))
        noise = random.bytes(8)
        for case in (content[:at], bytes(broken), content[:at] + noise + content[at:]):
            cases.append(case)
        cases.append(content[:other] + content[at:])
    return [case for case in cases if case != content][:number]


def test_raw_json_files(news, tmp_path, capsys):
    shutil.copytree(news, tmp_path, dirs_exist_ok=True)
    annotations = tmp_path / "nc" / "data" / "merged_balanced" / "train.json"
    raw = ["--news-clippings", tmp_path / "nc", "--visual-news", tmp_path / "vn"]
    for file in (annotations, tmp_path / "vn" / "origin" / "data.json"):
        content = file.read_bytes()
        for number, case in enumerate(damages(content, 30, seed=1)):
            file.write_bytes(case)
            out = tmp_path / f"{file.stem}-{number}"
            options = ["--split", "train", "--out", out, "--jobs", 1]
            code, output = run(capsys, "build", "newsclippings", *raw, *options)
            if code:
                assert file.name in output or "no usable" in output
            else:
                index = ShardReader(out).index
                assert index.rows == index.samples + index.rejects
        file.write_bytes(content)


def test_csv_files(caption_csv, tmp_path, capsys):
    images, file = caption_csv
    for number, case in enumerate(damages(file.read_bytes(), 40, seed=2)):
        file.write_bytes(case)
        out = tmp_path / f"out-{number}"
        options = ["--images", images, "--captions", file, "--out", out, "--jobs", 1]
        code, output = run(capsys, "build", "captions", *options)
        if code:
            assert "captions.csv" in output or "no usable" in output
        else:
            index = ShardReader(out).index
            assert index.rows == index.samples + index.rejects


@pytest.fixture
def shards(news_shards, tmp_path) -> Path:
    """With a complete objects column."""
    shutil.copytree(news_shards, tmp_path / "shards")
    box = {"box": [0, 0, 9, 9], "score": 0.5, "label": "dog"}
    lines = [json.dumps({"image_id": 7 * n, "objects": [box] * (n % 3)}) for n in range(40)]
    (tmp_path / "boxes.jsonl").write_text("\n".join(lines))
    options = ["--detector", "file", "--boxes", str(tmp_path / "boxes.jsonl")]
    main(["detect", str(tmp_path / "shards"), *options])
    return tmp_path / "shards"


@pytest.mark.parametrize(
    ("name", "cases"),
    [
        ("train-000002.tar", 80),
        ("index.json", 60),
        ("objects/column.json", 40),
        ("objects/train-000002.safetensors", 60),
        ("rows/train-000002.safetensors", 60),
        ("rejects.jsonl", 4),
    ],
)
def test_shard_files(shards, capsys, name, cases):
    file = shards / name
    content = file.read_bytes() or b"{}"
    whole = {sample.key for n in range(8) for sample in ShardReader(shards).samples(n)}
    capsys.readouterr()
    for case in damages(content, cases, seed=3):
        file.write_bytes(case)
        code, output = run(capsys, "verify", shards)
        changed_nothing = name.endswith(".json") and _same_json(case, content)
        if name != "rejects.jsonl" or case:  # an empty list of rejects is the right one here
            assert changed_nothing or (code == 2 and _names(name, output)), case
        try:
            reader = ShardReader(shards, columns=["objects"])
            keys = [sample.key for n in range(8) for sample in reader.samples(n)]
            # A flip inside a caption, a picture or a key passes here; `verify` has named it.
            assert len(keys) == len(whole)
        except InputError as error:
            assert _names(name, str(error))


def _names(name: str, output: str) -> bool:
    """An index is also named by the file that it contradicts."""
    return Path(name).stem in output or (name.endswith(".json") and "train-" in output)


def _same_json(one: bytes, other: bytes) -> bool:
    """Whether two indexes say the same of the shards: options and versions are free text."""
    try:
        first, second = json.loads(one), json.loads(other)
        for index in (first, second):
            index.pop("provenance")
        return first == second
    except (ValueError, AttributeError, KeyError, RecursionError):
        return False


def test_boxes_files(shards, tmp_path, capsys):
    file = tmp_path / "boxes.jsonl"
    for case in damages(file.read_bytes(), 60, seed=4):
        file.write_bytes(case)
        options = ["--detector", "file", "--boxes", file]
        code, output = run(capsys, "detect", shards, *options)
        assert code == 0 or re.search(r"boxes\.jsonl: (line|holds no line|\d+ of \d+ rows)", output)
        if code == 0:
            assert run(capsys, "verify", shards)[0] == 0
