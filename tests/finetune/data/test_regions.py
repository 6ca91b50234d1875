"""Region caches: recovered, built with a tiny Grounding DINO, imported, resumed."""

import json
import shutil

import numpy as np
import pytest
import torch
from drawn import texture

from finetune.data import grounding, regions, views
from finetune.data.grounding import Grounder
from finetune.data.regions import resumable
from finetune.inputs.view import read_view
from finetune.tasks.region_cache import Region, read_regions
from shards.command import exit_on_input_error

main = exit_on_input_error(regions.main)

# ---- a small corpus ------------------------------------------------------------------------------


@pytest.fixture
def corpus(tmp_path):
    """Two pictures, three rows, two crops a row, listed in mre_dev_dict.pth."""
    data = tmp_path / "mnre"
    crops = data / "img_vg" / "val" / "crops"
    for folder in (data / "txt", data / "img_org" / "val", crops):
        folder.mkdir(parents=True)
    (data / "ours_rel2id.json").write_text('{"None": 0}')
    names, boxes, lines = {}, {}, []
    for row, picture in enumerate(("a", "a", "b")):
        image = texture((160, 120), seed=ord(picture))
        image.save(data / "img_org" / "val" / f"{picture}.png")
        names[row], boxes[row] = [], [(10 * row, 5, 60 + 10 * row, 65), (40, 30, 120, 90)]
        for number, box in enumerate(boxes[row]):
            names[row].append(f"{row}_pred_yolo_crop_{2 * row + number}.png")
            image.crop(box).save(crops / names[row][-1])
        entity = {"h": {"name": "Bob", "pos": [0, 1]}, "t": {"name": "Oslo", "pos": [2, 3]}}
        lines.append(
            {
                "token": ["Bob", "in", "Oslo"],
                **entity,
                "img_id": f"{picture}.png",
                "relation": "None",
            }
        )
    (data / "txt" / "ours_val.txt").write_text("".join(f"{line}\n" for line in lines))
    torch.save(names, data / "txt" / "mre_dev_dict.pth")
    return data, boxes


@pytest.mark.parametrize("workers", ["1", "2"])
def test_recover(corpus, tmp_path, capsys, workers):
    data, boxes = corpus
    out = tmp_path / "out"
    main(["recover", "--data", str(data), "--out", str(out), "--workers", workers])
    cache = read_regions(out / "regions_vg_val.jsonl")
    assert cache.leaky and cache.header["lost"] == 0 and "leaky" in capsys.readouterr().out
    for row, entry in cache.values.items():
        assert entry.size == (160, 120)
        assert [region.box for region in entry.regions] == boxes[row]
        assert {region.kind for region in entry.regions} == {"community"}
    assert [path.name for path in out.iterdir()] == ["regions_vg_val.jsonl"]


def test_recover_without_a_list_reads_the_folder_and_reports_lost_crops(corpus, tmp_path, capsys):
    data, _ = corpus
    (data / "txt" / "mre_dev_dict.pth").unlink()
    texture((50, 50), seed=9).save(data / "img_vg" / "val" / "crops" / "1_pred_yolo_crop_9.png")
    main(["recover", "--data", str(data), "--out", str(tmp_path / "out")])
    cache = read_regions(tmp_path / "out" / "regions_vg_val.jsonl")
    assert [len(cache.values[row].regions) for row in range(3)] == [2, 2, 2]
    assert cache.header["lost"] == 1 and "1_pred_yolo_crop_9.png" in capsys.readouterr().out


def test_missing_pictures_are_counted(corpus, tmp_path, capsys):
    data, _ = corpus
    (data / "img_org" / "val" / "a.png").unlink()
    argv = ["recover", "--data", str(data), "--out", str(tmp_path / "out")]
    with pytest.raises(SystemExit) as stop:
        main(argv)
    assert stop.value.code == 2
    assert "1 of 2 pictures are missing, first a.png" in capsys.readouterr().err
    main([*argv, "--max-missing", "1"])
    assert read_regions(tmp_path / "out" / "regions_vg_val.jsonl").values.keys() == {2}


