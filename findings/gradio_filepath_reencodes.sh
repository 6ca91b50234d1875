#!/usr/bin/env bash
# gradio 6.31.0: gr.Image(type="filepath") does not hand over the file that was uploaded unless its
# mode is RGB. A picture of any other mode is decoded and written anew as RGB: what was transparent
# shows its hidden colours, 16-bit gray is clipped at 255 (most of a ramp becomes white), palettes
# are gone. So a function that asks for the path, to judge or decode the file by itself, gets
# neither the file's bytes nor its header.
# Seen: rgb.png -> the same file; palette.png, rgba.png, gray16.png -> other bytes, mode RGB.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet gradio==6.31.0 pillow==12.3.0 numpy==2.4.6
cd "$folder"
"$folder/venv/bin/python" - <<'PY'
from pathlib import Path

import gradio as gr
import numpy as np
from gradio.data_classes import ImageData
from PIL import Image

ramp = np.linspace(0, 65535, 32 * 24).reshape(24, 32).astype("uint16")
Image.fromarray(ramp).save("gray16.png")
rgb = Image.fromarray(np.full((24, 32, 3), (200, 30, 30), dtype=np.uint8))
rgb.save("rgb.png")
rgb.quantize(8).save("palette.png")
hidden = rgb.convert("RGBA")
hidden.putalpha(0)
hidden.save("rgba.png")

print("gradio", gr.__version__)
component = gr.Image(type="filepath")
handed = {}
for name in ("rgb.png", "palette.png", "rgba.png", "gray16.png"):
    path = component.preprocess(ImageData(path=name, orig_name=name))
    same = Path(path).read_bytes() == Path(name).read_bytes()
    handed[name] = (same, Image.open(path))
    print(f"{name}: {Image.open(name).mode} -> {handed[name][1].mode}, same bytes: {same}")

assert gr.__version__ == "6.31.0"
assert [same for same, _ in handed.values()] == [True, False, False, False]
assert all(picture.mode == "RGB" for _, picture in handed.values())
assert handed["rgba.png"][1].getpixel((0, 0)) == (200, 30, 30)  # nothing of it was visible
white = (np.asarray(handed["gray16.png"][1])[..., 0] == 255).mean()
print(f"gray16.png: {100 * white:.0f} % of a ramp from black to white is white")
assert white > 0.9
PY
