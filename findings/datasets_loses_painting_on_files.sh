#!/usr/bin/env bash
# datasets 5.2.0 with pillow 13.0.0: a picture that was opened from a file and then changed in place (shrunk
# by `thumbnail`, painted over with ImageDraw or `paste`) is stored as that file, not as its pixels:
# `encode_pil_image` in datasets/features/image.py hands on `image.filename`, which Pillow keeps through such
# calls, and drops the picture. So in `from_list`, `from_generator` and `map`, and in what is then written
# or uploaded, boxes that were drawn are gone and a face that was blotted out is there. It depends on each
# row: `map` over rows that hold bytes keeps the change, over paths it loses it, but for photographs with
# an orientation in their EXIF, which are turned when read and so have no filename any more. Nothing warns.
# The reference takes "PIL image object" and promises one (huggingface.co/docs/datasets/package_reference/
# main_classes, Image). litdata 0.2.76 (`JPEGSerializer`) and mosaicml-streaming 0.13.0 (`JPEG.encode`) do the
# same with JPEG files, not with others. `image.copy()` before the change helps.
# Expected: the pixels that were given. Seen: of a photograph of 128 x 96 made 64 x 48, 128 x 96 and, in
# save_to_disk, the file's very bytes; from rows with bytes, or with an orientation, 64 x 48 (48 x 64).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet datasets==5.2.0 pillow==13.0.0 pyarrow==26.0.1 pandas==3.1.1 numpy==2.4.6
cd "$folder"
export HF_HOME="$folder/home" HF_HUB_OFFLINE=1 HF_DATASETS_DISABLE_PROGRESS_BARS=1
"$folder/venv/bin/python" - 2> "$folder/log" <<'PY' || { cat "$folder/log" >&2; exit 1; }
from pathlib import Path

import datasets
import PIL
from datasets import Dataset, Features, load_from_disk
from datasets import Image as ImageFeature
from PIL import Image, ImageDraw

print("datasets", datasets.__version__, "pillow", PIL.__version__)
assert datasets.__version__ == "5.2.0" and PIL.__version__ == "13.0.0"
NAMES = ("plain.jpg", "plain.png", "turned.jpg")
orientation = Image.Exif()
orientation[PIL.ExifTags.Base.Orientation] = 6
for name in NAMES:
    Image.new("RGB", (128, 96), "white").save(name, **({"exif": orientation} if name == "turned.jpg" else {}))


def changed(image):
    ImageDraw.Draw(image).rectangle((0, 0, *image.size), fill="black")
    image.thumbnail((64, 64))
    return image


def change(row):
    return {"image": changed(row["image"])}


def look(rows):
    image = rows[0]["image"].convert("L")
    return image.size, {0: "black", 255: "white"}[image.getpixel((5, 5))]


features = Features({"image": ImageFeature()})
seen = {}
for name in NAMES:
    file = Path(name).read_bytes()
    paths = Dataset.from_dict({"image": [name]}, features=features)
    held = Dataset.from_dict({"image": [{"path": None, "bytes": file}]}, features=features)
    given = changed(Image.open(name))
    assert (given.size, given.getpixel((5, 5))) == ((64, 48), (0, 0, 0)) and given.filename == name
    rows = {"given to from_list": Dataset.from_list([{"image": given}]),
            "copied first": Dataset.from_list([{"image": changed(Image.open(name).copy())}]),
            "map over paths": paths.map(change), "map over bytes": held.map(change)}  # fmt: skip
    for way, one in rows.items():
        one.save_to_disk(f"{name} {way}")
        stored = load_from_disk(f"{name} {way}")
        is_file = stored.cast_column("image", ImageFeature(decode=False))[0]["image"]["bytes"] == file
        seen[name, way] = look(one)
        assert look(stored) == look(one) and is_file == (look(one)[1] == "white")
        print(f"{name}, {way}: {look(one)[0]}, {look(one)[1]}; on disk the file's bytes: {is_file}")
for name in NAMES[:2]:
    assert seen[name, "given to from_list"] == seen[name, "map over paths"] == ((128, 96), "white")
    assert seen[name, "copied first"] == seen[name, "map over bytes"] == ((64, 48), "black")
assert seen["turned.jpg", "given to from_list"] == ((96, 128), "white")
assert seen["turned.jpg", "map over paths"] == seen["turned.jpg", "map over bytes"] == ((48, 64), "black")
PY
