"""The picture store: right pixels, everything absent counted, never a stand-in."""

import os
import resource

import numpy as np
import pytest
from PIL import Image

from finetune.inputs.picture_store import new_array, open_store
from finetune.inputs.pictures import (
    RESIZERS,
    Part,
    blank_store,
    decode_images,
)
from shards.files import DISK_FULL, InputError
from shards.images import cut


@pytest.fixture
def folder(tmp_path):
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    generator = np.random.default_rng(0)
    for name, mode in (("a.png", "RGB"), ("b.png", "L"), ("c.png", "RGBA"), ("d.png", "P")):
        image = Image.fromarray(generator.integers(0, 256, (30, 50, 3), dtype=np.uint8))
        image.convert(mode).save(pictures / name)
    (pictures / "empty.jpg").write_bytes(b"")
    (pictures / "cut.png").write_bytes((pictures / "a.png").read_bytes()[:500])
    (pictures / "inf.png").write_bytes((pictures / "a.png").read_bytes())
    return pictures


def store(folder, names, tmp_path, size=16, resize="squash"):
    return open_store(folder, names, size=size, resize=resize, cache=tmp_path / "cache")


def square(picture: Image.Image, size: int) -> np.ndarray:
    """(3, S, S), by Pillow: width, then height, the order that it chooses anew for each picture."""
    for sides in ((size, picture.height), (size, size)):
        picture = picture.resize(sides, Image.Resampling.BICUBIC)
    return np.asarray(picture).transpose(2, 0, 1)


def assert_near(pixels: np.ndarray, expected: np.ndarray) -> None:
    """torch rounds its weights to fewer bits than Pillow: a level or two apart, here and there."""
    apart = np.abs(pixels.astype(int) - expected)
    assert pixels.shape == expected.shape and apart.max() <= 2 and (apart > 0).mean() < 0.02


@pytest.mark.parametrize("size", [(500, 375), (333, 500), (40, 30), (16, 16), (1, 1), (900, 3)])
@pytest.mark.parametrize("side", [16, 224])
def test_squashed_pictures_are_pillows_within_two_levels(size, side):
    random = np.random.default_rng(0)
    picture = Image.fromarray(random.integers(0, 256, (*size[::-1], 3), dtype=np.uint8))
    assert_near(RESIZERS["squash"](np.array(picture), side), square(picture, side))


def test_stored_pixels_are_those_of_the_pictures(folder, tmp_path):
    names = ["d.png", "a.png", "b.png", "a.png", "c.png"]
    found = store(folder, names, tmp_path)
    assert found.pixels.dtype == np.uint8 and isinstance(found.pixels, np.memmap)
    pixels = found.pixels_at(found.index_of(names))
    for name, values in zip(names, pixels, strict=True):
        assert_near(values, square(Image.open(folder / name).convert("RGB"), 16))


def test_center_crop_of_an_exact_picture(tmp_path):
    """256 × 256 needs no resize: the crop is the middle 224."""
    values = np.random.default_rng(0).integers(0, 256, (256, 256, 3), dtype=np.uint8)
    cropped = RESIZERS["center_crop"](values, 224)
    assert (cropped == values[16:240, 16:240].transpose(2, 0, 1)).all()


def test_absent_pictures_are_counted_and_zero(folder, tmp_path):
    names = ["a.png", "gone.jpg", "empty.jpg", "cut.png"]
    found = store(folder, names, tmp_path)
    assert found.missing == ("gone.jpg",)
    assert found.undecodable == ("cut.png", "empty.jpg")
    index = found.index_of([*names, None])
    assert (index >= 0).tolist() == [True, False, False, False, False]
    assert not found.pixels_at(index)[1:].any()
    found.require(allowed=3)
    with pytest.raises(InputError, match=r"of 4 pictures 1 are missing and 2 undecodable.*gone"):
        found.require()


@pytest.mark.parametrize("names", [["a.png"], ["b.png", "gone.jpg", "cut.png"], ["cut.png"]])
def test_in_memory_as_on_the_disk(folder, tmp_path, names):
    """Pictures of posts, of which a call has one or many: the same pixels, the same absent ones."""
    names = [*names, *(Part(name, (3, 2, 40, 20)) for name in names)]
    kept, held = store(folder, names, tmp_path), decode_images(folder, names, size=16,
                                                               resize="squash")  # fmt: skip
    assert (held.missing, held.undecodable) == (kept.missing, kept.undecodable)
    pixels = held.pixels_at(held.index_of(names))
    assert (pixels == kept.pixels_at(kept.index_of(names))).all()
    assert not isinstance(held.pixels, np.memmap) and len(held.pixels)


