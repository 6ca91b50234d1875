"""Parts of JPEGs: the pixels that Pillow and torchvision decode, and damage that is reported."""

import io
import itertools

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.io import ImageReadMode, decode_jpeg

from shards.jpeg import decode_rows, reduction_for


def picture(width: int, height: int, mode: str = "RGB") -> Image.Image:
    random = np.random.default_rng(width)
    coarse = random.integers(0, 256, (height // 8 + 2, width // 8 + 2, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC).convert(mode)


def jpeg(image: Image.Image, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", **options)
    return buffer.getvalue()


def whole(content: bytes, reduction: int) -> np.ndarray:
    """By torchvision, or, where JPEG's scaling is wanted, by Pillow."""
    if reduction == 1:
        buffer = torch.frombuffer(bytearray(content), dtype=torch.uint8)
        return decode_jpeg(buffer, ImageReadMode.RGB).permute(1, 2, 0).numpy()
    image = Image.open(io.BytesIO(content))
    image.draft(image.mode, tuple(side // reduction for side in image.size))
    return np.asarray(image.convert("RGB"))


KINDS = [*itertools.product((0, 1, 2), (False, True), (0, 3)), ("L", False, 0)]


@pytest.mark.parametrize(("subsampling", "progressive", "restart"), KINDS)
def test_rows_are_those_of_the_whole_picture(subsampling, progressive, restart, capfd):
    """Every colour resolution, coding and scale, to the bit; and no warning on the terminal."""
    random = np.random.default_rng(1)
    options = {"progressive": progressive, "restart_marker_blocks": restart, "quality": 85}
    for width, height in ((131, 97), (64, 160), (203, 45)):
        if subsampling == "L":
            content = jpeg(picture(width, height, "L"), **options)
        else:
            content = jpeg(picture(width, height), subsampling=subsampling, **options)
        for reduction in (1, 2, 4, 8):
            expected = whole(content, reduction)
            assert expected.shape[1] == -(-width // reduction)
            for bottom in (1, *random.integers(2, height, 4), height - 1, height):
                pixels = decode_rows(content, int(bottom), reduction)
                rows = -(-int(bottom) // reduction)
                assert pixels.dtype == np.uint8 and len(pixels) >= rows
                assert np.array_equal(pixels[:rows], expected[:rows])
    assert not any(capfd.readouterr())


def test_rows_below_are_not_decoded():
    content = jpeg(picture(200, 320))
    assert len(decode_rows(content, 100)) < 130
    assert len(decode_rows(content, 100, 2)) < 65
    assert len(decode_rows(content, 320)) == 320


def test_segments_before_the_frame():
    """Thumbnails and profiles hold bytes that look like markers."""
    plain = jpeg(picture(100, 200))
    exif = Image.Exif()
    exif[0x010E] = "x" * 300 + "\xff\xd9\xff\xc0"
    stuffed = jpeg(picture(100, 200), exif=exif, icc_profile=b"\xff\xc0\x00\x11\xff\xd9" * 900)
    filled = plain[:2] + b"\xff\xff\xff" + plain[2:]  # fill bytes
    for content in (stuffed, filled):
        assert np.array_equal(decode_rows(content, 90), decode_rows(plain, 90))


@pytest.mark.parametrize("reduction", [1, 2])
def test_damage_is_reported(reduction):
    content = jpeg(picture(128, 128), icc_profile=b"\xff\xd9" * 100)
    for size in (0, 1, 2, 3, 20, 300, 1000, len(content) // 2, len(content) - 1):
        with pytest.raises(ValueError):
            decode_rows(content[:size], 64, reduction)
    for other in (bytes(500), b"\xff" * 500, b"\x89PNG" * 99, content[300:], content[:2] * 99):
        with pytest.raises(ValueError):
            decode_rows(other, 64, reduction)


def test_reduction_never_goes_below_the_view():
    for width, height in np.random.default_rng(0).uniform(1, 3000, (500, 2)):
        reduction = reduction_for(width, height, 224)
        assert reduction == 1 or min(width, height) / reduction >= 224
        assert reduction == 8 or min(width, height) / (2 * reduction) < 224
