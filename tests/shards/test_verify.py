"""`verify` finds every kind of damage, and the command it prints mends it."""

import json
import shlex
import shutil
import subprocess
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import webdataset
from safetensors.numpy import save

from shards.__main__ import main
from shards.arrays import pack
from shards.columns import write_column
from shards.files import InputError, file_sha256
from shards.json_files import read_json
from shards.rows import make_rows
from shards.schema import TEACHER_TENSORS
from shards.shard import read_metas
from shards.stream import ShardReader
from shards.verify import check

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def shards(news_shards, tmp_path) -> Path:
    """With an objects column."""
    shutil.copytree(news_shards, tmp_path / "train")
    box = {"box": [0, 0, 9, 9], "score": 1, "label": "dog"}
    lines = [json.dumps({"image_id": 7 * n, "objects": [box]}) for n in range(40)]
    (tmp_path / "boxes.jsonl").write_text("\n".join(lines))
    options = ["--detector", "file", "--boxes", str(tmp_path / "boxes.jsonl")]
    main(["detect", str(tmp_path / "train"), *options])
    return tmp_path / "train"


@pytest.fixture(scope="module")
def built(news, tmp_path_factory, interpreter) -> Path:
    """Built through the command line, which `verify` then knows."""
    out = tmp_path_factory.mktemp("built") / "train"
    raw = ["--news-clippings", str(news / "nc"), "--visual-news", str(news / "vn")]
    options = ["--split", "train", "--shard-size", "10", "--jobs", "1", "--out", str(out)]
    python = interpreter.path / "python"
    command = [python, "-m", "shards", "build", "newsclippings", *raw, *options]
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    return out


def flip(path: Path, position: int) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 0x10
    path.write_bytes(content)


def test_a_whole_directory_passes(shards, capsys):
    assert list(check(shards)) == []
    main(["verify", str(shards)])
    output = capsys.readouterr().out
    assert "80 rows = 80 samples (40 matched) + 0 rejects; 40 pictures in 8 shards" in output
    assert output.rstrip().endswith("columns: objects")


@pytest.mark.parametrize(
    "damage",
    [
        lambda d: (d / "train-000002.tar").unlink(),
        lambda d: flip(d / "train-000002.tar", 700),
        lambda d: (d / "train-000002.tar").write_bytes(b""),
        lambda d: shutil.copy(d / "train-000001.tar", d / "train-000002.tar"),
    ],
)
def test_the_printed_command_mends_a_tar(built, damage, capsys, interpreter):
    before = {path.name: path.read_bytes() for path in built.glob("[!.]*.*")}
    damage(built)
    with pytest.raises(SystemExit) as stopped:
        main(["verify", str(built)])
    output = capsys.readouterr()
    assert stopped.value.code == 2 and "1 problem(s)" in output.err
    (line,) = [text for text in output.out.splitlines() if "train-000002.tar: " in text]
    command, _, origin = line.split("run `")[1].partition("`")
    assert origin == f" (as {built}/.build records it)"
    assert command.startswith(f"rm -f {built}/train-000002.tar; python -m shards build")
    command = command.replace("; python", f"; {shlex.quote(str(interpreter.path))}/python")
    subprocess.run(command, shell=True, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    assert {path.name: path.read_bytes() for path in built.glob("[!.]*.*")} == before
    assert list(check(built)) == []


def test_a_recorded_command_is_quoted_and_no_other_one_is_repeated(built):
    record = built / ".build" / "command.txt"
    moved = built.parent / "a folder"
    built.rename(moved)
    (moved / "train-000002.tar").unlink()
    record = moved / ".build" / "command.txt"
    record.write_text("python -m shards build captions --out 'a b'; touch owned")
    (line,) = check(moved)
    assert f"rm -f '{moved}/train-000002.tar'; python" in line
    assert f"build captions --out '{moved}' touch owned`" in line  # where it lies now
    for other in ("curl x | sh", "python -m shards build 'open", ""):
        record.write_text(other)
        (line,) = check(moved)
        assert f"python -m shards build … --out '{moved}'`" in line


def rewrite(directory: Path, change) -> None:
    """Change one sample of a tar, and the index so that size and checksum agree."""
    path = directory / "train-000002.tar"
    samples = list(webdataset.WebDataset(str(path), shardshuffle=False))
    change(samples)
    with open(path, "wb") as file, webdataset.TarWriter(file, encoder=False, mtime=0) as tar:
        for sample in samples:
            tar.write({k: v for k, v in sample.items() if k in ("__key__", "jpg", "json")})
    index = read_json(directory / "index.json")
    index["shards"][2] |= {"sha256": file_sha256(path), "bytes": path.stat().st_size}
    table = directory / "rows" / "train-000002.safetensors"
    with suppress(InputError), open(path, "rb") as file:  # the table of what cannot be read stays
        table.write_bytes(pack(make_rows(read_metas(file.fileno(), path.name))._asdict()))
    index["shards"][2]["rows_sha256"] = file_sha256(table)
    del index["checksums"]  # as of shards that have none: all other checks are tried
    (directory / "index.json").write_text(json.dumps(index))
    shutil.rmtree(directory / "objects")


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda s: s.pop(), "no table of 5 pictures and 10 pairs"),
        (lambda s: s[4].update(__key__="a b"), "other characters"),
        (lambda s: s[4].update(__key__=s[3]["__key__"]), "appears twice"),
        (lambda s: s[4].update(jpg=b"no picture"), "cannot be decoded"),
        (lambda s: s[4].update(jpg=s[4]["jpg"][:-300]), "cannot be decoded"),
        (lambda s: s[3].pop("json"), "is not expected there"),
        (lambda s: s[4].update(json=s[4]["json"].replace(b"[48", b"[47")), "its JSON says"),
        (lambda s: s[4].update(json=b"{"), "not valid JSON"),
        (
            lambda s: [x.update(json=x["json"].replace(b"false", b"true")) for x in s],
            "10 pairs are matched, the index says",
        ),
        (lambda s: s[4].update(json=s[4]["json"].replace(b'"row"', b'"raw"')), "key appears twice"),
    ],
)
def test_wrong_contents_are_found(shards, change, problem):
    rewrite(shards, change)
    found = list(check(shards))
    assert len(found) == 1 and problem in found[0] and "train-000002" in found[0]


