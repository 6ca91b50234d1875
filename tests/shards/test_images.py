"""Every kind of picture file becomes an upright RGB JPEG, or a reject with its reason."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from shards.images import MAX_PIXELS, RejectedImage, stored_image


def gradient(width: int, height: int) -> np.ndarray:
    """(H, W, 3) uint8; red grows to the right, green downwards."""
    y, x = np.mgrid[0:height, 0:width]
    channels = [255 * x / (width - 1), 255 * y / (height - 1), np.full_like(x, 60)]
    return np.stack(channels, axis=2).astype(np.uint8)


def pixels(content: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB")).astype(int)


def close(content: bytes, expected: np.ndarray, tolerance: float = 3) -> bool:
    return np.abs(pixels(content) - expected.astype(int)).mean() < tolerance


def save(tmp_path, image: Image.Image, name: str, **options):
    image.save(tmp_path / name, **options)
    return tmp_path / name


def test_small_jpeg_keeps_its_bytes(tmp_path):
    path = save(tmp_path, Image.fromarray(gradient(60, 40)), "a.jpg")
    assert stored_image(path, 40) == (path.read_bytes(), (60, 40))
    grey = save(tmp_path, Image.fromarray(gradient(60, 40)).convert("L"), "g.jpg")
    assert stored_image(grey, 512)[0] == grey.read_bytes()


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((400, 200), (128, 64)),
        ((200, 400), (64, 128)),
        ((333, 517), (64, 99)),
        ((65, 64), (65, 64)),
    ],
)
def test_short_side_is_limited(tmp_path, size, expected):
    path = save(tmp_path, Image.fromarray(gradient(*size)), "a.jpg", quality=95)
    content, stored = stored_image(path, 64)
    assert stored == expected == Image.open(io.BytesIO(content)).size
    assert close(content, gradient(*expected), 6)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("size", [(60, 40), (600, 400)])
def test_exif_orientation_is_applied(tmp_path, orientation, size):
    upright = Image.fromarray(gradient(*size))
    # What a camera stores for that orientation: the inverse of how it is to be shown.
    turns = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    turned = upright.transpose(turns[orientation]) if orientation > 1 else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    content, stored = stored_image(save(tmp_path, turned, "a.jpg", exif=exif, quality=95), 100)
    assert stored == ((60, 40) if size == (60, 40) else (150, 100))
    assert close(content, gradient(*stored), 6)
    assert Image.open(io.BytesIO(content)).getexif().get(0x0112, 1) == 1


@pytest.mark.parametrize("mode", ["CMYK", "P", "L", "1", "RGBA", "LA", "YCbCr"])
def test_modes_become_rgb(tmp_path, mode):
    expected = Image.fromarray(gradient(64, 48))
    if mode in ("L", "1", "LA"):
        expected = expected.convert("L")
    name = {"CMYK": "a.jpg", "YCbCr": "a.tif"}.get(mode, "a.png")
    content, size = stored_image(save(tmp_path, expected.convert(mode), name), 512)
    assert size == (64, 48)
    tolerance = 130 if mode == "1" else 12
    assert close(content, np.asarray(expected.convert("RGB")), tolerance)
    assert Image.open(io.BytesIO(content)).format == "JPEG"


def test_transparency_is_laid_on_white(tmp_path):
    clear = Image.new("RGBA", (32, 32), (255, 0, 0, 0))
    content, _ = stored_image(save(tmp_path, clear, "a.png"), 512)
    assert close(content, np.full((32, 32, 3), 255))
    palette = Image.new("P", (32, 32), 0)
    palette.putpalette([0, 0, 200, 255, 0, 0])
    content, _ = stored_image(save(tmp_path, palette, "p.png", transparency=0), 512)
    assert close(content, np.full((32, 32, 3), 255))


def test_16_bit_grey_is_scaled_not_clipped(tmp_path):
    ramp = np.tile(np.linspace(0, 65535, 64).astype(np.uint16), (32, 1))
    content, _ = stored_image(save(tmp_path, Image.fromarray(ramp), "a.png"), 512)
    assert close(content, np.repeat((ramp >> 8)[..., None], 3, axis=2))


@pytest.mark.parametrize("suffix", ["png", "webp", "bmp", "tif"])
def test_other_formats_are_encoded(tmp_path, suffix):
    content, _ = stored_image(save(tmp_path, Image.fromarray(gradient(64, 48)), f"a.{suffix}"), 512)
    assert close(content, gradient(64, 48), 6)


def bomb(width: int, height: int) -> bytes:
    """A PNG header that promises more pixels than the file can hold."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = b""
    for kind, data in ((b"IHDR", header), (b"IDAT", zlib.compress(b"\0" * 99)), (b"IEND", b"")):
        chunks += struct.pack(">I", len(data)) + kind + data
        chunks += struct.pack(">I", zlib.crc32(kind + data))
    return b"\x89PNG\r\n\x1a\n" + chunks


def jpeg(width: int = 64, height: int = 48) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(gradient(width, height)).save(buffer, "JPEG")
    return buffer.getvalue()


def gif() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(gradient(64, 48)).save(buffer, "GIF")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty"),
        (b"<html>404</html>", "not a JPEG"),
        (gif(), "not a JPEG"),
        (jpeg()[:-200], "damaged"),
        (jpeg()[:20], "not a JPEG"),
        (bomb(MAX_PIXELS, 2), "absurd size"),
        (bomb(2**31 - 1, 2**31 - 1), "damaged|absurd"),
        (bomb(64, 64), "damaged"),
        (jpeg(200, 4), "absurd size"),
    ],
)
def test_rejects_say_why(tmp_path, content, reason):
    path = tmp_path / "a.jpg"
    path.write_bytes(content)
    with pytest.raises(RejectedImage, match=reason):
        stored_image(path, 512)


def test_missing_file_and_folder(tmp_path):
    for path in (tmp_path / "none.jpg", tmp_path):
        with pytest.raises(RejectedImage, match="unreadable"):
            stored_image(path, 512)
