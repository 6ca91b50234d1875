"""Every kind of picture file becomes an upright RGB JPEG, or a reject with its reason."""

import io
import os
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image

from shards.images import (
    MAX_PIXELS,
    TURNS,
    RejectedImage,
    decoded,
    decoded_pixels,
    picture_size,
    stored_image,
)
from shards.sample.pictures import Scene, draw_scene


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
    content = path.read_bytes()
    assert stored_image(path, 40) == (content, (60, 40), 1, zlib.crc32(content))
    assert stored_image(path, None)[0] == path.read_bytes()
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
    content, stored, *_ = stored_image(path, 64)
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
    content, stored, *_ = stored_image(save(tmp_path, turned, "a.jpg", exif=exif, quality=95), 100)
    assert stored == ((60, 40) if size == (60, 40) else (150, 100))
    assert close(content, gradient(*stored), 6)
    assert Image.open(io.BytesIO(content)).getexif().get(0x0112, 1) == 1


@pytest.mark.parametrize("mode", ["CMYK", "P", "L", "1", "RGBA", "LA", "YCbCr"])
def test_modes_become_rgb(tmp_path, mode):
    expected = Image.fromarray(gradient(64, 48))
    if mode in ("L", "1", "LA"):
        expected = expected.convert("L")
    name = {"CMYK": "a.jpg", "YCbCr": "a.tif"}.get(mode, "a.png")
    content, size, *_ = stored_image(save(tmp_path, expected.convert(mode), name), 512)
    assert size == (64, 48)
    tolerance = 130 if mode == "1" else 12
    assert close(content, np.asarray(expected.convert("RGB")), tolerance)
    assert Image.open(io.BytesIO(content)).format == "JPEG"


def test_transparency_is_laid_on_white(tmp_path):
    clear = Image.new("RGBA", (32, 32), (255, 0, 0, 0))
    content, *_ = stored_image(save(tmp_path, clear, "a.png"), 512)
    assert close(content, np.full((32, 32, 3), 255))
    palette = Image.new("P", (32, 32), 0)
    palette.putpalette([0, 0, 200, 255, 0, 0])
    content, *_ = stored_image(save(tmp_path, palette, "p.png", transparency=0), 512)
    assert close(content, np.full((32, 32, 3), 255))


def test_16_bit_grey_is_scaled_not_clipped(tmp_path):
    ramp = np.tile(np.linspace(0, 65535, 64).astype(np.uint16), (32, 1))
    content, *_ = stored_image(save(tmp_path, Image.fromarray(ramp), "a.png"), 512)
    assert close(content, np.repeat((ramp >> 8)[..., None], 3, axis=2))


@pytest.mark.parametrize("suffix", ["png", "webp", "bmp", "tif"])
def test_other_formats_are_encoded(tmp_path, suffix):
    content, *_ = stored_image(
        save(tmp_path, Image.fromarray(gradient(64, 48)), f"a.{suffix}"), 512
    )
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


def saved_as(kind: str) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(gradient(64, 48)).save(buffer, kind)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty"),
        (b"<html>404</html>", "not a JPEG"),
        *[(saved_as(kind), "not a JPEG") for kind in ("EPS", "ICO", "TGA", "PPM", "JPEG2000")],
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
    os.mkfifo(tmp_path / "pipe.jpg")  # nobody writes: opening it plainly would wait for ever
    reasons = {"none.jpg": "no such file", ".": "unreadable", "pipe.jpg": "no regular file"}
    for name, reason in reasons.items():
        for read in (decoded, picture_size, lambda path: stored_image(path, 512)):
            with pytest.raises(RejectedImage, match=reason):
                read(tmp_path / name)


@pytest.mark.parametrize("name", ["a\0b.jpg", "a\ud800b.jpg"])
def test_a_name_that_no_file_can_have_is_refused(name):
    for read in (decoded, picture_size):
        with pytest.raises(RejectedImage, match="no file can be called so"):
            read(name)


# One picture, many encodings: (writer, largest mean difference of an 8-bit channel).


def turned(number: int, kind: str, **options):
    """Pixels as a camera held that way stores them, and the flag that says so."""
    back = {5: 5, 6: 8, 7: 7, 8: 6}.get(number, number)  # the inverse of how it is to be shown

    def write(picture: Image.Image, path) -> None:
        exif = Image.Exif()
        exif[0x0112] = number
        picture.transpose(TURNS[back]).save(path, kind, exif=exif, **options)

    return write


