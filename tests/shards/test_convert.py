"""`convert`: shards of format 1 anew, each picture once; their columns come along; kill -9."""

import json
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save

from shards.__main__ import main
from shards.files import file_sha256
from shards.schema import TEACHER_TENSORS
from shards.stream import ShardReader

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def old(news_shards, format_1, tmp_path) -> Path:
    """Format 1, with both columns; what they say can be told from the picture."""
    source = tmp_path / "source"
    shutil.copytree(news_shards, source)
    lines = [
        {"image_id": 7 * n, "objects": [{"box": [0, 0, n + 1, 9], "score": 0.5, "label": "dog"}]}
        for n in range(40)
    ]
    (tmp_path / "boxes.jsonl").write_text("\n".join(map(json.dumps, lines)))
    main(["detect", str(source), "--detector", "file", "--boxes", str(tmp_path / "boxes.jsonl")])
    directory = format_1(source, tmp_path / "old", objects=True)
    reader, shards = ShardReader(directory), {}
    (directory / "teacher").mkdir()
    for number, info in enumerate(reader.index.shards):
        ids = [int(sample.meta.image_id) for sample in reader.samples(number)]
        values = np.repeat(np.array(ids, np.float16)[:, None], 4, axis=1)
        tensors = dict.fromkeys(TEACHER_TENSORS[:2], values)
        path = directory / "teacher" / f"{info.stem}.safetensors"
        path.write_bytes(save(tensors | {"has_object": np.ones(len(ids), bool)}))
        entry = {"samples": len(ids), "tar_sha256": info.sha256, "sha256": file_sha256(path)}
        shards[info.stem] = entry
    provenance = {"prompter": "p", "objects_sha256": file_sha256(directory / "objects/column.json")}
    column = {"column": "teacher", "complete": True, "shards": shards, "provenance": provenance}
    (directory / "teacher" / "column.json").write_text(json.dumps(column | {"format": 1}))
    return directory


def pairs(directory: Path) -> dict[str, tuple]:
    """All that training reads of each pair, by key."""
    reader = ShardReader(directory, columns=["objects", "teacher"])
    return {
        sample.key: (sample.image, sample.meta.caption, sample.meta.matched, sample.meta.image_id,
                     sample.objects, [value.tobytes() for value in sample.teacher.values()])
        for shard in range(len(reader.index.shards)) for sample in reader.samples(shard)
    }  # fmt: skip


def files(directory: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in directory.rglob("*")
        if path.is_file() and ".build" not in path.parts
    }


def test_convert_stores_each_picture_once_and_loses_nothing(old, tmp_path, capsys):
    before, new = files(old), tmp_path / "new"
    main(["convert", str(old), str(new)])
    assert pairs(new) == pairs(old) and files(old) == before
    index = ShardReader(new).index
    assert (index.samples, index.pictures, index.matched) == (80, 40, 40)
    assert "80 pairs of 40 pictures in 8 shards (80 pictures in" in capsys.readouterr().out
    main(["verify", str(new)])
    main(["convert", str(old), str(new)])
    assert pairs(new) == pairs(old)


def test_what_cannot_be_converted_is_said(old, news_shards, tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(["convert", str(news_shards), str(tmp_path / "new")])
    assert "stores each picture once already" in capsys.readouterr().err
    rejects, content = old / "rejects.jsonl", (old / "rejects.jsonl").read_text()
    rejects.write_text('{"row": 3}\n' + content)
    with pytest.raises(SystemExit):
        main(["convert", str(old), str(tmp_path / "new")])
    assert "line 1: no reject" in capsys.readouterr().err
    rejects.write_text(content)
    column = old / "objects" / "column.json"
    column.write_text(column.read_text() + "\n")
    with pytest.raises(SystemExit):
        main(["convert", str(old), str(tmp_path / "new")])
    assert "objects changed after its teacher column" in capsys.readouterr().err


@pytest.mark.parametrize("kills", [2, pytest.param(20, marks=pytest.mark.slow)])
def test_kill_9_during_convert(old, tmp_path, kills):
    plain, killed = tmp_path / "plain", tmp_path / "killed"
    main(["convert", str(old), str(plain), "--jobs", "1"])
    command = [sys.executable, "-c", SLOW, "convert", str(old), str(killed), "--jobs", "2"]
    delays, hits = random.Random(kills), 0
    for _ in range(kills):
        before = set(killed.rglob("*"))
        process = subprocess.Popen(command, cwd=ROOT)
        while process.poll() is None and set(killed.rglob("*")) == before:
            time.sleep(0.002)
        time.sleep(delays.uniform(0, 0.1))
        process.send_signal(signal.SIGKILL)
        hits += process.wait() == -signal.SIGKILL
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    assert hits >= 0.75 * kills
    assert files(killed) == files(plain)


# Every rename waits a little, so that kills hit all stages of it.
SLOW = """
import os, sys, time
replace = os.replace
os.replace = lambda *paths: (time.sleep(0.02), replace(*paths), time.sleep(0.02))
from shards.__main__ import main
main(sys.argv[1:])
"""
