"""Views, captions, the crop count: what reaches the batch, and what the result says of it."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from finetune.__main__ import main
from finetune.inputs.batch import Batch
from finetune.inputs.load import InputOptions, load_split, read_views
from finetune.inputs.view import Change, View, write_view
from finetune.methods.base import Source
from finetune.methods.mtb import MTB, MTBConfig
from finetune.methods.promu import Promu, PromuConfig
from finetune.tasks.mnre import Mnre
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
    again = json.loads((out / "evaluate_test_test.json").read_text())
    assert again["f1"] == result["test"]["f1"] and again["views"]
    with pytest.raises(SystemExit):
        main(f"evaluate {out} --data {mnre_folder} --view {tmp_path}/views/val.jsonl".split())


@pytest.mark.parametrize("name", ["nothing.jsonl", "empty"])
def test_view_that_is_not_there(tmp_path, name):
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no such manifest"):
        read_views([tmp_path / name])


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
