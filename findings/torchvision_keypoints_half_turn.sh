#!/usr/bin/env bash
# torchvision 0.29.2, transforms.v2, KeyPoints: flips take a point for a pixel's number (x becomes
# width - 1 - x, torchvision/transforms/v2/functional/_geometry.py), while resizing, rotation and
# boxes take it for a place between the picture's edges, 0 to width (x becomes width - x). So one
# pipeline mixes both: two flips are half a turn for pictures and for boxes, not for points; a point on
# a box's corner leaves it; and a flip before an enlargement differs from one after it by (factor - 1)
# pixels. After a turn, the point no longer lies on the pixel it marked; after a flip it does.
# The reference of KeyPoints, which are beta, says that they are coordinates along width and height, and
# that polygons may be given so (torchvision/tv_tensors/_keypoints.py): not which of the two is meant.
# Expected: one convention. Seen, of point (10, 20) and of the box that begins there, on 40 x 40:
# both flips: point (29, 19), corner (30, 20); half a turn: point (30, 20), corner (30, 20), lit pixel
# (29, 19); flipped, then 4 times as large: x 116; first enlarged: x 119; the box: 120 both ways.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.15.0 torchvision==0.29.2 numpy==2.4.6 pillow==12.3.0
"$folder/venv/bin/python" - <<'PY'
import torch
import torchvision
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional

SIZE = (40, 40)
point = tv_tensors.KeyPoints([[10.0, 20.0]], canvas_size=SIZE)
box = tv_tensors.BoundingBoxes([[10.0, 20.0, 30.0, 36.0]], format="XYXY", canvas_size=SIZE)
picture = torch.zeros(1, *SIZE)
picture[0, 20, 10] = 1


def flipped(value):
    return functional.vertical_flip(functional.horizontal_flip(value))


def turned(value):
    return functional.rotate(value, 180)


def place(value):
    """Of the lit pixel, the point, or the box's corner that was its left upper one, as (x, y)."""
    if isinstance(value, tv_tensors.BoundingBoxes):
        return tuple(value[0, 2:].tolist())  # the right lower one, after half a turn
    if isinstance(value, tv_tensors.KeyPoints):
        return tuple(value[0].tolist())
    return tuple(map(float, value[0].nonzero()[0].flip(0).tolist()))


print("torchvision", torchvision.__version__)
assert torchvision.__version__.startswith("0.29.2")
seen = {
    f"{name}, {way.__name__}": place(way(value))
    for name, value in (("pixel", picture), ("point", point), ("corner", box))
    for way in (flipped, turned)
}
for name, (x, y) in seen.items():
    print(f"{name}: ({x:g}, {y:g})")
assert seen == {"pixel, flipped": (29, 19), "pixel, turned": (29, 19),
                "point, flipped": (29, 19), "point, turned": (30, 20),
                "corner, flipped": (30, 20), "corner, turned": (30, 20)}  # fmt: skip

after = functional.resize(functional.horizontal_flip(point), [160, 160])[0, 0].item()
before = functional.horizontal_flip(functional.resize(point, [160, 160]))[0, 0].item()
corner = functional.resize(functional.horizontal_flip(box), [160, 160])[0, 2].item()
assert corner == functional.horizontal_flip(functional.resize(box, [160, 160]))[0, 2].item()
print(f"flipped, then 4 times as large: x {after:g}; first enlarged: x {before:g}; the box: {corner:g}")
assert (after, before, corner) == (116, 119, 120)
PY
