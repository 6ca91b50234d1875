"""The command line: help with an example, one line and exit 2 on wrong usage."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from shards.__main__ import main
from shards.index import read_index

ROOT = Path(__file__).resolve().parents[2]


def test_help_shows_an_example_quickly():
    start = time.monotonic()
    command = [sys.executable, "-X", "importtime", "-m", "shards", "--help"]
    done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    assert "python -m shards build newsclippings" in done.stdout
    for heavy in ("torch", "spacy", "ultralytics", "transformers", "webdataset"):
        assert f"| {heavy}\n" not in done.stderr.replace(" " * 2, "")
    assert time.monotonic() - start < 20


@pytest.mark.parametrize("command", ["sample", "build", "detect", "nouns", "verify"])
def test_every_command_has_help(command, capsys):
    with pytest.raises(SystemExit) as stopped:
        main([command, "--help"])
    assert stopped.value.code == 0 and "usage:" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments",
    [
        ["build", "captions", "--images", "x", "--captions", "y"],
        ["build", "captions", "--images", "x", "--captions", "y", "--out", "z"],
        ["build", "newsclippings", "--news-clippings", "x", "--visual-news", "y", "--split", "dev"],
        [
            "build",
            "captions",
            "--images",
            "x",
            "--captions",
            "y",
            "--out",
            "z",
            "--fraction",
            "1:0",
        ],
        ["build", "captions", "--images", "x", "--captions", "y", "--out", "z", "--mismatch", "2"],
        ["verify", "nothing"],
        ["detect", "nothing", "--detector", "file", "--boxes", "nothing"],
        ["detect", "nothing", "--keep", "0"],
        ["nouns", "nothing", "--out", "x.tsv"],
        ["nouns", "nothing", "--out", "x.tsv", "--size", "0"],
    ],
)
def test_wrong_usage(arguments, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and "error: " in error and "Traceback" not in error
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("arguments", [[], ["build"], ["captions"]])
def test_a_command_is_needed(arguments, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2 and "usage: " in capsys.readouterr().out


def test_options_are_taken_with_dashes_and_underscores(caption_csv, tmp_path):
    images, file = caption_csv
    for name, word in (("a", "--short-side"), ("b", "--short_side")):
        out = str(tmp_path / name)
        main(["build", "captions", "--images", str(images), "--captions", str(file),
              "--out", out, word, "20", "--jobs", "1"])  # fmt: skip
    first, second = (read_index(tmp_path / name) for name in "ab")
    assert first.shards == second.shards and first.provenance["options"]["short_side"] == 20


@pytest.mark.parametrize("split", ["a/b", "..", "a b", "", "ü"])
def test_split_names_become_file_names(caption_csv, tmp_path, capsys, split):
    images, file = caption_csv
    options = ["--images", str(images), "--captions", str(file), "--out", str(tmp_path / "out")]
    with pytest.raises(SystemExit):
        main(["build", "captions", *options, "--split", split])
    assert "only letters, digits" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_build_reports_what_it_did(caption_csv, tmp_path, capsys):
    images, file = caption_csv
    (images / "3.v1.jpg").write_bytes(b"")
    options = ["--images", str(images), "--captions", str(file), "--out", str(tmp_path / "out")]
    main(["build", "captions", *options, "--jobs", "1"])
    output = capsys.readouterr().out
    assert "60 rows = 57 samples" in output and "rejected 3: empty image file" in output
    assert "3.00 pairs a picture; words a caption: least 4, median 4, mean 4.0, most 4" in output
    assert "pictures: 20 of 20" in output and "19 pictures in" in output


@pytest.mark.parametrize(
    ("folders", "said"),
    [
        ((), "no such folder; give the one with data/"),
        (("nc",), "data/merged_balanced/train.json: no such file; no sub-split here has one"),
        (("nc/data/person_sbert_text_text",), "--subset can be person_sbert_text_text"),
    ],
    ids=["no folder", "empty", "another sub-split"],
)
def test_missing_annotations_are_a_clear_line(tmp_path, folders, said, capsys):
    for folder in folders:
        (tmp_path / folder).mkdir(parents=True)
        if "data" in folder:
            (tmp_path / folder / "train.json").write_text("{}")
    nc, vn, out = (str(tmp_path / name) for name in ("nc", "vn", "out"))
    with pytest.raises(SystemExit) as stopped:
        main(["build", "newsclippings", "--news-clippings", nc, "--visual-news", vn,
              "--split", "train", "--out", out])  # fmt: skip
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and error.count("\n") == 1 and said in error
    assert "[]" not in error
