"""Generated posts, rows and pictures, valid but crooked, through every door: none is lost, nothing
raises, and what is accepted gives the answer of its plain twin.

200 of them; with `-m slow` 2,000. `-s` shows the counts.
"""

import csv
import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from crooked import DAMAGES, Picture, Post, crooked_record, draw_picture, draw_post, line_of
from tiny_model import write_model

from finetune.__main__ import main as finetune
from finetune.predict.extractor import Extractor
from finetune.predict.pane import LONGEST, answer
from shards.__main__ import main as shards
from shards.files import InputError
from shards.stream import ShardReader

DIALECTS: dict[str, dict[str, Any]] = {
    "comma": {"delimiter": ",", "lineterminator": "\n", "encoding": "utf-8"},
    "excel": {"delimiter": ";", "lineterminator": "\r\n", "encoding": "utf-8-sig"},
    "tab": {"delimiter": "\t", "lineterminator": "\n", "encoding": "utf-16"},
    "pipe": {"delimiter": "|", "lineterminator": "\r\n", "encoding": "utf-8",
             "quoting": csv.QUOTE_ALL},
}  # fmt: skip


@pytest.fixture(params=[200, pytest.param(2000, marks=pytest.mark.slow)])
def count(request) -> int:
    return request.param


def write_table(path: Path, columns: list[str], rows: list[list[str]], dialect: str) -> None:
    options = dict(DIALECTS[dialect])
    encoding = options.pop("encoding")
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer, **options)
    writer.writerows([columns, *rows])
    path.write_bytes(buffer.getvalue().encode(encoding))


def said(capsys, counts: dict[str, Any]) -> None:
    with capsys.disabled():
        print(f"\n{counts}", end=" ")


# ---- shards build --------------------------------------------------------------------------------


def built(folder: Path, table: Path, out: Path) -> tuple[dict[int, Any], dict[int, str]]:
    """Row -> sample, and row -> reason; together every row."""
    places = ["--images", str(folder), "--captions", str(table), "--out", str(out)]
    shards(["build", "captions", *places, "--mismatch", "0", "--jobs", "1"])
    reader = ShardReader(out)
    stored = [s for n in range(len(reader.index.shards)) for s in reader.samples(n)]
    lines = (out / "rejects.jsonl").read_text(encoding="utf-8").splitlines()
    rejects = {line["row"]: line["reason"] for line in map(json.loads, lines)}
    samples = {int(sample.key[-8:]): sample for sample in stored}
    assert reader.index.rows == len(samples) + len(rejects) == len(samples.keys() | rejects.keys())
    return samples, rejects


def test_shards(count, tmp_path, capsys):
    random, part = np.random.default_rng(count), count // len(DIALECTS)
    totals = dict.fromkeys(("rows", "samples", "rejects"), 0)
    for dialect in DIALECTS:
        crooked, plain = tmp_path / dialect, tmp_path / f"{dialect}-plain"
        crooked.mkdir()
        plain.mkdir()
        pictures = [draw_picture(random, n, random.random() < 0.06) for n in range(part)]
        captions = [draw_post(random).text for _ in pictures]
        spelled = []
        for number, picture in enumerate(pictures):
            picture.write(crooked)
            if picture.shown is not None:
                picture.write_plain(plain, f"{number}.png")
            spelled.append(picture.name if random.random() < 0.7 else f".//{picture.name}")
        columns = ["image", "note", "caption"]
        rows = [[name, "", text] for name, text in zip(spelled, captions, strict=True)]
        write_table(tmp_path / f"{dialect}.csv", columns, rows, dialect)
        rows = [[f"{number}.png", "", text] for number, text in enumerate(captions)]
        write_table(tmp_path / "plain.csv", columns, rows, "comma")
        samples, rejects = built(crooked, tmp_path / f"{dialect}.csv", tmp_path / f"{dialect}-out")
        twins, _ = built(plain, tmp_path / "plain.csv", tmp_path / f"{dialect}-plain-out")
        damaged = {n for n, picture in enumerate(pictures) if picture.shown is None}
        assert rejects.keys() == damaged and samples.keys() == twins.keys(), rejects
        for row, sample in samples.items():
            assert sample.meta.caption == captions[row] == twins[row].meta.caption
            kept = pictures[row].form in ("jpeg", "progressive")  # upright JPEGs keep their bytes
            expected = pictures[row].content if kept else twins[row].image
            assert sample.image == expected, pictures[row].form
        totals["rows"] += part
        totals["samples"] += len(samples)
        totals["rejects"] += len(rejects)
    assert totals["rows"] == totals["samples"] + totals["rejects"] == count
    said(capsys, {"shards build": totals})


# ---- data convert --------------------------------------------------------------------------------


