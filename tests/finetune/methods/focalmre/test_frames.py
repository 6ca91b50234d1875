"""Focal frames against Pillow, pixel by pixel, and against loops."""

import math

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from finetune.methods.focalmre.frames import at_size, blurred, draw, draw_together, pixel_boxes

RED, BLUE = (255, 0, 0), (0, 0, 255)


def pictures(count, size, seed=0):
    values = np.random.default_rng(seed).integers(0, 256, (count, 3, size, size), dtype=np.uint8)
    return torch.from_numpy(values)


def some_boxes(rows, regions, seed=1):
    """Random boxes, some of them leaving the picture, some tiny."""
    generator = np.random.default_rng(seed)
    corner = generator.uniform(-0.2, 0.9, (rows, regions, 2))
    sides = generator.uniform(0.001, 0.7, (rows, regions, 2)) ** 2
    return torch.tensor(np.concatenate([corner, corner + sides], -1), dtype=torch.float32)


def expected_box(box, size):
    """Left, top, right, bottom of one box, axis by axis."""
    least = max(2, round(4 * size / 224))
    sides = []
    for low, high in (box[[0, 2]], box[[1, 3]]):
        low, high = (min(max(round(float(v * size)), 0), size) for v in (low, high))
        if high - low < least:
            low -= (least - (high - low)) // 2
            low = max(0, min(low, size - least))
            high = low + least
        sides.append((low, high))
    (left, right), (top, bottom) = sides
    return left, top, right, bottom


def to_pillow(picture):
    return Image.fromarray(picture.permute(1, 2, 0).numpy())


def to_tensor(image):
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def colors(*rgb):
    return torch.tensor(rgb, dtype=torch.uint8)


@pytest.mark.parametrize("size", [224, 64, 33])
def test_pixel_boxes(size):
    boxes = some_boxes(5, 7)
    found = pixel_boxes(boxes, size)
    for row in range(5):
        for region in range(7):
            assert tuple(found[row, region].tolist()) == expected_box(boxes[row, region], size)
    assert found.min() >= 0 and found.max() <= size
    sides = found[..., 2:] - found[..., :2]
    assert sides.min() >= max(2, at_size(4, size))


def test_a_tiny_box_is_enlarged_and_a_box_outside_is_cut():
    size, whole = 224, torch.tensor([[-1.0, -1.0, 2.0, 2.0]])
    assert pixel_boxes(whole, size).tolist() == [[0, 0, 224, 224]]
    middle = torch.tensor([[0.5, 0.5, 0.5, 0.5]])
    assert pixel_boxes(middle, size).tolist() == [[110, 110, 114, 114]]
    corner = torch.tensor([[1.5, 1.5, 1.9, 1.9]])
    assert pixel_boxes(corner, size).tolist() == [[220, 220, 224, 224]]


@pytest.mark.parametrize("size", [224, 64])
def test_rectangles_are_pillows(size):
    base, boxes = pictures(3, size), some_boxes(3, 7)
    marked = torch.ones(3, 7, dtype=torch.bool)
    marked[1, 4] = False
    shades = colors(*[RED] * 4, *[BLUE] * 3)
    found = draw(base, boxes, marked, shades, style="rect", width=3)
    assert found.shape == (3, 7, 3, size, size) and found.dtype == torch.uint8
    for row in range(3):
        for region in range(7):
            image = to_pillow(base[row])
            if marked[row, region]:
                left, top, right, bottom = expected_box(boxes[row, region], size)
                ImageDraw.Draw(image).rectangle(
                    (left, top, right - 1, bottom - 1),
                    outline=RED if region < 4 else BLUE,
                    width=max(1, round(3 * size / 224)),
                )
            assert torch.equal(found[row, region], to_tensor(image)), (row, region)


