"""The objects column: selection, boxes from files, the two detectors, resume."""

import io
import json
import random
import shutil
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from drawn import texture
from PIL import Image

from shards.__main__ import main
from shards.corpora import captions
from shards.files import InputError
from shards.objects import DetectConfig, clip, select
from shards.options import parse_config
from shards.schema import DetectedObject
from shards.stream import ShardReader
from shards.write import build
from shards.yolo import YoloDetector

ROOT = Path(__file__).resolve().parents[2]


def thing(box, score, label="dog"):
    return DetectedObject(tuple(map(float, box)), score, label)


def test_select():
    large, sure, weak = (
        thing([0, 0, 9, 9], 0.5),
        thing([0, 0, 2, 2], 0.9),
        thing([0, 0, 99, 9], 0.2),
    )
    objects = [weak, large, sure]
    assert select(objects, 5, 0.25, "max_score") == [sure, large]
    assert select(objects, 5, 0.25, "max_area") == [large, sure]
    assert select(objects, 2, 0.0, "max_area") == [weak, large]
    assert select(objects, 1, 0.25, "max_score") == [sure]
    assert select([], 1, 0.25, "max_score") == []
    equal = [thing([0, 0, 3, 3], 0.5), thing([0, 0, 2, 3], 0.5)]
    assert select(equal, 2, 0, "max_score") == select(equal[::-1], 2, 0, "max_score")


@pytest.mark.parametrize(
    ("box", "expected"),
    [
        ((1, 2, 3, 4), (1, 2, 3, 4)),
        ((-5, -5, 99, 99), (0, 0, 20, 10)),
        ((1.23456, 0, 2, 9.999), (1.23, 0, 2, 10.0)),
        ((21, 0, 30, 5), None),
        ((3, 3, 3, 4), None),
        ((float("nan"), 0, 5, 5), None),
    ],
)
def test_clip(box, expected):
    assert clip(box, (20, 10)) == expected


@pytest.fixture
def shards(news_shards, tmp_path) -> Path:
    shutil.copytree(news_shards, tmp_path / "shards")
    return tmp_path / "shards"


def write_lines(path: Path, *lines) -> Path:
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return path


def detect(shards, file, *options):
    main(["detect", str(shards), "--detector", "file", "--boxes", str(file), *options])


def objects_of(shards) -> dict[str, set]:
    """By picture; all pairs of a picture must have the same."""
    reader, found = ShardReader(shards, columns=["objects"]), {}
    for shard in range(8):
        for sample in reader.samples(shard):
            found.setdefault(sample.meta.image_id, set()).add(sample.objects)
    assert len(found) == 40 and all(len(objects) == 1 for objects in found.values())
    return {image_id: next(iter(objects)) for image_id, objects in found.items()}


