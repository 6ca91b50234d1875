"""Regions of new posts: as many as the method was trained with."""

from types import SimpleNamespace

import pytest
from PIL import Image

from finetune.data import grounding
from finetune.predict.live_inputs import LiveInputs
from finetune.tasks.base import Row


@pytest.mark.parametrize("slots", [3, 10])
def test_as_many_objects_as_slots(monkeypatch, tmp_path, slots):
    """A picture of twelve objects shows DGF-PT its ten, not the three of the cache's default."""
    Image.new("RGB", (64, 64)).save(tmp_path / "1.jpg")
    boxes = [
        SimpleNamespace(box=(i, i, i + 9, i + 9), score=1 - i / 20, label="x") for i in range(12)
    ]

    class Twelve:
        model = SimpleNamespace(roi_heads=SimpleNamespace(score_thresh=0.0))

        def __init__(self, *args, **options):
            pass

        def __call__(self, pictures):
            return [boxes]

    monkeypatch.setattr(grounding, "FasterRCNN", Twelve)
    row = Row(row=0, image_id=str(tmp_path / "1.jpg"))
    _, detected = LiveInputs().find_regions({"od": slots}, [row])
    (regions,) = detected.values()
    assert [region.score for region in regions.regions] == [box.score for box in boxes[:slots]]
