"""Focal frames: one picture a region with that region marked, drawn on the device (FocalMRE §3.3).

A batch carries each picture once, as uint8 and at the size that the network takes, and the boxes;
the marked copies are made here, all rows and regions at once. Lengths are given for 224 pixels and
scale with the picture. B: rows, R: regions, S: side of a picture in pixels.

Two kinds of mark: an edge is painted on (rect, ellipse), or everything outside is made hard to see
(dim: half as bright; blur: Gaussian).
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from finetune.methods.focalmre.config import Style

REFERENCE = 224
SMALLEST, BLUR = 4, 8.0
"""At 224 pixels: the least side of a marked region (2 at any size); the standard deviation of the
blur."""


def pixel_boxes(boxes: Tensor, size: int) -> Tensor:
    """Boxes as shares of the picture -> whole pixels of the squashed one.

    Cut to the picture, then enlarged about their middle to the least side, staying inside.

    Args:
        boxes: (…, 4) x1, y1, x2, y2 in 0..1.

    Returns:
        (…, 4) int64 left, top, right, bottom; right and bottom are the first pixels outside.
    """
    least = max(2, at_size(SMALLEST, size))
    low, high = (boxes * size).round().long().clamp(0, size).unflatten(-1, (2, 2)).unbind(-2)
    missing = (least - (high - low)).clamp(min=0)
    low = (low - missing // 2).clamp(0, size - least)
    high = torch.maximum(high, low + least)
    return torch.cat([low, high], dim=-1)


def draw(
    pictures: Tensor, boxes: Tensor, marked: Tensor, colors: Tensor, *, style: Style, width: int
) -> Tensor:
    """A copy of the picture for each of its regions, with that region marked.

    Args:
        pictures: (B, 3, S, S) uint8. boxes: (B, R, 4) shares of the picture.
        marked: (B, R) bool; the copies of the others stay plain.
        colors: (R, 3) uint8 of painted edges. width: of painted edges, in pixels at 224; edges
            grow inwards.

    Returns:
        (B, R, 3, S, S) uint8.
    """
    plain = pictures[:, None]
    if style == "none":
        return plain.expand(-1, boxes.shape[1], -1, -1, -1)
    area = _area(boxes, pictures.shape[-1], style, width)[:, :, None]  # (B, R, 1, S, S)
    marked = marked[:, :, None, None, None]
    if style in ("rect", "ellipse"):
        return torch.where(area & marked, colors[:, :, None, None], plain)
    return torch.where(area | ~marked, plain, _spoilt(pictures, style)[:, None])


def draw_together(
    pictures: Tensor, boxes: Tensor, marked: Tensor, colors: Tensor, *, style: Style, width: int
) -> Tensor:
    """One copy of each picture with all of its regions marked, later edges over earlier ones.

    Arguments as those of `draw`; returns (B, 3, S, S) uint8.
    """
    if style == "none":
        return pictures
    area = _area(boxes, pictures.shape[-1], style, width) & marked[:, :, None, None]
    if style in ("rect", "ellipse"):
        for edge, color in zip(area.unbind(1), colors, strict=True):
            pictures = torch.where(edge[:, None], color[:, None, None], pictures)
        return pictures
    seen = area.any(dim=1) | ~marked.any(dim=1)[:, None, None]
    return torch.where(seen[:, None], pictures, _spoilt(pictures, style))


def at_size(pixels: float, size: int) -> int:
    """A length given at 224 pixels, at `size`; at least 1."""
    return max(1, round(pixels * size / REFERENCE))


def _area(boxes: Tensor, size: int, style: Style, width: int) -> Tensor:
    """(B, R, S, S) bool: the pixels of the edge (rect, ellipse) or of the region (dim, blur)."""
    boxes = pixel_boxes(boxes, size)
    shape = _inside_ellipse if style == "ellipse" else _inside_box
    area = shape(boxes, size)
    if style in ("dim", "blur"):
        return area
    edge = at_size(width, size)
    return area & ~shape(torch.cat([boxes[..., :2] + edge, boxes[..., 2:] - edge], dim=-1), size)


def _inside_box(boxes: Tensor, size: int) -> Tensor:
    """(B, R, 4) pixels -> (B, R, S, S) bool; a box turned inside out has no pixels."""
    left, top, right, bottom = boxes[..., None].unbind(-2)
    places = torch.arange(size, device=boxes.device)
    columns = (places >= left) & (places < right)
    rows = (places >= top) & (places < bottom)
    return rows[..., :, None] & columns[..., None, :]


def _inside_ellipse(boxes: Tensor, size: int) -> Tensor:
    """The same for the ellipse that touches the four sides: middles of pixels inside it."""
    left, top, right, bottom = boxes[..., None].unbind(-2)
    doubled = 2 * torch.arange(size, device=boxes.device) + 1  # twice the middles: whole numbers
    wide, high = (right - left).clamp(min=0), (bottom - top).clamp(min=0)
    x, y = doubled - left - right, doubled - top - bottom
    # (x / wide)² + (y / high)² <= 1, without division: exact.
    return (x * high).square()[..., None, :] + (y * wide).square()[..., :, None] <= (
        (wide * high).square()[..., None] - (wide * high == 0).long()[..., None]
    )


def _spoilt(pictures: Tensor, style: Style) -> Tensor:
    """(B, 3, S, S) uint8: how the pictures look outside the region."""
    return pictures // 2 if style == "dim" else blurred(pictures)


def blurred(pictures: Tensor) -> Tensor:
    """Gaussian blur, mirrored at the border: (B, 3, S, S) uint8 -> the same."""
    deviation = BLUR * pictures.shape[-1] / REFERENCE
    radius = math.ceil(3 * deviation)
    places = torch.arange(-radius, radius + 1, device=pictures.device, dtype=torch.float32)
    kernel = torch.exp(-0.5 * (places / deviation).square())
    kernel = kernel / kernel.sum()
    values = F.pad(pictures.float().flatten(0, 1)[:, None], [radius] * 4, mode="reflect")
    values = F.conv2d(F.conv2d(values, kernel[None, None, None]), kernel[None, None, :, None])
    return values.round().clamp(0, 255).to(torch.uint8).view(pictures.shape)
