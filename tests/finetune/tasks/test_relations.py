"""Your own relation data: read, encoded like MNRE, every damage named."""

import json
import shutil

import pytest
from tiny_mnre import write_mnre

from finetune.tasks.mnre import Mnre, RelationRow
from finetune.tasks.relations import OwnRelations
from shards.files import InputError

ROW = {
    "tokens": ["Bob", "in", "Oslo"],
    "head": [0, 1],
    "tail": [2, 3],
    "image": "17.jpg",
    "relation": "lives in",
}


def write(folder, *rows, split="train"):
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    (folder / f"{split}.jsonl").write_text("".join(f"{line}\n" for line in lines))
    return folder


def test_rows_and_labels(tmp_path):
    """The no-relation label gets id 0, whatever it is called; the rest is sorted."""
    unrelated = {key: ROW[key] for key in ("tokens", "head", "tail")} | {"relation": "NA"}
    write(tmp_path, ROW, unrelated, ROW | {"relation": "born in", "head": [0, 3]})
    task = OwnRelations(tmp_path)
    assert task.info.labels == ("NA", "born in", "lives in") and task.info.negative == "NA"
    assert task.read("train")[:2] == [
        RelationRow(
            row=0, image_id="17.jpg", tokens=("Bob", "in", "Oslo"), head=(0, 1), tail=(2, 3),
            relation="lives in",
        ),
        RelationRow(
            row=1, image_id=None, tokens=("Bob", "in", "Oslo"), head=(0, 1), tail=(2, 3),
            relation="NA",
        ),
    ]  # fmt: skip
    scores = task.score(["lives in", "NA", "born in"], ["lives in", "lives in", "NA"])
    assert scores["precision"] == 50 and scores["recall"] == 50
    assert task.image_folder("val") == tmp_path / "images"


@pytest.mark.parametrize("name", ["No relation", "N/A", "other"])
def test_labels_stand_in_the_order_of_runs_before_their_name_was_known(tmp_path, name):
    names = ("A", "a", "z", name)
    write(tmp_path, *(ROW | {"relation": one} for one in names))
    task = OwnRelations(tmp_path)
    assert task.info.labels == tuple(sorted(names)) and task.info.negative == name


def test_names_of_the_validation_split(tmp_path):
    write(tmp_path, ROW)
    task = OwnRelations(tmp_path)
    assert task.split_file("val") is None
    write(tmp_path, ROW, split="dev")
    assert len(task.read("val")) == 1
    with pytest.raises(InputError, match=r"no test\.jsonl"):
        task.read("test")


DAMAGE = {
    "half a character": ROW | {"tokens": ["Bob", "\ud83d", "Oslo"]},
    "a NUL": ROW | {"tokens": ["Bob", "a\0b", "Oslo"]},
    "not JSON": "{'tokens': ['a']}",
    "cut": json.dumps(ROW)[:-9],
    "a list": "[]",
    "missing key": {key: ROW[key] for key in ("tokens", "head", "relation")},
    "unknown key": ROW | {"img_id": "17.jpg"},
    "tokens a string": ROW | {"tokens": "Bob in Oslo"},
    "an empty token": ROW | {"tokens": ["Bob", "", "Oslo"]},
    "relation a number": ROW | {"relation": 3},
    "relation empty": ROW | {"relation": ""},
    "relation blank": ROW | {"relation": " "},
    "image a path": ROW | {"image": "../17.jpg"},
    "image a number": ROW | {"image": 17},
    "head a name": ROW | {"head": "Bob"},
    "head of three": ROW | {"head": [0, 1, 2]},
    "head of truth": ROW | {"head": [False, True]},
    "head empty": ROW | {"head": [1, 1]},
    "head reversed": ROW | {"head": [2, 1]},
    "head negative": ROW | {"head": [-1, 1]},
    "tail outside": ROW | {"tail": [2, 4]},
    "tail of floats": ROW | {"tail": [2.0, 3.0]},
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_names_the_line(tmp_path, name):
    write(tmp_path, ROW, DAMAGE[name])
    with pytest.raises(InputError) as caught:
        OwnRelations(tmp_path)
    assert str(caught.value).startswith(f"{tmp_path / 'train.jsonl'}: line 2: ")
    assert "\n" not in str(caught.value)


def test_two_files_of_one_split(tmp_path):
    """Which of them was meant, nobody can tell; copies are one."""
    row = {"tokens": ["a", "b"], "head": [0, 1], "tail": [1, 2], "relation": "r"}
    for split in ("train", "val", "dev"):
        write(tmp_path, row, split=split)
    assert OwnRelations(tmp_path).split_file("val") == tmp_path / "val.jsonl"
    write(tmp_path, row, row, split="valid")
    with pytest.raises(InputError, match=r"valid\.jsonl differ and both could be the val split"):
        OwnRelations(tmp_path).split_file("val")
    mnre = write_mnre(tmp_path / "mnre", {"train": 2, "val": 2, "test": 2})
    shutil.copy(mnre / "txt/ours_test.txt", mnre / "txt/ours_dev.txt")
    with pytest.raises(InputError, match=r"ours_val\.txt and ours_dev\.txt differ"):
        Mnre(mnre).split_file("val")


def test_unknown_relation_and_empty_file(tmp_path):
    write(tmp_path, ROW)
    write(tmp_path, ROW, ROW | {"relation": "works in"}, split="val")
    with pytest.raises(InputError, match=r"val\.jsonl: line 2: relation 'works in' does not occur"):
        OwnRelations(tmp_path).read("val")
    write(tmp_path)
    with pytest.raises(InputError, match="empty"):
        OwnRelations(tmp_path)
