"""The one door for picture files: shards, stores, prediction, the page and captioners come by here.

A picture shows the same pixels however it is stored: EXIF orientation applied, transparency laid on
white, palettes, CMYK and 16 bit turned to 8-bit RGB, the first frame of several. Whatever is no
regular file, of another format, damaged or too large is refused with its reason, by its header
where that tells.
"""

import io
import os
import stat
import warnings
import zlib
from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from shards.files import InputError
from shards.jpeg import decode_rows

FORMATS = ("JPEG", "PNG", "WEBP", "AVIF", "GIF", "BMP", "TIFF")
"""No other is opened: some hand the file to an outside program (EPS), some decoders raise
anything. Pillow opens MPO, the pair of pictures of many phones, as a JPEG."""
MAX_PIXELS = 80_000_000
"""Of raw corpora and training data."""
POST_PIXELS = 25_000_000
"""Of pictures that strangers send: prediction and the page."""
MAX_JPEG_SIDE = 65_500
MIN_SIDE = 8
SHORT_SIDE = 288
"""Of stored pictures: a random resized crop to 224 pixels of the whole shows no finer detail."""
QUALITY = 92
ORIENTATION = 0x0112  # EXIF tag
SIDEWAYS = (5, 6, 7, 8)  # its values that swap width and height
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class RejectedImage(InputError):
    """This file cannot be used as a picture; says which and why."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.reason = reason
        """Without the file: what stands in `rejects.jsonl`."""


def decoded(path: str | Path, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """The picture as it is to be seen: upright, RGB, 8 bit, whole.

    Raises:
        RejectedImage: missing, no regular file, empty, damaged, another format, too many pixels.
    """
    with _opened(Path(path), file_content(Path(path)), max_pixels) as image:
        return upright_rgb(image)


def decoded_pixels(path: str | Path) -> np.ndarray:
    """(H, W, 3) uint8 of `decoded`, errors as there: to the bit, in less time of a usual JPEG."""
    path = Path(path)
    content = file_content(path)
    with _opened(path, content, MAX_PIXELS) as image:
        if _is_plain(image, orientation(image)):
            with suppress(ValueError):  # Pillow has the last word on what is odd
                return decode_rows(content, image.height, strict=True)
        return np.array(upright_rgb(image))


def cut(picture: np.ndarray, box: Sequence[float]) -> np.ndarray:
    """(H, W, 3) -> its part inside (x1, y1, x2, y2), in pixels, rounded; at least one pixel."""
    (x1, y1, x2, y2), (height, width, _) = map(round, box), picture.shape
    left, top = min(max(x1, 0), width - 1), min(max(y1, 0), height - 1)
    return picture[top : max(y2, top + 1), left : max(x2, left + 1)]


def squash(picture: np.ndarray, size: int) -> np.ndarray:
    """(H, W, 3) uint8 -> (3, size, size), ignoring the aspect ratio: nothing at the border is lost.

    By torch, as pre-training's views: in a quarter of Pillow's time or less, and always width
    before height, where Pillow 13 begins with the height of tall pictures.
    """
    import torch

    pixels = torch.from_numpy(np.ascontiguousarray(picture)).permute(2, 0, 1)[None]
    resize = torch.nn.functional.interpolate
    return resize(pixels, (size, size), mode="bicubic", antialias=True)[0].numpy()


def picture_size(path: str | Path, max_pixels: int = MAX_PIXELS) -> tuple[int, int]:
    """(width, height) of `decoded`, from the file's header alone; errors as there."""
    with _opened(Path(path), file_content(Path(path)), max_pixels) as image:
        return image.size[::-1] if orientation(image) in SIDEWAYS else image.size


def turned_box(
    box: Sequence[float], size: tuple[float, float], turn: int
) -> tuple[float, float, float, float]:
    """(x1, y1, x2, y2) of a `size` picture as stored -> of the one that EXIF `turn` shows."""
    (x1, y1, x2, y2), (width, height) = box, size
    if turn in (2, 3, 7, 8):
        x1, x2 = width - x2, width - x1
    if turn in (3, 4, 6, 7):
        y1, y2 = height - y2, height - y1
    return (y1, x1, y2, x2) if turn in SIDEWAYS else (x1, y1, x2, y2)


class Stored(NamedTuple):
    """A picture as it goes into a shard."""

    content: bytes
    """RGB or grey JPEG."""
    size: tuple[int, int]
    """(width, height)."""
    orientation: int
    """By which of `TURNS` the file's pixels were turned to be seen upright; 1: they were."""
    crc32: int
    """Of the file that it was made of."""


def stored_image(path: Path, short_side: int | None, quality: int = QUALITY) -> Stored:
    """The picture as RGB or grey JPEG whose shorter side is at most `short_side` pixels.

    A JPEG that already satisfies that keeps its bytes. Everything else is encoded once.

    Args:
        short_side: None: of any size.
        quality: of the encoding.

    Raises:
        RejectedImage: as `decoded`, or a side too short or too long for a JPEG.
    """
    return stored_bytes(path, file_content(path), short_side, quality)


def stored_bytes(name: Path, content: bytes, short_side: int | None, quality: int) -> Stored:
    """`stored_image` of a file's content; `name` is what errors call it."""
    with (
        warnings.catch_warnings(action="always", record=True) as odd,
        _opened(name, content, MAX_PIXELS) as image,
    ):
        turn = orientation(image)
        stored = _convert(name, image, content, short_side, quality, odd)
        return Stored(*stored, turn, zlib.crc32(content))