def test_undecodable_picture_is_one_line(corpus, tmp_path, capsys):
    data, _ = corpus
    (data / "img_org" / "val" / "b.png").write_bytes(b"not a picture")
    with pytest.raises(SystemExit):
        main(["recover", "--data", str(data), "--out", str(tmp_path / "out")])
    assert "b.png: not a JPEG" in capsys.readouterr().err


def test_resumable(tmp_path):
    """Only what is missing is computed; a torn last line is; other settings start anew."""
    calls = []

    def compute(value):
        calls.append(value)
        if value == "stop":
            raise KeyboardInterrupt
        return {"value": value}

    out, header = tmp_path / "cache.jsonl", {"model": "a"}
    with pytest.raises(KeyboardInterrupt):
        resumable(out, header, {"1": "x", "2": "y", "3": "stop"}, compute)
    log = tmp_path / ".cache.jsonl.log"
    with log.open("a") as lines:
        lines.write('["3", {"val')
    calls.clear()
    found = resumable(out, header, {"1": "x", "2": "y", "3": "z"}, compute)
    assert calls == ["z"] and found == {k: {"value": v} for k, v in zip("123", "xyz", strict=True)}
    calls.clear()
    resumable(out, {"model": "b"}, {"1": "x"}, compute)
    assert calls == ["x"]


def test_a_log_of_other_inputs_is_not_used(tmp_path):
    """An item that changed, or a file that it reads, is computed anew; so is what stands behind a
    flipped bit. U+2028 and U+0085 in a result end no line."""
    calls, picture = [], tmp_path / "a.jpg"

    def compute(item):
        calls.append(item)
        return {"value": f"{item}\u2028\x85"}

    out, log = tmp_path / "cache.jsonl", tmp_path / ".cache.jsonl.log"

    def run(**work):
        calls.clear()
        found = resumable(out, {}, work, compute, reads=lambda item: (picture,))
        assert found == {key: {"value": f"{item}\u2028\x85"} for key, item in work.items()}
        return "".join(calls)

    picture.write_bytes(b"1")
    assert run(a="x", b="y") == "xy" and run(a="x", b="y") == ""
    assert run(a="x", b="z") == "z"
    picture.write_bytes(b"2")
    assert run(a="x", b="z") == "xz"
    content = log.read_bytes()
    for place in range(len(content)):
        log.write_bytes(content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :])
        run(a="x", b="z")


# ---- build ---------------------------------------------------------------------------------------


class FakeGrounder:
    """A box as wide as the phrase is long; counts its passes."""

    passes = 0

    def __init__(self, model, device):
        self.provenance = {"model": model}

    def __call__(self, picture, phrases):
        FakeGrounder.passes += 1
        return [Region((0, 0, len(p), 10), 0.5, p, kind) for p, kind in phrases]


def test_build(corpus, tmp_path, monkeypatch):
    """One pass a picture; each row gets its own phrases, entities first; the cache is leak-safe."""
    data, _ = corpus
    monkeypatch.setattr(grounding, "Grounder", FakeGrounder)
    options = ["--tagger", "none", "--detector", "none", "--grounder", "fake"]
    out = tmp_path / "out"
    main(["build", "--data", str(data), "--out", str(out), *options])
    assert FakeGrounder.passes == 2
    cache = read_regions(out / "regions_vg_val.jsonl")
    assert not cache.leaky and cache.header["keywords"] == {"tagger": "none", "limit": 4}
    for entry in cache.values.values():
        assert [(r.text, r.kind, r.box[2]) for r in entry.regions] == [
            ("Bob", "head", 3),
            ("Oslo", "tail", 4),
        ]


