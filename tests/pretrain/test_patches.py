"""Boxes through crops and onto patches: the specification's worked example, and counted pixels."""

import numpy as np
import pytest

from pretrain.model.patches import patch_coverage, view_box


def test_worked_example():
    # top 10, left 20, width 60, height 50 in a 224 view of 16-pixel patches.
    grid = patch_coverage(np.array([20, 10, 80, 60]), 224, 16).reshape(14, 14)
    np.testing.assert_allclose(grid[0, :6], [0, 0.28125, 0.375, 0.375, 0.375, 0])
    np.testing.assert_allclose(grid[1, :6], [0, 0.75, 1, 1, 1, 0])
    np.testing.assert_allclose(grid[2], grid[1])
    np.testing.assert_allclose(grid[3, :6], [0, 0.5625, 0.75, 0.75, 0.75, 0])
    assert not grid[4:].any() and not grid[:, 5:].any()


@pytest.mark.parametrize("rest", [0, 5])
@pytest.mark.parametrize("seed", range(20))
def test_coverage_equals_counting_pixels(seed, rest):
    """rest: pixels at the right and lower edge that are in no patch."""
    random = np.random.default_rng(seed)
    x1, y1 = random.integers(-20, 40, 2)
    x2, y2 = x1 + random.integers(1, 50), y1 + random.integers(1, 50)
    canvas = np.zeros((48, 48))
    canvas[max(y1, 0) : max(y2, 0), max(x1, 0) : max(x2, 0)] = 1
    counted = canvas.reshape(6, 8, 6, 8).mean(axis=(1, 3)).reshape(-1)
    coverage = patch_coverage(np.array([x1, y1, x2, y2]), 48 + rest, 8)
    np.testing.assert_allclose(coverage, counted, atol=1e-6)


def test_view_box_follows_the_pixels():
    """A marked pixel block, cropped, scaled and flipped by PIL, lies where the mapped box says."""
    from PIL import Image

    picture = np.zeros((60, 80, 3), np.uint8)
    picture[20:40, 30:50] = 255
    crop = (10, 10, 60, 40)
    view = Image.fromarray(picture).resize((96, 96), Image.Resampling.BICUBIC, box=(10, 10, 70, 50))
    seen = np.asarray(view.transpose(Image.Transpose.FLIP_LEFT_RIGHT))[..., 0] > 127
    x1, y1, x2, y2 = view_box(np.array([30, 20, 50, 40]), crop, True, 96)
    rows, columns = np.where(seen)
    assert abs(columns.min() - x1) <= 1 and abs(columns.max() + 1 - x2) <= 1
    assert abs(rows.min() - y1) <= 1 and abs(rows.max() + 1 - y2) <= 1


def test_identity_and_out_of_crop():
    box = np.array([3.0, 4.0, 20.0, 30.0])
    np.testing.assert_allclose(view_box(box, (0, 0, 48, 48), False, 48), box)
    assert not patch_coverage(np.array([50, 50, 60, 60]), 48, 8).any()
    # A quarter of the box is visible: counted at 0.25, not at 0.3.
    quarter = np.array([-10.0, -10.0, 10.0, 10.0])
    assert patch_coverage(quarter, 48, 8, min_visible=0.25).any()
    assert not patch_coverage(quarter, 48, 8, min_visible=0.3).any()
