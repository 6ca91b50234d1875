"""Tars: contract, determinism, resume; columns: resumable and replaceable alone."""

import hashlib
import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections import Counter
from pathlib import Path

import pytest
import webdataset
from PIL import Image

from shards import write
from shards.columns import write_column
from shards.corpora import PictureFolder, captions
from shards.files import InputError
from shards.index import parse_column, read_index
from shards.json_files import read_json
from shards.locks import lock
from shards.newsclippings import newsclippings
from shards.processes import in_order
from shards.write import build, shard_count

ROOT = Path(__file__).resolve().parents[2]


def corpus(news, *subsets):
    return newsclippings(news / "nc", news / "vn", subsets or ["merged_balanced"], "train")


def contents(directory: Path) -> dict[str, str]:
    """Checksum of every file that counts: all but `.build`."""
    return {
        str(path.relative_to(directory)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(directory.rglob("*"))
        if path.is_file() and write.STATE not in path.parts
    }


def members(directory: Path) -> list[tuple[str, str, dict]]:
    """(shard, key, JSON) of every sample, read by `tarfile`, not by our reader."""
    found = []
    for path in sorted(directory.glob("*.tar")):
        with tarfile.open(path) as tar:
            names = tar.getnames()
            assert names[::2] == [name.replace(".json", ".jpg") for name in names[1::2]]
            for name in names[1::2]:
                meta = json.loads(tar.extractfile(name).read())
                pairs, key = meta.pop("pairs"), name.removesuffix(".json")
                assert key == f"train_{pairs[0]['row']:08d}"  # that of its first pair
                for pair in pairs:
                    found.append((path.name, f"train_{pair['row']:08d}", meta | pair))
    return found


def test_tars_follow_the_contract(news, news_shards):
    index = read_json(news_shards / "index.json")
    found = members(news_shards)
    assert {key for _, key, _ in found} == {f"train_{row:08d}" for row in range(80)}
    expected = corpus(news)
    for _, key, meta in found:
        record = expected.record(int(key[-8:]))
        assert meta.pop("crc32") > 0
        assert meta == {
            "row": int(key[-8:]),
            "caption": record.caption,
            "matched": record.matched,
            "caption_id": record.caption_id,
            "image_id": record.image_id,
            "size": [48, 32],
            "source": "merged_balanced",
            "similarity": 0.25,
        }
    assert (index["rows"], index["samples"], index["rejects"], index["matched"]) == (80, 80, 0, 40)
    assert index["pictures"] == 40
    for shard in index["shards"]:
        matched = [meta["matched"] for name, _, meta in found if name == shard["name"]]
        assert sum(matched) == shard["matched"]
        content = (news_shards / shard["name"]).read_bytes()
        assert shard["sha256"] == hashlib.sha256(content).hexdigest()
        assert shard["bytes"] == len(content) and (shard["samples"], shard["pictures"]) == (10, 5)
        table = (news_shards / "rows" / shard["name"]).with_suffix(".safetensors").read_bytes()
        assert shard["rows_sha256"] == hashlib.sha256(table).hexdigest()
    assert Counter(name for name, _, _ in found) == {s["name"]: 10 for s in index["shards"]}
    shards_of: dict[str, set[str]] = {}
    for name, _, meta in found:
        shards_of.setdefault(meta["image_id"], set()).add(name)
    assert len(shards_of) == 40 and all(len(names) == 1 for names in shards_of.values())


def test_webdataset_reads_the_tars(news_shards):
    urls = [str(path) for path in sorted(news_shards.glob("*.tar"))]
    samples = list(webdataset.WebDataset(urls, shardshuffle=False).decode("pil"))
    assert len(samples) == 40 and samples[0]["jpg"].size == (48, 32)
    captions = [pair["caption"] for sample in samples for pair in sample["json"]["pairs"]]
    assert len(captions) == 80 and all(isinstance(caption, str) for caption in captions)


def test_twins_part(news, tmp_path):
    build(corpus(news), tmp_path / "out", shard_size=10)
    shard_of = {int(key[-8:]): name for name, key, _ in members(tmp_path / "out")}
    together = sum(shard_of[row] == shard_of[row + 1] for row in range(0, 80, 2))
    assert together < 12  # 40 twins over 8 shards: 4.6 expected


@pytest.mark.parametrize("jobs", [2, 3])
def test_bytes_do_not_depend_on_processes(news, news_shards, tmp_path, jobs):
    build(corpus(news), tmp_path / "out", shard_size=10, jobs=jobs)
    assert contents(tmp_path / "out") == contents(news_shards)


def test_seed_and_order(news, news_shards, tmp_path):
    build(corpus(news), tmp_path / "out", shard_size=10, seed=1)
    ours, theirs = members(tmp_path / "out"), members(news_shards)
    assert [key for _, key, _ in ours] != [key for _, key, _ in theirs]
    assert {key for _, key, _ in ours} == {key for _, key, _ in theirs}


@pytest.mark.parametrize(
    ("samples", "size", "expected"),
    [
        *[(1, None, 1), (63, None, 1), (64, None, 2), (400, None, 12), (2048, None, 64)],
        *[(71_072, None, 64), (131_073, None, 65), (1_110_000, None, 542)],
        *[(100, 30, 4), (5, 50, 1)],
    ],
)
def test_shard_count(samples, size, expected):
    assert shard_count(samples, size) == expected


def test_undecodable_pictures_are_rejects(caption_csv, tmp_path):
    images, _ = caption_csv
    (images / "3.v1.jpg").write_bytes(b"")
    (images / "4.v1.jpg").write_bytes((images / "5.v1.jpg").read_bytes()[:-100])
    (images / "6.v1.jpg").unlink()
    index = build(captions(*caption_csv, mismatch=0), tmp_path / "out")
    assert (index.rows, index.samples, index.rejects) == (60, 51, 9)
    rejects = [json.loads(x) for x in (tmp_path / "out/rejects.jsonl").read_text().splitlines()]
    assert [reject["row"] for reject in rejects] == [*range(9, 15), 18, 19, 20]
    assert {r["reason"].split(" (")[0] for r in rejects} == {
        "empty image file",
        "damaged image",
        "image file is missing",
    }
    assert rejects[0]["where"] == "captions.csv line 11"


def test_a_finished_build_is_not_called_one_of_other_input(caption_csv, tmp_path):
    """Pictures that arrived, rows that were added, captions and pictures that changed: all said."""
    images, table = caption_csv
    out, content = tmp_path / "out", table.read_text()
    (images / "6.v1.jpg").rename(tmp_path / "later.jpg")
    index = build(captions(*caption_csv), out)
    assert build(captions(*caption_csv), out) == index

    def refused() -> str:
        with pytest.raises(InputError) as error:
            build(captions(*caption_csv), out)
        assert read_index(out) == index and "another --out" in str(error.value)
        return str(error.value)

    shutil.copy(tmp_path / "later.jpg", images / "6.v1.jpg")
    assert "pictures came or went" in refused()
    (images / "6.v1.jpg").unlink()
    (images / "7.v1.jpg").rename(tmp_path / "gone.jpg")
    assert "built with 3 rejects, now 6 rows cannot be used, the first: captions.csv" in refused()
    (tmp_path / "gone.jpg").rename(images / "7.v1.jpg")
    table.write_text(content + "\n0.v1.jpg,one more")
    assert "built from 60 rows, now there are 61" in refused()
    table.write_text(content.replace("caption a, of 0", "caption d, of 0"))
    assert "rows or captions changed" in refused()
    table.write_text(content)
    before = (images / "0.v1.jpg").read_bytes()
    (images / "0.v1.jpg").write_bytes(before + b" ")
    assert "pictures of train-" in refused()
    (images / "0.v1.jpg").write_bytes(before)
    assert build(captions(*caption_csv), out) == index  # another time, the same picture
    for same_size in (before[:-9] + b"x" + before[-8:], before[::-1]):
        (images / "0.v1.jpg").write_bytes(same_size)
        assert "pictures of train-" in refused()
    (images / "0.v1.jpg").write_bytes(before)
    assert build(captions(*caption_csv), out) == index


def test_an_unfinished_build_takes_a_picture_of_the_same_size_that_came_since(
    caption_csv, tmp_path
):
    """The shard that was finished is written again; one whose pictures were only copied is not."""
    images, out = caption_csv[0], tmp_path / "out"
    build(captions(*caption_csv), out, shard_size=6)
    (out / "index.json").unlink()
    times = {path.name: path.stat().st_mtime_ns for path in out.glob("*.tar")}
    grey = io.BytesIO()
    Image.open(images / "0.v1.jpg").convert("L").save(grey, "JPEG")
    size = (images / "0.v1.jpg").stat().st_size
    assert len(grey.getvalue()) < size
    (images / "0.v1.jpg").write_bytes(grey.getvalue().ljust(size, b"\0"))
    shutil.copy(images / "1.v1.jpg", tmp_path / "copy.jpg")
    (tmp_path / "copy.jpg").rename(images / "1.v1.jpg")
    index = build(captions(*caption_csv), out, shard_size=6)
    anew = build(captions(*caption_csv), tmp_path / "anew", shard_size=6)
    assert index.shards == anew.shards
    written = [n for n in times if (out / n).stat().st_mtime_ns != times[n]]
    assert len(written) == 1


def test_two_builds_at_once(caption_csv, tmp_path):
    with lock(tmp_path / "out"), pytest.raises(InputError, match="is writing here"):
        build(captions(*caption_csv), tmp_path / "out")


def test_a_corpus_without_one_usable_picture(caption_csv, tmp_path):
    for path in caption_csv[0].iterdir():
        path.write_bytes(b"no picture")
    with pytest.raises(InputError, match=r"no usable picture among 60 rows.*not a JPEG"):
        build(captions(*caption_csv), tmp_path / "out")
    assert not (tmp_path / "out" / "index.json").exists()
    for path in caption_csv[0].iterdir():
        path.unlink()
    with pytest.raises(InputError, match="missing"):
        build(captions(*caption_csv), tmp_path / "other")


def test_one_directory_holds_one_build(caption_csv, tmp_path):
    out = tmp_path / "out"
    before = build(captions(*caption_csv), out)
    assert build(captions(*caption_csv), out) == before
    with pytest.raises(InputError, match=r"another build .*seed: 0 there, 1 asked"):
        build(captions(*caption_csv), out, seed=1)
    with pytest.raises(InputError, match="split: train there, val asked"):
        build(captions(*caption_csv, split="val"), out)
    (out / "index.json").unlink()  # as after an interruption
    with pytest.raises(InputError, match="another build"):
        build(captions(*caption_csv), out, form=write.Form(100))
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "train-000000.tar").touch()
    with pytest.raises(InputError, match="no index"):
        build(captions(*caption_csv), foreign)