def plain(kind: str, mode: str = "RGB", **options):
    return lambda picture, path: picture.convert(mode).save(path, kind, **options)


def over_white(picture: Image.Image, path) -> None:
    """The same picture out of a transparent layer: white shows through where it is brightest."""
    pixels = np.asarray(picture).astype(int)
    alpha = 255 - pixels.min(axis=2, keepdims=True)  # the clearest layer that can give them
    colours = np.where(alpha > 0, 255 - (255 - pixels) * 255 / np.maximum(alpha, 1), 0)
    layer = np.concatenate([colours.round().clip(0, 255), alpha], axis=2).astype(np.uint8)
    Image.fromarray(layer).save(path, "PNG")


def palette(kind: str):
    return lambda picture, path: picture.quantize(256, dither=Image.Dither.NONE).save(path, kind)


ENCODINGS = {
    "png": (plain("PNG"), 0),
    "bmp": (plain("BMP"), 0),
    "tiff": (plain("TIFF", compression="tiff_lzw"), 0),
    "webp": (plain("WEBP", lossless=True), 0),
    "opaque": (plain("PNG", "RGBA"), 0),
    "cmyk": (plain("TIFF", "CMYK"), 0),
    "over white": (over_white, 1),
    "turned png": (turned(6, "PNG"), 0),
    "turned tiff": (turned(8, "TIFF"), 0),
    "turned jpeg": (turned(6, "JPEG", quality=98, subsampling=0), 1.5),
    "mpo": (plain("MPO", quality=98, subsampling=0), 1.5),
    "avif": (plain("AVIF", quality=98, subsampling="4:4:4"), 1.5),
    "palette": (palette("PNG"), 6),
    "gif": (palette("GIF"), 6),
}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> list[Image.Image]:
    """Pictures of the synthetic sample, wider than high, whose top and left can be told."""
    folder, found = tmp_path_factory.mktemp("pictures"), []
    boxes = ((0.1, 0.3, 0.4, 0.95), (0.5, 0.1, 0.9, 0.4), (0.5, 0.55, 0.95, 0.9))
    for seed in range(4):
        scene = Scene(f"{seed}.jpg", ("woman", "tree", "car"), boxes, (seed,))
        draw_scene(folder, scene, 96)
        found.append(Image.open(folder / scene.path).convert("RGB").crop((0, 0, 96, 64)))
    return found


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_a_picture_is_the_same_in_every_encoding(tmp_path, pictures, encoding):
    write, tolerance = ENCODINGS[encoding]
    for picture in pictures:
        path = tmp_path / "a.jpg"  # the name tells nothing
        write(picture, path)
        assert picture_size(path) == picture.size
        difference = np.abs(np.asarray(decoded(path)).astype(int) - np.asarray(picture))
        assert difference.mean() <= tolerance
        content, size, *_ = stored_image(path, 512)
        assert size == picture.size and close(content, np.asarray(picture), 6 + tolerance)


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP", "AVIF", "JPEG"])
@pytest.mark.parametrize("number", TURNS)
def test_every_orientation_of_every_format(tmp_path, pictures, number, kind):
    options = {"lossless": True} if kind == "WEBP" else {"quality": 98}
    turned(number, kind, **options)(pictures[0], tmp_path / "a")
    assert picture_size(tmp_path / "a") == pictures[0].size
    difference = np.asarray(decoded(tmp_path / "a")).astype(int) - np.asarray(pictures[0])
    assert np.abs(difference).mean() < 6
    content, size, *_ = stored_image(tmp_path / "a", 48)
    assert size == (72, 48)
    assert close(content, np.asarray(pictures[0].resize(size, Image.Resampling.LANCZOS)), 8)


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_grey_in_8_and_16_bits(tmp_path, pictures, kind):
    grey = pictures[0].convert("L")
    wide = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
    for name, picture in (("8", grey), ("16", wide), ("la", grey.convert("LA"))):
        picture.save(tmp_path / name, kind)
        assert (np.asarray(decoded(tmp_path / name)) == np.asarray(grey.convert("RGB"))).all()


def test_an_ordinary_jpeg_is_what_pillow_says(tmp_path, pictures):
    for mode in ("RGB", "L"):
        pictures[0].convert(mode).save(tmp_path / "a.jpg")
        expected = np.asarray(Image.open(tmp_path / "a.jpg").convert("RGB"))
        assert (np.asarray(decoded(tmp_path / "a.jpg")) == expected).all()


