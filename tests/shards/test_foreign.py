"""`build webdataset`: crooked tars of other people; rows = samples + rejects, each named."""

import io
import json
import tarfile
from pathlib import Path

import pytest
from webdataset import ShardWriter

from shards.__main__ import main
from shards.files import InputError
from shards.foreign import expand, read_tar, webdataset
from shards.stream import ShardReader


def jpeg(picture, tmp_path: Path, seed: int) -> bytes:
    picture(tmp_path / "p.jpg", seed=seed)
    return (tmp_path / "p.jpg").read_bytes()


def write_tar(path: Path, members: list[tuple[str, bytes | None]]) -> Path:
    """None: a folder entry."""
    path.parent.mkdir(exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            if content is None:
                info.type = tarfile.DIRTYPE
                tar.addfile(info)
            else:
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    return path


def test_crooked_members_are_taken_or_named(picture, tmp_path):
    image = jpeg(picture, tmp_path, 0)
    about = json.dumps({"caption": "from JSON", "status": "success"}).encode()
    path = write_tar(
        tmp_path / "raw" / "00000.tar",
        [("d", None), ("d/a.jpg", image), ("d/a.txt", b"one"), ("d/a.json", about),
         ("b.v1.2.JPEG", image), ("b.v1.2.TXT", "zwei ü".encode()),
         ("c.jpg", image), ("c.json", about),
         ("e.jpg", image), ("f.txt", b"alone"), ("g.jpg", image), ("g.txt", b"\xff"),
         ("h.jpg", image), ("h.txt", b" "), ("i.jpg", image), ("i.json", b"{"),
         ("j.jpg", image), ("j.txt", b"x"), ("j.jpg", image), ("k.mp4", b"film"),
         ("l.jpg", image), ("l.txt", b"\n"), ("l.json", about)],
    )  # fmt: skip
    corpus = webdataset([str(path)], mismatch=0)
    taken = {corpus.where(n): corpus.record(n).caption for n in corpus.numbers.tolist()}
    assert taken == {
        "00000.tar: d/a": "one", "00000.tar: b.v1.2": "zwei ü", "00000.tar: c": "from JSON",
        "00000.tar: l": "from JSON",
    }  # fmt: skip
    reasons = {corpus.where(reject.row)[-1]: reject.reason for reject in corpus.rejects}
    assert corpus.rows == 11 and {key: text.split(" (")[0] for key, text in reasons.items()} == {
        "e": "no .txt or .json of this key", "f": "no picture of this key",
        "g": "its caption is no UTF-8", "h": "no usable caption", "i": "its .json: not valid JSON",
        "j": "the key comes again", "k": "neither picture nor caption, but .mp4",
    }  # fmt: skip


def test_tars_of_webdataset_become_shards(picture, tmp_path):
    (tmp_path / "raw").mkdir()
    images = {f"{n:04d}": jpeg(picture, tmp_path, n) for n in range(12)}
    with ShardWriter(str(tmp_path / "raw" / "%05d.tar"), maxcount=5, verbose=0) as sink:
        for key, image in images.items():
            sink.write({"__key__": key, "jpg": image, "txt": f"text {key}"})
    out = tmp_path / "out"
    pattern = str(tmp_path / "raw" / "{00000..00002}.tar")
    options = ["--tars", pattern, "--mismatch", "0.5", "--jobs", "1", "--out", str(out)]
    main(["build", "webdataset", *options])
    main(["verify", str(out)])
    reader = ShardReader(out)
    samples = [s for n in range(len(reader.index.shards)) for s in reader.samples(n)]
    assert len(samples) == 12 and sum(sample.meta.matched for sample in samples) == 6
    for sample in samples:
        key = sample.meta.image_id.rpartition("/")[2]
        assert sample.image == images[key]
        assert (sample.meta.caption == f"text {key}") == sample.meta.matched


def test_what_is_no_tar_is_said(picture, tmp_path):
    path = write_tar(tmp_path / "raw" / "a.tar", [("a.jpg", jpeg(picture, tmp_path, 0))])
    content = path.read_bytes()
    for wrong in (b"no tar", content[:700]):
        path.write_bytes(wrong)
        with pytest.raises(InputError, match=r"a\.tar: (cannot be read|is cut)"):
            read_tar(0, path)
    with pytest.raises(InputError, match="no such file"):
        expand([str(tmp_path / "{0..3}.tar")])
    write_tar(tmp_path / "other" / "a.tar", [])
    with pytest.raises(InputError, match=r"two are called a\.tar"):
        expand([str(path), str(tmp_path / "other" / "*.tar")])


@pytest.mark.parametrize("name", ["/", "."])
def test_a_file_without_a_name_is_named(picture, tmp_path, name):
    image = jpeg(picture, tmp_path, 0)
    members = [(name, b"x"), ("a.jpg", image), ("a.txt", b"one")]
    corpus = webdataset([str(write_tar(tmp_path / "t.tar", members))], mismatch=0)
    assert len(corpus.numbers) == 1 and corpus.rejects[0].reason.startswith("neither picture nor")


def test_links_are_rejects_and_marks_before_captions_go(picture, tmp_path):
    """A link has no content of its own; a byte order mark is none of a caption's letters."""
    image, path = jpeg(picture, tmp_path, 0), tmp_path / "a [1].tar"
    with tarfile.open(path, "w") as tar:
        mark = b"\xef\xbb\xbf"
        members = {"a.jpg": image, "a.txt": mark + b"one", "b.txt": b"two", "c.jpg": image,
                   "c.json": mark + b'{"caption": "three"}'}  # fmt: skip
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
        for name, kind in (("b.jpg", tarfile.LNKTYPE), ("l.txt", tarfile.SYMTYPE)):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "a.jpg"
            tar.addfile(info)
    corpus = webdataset([str(path)], mismatch=0)
    taken = {corpus.where(n)[-1]: corpus.record(n).caption for n in corpus.numbers.tolist()}
    assert taken == {"a": "one", "c": "three"}
    reasons = {corpus.where(reject.row)[-1]: reject.reason for reject in corpus.rejects}
    assert reasons == {"b": "a link or a device, no file", "l": "no picture of this key"}


def test_brackets_in_a_path_are_letters(picture, tmp_path):
    members = [("a.jpg", jpeg(picture, tmp_path, 0)), ("a.txt", b"one")]
    for name in ("0.tar", "1.tar"):
        write_tar(tmp_path / "set [ab]" / name, members)
    found = expand([str(tmp_path / "set [ab]" / "{0..1}.tar")])
    assert found == expand([str(tmp_path / "set [ab]" / "*.tar")]) and len(found) == 2
