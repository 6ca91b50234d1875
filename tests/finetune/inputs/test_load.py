"""Views, captions, the crop count: what reaches the batch, and what the result says of it."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from finetune.__main__ import main
from finetune.inputs.batch import Batch, Pictures
from finetune.inputs.load import load_split, read_views
from finetune.inputs.spec import Provider
from finetune.inputs.split import InputOptions
from finetune.inputs.view import Change, View, write_view
from finetune.methods.base import Source
from finetune.methods.mtb import MTB, MTBConfig
from finetune.methods.promu import Promu, PromuConfig
from finetune.tasks.base import SideInput
from finetune.tasks.mnre import MARKERS, Mnre
from finetune.tasks.region_cache import Region, Regions
from shards.files import InputError


def options(tmp_path, **changes):
    defaults = {"images": "required", "max_length": 40, "cache": tmp_path / "cache"}
    return InputOptions(**defaults | changes)


@pytest.fixture
def promu(mnre_folder, tiny_model):
    task = Mnre(mnre_folder)
    return task, *Promu.build(PromuConfig(), task.info, Source(str(tiny_model)))


def write_crops(folder, counts):
    """MNRE's community file: row -> names of crops."""
    for split, numbers in counts.items():
        names = {row: [f"{row}_{i}.png" for i in range(n)] for row, n in enumerate(numbers)}
        torch.save(names, folder / "txt" / f"mre_{split}_dict.pth")


def test_view_moves_pictures_and_drops_rows(tmp_path, promu):
    task, method, tokenizer = promu
    changes = {
        0: Change(drop=True),
        1: Change(image_id="val7.jpg"),
        2: Change(no_image=True),
    }
    path = tmp_path / "views" / "val.jsonl"
    write_view(path, View("val", changes, {"tool": "test", "params": {}, "seed": 1}))
    views = read_views([path.parent])
    plain = load_split(task, "val", tokenizer, method, options(tmp_path))
    viewed = load_split(task, "val", tokenizer, method, options(tmp_path, views=views))
    assert viewed.dataset.rows.tolist() == list(range(1, 30))
    assert viewed.gold == plain.gold[1:]
    batch = viewed.dataset.collate(np.arange(3))
    original = plain.dataset.collate(np.array([7, 3]))
    assert torch.equal(batch.pixel_values[0], original.pixel_values[0])
    assert torch.equal(batch.pixel_values[2], original.pixel_values[1])
    assert batch.image_mask.tolist() == [True, False, True]
    assert not batch.pixel_values[1].any()
    assert len(list((tmp_path / "cache").iterdir())) == 1  # all views share one store
    assert load_split(task, "test", tokenizer, method, options(tmp_path, views=views)).gold


def test_view_in_a_run_and_in_evaluate(tmp_path, mnre_folder, tiny_model):
    for split in ("val", "test"):
        view = View(
            split, {row: Change(no_image=True) for row in range(30)}, {"tool": "image-drop"}
        )
        write_view(tmp_path / "views" / f"{split}.jsonl", view)
    out = tmp_path / "run"
    main(
        f"train --task mnre --method promu --data {mnre_folder} --init {tiny_model} --out {out}"
        f" --optim.epochs 1 --view {tmp_path / 'views'}".split()
    )
    result = json.loads((out / "result.json").read_text())
    assert [view["tool"] for view in result["views"]] == ["image-drop"] * 2
    main(f"evaluate {out} --data {mnre_folder} --view {tmp_path}/views/test.jsonl".split())
    (written,) = out.glob("evaluate_test_test-*.json")
    again = json.loads(written.read_text())
    assert again["f1"] == result["test"]["f1"] and again["views"]
    with pytest.raises(SystemExit):
        main(f"evaluate {out} --data {mnre_folder} --view {tmp_path}/views/val.jsonl".split())


@pytest.mark.parametrize("name", ["nothing.jsonl", "empty"])
def test_view_that_is_not_there(tmp_path, name):
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no such manifest"):
        read_views([tmp_path / name])


