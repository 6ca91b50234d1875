"""Rows, regions and pictures that tests draw."""

import numpy as np
from PIL import Image

from finetune.tasks.mnre import RelationRow
from finetune.tasks.region_cache import Region, Regions

SIZE = (800, 600)


def make_rows(count, rows_per_picture=1.66, seed=0):
    """Rows whose pictures serve one or more of them, in runs, and relations of uneven frequency."""
    generator = np.random.default_rng(seed)
    pictures = np.sort(generator.integers(0, max(1, int(count / rows_per_picture)), count))
    relations = generator.choice(["None", "a", "b", "c"], size=count, p=[0.63, 0.3, 0.06, 0.01])
    return [
        RelationRow(
            row=i, image_id=f"{p}.jpg", tokens=("x", "y"), head=(0, 1), tail=(1, 2), relation=r
        )
        for i, (p, r) in enumerate(zip(pictures, relations.tolist(), strict=True))
    ]


def make_regions(rows, seed=0):
    """Up to 4 grounded regions a row, up to 3 detected ones a picture."""
    generator = np.random.default_rng(seed)

    def some(limit, kind):
        corners = generator.random((generator.integers(limit + 1), 2)) * [600, 400]
        return tuple(
            Region((x, y, x + 150, y + 150), 0.5, f"{kind}{i}", kind)
            for i, (x, y) in enumerate(corners.round(1).tolist())
        )

    grounded = {row.row: Regions(row.image_id, SIZE, some(4, "noun")) for row in rows}
    names = dict.fromkeys(row.image_id for row in rows)
    return grounded, {name: Regions(name, SIZE, some(3, "object")) for name in names}


def texture(size, seed=0):
    """A picture of smooth random blobs."""
    generator = np.random.default_rng(seed)
    small = generator.integers(0, 256, (size[1] // 8, size[0] // 8, 3), dtype=np.uint8)
    return Image.fromarray(small).resize(size, Image.Resampling.BICUBIC)
