"""`stats`: figures counted by hand from the raw corpus; the page; what is damaged."""

import json
import re
import shutil
from pathlib import Path

import pytest

from shards.__main__ import main

BOX = {"box": [0, 0, 9, 9], "score": 0.5, "label": "<dog>"}


@pytest.fixture
def shards(news_shards, tmp_path) -> Path:
    """With objects: none on every third picture, else one or two."""
    directory = Path(shutil.copytree(news_shards, tmp_path / "shards"))
    lines = [json.dumps({"image_id": 7 * n, "objects": [BOX] * (n % 3)}) for n in range(40)]
    (tmp_path / "boxes.jsonl").write_text("\n".join(lines))
    main(["detect", str(directory), "--detector", "file", "--boxes", str(tmp_path / "boxes.jsonl")])
    return directory


def as_json(shards: Path, out: Path) -> dict:
    main(["stats", str(shards), "--format", "json", "--out", str(out), "--nouns", "3"])
    return json.loads(out.read_text())


def test_figures_are_those_of_the_corpus(shards, tmp_path, capsys):
    figures = as_json(shards, tmp_path / "s.json")
    counted = {"shards": 8, "pictures": 40, "pairs": 80, "matched pairs": 40, "damaged pictures": 0}
    assert counted.items() <= figures.items()
    assert figures["words a caption"] == {"least": 6, "median": 6, "mean": 6.0, "most": 6}
    assert figures["shorter side, pixels"]["median"] == 32
    assert figures["objects a picture"] == {"least": 0, "median": 1.0, "mean": 1.0, "most": 2}
    assert figures["pictures without object"] == 14
    assert figures["most frequent objects"] == {"<dog>": 39}
    assert figures["most frequent nouns"] == {"caption": 40, "dog": 40}
    capsys.readouterr()
    main(["stats", str(shards), "--nouns", "0"])
    lines = capsys.readouterr().out.splitlines()
    assert "pairs by source          merged_balanced 80" in lines
    assert "matched pairs            40" in lines


def test_shards_of_format_1_count_each_picture_once(old_shards, tmp_path):
    figures = as_json(old_shards, tmp_path / "s.json")
    assert (figures["pictures"], figures["stored pictures"], figures["pairs"]) == (40, 80, 80)


def test_the_page_shows_pictures_boxes_and_pairs(shards, tmp_path, capsys):
    out = tmp_path / "page.html"
    options = ["--format", "html", "--pictures", "10"]
    main(["stats", str(shards), *options, "--out", str(out)])
    text = out.read_text()
    assert text.count("<figure>") == 10 and text.count("data:image/jpeg;base64,") == 10
    assert text.count("<li>") == 10 and text.count("(mismatched)") == 10
    assert "&lt;dog&gt;" in text and "<dog>" not in text
    assert not re.search(r"<script|https?:", text)
    with pytest.raises(SystemExit):
        main(["stats", str(shards), *options])
    assert "--format html needs --out" in capsys.readouterr().err


def test_a_file_of_another_kind_is_kept(shards, tmp_path, capsys):
    out = tmp_path / "s"
    for form in ("table", "json", "html", "table"):
        main(["stats", str(shards), "--format", form, "--nouns", "0", "--out", str(out)])
    out.write_text("my notes")
    for command in (["stats", "--nouns", "0"], ["nouns", "--tagger", "lexicon"]):
        with pytest.raises(SystemExit):
            main([*command, str(shards), "--out", str(out)])
        assert f"{out}: not written by this command" in capsys.readouterr().err
    assert out.read_text() == "my notes"


def test_damaged_pictures_are_counted_and_named(shards, tmp_path):
    path = shards / "train-000002.tar"
    content = bytearray(path.read_bytes())
    content[700] ^= 1
    path.write_bytes(content)
    (shards / "train-000003.tar").unlink()
    figures = as_json(shards, tmp_path / "s.json")
    assert figures["damaged pictures"] == 2 and figures["pictures"] == 34
    assert "train-000002.tar" in figures["damaged"][0] and "checksum" in figures["damaged"][0]
    assert "train-000003.tar: missing" in figures["damaged"][1]


def test_a_url_is_read(news_shards, tmp_path):
    main(["stats", f"file://{news_shards}", "--format", "json", "--out", str(tmp_path / "s.json")])
    assert json.loads((tmp_path / "s.json").read_text())["pictures"] == 40