@pytest.fixture(scope="module")
def grounding_dino(tmp_path_factory):
    """A Grounding DINO of a few thousand random weights, saved as a folder."""
    from transformers import (
        BertConfig,
        BertTokenizerFast,
        GroundingDinoConfig,
        GroundingDinoForObjectDetection,
        GroundingDinoImageProcessor,
        GroundingDinoProcessor,
        SwinConfig,
    )

    folder = tmp_path_factory.mktemp("dino")
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", *letters]
    (folder / "vocab.txt").write_text("\n".join([*words, *(f"##{letter}" for letter in letters)]))
    tokenizer = BertTokenizerFast(str(folder / "vocab.txt"))
    torch.manual_seed(0)
    config = GroundingDinoConfig(
        backbone_config=SwinConfig(
            image_size=64, patch_size=4, embed_dim=8, depths=[1] * 4, num_heads=[1] * 4,
            window_size=4, out_features=["stage2", "stage3", "stage4"],
        ),
        text_config=BertConfig(
            vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
            intermediate_size=16, max_position_embeddings=64,
        ),
        d_model=32, num_queries=12, encoder_layers=1, decoder_layers=2, encoder_ffn_dim=16,
        decoder_ffn_dim=16, encoder_attention_heads=2, decoder_attention_heads=2, max_text_len=64,
    )  # fmt: skip
    GroundingDinoForObjectDetection(config).save_pretrained(folder)
    image_processor = GroundingDinoImageProcessor(size={"shortest_edge": 64, "longest_edge": 96})
    GroundingDinoProcessor(image_processor, tokenizer).save_pretrained(folder)
    return folder


def test_build_with_grounding_dino(corpus, tmp_path, grounding_dino):
    """One box a phrase, inside the picture, whatever its score; the same twice."""
    data, _ = corpus
    options = ["--tagger", "none", "--detector", "none", "--grounder", str(grounding_dino)]
    contents = []
    for name in ("one", "two"):
        main(["build", "--data", str(data), "--out", str(tmp_path / name), *options])
        path = tmp_path / name / "regions_vg_val.jsonl"
        contents.append(path.read_bytes())
        for entry in read_regions(path).values.values():
            assert [(r.text, r.kind) for r in entry.regions] == [("Bob", "head"), ("Oslo", "tail")]
    assert contents[0] == contents[1]


def test_phrases_of_a_batch_do_not_touch_each_other(grounding_dino):
    """A phrase alone and beside a longer one (padding) gets the same box."""
    grounder, picture = Grounder(str(grounding_dino)), texture((160, 120))
    alone = grounder(picture, [("bob", "head")])[0]
    beside = grounder(picture, [("bob", "head"), ("a long phrase here", "noun")])[0]
    assert np.allclose(alone.box, beside.box, atol=0.05)
    assert alone.score == pytest.approx(beside.score, abs=1e-4)
    assert grounder(picture, []) == []


def test_reground_looks_for_the_receiving_rows_phrases(corpus, tmp_path, grounding_dino):
    """`view align-noise --vg reground`: a wrong picture, and boxes of the own phrases in it."""
    data, _ = corpus
    out = tmp_path / "view.jsonl"
    options = ["--vg", "reground", "--grounder", str(grounding_dino), "--tagger", "none"]
    argv = ["align-noise", "--data", str(data), "--ratio", "0.34", "--out", str(out), *options]
    views.main(argv)
    (change,) = read_view(out).changes.values()
    assert change.image_id is not None
    assert [(r.text, r.kind) for r in change.vg] == [("Bob", "head"), ("Oslo", "tail")]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--tagger none --grounder /nowhere/dino", "--grounder /nowhere/dino: cannot be loaded"),
        ("--tagger none --grounder FAKE --detector absent.pth", "--detector absent.pth"),
        ("--tagger en_absent --grounder FAKE", "python -m spacy download en_absent"),
    ],
)
def test_absent_weights_are_one_line(corpus, tmp_path, monkeypatch, capsys, options, message):
    data, _ = corpus
    if "FAKE" in options:
        monkeypatch.setattr(grounding, "Grounder", FakeGrounder)
    with pytest.raises(SystemExit) as stop:
        main(["build", "--data", str(data), "--out", str(tmp_path / "out"), *options.split()])
    assert stop.value.code == 2
    error = capsys.readouterr().err.strip()
    assert message in error.splitlines()[-1]


class FakeDetector:
    """One object as large as the picture."""

    def __init__(self, weights, device, limit):
        self.provenance = {"model": weights}

    def __call__(self, picture):
        return [Region((0, 0, *picture.size), 0.9, "dog")]