def header(name: Path, content: bytes) -> tuple[tuple[int, int], bool]:
    """(width, height) as it is to be seen, and whether these bytes are an upright RGB or grey JPEG.

    Args:
        content: the picture, or the start of a JPEG.

    Raises:
        RejectedImage: as far as the header tells, `stored_bytes` would.
    """
    with warnings.catch_warnings(action="ignore"), _opened(name, content, MAX_PIXELS) as image:
        _check_sides(name, image)
        turn = orientation(image)
        return (image.size[::-1] if turn in SIDEWAYS else image.size), _is_plain(image, turn)


def file_content(path: Path) -> bytes:
    """The bytes of a regular file: a pipe or a device would never end."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # a pipe's writer is not waited for
        with open(handle, "rb") as file:
            if not stat.S_ISREG(os.fstat(handle).st_mode):
                raise RejectedImage(path, "unreadable image (no regular file)")
            content = file.read()
    except FileNotFoundError as error:
        raise RejectedImage(path, "no such file") from error
    except OSError as error:
        raise RejectedImage(path, f"unreadable image ({error.strerror})") from error
    except RejectedImage:
        raise
    except ValueError as error:  # a zero byte, or a lone surrogate
        raise RejectedImage(path, "no file can be called so") from error
    if not content:
        raise RejectedImage(path, "empty image file")
    return content


@contextmanager
def _opened(path: Path, content: bytes, max_pixels: int) -> Iterator[Image.Image]:
    """The picture, its header judged, nothing decoded; errors of the body are translated, too."""
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            if image.width * image.height > max_pixels:
                size = f"{image.width}x{image.height}"
                raise RejectedImage(path, f"absurd size {size}, over {max_pixels:,} pixels")
            yield image
    except RejectedImage:
        raise
    except Image.DecompressionBombError as error:
        raise RejectedImage(path, f"absurd size ({error})") from error
    except Image.UnidentifiedImageError as error:
        reason = "not a JPEG, PNG, WebP, AVIF, GIF, BMP or TIFF image"
        raise RejectedImage(path, reason) from error
    except Exception as error:  # Pillow's format plug-ins raise anything on damaged bytes.
        reason = f"damaged image ({type(error).__name__}: {error})"
        raise RejectedImage(path, " ".join(reason.split())) from error


def _convert(
    path: Path,
    image: Image.Image,
    content: bytes,
    short_side: int | None,
    quality: int,
    odd: list[warnings.WarningMessage],
) -> tuple[bytes, tuple[int, int]]:
    """Keep or encode; `odd` collects Pillow's warnings, which must not come again in training."""
    width, height = image.size
    _check_sides(path, image)
    scale = short_side / min(width, height) if short_side else 1.0
    turn = orientation(image)
    if scale < 1:
        image.draft(None, (round(width * scale), round(height * scale)))
    image.load()  # a damaged file must not enter a shard
    if _is_plain(image, turn) and scale >= 1 and not odd:
        return content, image.size
    picture = upright_rgb(image)
    if scale < 1:
        # From the size before draft(), whose own rounding would shift the aspect ratio.
        size = (max(round(width * scale), 1), max(round(height * scale), 1))
        picture = picture.resize(size[::-1] if turn in SIDEWAYS else size, Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue(), picture.size


def _check_sides(path: Path, image: Image.Image) -> None:
    if min(image.size) < MIN_SIDE or max(image.size) > MAX_JPEG_SIDE:
        raise RejectedImage(path, f"absurd size {image.width}x{image.height}")


def _is_plain(image: Image.Image, turn: int) -> bool:
    return image.format == "JPEG" and image.mode in ("RGB", "L") and turn == 1


def orientation(image: Image.Image) -> int:
    """1 to 8, as EXIF has it; 1 where nothing, or nothing readable, is said."""
    if image.format == "TIFF":  # Pillow turns these itself, their size at once, pixels at `load`
        return 1
    try:
        value = image.getexif().get(ORIENTATION, 1)
    except Exception:  # the pixels are sound; readers of EXIF raise anything on damaged tags
        return 1
    return value if value in TURNS else 1


def upright_rgb(image: Image.Image) -> Image.Image:
    """A picture opened elsewhere as `decoded` gives it; damaged ones raise what Pillow raises."""
    image.load()
    turn = orientation(image)
    if image.mode == "F":
        raise ValueError("pixels are floats of no known range")
    if image.mode.startswith("I"):  # 16-bit grey, which Pillow itself would clip at 255
        image = Image.fromarray((np.asarray(image).clip(0, 65535) >> 8).astype(np.uint8))
    if image.mode == "La":
        image = image.convert("LA")
    if image.mode in ("RGBA", "LA", "PA", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    if image.mode != "RGB":  # Pillow would copy it
        image = image.convert("RGB")
    return image.transpose(TURNS[turn]) if turn in TURNS else image


def by_size(pictures: Sequence[Image.Image]) -> Collection[list[int]]:
    """Places of pictures of one size, size by size: beside larger ones a detector pads a picture,
    and finds other boxes in it than alone (findings/ultralytics_boxes_depend_on_batch.sh)."""
    places: defaultdict[tuple[int, int], list[int]] = defaultdict(list)
    for place, picture in enumerate(pictures):
        places[picture.size].append(place)
    return places.values()