def test_boxes_from_a_file(shards, tmp_path, capsys):
    objects = [
        {"box": [0, 0, 10, 10], "score": 0.3, "label": "cat"},
        {"box": [20, 5, 48.6, 20], "score": 0.8, "label": "tennis ball"},
        {"box": [0, 0, 5, 5], "score": 0.1, "label": "ant"},
    ]
    twice = [{"box": [40, 20, 80, 60], "score": 0.5, "label": "dog"}]
    lines = [
        {"image_id": "7", "objects": objects},
        {"image_id": 14, "objects": twice, "size": [96, 64]},
        {"image_id": "no such picture", "objects": objects},
    ]
    detect(shards, write_lines(tmp_path / "boxes.jsonl", *lines))
    assert "2 of 40 new pictures have objects" in capsys.readouterr().out
    found = objects_of(shards)
    assert found["7"] == (
        thing([20, 5, 48, 20], 0.8, "tennis ball"),
        thing([0, 0, 10, 10], 0.3, "cat"),
    )
    assert found["14"] == (thing([20, 10, 40, 30], 0.5),)
    assert sum(bool(objects) for objects in found.values()) == 2
    detect(shards, tmp_path / "boxes.jsonl", "--keep", "1", "--min-score", "0.05")
    output = capsys.readouterr().out
    assert "other options before (keep, min_score)" in output
    assert [len(objects) for objects in objects_of(shards).values()].count(1) == 2
    main(["verify", str(shards)])


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("{", "not valid JSON"),
        ("[]", "not a JSON object"),
        ({"objects": []}, "image_id"),
        ({"image_id": "7"}, "objects"),
        ({"image_id": "7", "objects": [5]}, "not a JSON object"),
        ({"image_id": "7", "objects": [{"score": 1, "label": "a"}]}, "box"),
        ({"image_id": "7", "objects": [{"box": [0, 0, 9, 9], "label": "a"}]}, "score"),
        ({"image_id": "7", "objects": [{"box": [0, 0, 9, 9], "score": 1}]}, "label"),
        ({"image_id": "7", "objects": [{"box": [9, 0, 0, 9], "score": 1, "label": ""}]}, "swapped"),
        ({"image_id": "7", "objects": [{"box": [0, 0, 90, 9], "score": 1, "label": ""}]}, "size"),
        ({"image_id": "7", "objects": [], "size": [0, 5]}, "size"),
        ('{"image_id": "7", "objects": [{"box": [NaN,0,1,1], "score": 1, "label": ""}]}', "finite"),
        (
            '{"image_id": "7", "objects": [{"box": [0,0,1,1], "score": 1e999, "label": ""}]}',
            "score",
        ),
    ],
)
def test_damaged_boxes_are_named(shards, tmp_path, capsys, line, problem):
    text = line if isinstance(line, str) else json.dumps(line)
    (tmp_path / "b.jsonl").write_text('{"image_id": "0", "objects": []}\n' + text + "\n")
    with pytest.raises(SystemExit) as stopped:
        detect(shards, tmp_path / "b.jsonl")
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and len(error.splitlines()) == 1
    assert "b.jsonl: line 2" in error and problem in error
    assert not ShardReader(shards).has_column("objects")


def test_all_damaged_lines_are_listed_at_once(shards, tmp_path, capsys):
    lines = [{"image_id": "7", "objects": []}, {"image_id": "8"}, {"objects": []}]
    with pytest.raises(SystemExit):
        detect(shards, write_lines(tmp_path / "b.jsonl", *lines))
    error = capsys.readouterr().err.splitlines()
    assert "b.jsonl: 2 of 3 rows cannot be read:" in error[0]
    assert [line[:9] for line in error[1:]] == ["  line 2:", "  line 3:"]


def test_ids_that_match_nothing_are_an_error(shards, tmp_path, capsys):
    lines = [{"image_id": f"{7 * number}.jpg", "objects": []} for number in range(40)]
    with pytest.raises(SystemExit):
        detect(shards, write_lines(tmp_path / "b.jsonl", *lines))
    error = capsys.readouterr().err
    assert "none of its 40 image_ids is a picture of" in error and "'0.jpg' here" in error
    assert not (shards / "objects").exists()


def test_the_share_that_does_not_match_is_said(shards, tmp_path, capsys):
    lines = [{"image_id": 7 * number, "objects": []} for number in range(38, 45)]
    detect(shards, write_lines(tmp_path / "b.jsonl", *lines))
    error = capsys.readouterr().err
    assert "5 of 7 lines name no picture here, for example '280'" in error
    assert "38 of 40 pictures have no line" in error


def turned_shards(tmp_path, turn: int, size=(120, 80)) -> Path:
    """One picture, red where raw pixels [0, 0, 60, 40] are, with that EXIF orientation."""
    pixels = np.full((size[1], size[0], 3), 255, dtype=np.uint8)
    pixels[:40, :60] = (255, 0, 0)
    exif = Image.Exif()
    exif[0x0112] = turn
    (tmp_path / "images").mkdir()
    Image.fromarray(pixels).save(tmp_path / "images" / "a.jpg", exif=exif, quality=95)
    (tmp_path / "c.csv").write_text("image,caption\na.jpg,text\n")
    build(captions(tmp_path / "images", tmp_path / "c.csv", mismatch=0), tmp_path / "out")
    return tmp_path / "out"


def redness(sample) -> tuple[float, float]:
    """Share of red inside the box, and outside it."""
    red = np.asarray(Image.open(io.BytesIO(sample.image)).convert("RGB"))[..., 1] < 128
    x1, y1, x2, y2 = (round(side) for side in sample.objects[0].box)
    inside = red[y1:y2, x1:x2]
    return inside.mean(), (red.sum() - inside.sum()) / (red.size - inside.size)


