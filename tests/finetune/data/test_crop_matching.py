"""Template matching: where a crop was cut."""

import ast

import numpy as np
import pytest
from drawn import texture
from PIL import Image

from finetune.data.crop_matching import Matcher
from finetune.data.regions import find_crops

# ---- template matching ---------------------------------------------------------------------------


@pytest.mark.parametrize("box", [(0, 0, 320, 240), (10, 20, 90, 60), (300, 230, 320, 240)])
def test_matcher_finds_the_box_exactly(box):
    picture = texture((320, 240))
    match = Matcher(picture).find(picture.crop(box))
    assert match.box == box and match.score == pytest.approx(1, abs=1e-6)


def test_matcher_equals_opencv():
    cv2 = pytest.importorskip("cv2")
    picture, other = texture((160, 120)), texture((160, 120), seed=1)
    for crop in (picture.crop((30, 40, 80, 90)), other.crop((0, 0, 50, 20))):
        grey = [np.asarray(image.convert("L")) for image in (picture, crop)]
        scores = cv2.matchTemplate(*grey, cv2.TM_CCOEFF_NORMED)
        _, best, _, place = cv2.minMaxLoc(scores)
        match = Matcher(picture).find(crop)
        assert match.score == pytest.approx(best, abs=1e-4) and match.box[:2] == place


def test_matcher_scales_and_refuses():
    picture = texture((320, 240))
    crop = picture.crop((40, 50, 240, 210))
    wider = crop.resize((206, 165), Image.Resampling.BICUBIC)  # 3 % too large
    match = Matcher(picture).find_scaled(wider)
    assert match is not None and np.abs(np.array(match.box) - (40, 50, 240, 210)).max() <= 2
    assert Matcher(picture).find_scaled(texture((100, 80), seed=5)) is None
    assert Matcher(picture).find_scaled(texture((400, 80))) is None
    assert Matcher(picture).find(Image.new("RGB", (20, 20), "red")) is None
    flat = Matcher(Image.new("RGB", (64, 64), "white")).find(picture.crop((0, 0, 20, 20)))
    assert flat.score == 0


# ---- the published crops ------------------------------------------------------------------------


def test_published_crops_are_recovered(shared_data, tmp_path):
    """specs/focalmre.md §1.3: cut at scale 1; found above 0.95, foreign pictures below 0.7."""
    sample = shared_data / "mnre_sample"
    scores, foreign = [], []
    for split in ("train", "val", "test"):
        lines = (sample / "txt" / f"ours_{split}.txt").read_text(encoding="utf-8").splitlines()
        folder = sample / "img_org" / split
        others = sorted(folder.iterdir())
        for row, line in enumerate(lines):
            picture = folder / ast.literal_eval(line)["img_id"]
            crops = sorted((sample / "img_vg" / split / "crops").glob(f"{row}_pred*.png"))
            found = find_crops((picture, crops))
            assert not found["lost"]
            scores += [region["score"] for region in found["regions"]]
            stranger = next(path for path in others if path != picture)
            foreign.append(Matcher(Image.open(stranger)).find(Image.open(crops[0])).score)
    assert len(scores) == 42  # 50 crops; those of rows 5 belong to rows that the sample lacks
    assert min(scores) > 0.957 and np.mean(scores) > 0.98 and max(foreign) < 0.7