def test_missing_folder(tmp_path):
    found = store(tmp_path / "nowhere", ["a.png"], tmp_path)
    assert found.missing == ("a.png",) and len(found.position) == 0


def test_built_once_and_again_when_a_file_changes(folder, tmp_path, monkeypatch):
    names = ["a.png", "b.png"]
    first = store(folder, names, tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr("finetune.inputs.picture_store._build", lambda *a: pytest.fail("built again"))
        assert (store(folder, names[::-1], tmp_path).pixels == first.pixels).all()
    Image.new("RGB", (9, 9), (1, 2, 3)).save(folder / "a.png")
    os.utime(folder / "a.png", (1, 1))
    changed = store(folder, names, tmp_path)
    assert changed.pixels_at(changed.index_of(["a.png"]))[0, :, 0, 0].tolist() == [1, 2, 3]


def test_no_half_built_store(folder, tmp_path, monkeypatch):
    """A failure while decoding leaves nothing that a later run would take for a store."""

    def fail(*args):
        raise MemoryError

    monkeypatch.setattr("finetune.inputs.pictures._decode", fail)
    with pytest.raises(MemoryError):
        store(folder, ["a.png"], tmp_path)
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_store_that_does_not_fit_is_an_error_and_leaves_nothing(folder, tmp_path):
    """Its place is taken before the first pixel is written; a sparse file would end in SIGBUS."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, hard))
    try:
        with pytest.raises(OSError) as full:
            store(folder, ["a.png"], tmp_path, size=64)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert full.value.errno in DISK_FULL and list((tmp_path / "cache").iterdir()) == []
    new_array(tmp_path / "a.npy", (1 << 20,), "uint8")
    assert (tmp_path / "a.npy").stat().st_blocks * 512 >= 1 << 20


@pytest.mark.parametrize(
    ("box", "part"),
    [
        ((-9, -8, -4, -3), (0, 0, 1, 1)),
        ((-9, 2, 0, 5), (0, 2, 1, 5)),
        ((-5, -5, 5, 4), (0, 0, 5, 4)),
        ((20, 30, 40, 50), (11, 9, 12, 10)),
        ((7, 6, 3, 2), (7, 6, 8, 7)),
    ],
)
def test_a_box_outside_shows_the_pixel_beside_it(box, part):
    """Of boxes that a file brings none cuts nothing, and none what lies on the other side."""
    picture = np.arange(10 * 12 * 3, dtype=np.uint8).reshape(10, 12, 3)
    left, top, right, bottom = part
    assert np.array_equal(cut(picture, box), picture[top:bottom, left:right])


def test_parts_of_a_picture_are_pillows_crops(folder, tmp_path):
    names = ["a.png", Part("a.png", (10.2, 5, 30.7, 29)), Part("a.png", (49.9, 0, 60, 2))]
    found = store(folder, names, tmp_path)
    picture = Image.open(folder / "a.png").convert("RGB")
    for name, box in zip(names, [(0, 0, 50, 30), (10, 5, 31, 29), (49, 0, 50, 2)], strict=True):
        (pixels,) = found.pixels_at(found.index_of([name]))
        assert_near(pixels, square(picture.crop(box), 16))


def test_a_table_of_positions_and_blank_pictures(folder, tmp_path):
    found = blank_store(folder, ["a.png", "gone.jpg"], size=4)
    index = np.stack([found.index_of(["a.png", None]), found.index_of(["gone.jpg", "x"])])
    pixels = found.pixels_at(index)
    assert pixels.shape == (2, 2, 3, 4, 4) and (index >= 0).tolist() == [[True, False]] * 2
    assert (pixels[:, 0] == 127).all() and not pixels[:, 1].any()


def test_a_store_has_the_umask_s_mode(tmp_path):
    """A shared FUSION_MRE_CACHE is read by others, too."""
    before = os.umask(0o027)
    try:
        open_store(tmp_path, ["absent.jpg"], size=8, resize="squash", cache=tmp_path / "cache")
    finally:
        os.umask(before)
    (store,) = (path.parent for path in (tmp_path / "cache").rglob("index.json"))
    assert store.stat().st_mode & 0o777 == 0o750