def test_wrong_rejects_and_columns_are_found(shards):
    (shards / "rejects.jsonl").write_text('{"row": 5}\n')
    (shards / "objects" / "train-000001.safetensors").write_text("")
    (shards / "objects" / "train-000004.safetensors").unlink()
    first, second, third = check(shards)
    assert "rejects.jsonl: 1 lines, the index says 0" in first and "rm" in first
    assert "train-000001.safetensors: checksum differs: run `python -m shards detect" in second
    assert "train-000004.safetensors: missing" in third
    column = read_json(shards / "objects" / "column.json")
    (shards / "objects" / "column.json").write_text(json.dumps(column | {"complete": False}))
    assert any("not finished" in line for line in check(shards))
    (shards / "objects" / "column.json").write_text("{")
    assert any("not valid JSON" in line for line in check(shards))
    (shards / "objects" / "column.json").unlink()
    assert any("no column.json" in line for line in check(shards))


def test_teacher_features_are_checked(shards):
    def features(value: float, rows: int = 5) -> bytes:
        tensors = {name: np.full((rows, 256), value, np.float16) for name in TEACHER_TENSORS[:2]}
        return save(tensors | {"has_object": np.ones(rows, bool)})

    def label(compute) -> None:
        shutil.rmtree(shards / "teacher", ignore_errors=True)
        files = lambda numbers: ((number, compute(number)) for number in numbers)  # noqa: E731
        write_column(shards, "teacher", files, {}, desc="test")

    label(lambda shard: features(1.0))
    assert list(check(shards)) == []
    label(lambda shard: features(np.nan if shard == 3 else 1.0))
    (line,) = check(shards)
    assert "train-000003.safetensors: `image_feat` holds values that are not finite" in line
    label(lambda shard: features(1.0, 4 if shard == 3 else 5))
    (line,) = check(shards)
    assert "train-000003" in line and "for 5 pictures" in line


def test_not_a_shard_directory(tmp_path):
    with pytest.raises(InputError, match="not a shard directory"):
        list(check(tmp_path))


@pytest.fixture
def checked(shards) -> Path:
    """With both columns."""
    random = np.random.default_rng(0)

    def features(shard: int) -> bytes:
        values = random.normal(size=(2, 5, 256)).astype(np.float16)
        tensors = dict(zip(TEACHER_TENSORS[:2], values, strict=True))
        return save(tensors | {"has_object": np.ones(5, bool)})

    files = lambda numbers: ((number, features(number)) for number in numbers)  # noqa: E731
    write_column(shards, "teacher", files, {}, desc="test")
    return shards


def everything(directory: Path, columns=("objects", "teacher")) -> list:
    """What training reads."""
    reader = ShardReader(directory, columns=columns)
    rows = [row for shard in range(8) for row in reader.samples(shard)]
    return [(r.key, r.image, r.meta, r.objects, {k: v.tobytes() for k, v in r.teacher.items()})
            for r in rows]  # fmt: skip


def test_a_flipped_bit_is_named_or_changes_nothing(checked):
    """In tars, columns and indexes: 150 single bits, none trains on unseen, none a traceback."""
    expected, random = everything(checked), np.random.default_rng(0)
    files = [path for path in sorted(checked.rglob("*"))
             if path.is_file() and ".build" not in path.parts]  # fmt: skip
    named = 0
    for number in range(150):
        path = files[number % len(files)]
        before = bytearray(path.read_bytes())
        if not before:
            continue
        after, place = bytearray(before), int(random.integers(len(before)))
        after[place] ^= 1 << int(random.integers(8))
        path.write_bytes(after)
        try:
            assert everything(checked) == expected, f"silent: {path.name}, byte {place}"
        except InputError as error:
            named += 1
            assert "\n" not in str(error)
        path.write_bytes(before)
    assert named > 75 and everything(checked) == expected


def test_a_shard_without_checksums_is_read(shards):
    """As earlier versions wrote them."""

    def without(samples):
        for sample in samples:
            meta = json.loads(sample["json"])
            del meta["crc32"]
            sample["json"] = json.dumps(meta).encode()

    index = read_json(shards / "index.json")
    rewrite(shards, without)
    rewritten = read_json(shards / "index.json")
    (shards / "index.json").write_text(json.dumps(rewritten | {"checksums": True}))
    with pytest.raises(InputError, match="is damaged"):
        list(ShardReader(shards).samples(2))
    (shards / "index.json").write_text(json.dumps(rewritten))
    assert len(list(ShardReader(shards).samples(2))) == 10 and index["checksums"] is True