def test_build_objects(corpus, tmp_path, monkeypatch):
    data, _ = corpus
    monkeypatch.setattr(grounding, "Grounder", FakeGrounder)
    monkeypatch.setattr(grounding, "ObjectDetector", FakeDetector)
    main(["build", "--data", str(data), "--out", str(tmp_path / "out"), "--tagger", "none"])
    cache = read_regions(tmp_path / "out" / "regions_od.jsonl")
    assert cache.keyed_by == "image" and cache.values.keys() == {"a.png", "b.png"}
    assert cache.values["a.png"].regions == (Region((0, 0, 160, 120), 0.9, "dog"),)


@pytest.mark.slow
def test_object_detector_from_a_file(tmp_path):
    """Random weights: whatever comes out lies in the picture, best first."""
    from torchvision.models import detection

    torch.manual_seed(0)
    model = detection.fasterrcnn_resnet50_fpn_v2(weights=None, weights_backbone=None)
    torch.save(model.state_dict(), tmp_path / "detector.pth")
    detector = grounding.ObjectDetector(str(tmp_path / "detector.pth"))
    detector.find.model.roi_heads.score_thresh = 0.0
    found = detector(texture((160, 120)))
    assert len(found) == 3
    assert [r.score for r in found] == sorted((r.score for r in found), reverse=True)
    assert all(0 <= r.box[0] < r.box[2] <= 160 and r.text in detector.find.labels for r in found)


# ---- import --------------------------------------------------------------------------------------


def test_import_generated_boxes(corpus, tmp_path):
    data, _ = corpus
    boxes = {row: [torch.tensor([1.0, 2, 700, 768])] * (row + 1) for row in range(3)}
    torch.save(boxes, data / "txt" / "mre_dif_val_dict.pth")
    main(["import", "--data", str(data), "--out", str(tmp_path / "out")])
    cache = read_regions(tmp_path / "out" / "regions_generated_val.jsonl")
    assert cache.leaky and cache.values[2].size == (768, 768)
    assert [len(cache.values[row].regions) for row in range(3)] == [1, 2, 3]


OBJECTS = {
    "image_id": "a.png",
    "size": [160, 120],
    "objects": [
        {"box": [0, 0, 9, 9], "score": 0.2, "label": "cat"},
        {"box": [0, 0, 8, 8], "score": 0.7, "label": "dog"},
    ],
}


@pytest.mark.parametrize("stamp", [[], ["--no-leaky"]])
def test_import_objects(corpus, tmp_path, stamp):
    data, _ = corpus
    file = tmp_path / "objects.jsonl"
    file.write_text(json.dumps(OBJECTS) + "\n")
    out = tmp_path / "out"
    main(["import", "--data", str(data), "--out", str(out), "--objects", str(file), *stamp])
    cache = read_regions(out / "regions_od.jsonl")
    assert cache.leaky is not bool(stamp)
    assert [region.text for region in cache.values["a.png"].regions] == ["dog", "cat"]


@pytest.mark.parametrize(
    "damage",
    [
        "[]",
        "{",
        json.dumps({"image_id": "b.png"}),
        json.dumps(OBJECTS),
        json.dumps(OBJECTS | {"image_id": "b", "size": None}),
        json.dumps(OBJECTS | {"image_id": "b", "objects": [{"box": [0, 0, 999, 9]}]}),
    ],
)
def test_import_objects_damage(corpus, tmp_path, capsys, damage):
    file = tmp_path / "objects.jsonl"
    file.write_text(json.dumps(OBJECTS) + "\n" + damage + "\n")
    with pytest.raises(SystemExit) as stop:
        main(["import", "--data", str(corpus[0]), "--out", str(tmp_path), "--objects", str(file)])
    assert stop.value.code == 2
    assert capsys.readouterr().err.startswith(f"error: {file}: line 2: ")


def test_recover_command_on_the_sample(shared_data, tmp_path):
    data = tmp_path / "mnre"
    data.mkdir()
    for name in ("txt", "img_org", "img_vg"):
        (data / name).symlink_to(shared_data / "mnre_sample" / name)
    shutil.copy(shared_data / "mnre" / "ours_rel2id.json", data)
    main(["recover", "--data", str(data), "--out", str(tmp_path / "out"), "--split", "train"])
    cache = read_regions(tmp_path / "out" / "regions_vg_train.jsonl")
    assert {row: len(entry.regions) for row, entry in cache.values.items()} == {
        0: 2, 1: 4, 2: 3, 3: 2, 4: 3
    }  # fmt: skip