@pytest.mark.parametrize("turn", range(1, 9))
@pytest.mark.parametrize("scale", [1, 2])
def test_boxes_of_raw_pixels_turn_with_their_picture(tmp_path, turn, scale):
    shards = turned_shards(tmp_path, turn)
    box = [0, 0, 60 * scale, 40 * scale]
    line = {"image_id": "a.jpg", "objects": [{"box": box, "score": 0.9, "label": "red"}]}
    line["size"] = [120 * scale, 80 * scale]
    if turn in (2, 3, 4):  # the shape does not tell
        with pytest.raises(SystemExit):
            detect(shards, write_lines(tmp_path / "b.jsonl", line))
        line["upright"] = False
    detect(shards, write_lines(tmp_path / "b.jsonl", line))
    (sample,) = ShardReader(shards, columns=["objects"]).samples(0)
    assert sample.meta.orientation == turn
    inside, outside = redness(sample)
    assert inside > 0.95 and outside < 0.02
    upright = list(sample.objects[0].box)
    line |= {"size": list(sample.meta.size), "upright": True}
    line["objects"][0]["box"] = upright  # as a detector gives it that turns pictures itself
    detect(shards, write_lines(tmp_path / "b.jsonl", line))
    (sample,) = ShardReader(shards, columns=["objects"]).samples(0)
    assert list(sample.objects[0].box) == upright


def test_lying_boxes_of_shards_that_do_not_know(tmp_path, capsys):
    """Shards of earlier versions do not say which pictures were turned."""
    shards = turned_shards(tmp_path, 1)
    line = {"image_id": "a.jpg", "size": [80, 120]}
    line["objects"] = [{"box": [0, 0, 40, 60], "score": 0.9, "label": "red"}]
    with pytest.raises(SystemExit):
        detect(shards, write_lines(tmp_path / "b.jsonl", line))
    assert "line 1: a.jpg: `size` [80, 120] lies on its side beside" in capsys.readouterr().err


def test_a_picture_listed_twice(shards, tmp_path, capsys):
    line = {"image_id": "7", "objects": []}
    with pytest.raises(SystemExit):
        detect(shards, write_lines(tmp_path / "b.jsonl", line, line))
    assert "line 2: image_id 7 appears twice" in capsys.readouterr().err


def test_yolo_of_random_weights(shards, interpreter, monkeypatch):
    """Wiring: the process starts offline, answers for every picture, and always the same."""
    if not find_spec("ultralytics"):
        pytest.skip("needs the extra `yolo`")
    monkeypatch.setattr(sys, "executable", str(interpreter.path / "python"))
    options = ["--weights", "yolo11n.yaml", "--min-score", "0", "--keep", "3"]
    main(["detect", str(shards), "--detector", "yolo", *options])
    before = (shards / "objects" / "train-000003.safetensors").read_bytes()
    objects_of(shards)
    provenance = json.loads((shards / "objects" / "column.json").read_text())["provenance"]
    assert provenance["model"] == "yolo11n.yaml" and "ultralytics" in provenance
    assert "ultralytics" not in sys.modules
    (shards / "objects" / "train-000003.safetensors").unlink()
    main(["detect", str(shards), "--detector", "yolo", *options])
    assert (shards / "objects" / "train-000003.safetensors").read_bytes() == before


def test_yolo_gives_a_picture_the_boxes_it_has_alone():
    """Whatever lies beside it: ultralytics pads pictures of several sizes to squares."""
    if not find_spec("ultralytics"):
        pytest.skip("needs the extra `yolo`")
    yolo = YoloDetector("yolo11n.yaml", "cpu", 0.0)
    pictures = []
    for size in ((200, 120), (90, 160), (128, 128)):
        texture(size).save(file := io.BytesIO(), "JPEG")
        pictures.append(file.getvalue())
    together = yolo.detect(pictures)
    assert together == [yolo.detect([picture])[0] for picture in pictures]
    assert all(together)


def test_yolo_without_its_weights(shards, tmp_path, capsys):
    if not find_spec("ultralytics"):
        pytest.skip("needs the extra `yolo`")
    (tmp_path / "broken.pt").write_bytes(b"no weights")
    with pytest.raises(SystemExit) as stopped:
        main(["detect", str(shards), "--weights", str(tmp_path / "broken.pt")])
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and len(error.splitlines()) == 1
    assert "broken.pt" in error and "--detector torchvision" in error


