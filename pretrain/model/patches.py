"""From an object's box in the picture to weights of the patches that show it (PROMU)."""

import numpy as np


def view_box(
    box: np.ndarray,
    crop: tuple[float, float, float, float] | np.ndarray,
    flip: bool | np.ndarray,
    size: int,
) -> np.ndarray:
    """Carry boxes through crop, resize to `size` and horizontal flip.

    Args:
        box: (…, 4) x1, y1, x2, y2 in pixels of the stored image.
        crop: (left, top, width, height) in the same pixels, scaled to size x size; one, or one for
            each box as (…, 4).
        flip: mirror left-right after the crop; one, or one for each box as (…).

    Returns:
        (…, 4) in pixels of the view, not clipped.
    """
    crop = np.asarray(crop, dtype=np.float64)
    corners = np.asarray(box, dtype=np.float64).reshape(*np.shape(box)[:-1], 2, 2)
    mapped = (corners - crop[..., None, :2]) * (size / crop[..., None, 2:])
    x, y = mapped[..., 0], mapped[..., 1]
    x = np.where(np.asarray(flip)[..., None], size - x[..., ::-1], x)
    return np.stack([x, y], axis=-1).reshape(np.shape(box))


def patch_coverage(box: np.ndarray, size: int, patch: int, min_visible: float = 0.0) -> np.ndarray:
    """The fraction of every patch that a box covers: overlaps of intervals, no image-sized mask.

    Args:
        box: (…, 4) x1, y1, x2, y2 in pixels of the view, possibly leaving it.
        size: pixels a side of the view. patch: pixels a side of a patch.
        min_visible: a box of which a smaller fraction than this is visible counts as unseen.

    Returns:
        (…, K) float32, K = (size//patch)², row by row; all zero where the box is not seen.
    """
    box = np.asarray(box, dtype=np.float64)
    edges = np.arange(size // patch, dtype=np.float64) * patch

    def overlap(low: np.ndarray, high: np.ndarray) -> np.ndarray:
        inside = np.minimum(high[..., None], edges + patch) - np.maximum(low[..., None], edges)
        return np.clip(inside / patch, 0.0, 1.0)  # (…, grid)

    columns = overlap(box[..., 0], box[..., 2])
    rows = overlap(box[..., 1], box[..., 3])
    coverage = rows[..., :, None] * columns[..., None, :]  # (…, grid, grid)
    visible = coverage.sum(axis=(-2, -1)) * patch * patch  # square pixels
    area = (box[..., 2] - box[..., 0]) * (box[..., 3] - box[..., 1])
    seen = (visible >= 1.0) & (visible >= min_visible * area)
    coverage = coverage * seen[..., None, None]
    return coverage.reshape(*coverage.shape[:-2], -1).astype(np.float32)