def test_the_limit_is_the_callers(tmp_path):
    (tmp_path / "a.png").write_bytes(bomb(200, 100))  # its header alone is read
    assert picture_size(tmp_path / "a.png", 20_000) == (200, 100)
    for read in (picture_size, decoded):
        with pytest.raises(RejectedImage, match=r"a.png: absurd size 200x100, over 19,999 pixels"):
            read(tmp_path / "a.png", 19_999)


def test_a_damaged_orientation_is_none(tmp_path):
    picture = Image.fromarray(gradient(60, 40))
    picture.save(tmp_path / "a.jpg", exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff" + b"\xff" * 40)
    assert decoded(tmp_path / "a.jpg").size == (60, 40)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "AVIF", "GIF", "BMP", "TIFF", "MPO"])
def test_damage_is_named_whatever_the_decoder_raises(tmp_path, kind):
    """Cut files and flipped bytes: decoded or refused with one line, nothing else."""
    whole, random = bytearray(saved_as(kind)), np.random.default_rng(0)
    path, refused = tmp_path / "a", 0
    for trial in range(60):
        content = bytearray(whole)
        if trial % 3 == 0:
            del content[random.integers(1, len(whole)) :]
        for _ in range(4):
            content[random.integers(min(len(content), 200 if trial % 2 else 10**9))] ^= 1 << (
                trial % 8
            )
        path.write_bytes(content)
        for read in (decoded, lambda path: stored_image(path, 512)):
            try:
                read(path)
            except RejectedImage as error:
                refused += 1
                assert str(error).startswith(f"{path}: ") and "\n" not in str(error)
    assert refused


KINDS: dict[str, dict[str, Any]] = {
    **{f"subsampling {n}": {"subsampling": n, "quality": 60} for n in range(3)},
    "progressive": {"progressive": True},
    "restarts": {"restart_marker_rows": 1},
    "grey": {"mode": "L"},
    "cmyk": {"mode": "CMYK"},
    "turned": {"exif": b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"},
    "a PNG": {"format": "PNG"},
}


@pytest.mark.parametrize("kind", KINDS)
def test_pictures_are_decoded_as_by_pillow(kind, tmp_path):
    """To the bit; and what Pillow refuses, or takes although it is damaged, is so here, too."""
    random, path = np.random.default_rng(0), tmp_path / "picture.jpg"
    options = {"mode": "RGB", "format": "JPEG"} | KINDS[kind]
    mode = options.pop("mode")
    for width, height in ((1, 9), (5, 8), (7, 300), (5, 3), (131, 97), (640, 480)):
        coarse = random.integers(0, 256, (height // 8 + 2, width // 8 + 2, 3), dtype=np.uint8)
        picture = Image.fromarray(coarse).resize((width, height)).convert(mode)
        picture.save(path, **options)
        pixels = decoded_pixels(path)
        assert pixels.shape == (*((width, height) if kind == "turned" else (height, width)), 3)
        assert (pixels == np.asarray(decoded(path))).all()
    content = bytearray(path.read_bytes())
    path.write_bytes(content[: len(content) * 2 // 3])
    for decode in (decoded, decoded_pixels):
        with pytest.raises(RejectedImage, match=r"picture\.jpg: damaged image"):
            decode(path)
    if kind != "a PNG":
        content[len(content) // 2] ^= 0x55
        path.write_bytes(content)
        assert (decoded_pixels(path) == np.asarray(decoded(path))).all()


@pytest.mark.parametrize("progressive", [False, True])
def test_damage_in_a_jpeg_is_told_as_by_pillow(progressive, tmp_path):
    """Flipped bytes, and two files cut and joined: never what libjpeg-turbo makes of them alone."""
    path, refused = tmp_path / "picture.jpg", 0
    save(tmp_path, Image.fromarray(gradient(64, 48)), path.name, progressive=progressive)
    whole = path.read_bytes()
    tails = (b"\xff\xd9", whole)
    cut = [whole[: len(whole) * tenth // 10] + tail for tenth in range(2, 10) for tail in tails]
    for content in cut + [
        whole[:at] + bytes([value]) + whole[at + 1 :]
        for at in range(2, len(whole), 5)
        for value in (0, 0xFF)
    ]:
        path.write_bytes(content)
        try:
            expected = np.asarray(decoded(path))
        except RejectedImage:
            refused += 1
            with pytest.raises(RejectedImage):
                decoded_pixels(path)
        else:
            assert (decoded_pixels(path) == expected).all()
    assert refused
