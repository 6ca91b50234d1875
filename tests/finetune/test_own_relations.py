"""Your own relation rows: the documented schema, every damage with its line."""

import json

import pytest
from PIL import Image

from finetune.__main__ import main
from finetune.tasks.own_relations import OwnRelations, parse_row
from pretrain.cli import InputError

GOOD = {
    "tokens": ["Ann", "and", "Bob"],
    "head": [0, 1],
    "tail": [2, 3],
    "image": None,
    "relation": "peer",
}


def write(folder, split, rows):
    lines = "\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows)
    (folder / f"{split}.jsonl").write_text(lines + "\n")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "not JSON"),
        ("[]", "expected an object"),
        (repr(GOOD), "not JSON"),
        (json.dumps(GOOD | {"extra": 1}), "expected an object with the keys"),
        (json.dumps({k: v for k, v in GOOD.items() if k != "image"}), "expected an object"),
        (json.dumps(GOOD | {"tokens": "Ann and Bob"}), "tokens is not"),
        (json.dumps(GOOD | {"tokens": ["Ann", " ", "Bob"]}), "tokens is not"),
        (json.dumps(GOOD | {"image": 3}), "image is neither"),
        (json.dumps(GOOD | {"image": "a/b.jpg"}), "image is neither"),
        (json.dumps(GOOD | {"relation": None}), "relation is not"),
        (json.dumps(GOOD | {"head": [0, 0]}), "head or tail"),
        (json.dumps(GOOD | {"tail": [2, 4]}), "head or tail"),
        (json.dumps(GOOD | {"tail": [2]}), "head or tail"),
        (json.dumps(GOOD | {"tail": {"pos": [2, 3]}}), "head or tail"),
        ("[" * 100_000, "not JSON"),
    ],
)
def test_damaged_line(line, message):
    with pytest.raises(InputError) as error:
        parse_row(line, 4, "val.jsonl:5")
    text = str(error.value)
    assert text.startswith("val.jsonl:5: ") and message in text and "\n" not in text


def test_labels_and_rows(tmp_path):
    rows = [GOOD | {"relation": name} for name in ("peer", "None", "couple")]
    write(tmp_path, "train", [rows[0], "", *rows[1:]])
    write(tmp_path, "val", [GOOD | {"image": "a.jpg"}])
    task = OwnRelations(tmp_path)
    assert task.info.labels == ("None", "couple", "peer") and task.none_id == 0
    assert [row.row for row in task.read("train")] == [0, 1, 2]
    assert task.read("val")[0].image_id == "a.jpg" and task.split_file("test") is None
    write(tmp_path, "val", [GOOD | {"relation": "rival"}])
    with pytest.raises(InputError, match="'rival' does not occur in train"):
        task.read("val")
    with pytest.raises(InputError, match=r"test\.jsonl: missing"):
        task.read("test")
    write(tmp_path, "val", [""])
    with pytest.raises(InputError, match="empty"):
        task.read("val")


def test_trains(tmp_path, tiny_model):
    """With a row that has no picture: masked, not an error."""
    data = tmp_path / "data"
    (data / "images").mkdir(parents=True)
    Image.new("RGB", (9, 9)).save(data / "images" / "a.jpg")
    rows = [GOOD | {"image": "a.jpg"}, GOOD | {"relation": "None"}] * 8
    for split in ("train", "val"):
        write(data, split, rows)
    main(
        f"train --task relations --method promu --data {data} --init {tiny_model} "
        f"--out {tmp_path}/run --optim.epochs 1".split()
    )
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["per_seed"][0]["images"]["train"] == {
        "found": 1, "missing": 0, "undecodable": 0,
    }  # fmt: skip
    assert result["provenance"]["audit"][0]["verdict"] == "flagged"  # presence tells the label