def test_what_is_not_read_is_said(tmp_path, promu, caplog):
    task, method, tokenizer = promu
    (task.folder / "caption").mkdir()
    lines = [repr({"img_id": f"val{n}.jpg", "text": "a b c d" if n else "a"}) for n in range(30)]
    (task.folder / "caption/mine_val.txt").write_text("\n".join(lines))
    whole = {"images": "none", "captions": "mine", "max_caption_length": 4}
    load_split(task, "val", tokenizer, method, options(tmp_path, **whole))
    assert "longer" not in caplog.text
    cut = {"images": "none", "captions": "mine", "max_caption_length": 3, "max_length": 13}
    load_split(task, "val", tokenizer, method, options(tmp_path, **cut))
    rows = task.read("val")
    lengths = [
        len(tokenizer.tokenize(row.tokens, is_split_into_words=True)) + len(MARKERS) + 2
        for row in rows
    ]
    long = [row.row for row, length in zip(rows, lengths, strict=True) if length > 13]
    assert long
    first, second = (record.getMessage() for record in caplog.records)
    assert first.startswith(f"{task.split_file('val')}: {len(long)} of 30 rows are longer than ")
    assert first.endswith(f"--max_length 13 and not read whole (first: row {long[0]})")
    assert second.startswith("val: 29 of 30 captions are longer than --max_caption_length 3")


def test_caption_follows_the_post(tmp_path, promu):
    task, method, tokenizer = promu
    (task.folder / "caption").mkdir()
    lines = [repr({"img_id": f"val{i}.jpg", "text": "Ann and Bob tonight"}) for i in range(30)]
    (task.folder / "caption" / "mine_val.txt").write_text("\n".join(lines))
    captioned = options(tmp_path, images="none", captions="mine", max_caption_length=3)
    with_text = load_split(task, "val", tokenizer, method, captioned)
    plain = load_split(task, "val", tokenizer, method, options(tmp_path, images="none"))
    end = tokenizer("Ann and Bob tonight", add_special_tokens=False)["input_ids"][:3]
    end.append(tokenizer.sep_token_id)
    for longer, shorter in zip(
        with_text.dataset.columns["input_ids"], plain.dataset.columns["input_ids"], strict=True
    ):
        assert longer.tolist() == shorter.tolist() + end
    assert not with_text.leaky and with_text.files[0].name == "mine_val.txt"
    (task.folder / "caption" / "mine_val.txt").write_text("\n".join(lines[1:]))
    with pytest.raises(InputError, match=r"1 of 30 rows have no entry.*val0"):
        load_split(task, "val", tokenizer, method, captioned)
    with pytest.raises(InputError, match=r"none of caption/yours_val\.txt"):
        load_split(task, "val", tokenizer, method, options(tmp_path, captions="yours"))


def test_crop_count_is_read_and_marked(tmp_path, mnre_folder, tiny_model, caplog):
    """A count that follows the label: the run is leaky, the audit flags it, the score jumps."""
    task = Mnre(mnre_folder)
    counts = {
        split: [2 if row.relation == "None" else 4 - (row.relation == "/per/per/couple")
                for row in task.read(split)]
        for split in ("train", "val", "test")
    }  # fmt: skip
    write_crops(mnre_folder, counts)
    method, tokenizer = MTB.build(MTBConfig(crop_count=True), task.info, Source(str(tiny_model)))
    loaded = load_split(task, "val", tokenizer, method, options(tmp_path))
    assert loaded.dataset.columns["crop_count"].tolist() == counts["val"] and loaded.leaky
    command = f"train --task mnre --method mtb --data {mnre_folder} --init {tiny_model}"
    command += " --optim.epochs 6 --optim.head_lr 1e-2 --out"
    results = []
    for name, extra in (("plain", ""), ("leak", " --model.crop_count true")):
        with caplog.at_level("WARNING"):
            main(f"{command} {tmp_path / name}{extra}".split())
        results.append(json.loads((tmp_path / name / "result.json").read_text()))
    assert [result["leaky"] for result in results] == [False, True]
    assert results[1]["test"]["f1"]["mean"] > 95 > 75 > results[0]["test"]["f1"]["mean"]
    audit = results[1]["provenance"]["audit"]
    assert [(entry["feature"], entry["verdict"]) for entry in audit] == [
        ("crops: number", "flagged")
    ]
    assert "this input tells the label" in caplog.text
    assert str(mnre_folder / "txt" / "mre_val_dict.pth") in results[1]["provenance"]["data"]


