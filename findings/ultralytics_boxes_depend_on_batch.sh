#!/usr/bin/env bash
# ultralytics 8.4.190, `model.predict([picture, other])`: a picture is shown to the network in another
# shape than by itself, and gets other boxes, if the pictures given with it differ in size. Alone, or
# among pictures of its own size, it is padded to the next multiple of the stride; among others to a
# square, like all of that call (`pre_transform` in ultralytics/engine/predictor.py). The page on
# prediction says of `rect` only that the shorter side is padded until it can be divided by the stride
# (docs.ultralytics.com/modes/predict), and of lists that they are for many images at once. Expected:
# the boxes of a picture are its own. With yolov8n's weights, 24 photographs in one call had 49 boxes
# and, one by one, 45; in three of them the set of labels changed.
# Seen with random weights, which show it as well: 200 x 120 is read as 640 x 384 alone and beside a
# picture of its size, as 640 x 640 beside one of 120 x 200; with rect=False always as 640 x 640.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet ultralytics==8.4.190 torch==2.15.0 torchvision==0.29.2 numpy==2.4.6
cd "$folder"
export YOLO_CONFIG_DIR="$folder" YOLO_OFFLINE=1 YOLO_AUTOINSTALL=False
"$folder/venv/bin/python" - <<'PY'
import numpy as np
import torch
import ultralytics
from PIL import Image
from ultralytics import YOLO

torch.set_num_threads(1)
torch.manual_seed(0)
pixels = np.random.default_rng(0)


def picture(width, height):
    return Image.fromarray(pixels.integers(0, 256, (height, width, 3), dtype=np.uint8))


wide, alike, tall = picture(200, 120), picture(200, 120), picture(120, 200)
model = YOLO("yolo11n.yaml")  # random weights


def look(pictures, **options):
    """Of the first picture: the width and height that the network sees, and its boxes."""
    seen = []
    network = model.predictor.model
    handle = network.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape))
    result = model.predict(pictures, conf=0.0, device="cpu", verbose=False, **options)[0]
    handle.remove()
    return (seen[-1][3], seen[-1][2]), result.boxes.xyxy


print("ultralytics", ultralytics.__version__)
model.predict(wide, device="cpu", verbose=False)  # makes the predictor
looks = {"alone": look([wide]), "beside its size": look([wide, alike]),
         "beside another": look([wide, tall]), "alone, rect=False": look([wide], rect=False),
         "beside another, rect=False": look([wide, tall], rect=False)}  # fmt: skip
for name, (size, boxes) in looks.items():
    print(f"{name}: read as {size[0]} x {size[1]}, first box {[round(x) for x in boxes[0].tolist()]}")

assert ultralytics.__version__ == "8.4.190"
sizes = [size for size, _ in looks.values()]
assert sizes == [(640, 384), (640, 384), (640, 640), (640, 640), (640, 640)]
assert torch.allclose(looks["alone"][1][:1], looks["beside its size"][1][:1], atol=0.1)
assert not torch.allclose(looks["alone"][1][:1], looks["beside another"][1][:1], atol=0.1)
PY