@pytest.mark.parametrize("size", [224, 64])
def test_ellipses_are_a_loops_and_nearly_pillows(size):
    """Pillow rounds its ellipses in a way of its own: at most a fiftieth of the box may differ."""
    base, boxes = pictures(2, size) // 2, some_boxes(2, 3)
    marked = torch.ones(2, 3, dtype=torch.bool)
    found = draw(base, boxes, marked, colors(*[RED] * 3), style="ellipse", width=3)
    width = max(1, round(3 * size / 224))
    for row in range(2):
        for region in range(3):
            left, top, right, bottom = expected_box(boxes[row, region], size)
            truth = base[row].clone()

            def inside(x, y, less, box=(left, top, right, bottom)):
                left, top, right, bottom = box
                a, b = (right - left) / 2 - less, (bottom - top) / 2 - less
                if a <= 0 or b <= 0:
                    return False
                u, v = (x + 0.5 - (left + right) / 2) / a, (y + 0.5 - (top + bottom) / 2) / b
                return u * u + v * v <= 1 + 1e-12

            for y in range(top, bottom):
                for x in range(left, right):
                    if inside(x, y, 0) and not inside(x, y, width):
                        truth[:, y, x] = torch.tensor(RED, dtype=torch.uint8)
            assert torch.equal(found[row, region], truth), (row, region)
            image = to_pillow(base[row])
            ImageDraw.Draw(image).ellipse(
                (left, top, right - 1, bottom - 1), outline=RED, width=width
            )
            different = (found[row, region] != to_tensor(image)).any(0).sum()
            assert different <= max(8, (right - left) * (bottom - top) / 50)


def test_dim_halves_what_is_outside():
    base, boxes = pictures(2, 64), some_boxes(2, 2)
    marked = torch.tensor([[True, True], [True, False]])
    found = draw(base, boxes, marked, colors(RED, RED), style="dim", width=3)
    for row, region in ((0, 0), (0, 1), (1, 0)):
        image, box = to_pillow(base[row]), expected_box(boxes[row, region], 64)
        dark = image.point(lambda value: value // 2)
        dark.paste(image.crop(box), box[:2])
        assert torch.equal(found[row, region], to_tensor(dark))
    assert torch.equal(found[1, 1], base[1])


def test_blur_against_a_loop():
    size = 28
    base = pictures(1, size)
    deviation = 8 * size / 224
    radius = math.ceil(3 * deviation)
    kernel = np.array([math.exp(-0.5 * (k / deviation) ** 2) for k in range(-radius, radius + 1)])
    kernel /= kernel.sum()

    def mirrored(place):
        place = -place if place < 0 else place
        return 2 * (size - 1) - place if place >= size else place

    values = base[0].double().numpy()
    truth = np.zeros_like(values)
    for y in range(size):
        for x in range(size):
            for dy, weight_y in enumerate(kernel, -radius):
                for dx, weight_x in enumerate(kernel, -radius):
                    here = values[:, mirrored(y + dy), mirrored(x + dx)]
                    truth[:, y, x] += weight_y * weight_x * here
    found = blurred(base)[0].double().numpy()
    assert np.abs(found - truth).max() <= 0.501  # rounded to whole numbers
    box = torch.tensor([[[0.25, 0.25, 0.75, 0.5]]])
    marked = torch.ones(1, 1, dtype=torch.bool)
    drawn = draw(base, box, marked, colors(RED), style="blur", width=3)[0, 0]
    left, top, right, bottom = expected_box(box[0, 0], size)
    assert torch.equal(drawn[:, top:bottom, left:right], base[0, :, top:bottom, left:right])
    assert torch.equal(drawn[:, :top], blurred(base)[0, :, :top])


def test_none_is_the_picture_itself():
    base, boxes = pictures(2, 32), some_boxes(2, 3)
    marked = torch.ones(2, 3, dtype=torch.bool)
    found = draw(base, boxes, marked, colors(*[RED] * 3), style="none", width=3)
    assert torch.equal(found, base[:, None].expand(-1, 3, -1, -1, -1))
    together = draw_together(base, boxes, marked, colors(*[RED] * 3), style="none", width=3)
    assert torch.equal(together, base)


def test_all_regions_in_one_picture():
    """Edges one after the other as Pillow draws them; dim: what no region covers."""
    size = 64
    base, boxes = pictures(2, size), some_boxes(2, 3)
    marked = torch.tensor([[True, False, True], [False, False, False]])
    shades = colors(RED, RED, BLUE)
    found = draw_together(base, boxes, marked, shades, style="rect", width=3)
    image = to_pillow(base[0])
    for region, color in ((0, RED), (2, BLUE)):
        left, top, right, bottom = expected_box(boxes[0, region], size)
        ImageDraw.Draw(image).rectangle((left, top, right - 1, bottom - 1), outline=color, width=1)
    assert torch.equal(found[0], to_tensor(image))
    assert torch.equal(found[1], base[1])
    dim = draw_together(base, boxes, marked, shades, style="dim", width=3)
    truth = base[0] // 2
    for region in (0, 2):
        left, top, right, bottom = expected_box(boxes[0, region], size)
        truth[:, top:bottom, left:right] = base[0, :, top:bottom, left:right]
    assert torch.equal(dim[0], truth) and torch.equal(dim[1], base[1])