def test_batch_moves_tensors_only():
    ids = torch.zeros(2, 8, dtype=torch.long)
    batch = Batch(rows=torch.arange(2), input_ids=ids, attention_mask=ids.bool(), weight=0.5)
    moved = batch.to(torch.device("meta"))
    assert moved.input_ids.is_meta and moved.weight == 0.5 and moved.labels is None


def test_own_rows_train(tmp_path, tiny_model):
    """With a row that has no picture: masked, not an error."""
    data = tmp_path / "data"
    (data / "images").mkdir(parents=True)
    Image.new("RGB", (9, 9)).save(data / "images" / "a.jpg")
    good = {"tokens": ["Ann", "and", "Bob"], "head": [0, 1], "tail": [2, 3], "relation": "peer"}
    rows = [good | {"image": "a.jpg"}, good | {"image": None, "relation": "None"}] * 8
    for split in ("train", "val"):
        lines = "\n".join(json.dumps(row) for row in rows)
        (data / f"{split}.jsonl").write_text(lines)
    main(
        f"train --task relations --method promu --data {data} --init {tiny_model} "
        f"--out {tmp_path}/run --optim.epochs 1".split()
    )
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["per_seed"][0]["images"]["train"] == {
        "found": 1, "missing": 0, "undecodable": 0,
    }  # fmt: skip
    assert result["provenance"]["audit"][0]["verdict"] == "flagged"  # presence tells the label


# ---------------------------------------------------------------------- what a method asks


@pytest.mark.parametrize(
    ("needs", "attributes", "message"),
    [
        ({"image", "my_depth_map"}, {}, r"Promu needs 'my_depth_map', .* nothing makes; there are "
         r"caption, entity_types, image, .*`providers`"),
        ({"image", "phrases"}, {}, "Promu needs 'phrases', an input that nothing makes"),
        ({"region_pixels"}, {}, "Promu needs 'region_pixels', but does not say its region_slots"),
        ({"visual_features"}, {}, "'visual_features', but does not say its frozen_vision"),
        ({"image"}, {"image_resize": "fold"}, "image_resize 'fold' is unknown; there are squash"),
    ],
)  # fmt: skip
def test_a_need_that_cannot_be_met_is_one_line(tmp_path, promu, needs, attributes, message):
    task, method, tokenizer = promu
    method.needs = frozenset(needs)
    for name, value in attributes.items():
        setattr(method, name, value)
    with pytest.raises(InputError, match=message) as raised:
        load_split(task, "val", tokenizer, method, options(tmp_path))
    assert "\n" not in str(raised.value)


def test_a_picture_for_an_encoder_that_sees_none(tmp_path, mnre_folder, tiny_model):
    """MTB's encoder has no image_size; without pictures nobody asks for one."""
    task = Mnre(mnre_folder)
    method, tokenizer = MTB.build(MTBConfig(), task.info, Source(str(tiny_model)))
    method.needs = frozenset({"image"})
    with pytest.raises(InputError, match="MTB needs 'image', but does not say its image_size"):
        load_split(task, "val", tokenizer, method, options(tmp_path))
    assert len(load_split(task, "val", tokenizer, method, options(tmp_path, images="none"))) == 30


def test_an_unknown_need_on_the_command_line(tmp_path, mnre_folder, tiny_model, capsys):
    """No traceback: the line names method and need, exit code 2."""
    method = Promu.needs
    Promu.needs = frozenset({"image", "my_depth_map"})
    words = f"--data {mnre_folder} --init {tiny_model} --out {tmp_path / 'run'}"
    try:
        with pytest.raises(SystemExit) as stopped:
            main(f"train --task mnre --method promu {words}".split())
    finally:
        Promu.needs = method
    assert stopped.value.code == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("error: method Promu needs 'my_depth_map'")


