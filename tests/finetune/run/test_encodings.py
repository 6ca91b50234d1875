"""The same pictures in other files: the same answers, the same F1."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from finetune.__main__ import main
from shards.images import TURNS


def half(relation: str, row: int) -> np.ndarray:
    """(16, 20, 3) uint8: what is dark tells the relation, so a turned picture tells another."""
    pixels = np.full((16, 20, 3), 230, dtype=np.uint8)
    if relation == "/per/per/couple":
        pixels[:8] = (200, 30, 30 + row % 50)
    elif relation == "/per/org/member_of":
        pixels[:, :10] = (200, 30, 30 + row % 50)
    return pixels


def turned(number: int, back: Image.Transpose):
    def write(picture: Image.Image, path) -> None:
        exif = Image.Exif()
        exif[0x0112] = number
        picture.transpose(back).save(path, "PNG", exif=exif)

    return write


def see_through(picture: Image.Image, path) -> None:
    """White pixels are transparent black: over white they are white again."""
    pixels = np.asarray(picture.convert("RGBA")).copy()
    pixels[(pixels[..., :3] == 255).all(2)] = 0
    Image.fromarray(pixels).save(path, "PNG")


def save(kind: str, mode: str = "RGB", **options):
    return lambda picture, path: picture.convert(mode).save(path, kind, **options)


EXACT = {
    "bmp": save("BMP"),
    "tiff": save("TIFF"),
    "webp": save("WEBP", lossless=True),
    "cmyk": save("TIFF", "CMYK"),
    "opaque": save("PNG", "RGBA"),
    "see-through": see_through,
    "turned 6": turned(6, TURNS[8]),
    "turned 8": turned(8, TURNS[6]),
    "turned 3": turned(3, TURNS[3]),
}
CLOSE = {
    "palette": save("PNG", "P", palette=Image.Palette.ADAPTIVE),
    "gif": save("GIF", "P", palette=Image.Palette.ADAPTIVE),
    "jpeg": save("JPEG", quality=98, subsampling=0),
    "mpo": save("MPO", quality=98, subsampling=0),
    "avif": save("AVIF", quality=98, subsampling="4:4:4"),
}


@pytest.mark.slow
def test_f1_does_not_depend_on_the_encoding(tmp_path, mnre_folder, tiny_model, capsys):
    """Trained on PNG; the 60 rows of val and test then evaluated in 14 other encodings."""
    for split in ("train", "val", "test"):
        lines = (mnre_folder / "txt" / f"ours_{split}.txt").read_text().splitlines()
        for row, line in enumerate(lines):
            relation = line.split("'relation': '")[1].split("'")[0]
            pixels = half(relation, row)
            pixels[pixels == 230] = 255
            path = mnre_folder / "img_org" / split / f"{split}{row}.jpg"
            Image.fromarray(pixels).save(path, "PNG")
    run = tmp_path / "run"
    places = f"--data {mnre_folder} --out {run} --init {tiny_model}"
    main(f"train --task mnre --method promu {places} --optim.epochs 30 --optim.lr 1e-3 "
         "--optim.head_lr 3e-3".split())  # fmt: skip
    plain = {split: predictions(run, split) for split in ("dev", "test")}
    assert json.loads((run / "result.json").read_text())["test"]["f1"]["mean"] > 80
    for name, write in (EXACT | CLOSE).items():
        for split, folder in (("dev", "val"), ("test", "test")):
            data = tmp_path / name.replace(" ", "-") / split
            shutil.copytree(mnre_folder, data)
            for path in (data / "img_org" / folder).iterdir():
                write(Image.open(mnre_folder / "img_org" / folder / path.name), path)
            capsys.readouterr()
            main(["evaluate", str(run), "--data", str(data), "--split", split])
            files = sorted(
                (run / "seed-1").glob(f"pred_{split}*.jsonl"), key=lambda p: p.stat().st_mtime
            )
            answers = read(files[-1])
            if name in EXACT:
                assert answers == plain[split], name
            assert [a["pred"] for a in answers] == [p["pred"] for p in plain[split]], name


def read(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def predictions(run, split: str) -> list[dict]:
    return read(run / "seed-1" / f"pred_{split}.jsonl")
