"""Clean views: the whole picture and its best object, as a prompter sees them."""

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from shards.files import InputError
from shards.jpeg import decode_rows, reduction_for
from shards.shard import Picture, Sample


def decode(sample: Sample | Picture, min_side: int) -> Image.Image:
    """The whole picture as RGB; JPEG's own scaled decoding is used down to `min_side` pixels."""
    width, height = sample.meta.size
    try:  # to the bit as Pillow, in less time
        pixels = decode_rows(sample.image, height, reduction_for(width, height, min_side))
    except ValueError as error:
        raise InputError(f"{sample.key}: undecodable image in shard ({error})") from error
    return Image.fromarray(pixels)


def squash(image: Image.Image, size: int, box: tuple | None = None) -> np.ndarray:
    """The whole picture, or `box` of it, as (3, size, size) uint8: the clean view."""
    resized = image.resize((size, size), Image.Resampling.BICUBIC, box=box)
    return np.asarray(resized).transpose(2, 0, 1)


def object_crop(
    sample: Sample | Picture, picture: tuple[int, int]
) -> tuple[float, float, float, float]:
    """The best object's box in pixels of the decoded picture, clipped, a pixel a side or more."""
    assert sample.objects  # callers ask
    zoom = np.array([picture[0] / sample.meta.size[0], picture[1] / sample.meta.size[1]] * 2)
    x1, y1, x2, y2 = np.array(sample.objects[0].box) * zoom
    x1, y1 = min(max(x1, 0), picture[0] - 1), min(max(y1, 0), picture[1] - 1)
    return x1, y1, min(max(x2, x1 + 1), picture[0]), min(max(y2, y1 + 1), picture[1])


def clean_views(samples: Sequence[Sample], size: int) -> dict[str, Tensor]:
    """`image_view` and `object_view` (B, 3, S, S) uint8, as the teacher column is made from."""
    pictures = [decode(sample, 2 * size) for sample in samples]
    crops = [
        squash(picture, size, object_crop(sample, picture.size))
        if sample.objects
        else np.zeros((3, size, size), np.uint8)
        for sample, picture in zip(samples, pictures, strict=True)
    ]
    whole = [squash(picture, size) for picture in pictures]
    return {
        "image_view": torch.from_numpy(np.stack(whole)),
        "object_view": torch.from_numpy(np.stack(crops)),
    }