def brought(live):
    """Two columns and a picture, under names that no batch has as fields."""

    def add(loaded, wanted):
        squares = [np.full(row.row % 3, row.row) for row in loaded.rows]
        pictures = wanted.pictures(wanted.task.image_folder(wanted.split), ["val0.jpg"], 4)
        loaded = loaded.with_column("double", np.array([2 * row.row for row in loaded.rows]))
        loaded = loaded.with_column("squares", squares, mask="squares_mask", fill=-1)
        shown = pictures.index_of("val0.jpg" if row.row == 1 else None for row in loaded.rows)
        return loaded.with_pictures("sketch", Pictures(pictures, shown, "sketch_mask"))

    return Provider(add, live=live, visual=True)


def test_a_method_brings_an_input(tmp_path, promu, monkeypatch):
    monkeypatch.setattr("finetune.inputs.batch.MULTIPLE", 1)
    task, method, tokenizer = promu
    method.needs = frozenset({"sketches"})
    method.providers = {"sketches": brought("sketches")}
    loaded = load_split(task, "val", tokenizer, method, options(tmp_path))
    for batch in (
        loaded.dataset.collate(np.array([2, 1])),
        loaded.subset(np.array([2, 1])).dataset.collate(np.arange(2)),
    ):
        assert batch.require("double").tolist() == [4, 2]
        assert batch.require("squares").tolist() == [[2, 2], [1, -1]]
        assert batch.require("squares_mask").tolist() == [[True, True], [True, False]]
        assert batch.require("sketch").shape == (2, 3, 4, 4)
        assert batch.require("sketch_mask").tolist() == [False, True]
        moved = batch.to(torch.device("meta"))
        assert moved.extras.keys() == batch.extras.keys()
        assert all(tensor.is_meta for tensor in moved.extras.values())
    with pytest.raises(InputError, match="method Promu reads 'pixel_values' of a batch"):
        batch.require("pixel_values")
    off = load_split(task, "val", tokenizer, method, options(tmp_path, images="none"))
    assert not off.dataset.collate(np.arange(2)).extras


def test_what_is_brought_says_how_it_is_made_live(tmp_path, promu):
    task, method, tokenizer = promu
    method.needs = frozenset({"sketches"})
    method.providers = {"sketches": brought("what an artist drew")}
    with pytest.raises(InputError, match="what new posts do not have: what an artist drew"):
        load_split(task, "val", tokenizer, method, options(tmp_path), given={})
    method.providers = {"sketches": brought(lambda loaded, wanted: loaded)}
    assert load_split(task, "val", tokenizer, method, options(tmp_path), given={}).rows


def test_side_inputs_are_handed_as_values(tmp_path, promu):
    """Captions by row go before any file; regions as a cache would give them."""
    task, method, tokenizer = promu
    row = task.read("val")[0]
    texts = SideInput(path=tmp_path, keyed_by="row", values=dict.fromkeys(range(30), "Ann and Bob"))
    regions = Regions(row.image_id, (20, 16), (Region((5, 4, 10, 8), 0.5, "x"),))
    boxes = SideInput(path=tmp_path, keyed_by="image", values={row.image_id: regions})
    method.needs, method.region_slots = frozenset({"region_boxes"}), {"od": 2}
    task.read = lambda split: [row]
    chosen = options(tmp_path, captions="nowhere", max_caption_length=9, regions="live")
    given = {"caption": texts, "od": boxes}
    loaded = load_split(task, "val", tokenizer, method, chosen, given)
    caption = tokenizer("Ann and Bob", add_special_tokens=False)["input_ids"]
    assert loaded.dataset.columns["input_ids"][0].tolist()[-1 - len(caption) : -1] == caption
    batch = loaded.dataset.collate(np.arange(1))
    assert batch.require("region_boxes").tolist() == [[[0.25, 0.25, 0.5, 0.5], [0, 0, 0, 0]]]
