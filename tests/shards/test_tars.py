"""Other people's tars read in place: the pairs that `build webdataset` makes of them."""

import io
import json
from unittest import mock

import pytest
from PIL import Image
from webdataset import ShardWriter

from shards import tars as module
from shards.__main__ import main
from shards.files import InputError
from shards.stream import ShardReader
from shards.tars import TarReader, open_shards


@pytest.fixture
def tars(tmp_path, picture, monkeypatch) -> str:
    """Three tars by `webdataset`: JPEG, PNG, a turned JPEG, and keys that are no pairs."""
    monkeypatch.setenv("FUSION_MRE_CACHE", str(tmp_path / "cache"))
    (tmp_path / "raw").mkdir()
    with ShardWriter(str(tmp_path / "raw" / "%05d.tar"), maxcount=5, verbose=0) as sink:
        for number in range(12):
            ending, options = ("png", {}) if number == 3 else ("jpg", {})
            if number == 4:
                exif = Image.Exif()
                exif[0x0112] = 6
                options = {"exif": exif}
            path = tmp_path / "pictures" / f"{number}.{ending}"
            picture(path, seed=number, **options)
            sink.write({"__key__": f"v1.{number:04d}", ending: path.read_bytes(),
                        "txt": f"text {number}"})  # fmt: skip
        sink.write({"__key__": "lonely", "txt": "no picture"})
        sink.write({"__key__": "broken", "jpg": b"\xff\xd8 no picture", "txt": "text"})
    return str(tmp_path / "raw" / "{00000..00002}.tar")


def test_pairs_are_those_of_build(tars, tmp_path):
    options = ["--tars", tars, "--mismatch", "0", "--jobs", "1", "--as-is"]
    main(["build", "webdataset", *options, "--out", str(tmp_path / "built")])
    built, ours = ShardReader(tmp_path / "built"), open_shards(tars)
    pairs = [
        {sample.meta.image_id: sample for n in range(len(reader.index.shards))
         for sample in reader.samples(n)}
        for reader in (ours, built)
    ]  # fmt: skip
    assert pairs[0].keys() == pairs[1].keys() and len(pairs[0]) == 12
    assert ours.index.samples == ours.index.matched == built.index.samples == 12
    for name, sample in pairs[0].items():
        expected = pairs[1][name]
        assert sample.image == expected.image
        for field in ("caption", "caption_id", "size", "source", "matched"):
            assert getattr(sample.meta, field) == getattr(expected.meta, field)
    # What both leave out, by name and in numbers.
    lines = (tmp_path / "built" / "rejects.jsonl").read_text().splitlines()
    rejects = {json.loads(line)["where"] for line in lines}
    assert {refusal.where for refusal in ours.refusals} == rejects
    assert ours.summary().startswith("3 tars: 14 keys = 12 pairs + 2 rejects; ")
    ours.write_rejects(tmp_path / "named.jsonl")
    assert len((tmp_path / "named.jsonl").read_text().splitlines()) == 2


def test_the_table_is_made_once_and_follows_its_tar(tars, tmp_path):
    first = open_shards(tars)
    with mock.patch.object(module, "read_tar", side_effect=AssertionError):
        assert open_shards(tars).index == first.index
    for table in (tmp_path / "cache").glob("*.safetensors"):
        table.write_bytes(table.read_bytes()[:-9])
    assert open_shards(tars).index == first.index  # made again, to the same bytes
    with ShardWriter(str(tmp_path / "raw" / "%05d.tar"), maxcount=5, verbose=0) as sink:
        buffer = io.BytesIO()
        Image.new("RGB", (40, 40)).save(buffer, "JPEG")
        sink.write({"__key__": "other", "jpg": buffer.getvalue(), "txt": "other"})
    with pytest.raises(InputError, match=r"00000\.tar: changed since it was first read"):
        first.read(0, 0)


def test_what_cannot_be_is_one_line(tars, tmp_path, monkeypatch):
    with pytest.raises(InputError, match=r"no column of objects; .*build webdataset --tars"):
        open_shards(tars, columns=["objects"])
    with pytest.raises(InputError, match=r"nothing-\{0\.\.1\}\.tar: no such file"):
        open_shards(tmp_path / "nothing-{0..1}.tar")
    with pytest.raises(InputError, match="from local disks alone"):
        open_shards("s3://bucket/00000.tar")
    with ShardWriter(str(tmp_path / "raw" / "no%d.tar"), verbose=0) as sink:
        sink.write({"__key__": "a", "txt": "alone"})
    with pytest.raises(InputError, match=r"no pair; 1 tars: 1 keys = 0 pairs \+ 1 rejects; 1 x no"):
        TarReader(tmp_path / "raw" / "no0.tar")
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("FUSION_MRE_CACHE", str(tmp_path / "file" / "below"))
    with pytest.raises(InputError, match="set FUSION_MRE_CACHE to a folder that can be written"):
        open_shards(tars)