def test_only_the_lost_shard_is_written_again(news, news_shards, tmp_path, monkeypatch):
    out = tmp_path / "out"
    shutil.copytree(news_shards, out)
    expected = contents(out)
    (out / "train-000002.tar").unlink()
    (out / "train-000005.tar").write_bytes(b"cut")
    opened = []
    real = PictureFolder.stored

    def store(*arguments):
        assert not (out / "index.json").exists()  # it would call the folder complete
        opened.append(arguments)
        return real(*arguments)

    monkeypatch.setattr(PictureFolder, "stored", store)
    build(corpus(news), out, shard_size=10)
    assert len(opened) == 10 and contents(out) == expected


def test_changed_raw_rows_are_noticed_on_resume(caption_csv, tmp_path):
    out = tmp_path / "out"
    build(captions(*caption_csv, mismatch=0), out, shard_size=10)
    (out / "index.json").unlink()
    images, file = caption_csv
    file.write_text(file.read_text().replace('"caption a, of 7"', '"changed"'))
    build(captions(images, file, mismatch=0), out, shard_size=10)
    assert sum(meta["caption"] == "changed" for _, _, meta in members(out)) == 1


def kill_and_resume(command: list[str], out: Path, kills: int, seed: int) -> int:
    """Run a command again and again, killing it at work; how many kills hit it unfinished."""
    delays, hits = random.Random(seed), 0
    for _ in range(kills):
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)
        before = files_in(out)
        while process.poll() is None and files_in(out) == before:
            time.sleep(0.005)
        time.sleep(delays.uniform(0, 0.2))
        # The parent alone, as the out-of-memory killer does it; its workers must follow.
        process.send_signal(signal.SIGKILL)
        hits += process.wait() == -signal.SIGKILL and not (out / "index.json").exists()
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    return hits


