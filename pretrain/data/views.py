"""What a pre-training view shows of a picture: crop, resize, flip, brightness and sharpness.

All passes over pixels run in uint8 and int16 on buffers that are kept: allocating them anew for
each picture took as long as the arithmetic.
"""

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from pretrain.data.config import DataConfig
from shards.files import InputError
from shards.jpeg import decode_rows, reduction_for
from shards.shard import Sample

LOG_ASPECTS = (float(np.log(3 / 4)), float(np.log(4 / 3)))
Crop = tuple[float, float, float, float]  # (left, top, width, height), stored picture's pixels


class View(NamedTuple):
    """What is shown of a picture, and how it is changed."""

    crop: Crop
    flip: bool
    changes: tuple[int, ...]
    """Photometric ones, in this order: 0 none, 1 brightness, 2 sharpness."""


class Part(NamedTuple):
    """A crop, rounded to pixels of the picture decoded at 1/reduction of its size."""

    reduction: int
    left: int
    top: int
    right: int
    bottom: int

    @property
    def crop(self) -> Crop:
        """In pixels of the stored picture."""
        left, top, right, bottom = (float(side * self.reduction) for side in self[1:])
        return left, top, right - left, bottom - top


def part_of(crop: Crop, size: int) -> Part:
    """The part that a view of `size` pixels a side is made from."""
    reduction = reduction_for(crop[2], crop[3], size)
    left, top, width, height = crop
    corners = (left, top, left + width, top + height)
    return Part(reduction, *(round(side / reduction) for side in corners))


def decode_part(image: bytes, key: str, size: tuple[int, int], part: Part) -> np.ndarray:
    """(H, W, 3) uint8: the rows of a stored picture down to a part's bottom, at its reduction.

    Raises:
        InputError: the picture is damaged, or not of the size that its shard says.
    """
    try:
        pixels = decode_rows(image, part.bottom * part.reduction, part.reduction)
    except ValueError as error:
        raise InputError(f"{key}: undecodable image in shard ({error})") from error
    if pixels.shape[1] != -(-size[0] // part.reduction) or len(pixels) < part.bottom:
        raise InputError(f"{key}: image in shard is not of size {size}")
    return pixels


class Canvas:
    """Draws views of S x S pixels. Up to the last pass a pixel's colours stand together."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._view = torch.empty(1, 3, size, size, dtype=torch.uint8).to(
            memory_format=torch.channels_last
        )
        self._planes = self._view[0].numpy()
        self._rows = self._planes.transpose(1, 2, 0).reshape(size, 3 * size)
        self._wide = np.empty((3, 3 * size * size), np.int16)

    def draw(self, pixels: np.ndarray, part: Part, view: View, out: np.ndarray) -> None:
        """A view of decoded pixels, (H, W, 3) uint8, into `out`, (3, S, S) uint8."""
        crop = np.ascontiguousarray(pixels[part.top : part.bottom, part.left : part.right])
        # PyTorch's antialiased resize gives Pillow's pixels (within 2 of 255) in a quarter of the
        # time, where both sides hold a pixel's colours together.
        torch.ops.aten._upsample_bicubic2d_aa.out(
            torch.from_numpy(crop[None]).permute(0, 3, 1, 2),
            (self.size, self.size), False, None, None, out=self._view,
        )  # fmt: skip
        # Changed before they are flipped, which is the same, while they are in the cache.
        for change in view.changes:
            if change == 1:
                self.brighten(self._rows)
            elif change == 2:
                self.sharpen(self._rows)
        np.copyto(out, self._planes[:, :, ::-1] if view.flip else self._planes)

    def brighten(self, rows: np.ndarray) -> None:
        """Pillow's `ImageEnhance.Brightness` by 1.36 = 34/25, to the bit, in place.

        Args:
            rows: (S, 3 S) uint8, contiguous.
        """
        flat, wide = rows.reshape(-1), self._wide[0]
        np.multiply(flat, 34, out=wide, dtype=np.int16)
        np.floor_divide(wide, 25, out=wide)
        np.clip(wide, 0, 255, out=wide)
        np.copyto(flat, wide, casting="unsafe")

    def sharpen(self, rows: np.ndarray) -> None:
        """Pillow's `ImageEnhance.Sharpness` by 1.36 within 1 of 255, in place.

        x + 9/25 (x - smooth), smooth being the mean of 3 x 3 pixels with the centre counted five
        times; the border stays.

        Args:
            rows: (S, 3 S) uint8, contiguous. Taken as one line, for steps of a row's length are as
                good as rows: what they make of the border is not used.
        """
        length = rows.shape[1]
        centre, column, block = self._wide
        np.copyto(centre, rows.reshape(-1))
        np.add(centre[: -2 * length], centre[length:-length], out=column[length:-length])
        np.add(column[length:-length], centre[2 * length :], out=column[length:-length])
        np.add(column[:-6], column[3:-3], out=block[3:-3])
        np.add(block[3:-3], column[6:], out=block[3:-3])
        np.multiply(centre, 9, out=column)
        np.subtract(column, block, out=column)
        np.multiply(column, 9, out=column)
        np.floor_divide(column, 325, out=column)
        np.add(column, centre, out=column)
        np.clip(column, 0, 255, out=column)
        result = column.reshape(rows.shape)
        np.copyto(rows[1:-1, 3:-3], result[1:-1, 3:-3], casting="unsafe")


def cropped(sample: Sample, crop: Crop, size: int) -> tuple[Tensor, Crop]:
    """A crop of a sample as (3, size, size) uint8, and the crop rounded to decoded pixels.

    Raises:
        InputError: as `decode_part`.
    """
    part = part_of(crop, size)
    pixels = decode_part(sample.image, sample.key, sample.meta.size, part)
    view = np.empty((3, size, size), np.uint8)
    Canvas(size).draw(pixels, part, View(crop, False, ()), view)
    return torch.from_numpy(view), part.crop


def random_view(random: np.random.Generator, size: tuple[int, int], config: DataConfig) -> View:
    """Crop, flip, and two draws of identity, brightness or sharpness, each applied by chance."""
    crop = random_crop(random, *size, config.crop_scale)
    flip, *draws = random.random(5).tolist()
    changes = [int(3 * kind) for kind, lot in (draws[:2], draws[2:]) if lot < config.photometric]
    return View(crop, bool(flip < config.flip), tuple(changes))


def random_crop(
    random: np.random.Generator, width: int, height: int, scale: tuple[float, float]
) -> Crop:
    """A random resized crop, aspect 3/4 … 4/3 (torchvision's rule)."""
    for _ in range(10):
        area = width * height * random.uniform(*scale)
        aspect = float(np.exp(random.uniform(*LOG_ASPECTS)))
        w, h = math.sqrt(area * aspect), math.sqrt(area / aspect)
        if w <= width and h <= height:
            return random.uniform(0, width - w), random.uniform(0, height - h), w, h
    aspect = min(max(width / height, 3 / 4), 4 / 3)  # none fits: the largest one in the middle
    w, h = min(width, height * aspect), min(height, width / aspect)
    return (width - w) / 2, (height - h) / 2, w, h
