"""A raw picture file -> the JPEG bytes that a shard stores, or the reason why not."""

import io
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF")
MAX_PIXELS = 80_000_000
MAX_JPEG_SIDE = 65_500
MIN_SIDE = 8
QUALITY = 90
ORIENTATION = 0x0112  # EXIF tag
SIDEWAYS = (5, 6, 7, 8)  # its values that swap width and height


class RejectedImage(ValueError):
    """This picture cannot become a sample; the message is the reason in `rejects.jsonl`."""


def stored_image(path: Path, max_side: int) -> tuple[bytes, tuple[int, int]]:
    """The picture as RGB or grey JPEG whose shorter side is at most `max_side` pixels.

    A JPEG that already satisfies that keeps its bytes. Everything else is encoded once: EXIF
    orientation applied, transparency laid on white, CMYK, palette and 16 bit turned to RGB.

    Returns:
        (JPEG bytes, (width, height)).

    Raises:
        RejectedImage: missing, empty, damaged, of another format, or of an absurd size.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise RejectedImage(f"unreadable image ({error.strerror})") from error
    if not content:
        raise RejectedImage("empty image file")
    try:
        with (
            warnings.catch_warnings(action="always", record=True) as odd,
            Image.open(io.BytesIO(content), formats=FORMATS) as image,
        ):
            return _convert(image, content, max_side, odd)
    except RejectedImage:
        raise
    except Image.DecompressionBombError as error:
        raise RejectedImage(f"absurd size ({error})") from error
    except Image.UnidentifiedImageError as error:
        raise RejectedImage("not a JPEG, PNG, WebP, BMP or TIFF image") from error
    except Exception as error:  # Pillow's format plug-ins raise anything on damaged bytes.
        raise RejectedImage(f"damaged image ({type(error).__name__}: {error})") from error


def _convert(
    image: Image.Image, content: bytes, max_side: int, odd: list
) -> tuple[bytes, tuple[int, int]]:
    """Keep or encode; `odd` collects Pillow's warnings, which must not come again in training."""
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise RejectedImage(f"absurd size {width}x{height}")
    if min(width, height) < MIN_SIDE or max(width, height) > MAX_JPEG_SIDE:
        raise RejectedImage(f"absurd size {width}x{height}")
    scale = max_side / min(width, height)
    orientation = image.getexif().get(ORIENTATION, 1)
    if scale < 1:
        image.draft(None, (round(width * scale), round(height * scale)))
    image.load()  # a damaged file must not enter a shard
    plain = image.format == "JPEG" and image.mode in ("RGB", "L") and orientation == 1
    if plain and scale >= 1 and not odd:
        return content, image.size
    image = to_rgb(ImageOps.exif_transpose(image))
    if scale < 1:
        # From the size before draft(), whose own rounding would shift the aspect ratio.
        size = (max(round(width * scale), 1), max(round(height * scale), 1))
        size = size[::-1] if orientation in SIDEWAYS else size
        image = image.resize(size, Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=QUALITY)
    return buffer.getvalue(), image.size


def to_rgb(image: Image.Image) -> Image.Image:
    """RGB, 8 bit; transparency on white; 16-bit grey scaled, where Pillow itself would clip."""
    if image.mode.startswith("I"):
        pixels = np.asarray(image)
        image = Image.fromarray((pixels.clip(0, 65535) >> 8).astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")