def write_lines(path: Path, lines: list[str], *, mark: bool = True, end: str = "\r\n") -> None:
    """JSON lines with a byte order mark, line ends of Windows, and empty lines at the end."""
    text = "\ufeff" * mark + end.join(lines) + end * 3
    path.write_bytes(text.encode())


def converted(capsys, source: Path, out: Path, *options: str) -> list[dict[str, Any]]:
    finetune(["data", "convert", str(source), "--to", "relations", "--out", str(out), *options])
    return [json.loads(line) for line in out.read_text(encoding="utf-8").split("\n") if line]


def cells(record: dict[str, Any], columns: list[str]) -> list[str]:
    """A record as a row of a table; positions as JSON."""
    values = dict(record)
    for name in ("head", "tail"):
        if isinstance(values.get(name), dict):  # a cell holds no object: ends beside the words
            spans = values.pop(name)
            ends = {f"{name}_start": spans["start"], f"{name}_end": spans["end"]}
            values |= {name: spans["text"], **ends}
    texts = {name: v if isinstance(v, str) else json.dumps(v) for name, v in values.items()}
    return [texts.get(name, "") for name in columns]


def test_convert(count, tmp_path, capsys):
    """Accepted rows are those of the plain posts; refused ones are the damaged ones, by line."""
    random = np.random.default_rng(count + 1)
    columns = ["relation", "text", "head", "head_start", "head_end", "tail", "tail_start",
               "tail_end", "offsets", "image"]  # fmt: skip
    totals = dict.fromkeys(("posts", "accepted", "refused"), 0)
    for dialect in ("lines", *DIALECTS):
        posts = [draw_post(random) for _ in range(count // 5)]
        records = [crooked_record(random, post) for post in posts]
        plain = tmp_path / "plain.jsonl"
        write_lines(plain, [json.dumps(post.plain()) for post in posts], mark=False, end="\n")
        expected = converted(capsys, plain, tmp_path / "plain/train.jsonl")
        for post, row in zip(posts, expected, strict=True):  # an independent reading of the spans
            words = "".join(row["tokens"][slice(*row["head"])])
            assert words == "".join(post.text[slice(*post.head)].split())
            assert "".join(row["tokens"]) == "".join(post.text.split())
        source = tmp_path / f"{dialect}.jsonl"
        if dialect == "lines":
            write_lines(source, [line_of(random, record) for record in records])
        else:
            source = source.with_suffix(".csv")
            rows = [cells(record, columns) for record in records]
            write_table(source, columns, rows, dialect)
        assert converted(capsys, source, tmp_path / dialect / "train.jsonl") == expected
        totals["accepted"] += len(expected)
        totals["posts"] += len(posts)
    lines, bad = [], []
    for number in range(1, count // 5 + 1):
        record: Any = draw_post(random).plain()
        if random.random() < 0.3:
            record = DAMAGES[str(random.choice(list(DAMAGES)))](record)
            bad.append(number)
        lines.append(line_of(random, record))
    write_lines(tmp_path / "bad.jsonl", lines)
    with pytest.raises(SystemExit) as stopped:
        converted(capsys, tmp_path / "bad.jsonl", tmp_path / "bad/train.jsonl")
    message = capsys.readouterr().err
    assert stopped.value.code == 2 and not list((tmp_path / "bad").glob("*"))
    assert f"{len(bad)} of {len(lines)} rows cannot be read:" in message
    assert list(map(int, re.findall(r"\n  line (\d+): ", message))) == bad[:20]
    totals["posts"] += len(lines)
    totals["refused"] += len(bad)
    totals["accepted"] += len(lines) - len(bad)
    said(capsys, {"data convert": totals})


# ---- train, evaluate, predict, page --------------------------------------------------------------


def write_task(
    random: np.random.Generator, folder: Path, plain: Path, posts: list[Post], capsys
) -> list[Picture]:
    """The posts as two folders of the task `relations`, three splits each; their pictures."""
    pictures = [draw_picture(random, number) for number in range(len(posts))]
    for place in (folder, plain):
        (place / "images").mkdir(parents=True)
    records, twins = [], []
    for number, (post, picture) in enumerate(zip(posts, pictures, strict=True)):
        picture.write(folder / "images")
        picture.write_plain(plain / "images", f"{number}.png")
        records.append(crooked_record(random, post) | {"image": picture.name})
        twins.append(post.plain() | {"image": f"{number}.png"})
    bounds = {"train": (0, 0.6), "val": (0.6, 0.8), "test": (0.8, 1)}
    for split, shares in bounds.items():
        part = slice(*(round(share * len(posts)) for share in shares))
        lines = [line_of(random, record) for record in records[part]]
        write_lines(folder / f"{split}-posts.jsonl", lines)
        write_lines(plain / f"{split}-posts.jsonl", [json.dumps(twin) for twin in twins[part]])
        for place in (folder, plain):
            rows = converted(capsys, place / f"{split}-posts.jsonl", place / f"{split}.jsonl")
            assert len(rows) == len(lines)
    return pictures


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def figures(path: Path) -> Any:
    """Of a `result.json` or an `evaluate_*.json`: what was scored."""
    content = json.loads(path.read_text())
    return [content.get(key) for key in ("dev", "test", "f1", "precision", "recall", "accuracy")]


def test_train_evaluate_predict_page(count, tmp_path, capsys):
    random, model = np.random.default_rng(count + 2), write_model(tmp_path / "model")
    posts = [draw_post(random) for _ in range(count)]
    data = {name: tmp_path / name for name in ("crooked", "plain")}
    write_task(random, data["crooked"], data["plain"], posts, capsys)
    for name, folder in data.items():
        finetune(
            f"train --task relations --method promu --data {folder} --init {model} --out "
            f"{tmp_path}/runs/{name} --optim.epochs 2 --optim.lr 1e-3 --max_length 60".split()
        )
    runs = {name: tmp_path / "runs" / name for name in data}
    for file in ("seed-1/pred_dev.jsonl", "seed-1/pred_test.jsonl"):
        assert read(runs["crooked"] / file) == read(runs["plain"] / file)
    assert figures(runs["crooked"] / "result.json") == figures(runs["plain"] / "result.json")
    finetune(f"evaluate {runs['crooked']} --data {data['plain']} --split test".split())
    (again,) = (runs["crooked"] / "seed-1").glob("pred_test_data-plain-*.jsonl")
    assert read(again) == read(runs["plain"] / "seed-1/pred_test.jsonl")
    predictions(random, count, tmp_path, runs["crooked"], capsys)


def predictions(random: np.random.Generator, count: int, folder: Path, run: Path, capsys) -> None:
    """Posts, a tenth of them damaged in text or picture, from a file and from the page."""
    (folder / "pictures").mkdir()
    lines, twins, asked, bad = [], [], [], set()
    for number in range(count):
        post, spoilt = draw_post(random), random.random() < 0.05
        picture = draw_picture(random, number, damaged=random.random() < 0.05)
        picture.write(folder / "pictures")
        record: Any = crooked_record(random, post) if not spoilt else post.plain()
        record |= {"image": f"pictures/{picture.name}", "id": f"post {number}"}
        if spoilt:
            record = DAMAGES[str(random.choice(list(DAMAGES)))](record)
        twin = post.plain() | {"id": f"post {number}"}
        if picture.shown is not None:
            picture.write_plain(folder, f"{number}.png")
            twin |= {"image": f"{number}.png"}
        if spoilt or picture.shown is None:
            bad.add(number)
        lines.append(line_of(random, record))
        twins.append(json.dumps(twin))
        asked.append((post, folder / "pictures" / picture.name, folder / f"{number}.png"))
    (folder / "posts.jsonl").write_bytes(("\ufeff" + "\r\n".join(lines) + "\r\n").encode())
    (folder / "plain.jsonl").write_text("\n".join(twins))
    for name in ("posts", "plain"):
        places = ["--input", f"{folder}/{name}.jsonl", "--out", f"{folder}/{name}-answers.jsonl"]
        finetune(["predict", str(run), *places])
    answers, expected = (read(folder / f"{name}-answers.jsonl") for name in ("posts", "plain"))
    assert [a["row"] for a in answers] == list(range(count)) == [a["row"] for a in expected]
    assert {a["row"] for a in answers if "error" in a} == bad
    assert all("Traceback" not in a["error"] and "\n" not in a["error"] for a in answers
               if "error" in a)  # fmt: skip
    for number in set(range(count)) - bad:
        assert answers[number] == expected[number]
    shown = page(asked, Extractor.from_pretrained(run))
    said(capsys, {"predict": {"posts": count, "answers": count - len(bad), "errors": len(bad)}})
    said(capsys, {"page": shown})


def page(asked: list[tuple[Post, Path, Path]], extract: Extractor) -> dict[str, int]:
    """What the page answers to each post, its entities as words or positions."""
    totals = {"posts": len(asked), "answers": 0, "refused": 0}
    for post, picture, twin in asked:
        fields = []
        for span in (post.head, post.tail):
            words = post.text[slice(*span)]
            fields.append(words if post.text.count(words) == 1 else f" [{span[0]},{span[1]}] ")
        plain = [f"[{start}, {end}]" for start, end in (post.head, post.tail)]
        if len(post.text) > LONGEST or not twin.is_file():
            with pytest.raises(InputError):
                answer(extract, post.text, *fields, str(picture), look=False)
            totals["refused"] += 1
            continue
        given = answer(extract, post.text, *fields, str(picture), look=False)
        expected = answer(extract, post.text, *plain, str(twin), look=False)
        assert given == expected and given.bars, post.text
        totals["answers"] += 1
    assert totals["posts"] == totals["answers"] + totals["refused"]
    return totals