def files_in(directory: Path) -> set[str]:
    return {str(path) for path in directory.rglob("*")}


@pytest.fixture(scope="session")
def slow_corpus(tmp_path_factory, picture) -> tuple[Path, Path]:
    """Pictures large enough that a build takes seconds; every tenth is broken."""
    root = tmp_path_factory.mktemp("slow")
    lines = ["image,caption"]
    for number in range(60):
        picture(root / "images" / f"{number}.jpg", size=(1024, 768), seed=number)
        if number % 10 == 9:
            (root / "images" / f"{number}.jpg").write_bytes(b"broken")
        lines += [f"{number}.jpg,caption {n} of {number}" for n in range(3)]
    (root / "captions.csv").write_text("\n".join(lines))
    return root / "images", root / "captions.csv"


@pytest.mark.parametrize("kills", [3, pytest.param(20, marks=pytest.mark.slow)])
def test_kill_9_during_build(slow_corpus, tmp_path, kills, interpreter):
    images, file = slow_corpus
    options = ["--images", str(images), "--captions", str(file), "--shard-size", "3", "--jobs", "2"]
    command = [interpreter.path / "python", "-m", "shards", "build", "captions", *options, "--out"]
    plain, killed = tmp_path / "plain", tmp_path / "killed"
    subprocess.run([*command, str(plain)], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    hits = kill_and_resume([*command, str(killed)], killed, kills, seed=kills)
    assert hits >= 0.75 * kills
    assert contents(killed) == contents(plain)
    index = read_index(killed)
    assert (index.rows, index.samples, index.rejects) == (180, 162, 18)


def test_workers_end_with_their_parent(slow_corpus, tmp_path):
    images, file = slow_corpus
    options = [
        "--images",
        str(images),
        "--captions",
        str(file),
        "--jobs",
        "2",
        "--shard-size",
        "60",
    ]
    command = [sys.executable, "-m", "shards", "build", "captions", *options, "--out"]
    process = subprocess.Popen([*command, str(tmp_path / "out")], cwd=ROOT, start_new_session=True)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    workers: list[int] = []
    while process.poll() is None and len(workers) < 2:
        workers = [int(pid) for pid in children.read_text().split()]
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert len(workers) == 2
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline and any(map(is_running, workers)):
        time.sleep(0.1)
    assert not any(map(is_running, workers))


def is_running(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


def test_an_interrupted_write_leaves_the_old_file(caption_csv, tmp_path, monkeypatch):
    def fail(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(PictureFolder, "stored", fail)
    with pytest.raises(KeyboardInterrupt):
        build(captions(*caption_csv), tmp_path / "out")
    assert not list((tmp_path / "out").glob("*.tar")) and not list(
        (tmp_path / "out").glob(".*.tmp")
    )


@pytest.fixture
def shards(news_shards, tmp_path) -> Path:
    shutil.copytree(news_shards, tmp_path / "shards")
    return tmp_path / "shards"


def each(compute):
    """As `write_column` takes it, of a function of one shard."""
    return lambda numbers: ((number, compute(number)) for number in numbers)


def test_column_goes_on_where_it_stopped(shards):
    computed = []

    def compute(shard: int) -> bytes:
        if len(computed) == 3:
            raise KeyboardInterrupt
        computed.append(shard)
        return f"shard {shard}".encode()

    with pytest.raises(KeyboardInterrupt):
        write_column(shards, "objects", each(compute), {"a": 1}, desc="test")
    assert not read_json(shards / "objects/column.json")["complete"]
    computed.clear()
    (shards / "objects" / "train-000001.safetensors").write_bytes(b"changed")
    with pytest.raises(KeyboardInterrupt):
        write_column(shards, "objects", each(compute), {"a": 1}, desc="test")
    assert computed == [1, 3, 4]
    computed.clear()
    write_column(shards, "objects", each(lambda n: f"shard {n}".encode()), {"a": 1}, desc="test")
    column = parse_column((shards / "objects/column.json").read_bytes(), "column.json")
    assert column.complete and len(column.shards) == 8
    for stem, shard in column.shards.items():
        content = (shards / "objects" / f"{stem}.safetensors").read_bytes()
        assert content == f"shard {int(stem[-6:])}".encode() and shard.samples == 5
        assert shard.sha256 == hashlib.sha256(content).hexdigest()


def test_column_of_other_provenance_or_tar_is_redone(shards, news, capsys):
    def run(provenance: dict) -> list[int]:
        done: list[int] = []
        write_column(
            shards, "objects", each(lambda n: done.append(n) or b"x"), provenance, desc="test"
        )
        return done

    assert run({"min": 1}) == list(range(8))
    assert run({"min": 1}) == [] and capsys.readouterr().out == ""
    assert run({"min": 2}) == list(range(8))
    assert "other options" in capsys.readouterr().out
    index = read_json(shards / "index.json")
    index["shards"][4]["sha256"] = "0" * 64
    (shards / "index.json").write_text(json.dumps(index))
    assert run({"min": 2}) == [4]


def test_few_tasks_wait_at_a_time():
    """The memory that a build needs does not grow with the number of shards."""
    made, done = [], 0
    for _ in in_order(os.path.basename, (made.append(n) or str(n) for n in range(50)), jobs=2):
        done += 1
        assert len(made) - done <= 6
    assert done == 50