def test_torchvision_of_random_weights(shards, monkeypatch, capsys):
    torch = pytest.importorskip("torch")
    from torchvision.models import detection

    from shards import objects

    def small(weights, min_score, option):
        torch.manual_seed(0)
        model = detection.fasterrcnn_mobilenet_v3_large_320_fpn(
            weights=None,
            weights_backbone=None,
            num_classes=91,
            box_score_thresh=0.0,
            min_size=64,
            max_size=64,
        )
        return model, ["name"] * 91

    monkeypatch.setattr(objects, "faster_rcnn", small)
    find = objects.FasterRCNN("random", min_score=0)
    pictures = [texture(size) for size in ((300, 60), (60, 300), (128, 128))]
    together = find(pictures)
    assert together == [find([picture])[0] for picture in pictures] and all(together)
    words = ["detect", str(shards), "--detector", "torchvision", "--min-score", "0", "--keep", "2"]
    main(words)
    found = objects_of(shards)
    assert any(found.values()) and {o.label for f in found.values() for o in f} == {"name"}
    path = shards / "objects/column.json"  # as older code wrote it, which padded all to one size
    column = json.loads(path.read_text())
    assert column["provenance"].pop("shown") and column.pop("_crc32")
    path.write_text(json.dumps(column))
    main(words)
    assert "other options before (shown); it is written anew" in capsys.readouterr().out


@pytest.mark.parametrize("content", [None, b"no weights"])
def test_torchvision_weights_that_cannot_be_loaded(tmp_path, content):
    pytest.importorskip("torch")
    from shards.objects import faster_rcnn

    if content:
        (tmp_path / "w.pth").write_bytes(content)
    with pytest.raises(InputError, match=r"w\.pth"):
        faster_rcnn(str(tmp_path / "w.pth"), 0.5)


@pytest.mark.parametrize("kills", [3, pytest.param(20, marks=pytest.mark.slow)])
def test_kill_9_during_detect(shards, tmp_path, kills):
    lines = [
        {"image_id": 7 * n, "objects": [{"box": [0, 0, n + 1, 9], "score": 0.5, "label": "dog"}]}
        for n in range(40)
    ]
    file = write_lines(tmp_path / "boxes.jsonl", *lines)
    shutil.copytree(shards, tmp_path / "plain")
    detect(tmp_path / "plain", file)
    command = [sys.executable, "-c", SLOW_DETECT, "detect", str(shards)]
    command += ["--detector", "file", "--boxes", str(file)]
    delays, hits = random.Random(kills), 0
    for _ in range(kills):
        before = names(shards)
        process = subprocess.Popen(command, cwd=ROOT)
        while process.poll() is None and names(shards) == before:  # still starting
            time.sleep(0.001)
        time.sleep(delays.uniform(0, 0.02))
        process.send_signal(signal.SIGKILL)
        hits += process.wait() == -signal.SIGKILL
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    assert hits >= 0.75 * kills
    assert names(shards) == names(tmp_path / "plain")  # nothing left behind either
    for name in names(shards):
        content = (shards / "objects" / name).read_bytes()
        assert content == (tmp_path / "plain" / "objects" / name).read_bytes()


def names(shards: Path) -> set[str]:
    return {path.name for path in shards.glob("objects/*")}


# Every rename waits a little, so that kills hit all stages of it.
SLOW_DETECT = """
import os, sys, time
replace = os.replace
os.replace = lambda *paths: (time.sleep(0.01), replace(*paths), time.sleep(0.01))
from shards.__main__ import main
main(sys.argv[1:])
"""


@pytest.mark.parametrize(
    ("words", "said"),
    [("--boxes b.jsonl", "--boxes: --detector yolo reads none"),
     ("--detector file --boxes b.jsonl --weights w.pt", "--weights: --detector file reads none")],
)  # fmt: skip
def test_options_of_another_detector_are_refused(words, said):
    with pytest.raises(InputError, match=said):
        parse_config(DetectConfig, ["shards", *words.split()], prog="p", example="e")
