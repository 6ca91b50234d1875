"""Side inputs and region caches: counts of the published files, every damage refused in a line."""

import json

import pytest
import torch

from finetune.tasks.base import Row
from finetune.tasks.region_cache import Region, Regions, read_regions, write_regions
from finetune.tasks.side_files import (
    find,
    read_captions,
    read_crop_names,
    read_features,
    read_generated_boxes,
    read_image_crops,
    read_image_phrases,
    read_phrases,
    read_scores,
    read_types,
)
from shards.files import InputError

ROWS = [Row(row=i, image_id=f"{'abc'[i]}.jpg") for i in range(3)]


def write(tmp_path, content, name):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def save(tmp_path, content, name="x.pth"):
    torch.save(content, tmp_path / name)
    return tmp_path / name


# ---- values ----------------------------------------------------------------------------------


def test_captions(tmp_path):
    """Python literals with quotes, a leading newline, an empty text; JSON lines of our own."""
    lines = [{"img_id": "a.jpg", "text": '\nit\'s a "dog"'}, {"img_id": "b.jpg", "text": ""}]
    for name, form in (("BLIP_val.txt", repr), ("captions.jsonl", json.dumps)):
        captions = read_captions(write(tmp_path, "\n".join(map(form, lines)) + "\n", name))
        assert captions.values == {"a.jpg": 'it\'s a "dog"', "b.jpg": ""}
        assert captions.notes == ("1 of 2 captions are empty",) and not captions.leaky
        assert captions.of(ROWS[:2]) == ['it\'s a "dog"', ""]


def test_missing_entries_are_counted_and_fatal(tmp_path):
    captions = read_captions(write(tmp_path, "{'img_id': 'b.jpg', 'text': 'x'}", "c.txt"))
    with pytest.raises(InputError, match=r"2 of 3 rows have no entry \(first: image a\.jpg\)"):
        captions.of(ROWS, max_missing=1)
    assert captions.of(ROWS, max_missing=2) == [None, "x", None]


def test_phrases_and_crops_leak_and_are_keyed_by_row(tmp_path):
    phrases = read_phrases(write(tmp_path, '{"0": "Bob Oslo person", "1": "x y"}', "p.json"))
    assert phrases.values == {0: "Bob Oslo person", 1: "x y"} and phrases.leaky
    crops = read_crop_names(save(tmp_path, {0: ["0_1.png", "0_2.png"], 1: []}))
    assert crops.of(ROWS[:2]) == [("0_1.png", "0_2.png"), ()] and crops.leaky
    crops.require_rows(2)
    with pytest.raises(InputError, match=r"row 2 is missing"):
        crops.require_rows(3)
    with pytest.raises(InputError, match=r"row 1 is too many"):
        crops.require_rows(1)


def test_phrases_of_pictures_do_not_leak(tmp_path):
    """TMR's file of Twitter: `"<id>.jpg"` -> nouns of the text, as a tagger found them."""
    content = '{"a.jpg": "Bob Oslo", "b.jpg": "person location organization misc", "c.jpg": ""}'
    phrases = read_image_phrases(write(tmp_path, content, "ner17_grounding_text_val.json"))
    assert phrases.of(ROWS) == ["Bob Oslo", "person location organization misc", ""]
    assert phrases.notes == ("1 of 3 phrases are empty",) and not phrases.leaky


def test_crops_of_pictures_by_name_or_stem(tmp_path):
    """One of 1,000 pictures of Twitter-2015 has no crops: absent entries need leave."""
    for ending in (".jpg", ""):
        crops = read_image_crops(save(tmp_path, {f"a{ending}": ["1.png"], f"b{ending}": ["2.png"]}))
        assert crops.of(ROWS, max_missing=1) == [("1.png",), ("2.png",), None] and not crops.leaky
    for damage in ({0: ["x.png"]}, {"a.jpg": [1]}, {"a.jpg": "x.png"}, {}):
        with pytest.raises(InputError):
            read_image_crops(save(tmp_path, damage))


def test_scores_keep_the_last_line_and_count_conflicts(tmp_path):
    content = "a.jpg\t0.25\nb.jpg\t1e-05\na.jpg\t0.5\nb.jpg\t1e-05\n"
    scores = read_scores(write(tmp_path, content, "train_weight_strong.txt"))
    assert scores.values == {"a.jpg": 0.5, "b.jpg": 1e-05}
    assert scores.notes == ("1 pictures have several scores",)


def test_generated_boxes_without_area_are_counted(tmp_path):
    boxes = {0: [torch.tensor([1.0, 2, 30, 40]), torch.tensor([5.0, 5, 5.2, 9])], 1: []}
    read = read_generated_boxes(save(tmp_path, boxes))
    assert read.values == {0: ((1.0, 2.0, 30.0, 40.0),), 1: ()}
    assert read.notes == ("1 boxes without area left out",) and read.leaky


def test_dev_val_and_valid_name_one_split(tmp_path):
    for name in ("mre_valid_dict.pth", "mre_dev_dict.pth", "mre_val_dict.pth"):
        path = save(tmp_path, {}, name)
        assert find(tmp_path, "mre_{split}_dict.pth", "val") == path
    with pytest.raises(InputError, match=r"none of mre_test_dict\.pth"):
        find(tmp_path, "mre_{split}_dict.pth", "test")


def test_the_first_publisher_whose_file_is_there(tmp_path):
    patterns = "ner15_grounding_text_{split}.json", "val", "ner17_grounding_text_{split}.json"
    path = write(tmp_path, "{}", "ner17_grounding_text_dev.json")
    assert find(tmp_path, *patterns) == path
    path.unlink()
    with pytest.raises(InputError, match=r"ner15_.*_val.*ner17_.*_valid\S+ is there; TMR's"):
        find(tmp_path, *patterns)


def test_region_cache_round_trip(tmp_path):
    vg = {0: Regions("a.jpg", (800, 600), (Region((1, 2, 30.123, 40), 0.5, "oslo", "head"),))}
    od = {"a.jpg": Regions("a.jpg", (800, 600), (Region((0, 0, 800, 600), 0.9, "dog"),))}
    header = {"tool": "test", "leaky": False}
    for name, entries, keyed_by in (("vg", vg, "row"), ("od", od, "image")):
        path = tmp_path / f"regions_{name}.jsonl"
        write_regions(path, header, entries)
        read = read_regions(path)
        assert (read.keyed_by, read.leaky, read.header) == (keyed_by, False, header)
        assert read.values.keys() == entries.keys()
        write_regions(tmp_path / "again.jsonl", read.header, read.values)
        assert (tmp_path / "again.jsonl").read_bytes() == path.read_bytes()
    record = json.loads((tmp_path / "regions_vg.jsonl").read_text().splitlines()[1])
    assert record.pop("_crc32") == "aeb7ff2b"
    assert record == {
        "row": 0,
        "img_id": "a.jpg",
        "size": [800, 600],
        "vg": [{"box": [1, 2, 30.12, 40], "score": 0.5, "phrase": "oslo", "kind": "head"}],
    }
    with pytest.raises(ValueError, match="leaky"):
        write_regions(tmp_path / "x.jsonl", {}, vg)


# ---- damage ----------------------------------------------------------------------------------

CAPTION = "{'img_id': 'a.jpg', 'text': 'x'}\n"
HEADER = '{"tool": "t", "leaky": false}\n'
TEXT_DAMAGE = {
    "captions: not a literal": (read_captions, CAPTION + "{'img_id': 'b.jpg', 'text': x}", 2),
    "captions: code": (read_captions, CAPTION + "__import__('os').getcwd()", 2),
    "captions: cut": (read_captions, CAPTION + "{'img_id': 'b.jpg', 'te", 2),
    "captions: a list": (read_captions, CAPTION + "['b.jpg', 'x']", 2),
    "captions: no text": (read_captions, CAPTION + "{'img_id': 'b.jpg'}", 2),
    "captions: text a number": (read_captions, CAPTION + "{'img_id': 'b.jpg', 'text': 3}", 2),
    "captions: empty id": (read_captions, CAPTION + "{'img_id': '', 'text': 'x'}", 2),
    "captions: twice": (read_captions, CAPTION + CAPTION, 2),
    "captions: nested too deep": (read_captions, CAPTION + "[" * 5000, 2),
    "captions: not UTF-8": (read_captions, CAPTION.encode() + b"{'img_id': '\xff'}", 2),
    "captions: empty": (read_captions, "\n\n", None),
    "phrases: not JSON": (read_phrases, "{'0': 'x'}", None),
    "phrases: a list": (read_phrases, '["x"]', None),
    "phrases: name for a key": (read_phrases, '{"a.jpg": "x"}', None),
    "phrases: empty phrase": (read_phrases, '{"0": " "}', None),
    "phrases: a list of words": (read_phrases, '{"0": ["x"]}', None),
    "phrases: empty": (read_phrases, "{}", None),
    "phrases of pictures: a row number": (read_image_phrases, '{"0": "x"}', None),
    "phrases of pictures: a list": (read_image_phrases, '{"a.jpg": ["x"]}', None),
    "phrases of pictures: empty": (read_image_phrases, "{}", None),
    "scores: blanks for the tab": (read_scores, "a.jpg\t0.5\na.jpg 0.5", 2),
    "scores: no number": (read_scores, "a.jpg\t0.5\na.jpg\t", 2),
    "scores: a word": (read_scores, "a.jpg\t0.5\nb.jpg\thigh", 2),
    "scores: nan": (read_scores, "a.jpg\t0.5\nb.jpg\tnan", 2),
    "scores: no id": (read_scores, "a.jpg\t0.5\n\t0.5", 2),
    "scores: empty": (read_scores, "", None),
    "types: no header": (read_types, '{"row": 0, "head": "x", "tail": "y"}', 1),
    "types: no leaky in header": (read_types, '{"tool": "t"}', 1),
    "types: header a list": (read_types, "[1]\n", 1),
    "types: no tail": (read_types, HEADER + '{"row": 0, "head": "x"}', 2),
    "types: row a string": (read_types, HEADER + '{"row": "0", "head": "x", "tail": "y"}', 2),
    "types: twice": (read_types, HEADER + 2 * '{"row": 0, "head": "x", "tail": "y"}\n', 3),
    "types: only a header": (read_types, HEADER, None),
    "features: no feature": (read_features, '{"row": 0}', 1),
    "features: no row": (read_features, '{"feature": 0}', 1),
    "features: negative row": (read_features, '{"row": -1, "feature": 0}', 1),
    "features: row true": (read_features, '{"row": true, "feature": 0}', 1),
    "features: twice": (read_features, 2 * '{"row": 0, "feature": 0}\n', 2),
    "features: cut": (read_features, '{"row": 0, "feature": 0}\n{"row": 1, "fea', 2),
}


@pytest.mark.parametrize("name", TEXT_DAMAGE)
def test_damaged_text(tmp_path, name):
    reader, content, line = TEXT_DAMAGE[name]
    path = write(tmp_path, content, "file.txt")
    with pytest.raises(InputError) as caught:
        reader(path)
    text = str(caught.value)
    assert text.startswith(f"{path}: line {line}: " if line else f"{path}:") and "\n" not in text


BOX = {"box": [1, 2, 3, 4], "score": 0.5, "phrase": "x", "kind": "head"}
ENTRY = {"row": 0, "img_id": "a.jpg", "size": [800, 600], "vg": [BOX]}
REGION_DAMAGE = {
    "no row": {key: ENTRY[key] for key in ("img_id", "size", "vg")},
    "row negative": ENTRY | {"row": -1},
    "no picture": ENTRY | {"img_id": ""},
    "size a number": ENTRY | {"size": 800},
    "size of floats": ENTRY | {"size": [800.0, 600.0]},
    "size zero": ENTRY | {"size": [0, 600]},
    "vg null": ENTRY | {"vg": None},
    "vg a box": ENTRY | {"vg": [[1, 2, 3, 4]]},
    "three numbers": ENTRY | {"vg": [BOX | {"box": [1, 2, 3]}]},
    "words": ENTRY | {"vg": [BOX | {"box": ["1", "2", "3", "4"]}]},
    "not a number": ENTRY | {"vg": [BOX | {"box": [1, 2, float("nan"), 4]}]},
    "reversed": ENTRY | {"vg": [BOX | {"box": [3, 2, 1, 4]}]},
    "no area": ENTRY | {"vg": [BOX | {"box": [1, 2, 1, 4]}]},
    "outside": ENTRY | {"vg": [BOX | {"box": [1, 2, 3, 700]}]},
    "negative": ENTRY | {"vg": [BOX | {"box": [-9, 2, 3, 4]}]},
    "no score": ENTRY | {"vg": [BOX | {"score": None}]},
    "no phrase": ENTRY | {"vg": [BOX | {"phrase": None}]},
    "twice": None,
    "od among vg": {"img_id": "a.jpg", "size": [800, 600], "od": []},
}


@pytest.mark.parametrize("name", REGION_DAMAGE)
def test_damaged_region_cache(tmp_path, name):
    record = REGION_DAMAGE[name] or ENTRY
    first = ENTRY if name in ("twice", "od among vg") else ENTRY | {"row": 7}
    lines = [HEADER.strip(), json.dumps(first), json.dumps(record)]
    path = write(tmp_path, "\n".join(lines), "regions_vg_val.jsonl")
    with pytest.raises(InputError) as caught:
        read_regions(path)
    assert str(caught.value).startswith(f"{path}: line 3: ") and "\n" not in str(caught.value)


class Evil:
    """Would run code when unpickled."""

    def __reduce__(self):
        return (print, ("executed",))


PICKLE_DAMAGE = {
    "code": {0: [Evil()]},
    "a list": [["x.png"]],
    "image name for a key": {"a.jpg": ["x.png"]},
    "a string for the list": {0: "x.png"},
    "names with a folder": {0: ["../x.png"]},
    "numbers": {0: [3]},
    "negative row": {-1: ["x.png"]},
    "empty": {},
}


@pytest.mark.parametrize("name", PICKLE_DAMAGE)
def test_damaged_crop_lists(tmp_path, name, capfd):
    path = save(tmp_path, PICKLE_DAMAGE[name])
    with pytest.raises(InputError) as caught:
        read_crop_names(path)
    assert str(caught.value).startswith(f"{path}:") and "\n" not in str(caught.value)
    assert "executed" not in capfd.readouterr().out


@pytest.mark.parametrize("content", [b"", b"\x00" * 100, b"{}", b"PK\x03\x04 cut"])
def test_not_a_torch_file(tmp_path, content):
    path = write(tmp_path, content, "mre_val_dict.pth")
    with pytest.raises(InputError) as caught:
        read_crop_names(path)
    assert "\n" not in str(caught.value)


def test_cut_torch_file(tmp_path):
    path = save(tmp_path, {i: ["x.png"] for i in range(100)})
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(InputError, match="not a file of plain lists"):
        read_crop_names(path)


@pytest.mark.parametrize(
    "boxes", [{0: [torch.zeros(3)]}, {0: [torch.full((4,), torch.nan)]}, {0: ["x"]}, {0: [7]}]
)
def test_damaged_generated_boxes(tmp_path, boxes):
    with pytest.raises(InputError, match="row 0: expected boxes"):
        read_generated_boxes(save(tmp_path, boxes))


@pytest.mark.parametrize(
    "reader", [read_captions, read_crop_names, read_phrases, read_scores, read_regions]
)
def test_missing_file(tmp_path, reader):
    with pytest.raises(InputError, match="cannot be read"):
        reader(tmp_path / "absent.txt")


# ---- the published files ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("split", "rows", "pictures"), [("train", 12247, 7356), ("val", 1624, 931)]
)
def test_published_files(shared_data, split, rows, pictures):
    """Numbers of specs/tmr.md §1.1 and specs/camim.md §1.1."""
    txt = shared_data / "mnre" / "txt"
    crops = read_crop_names(find(txt, "mre_{split}_dict.pth", split))
    boxes = read_generated_boxes(find(txt, "mre_dif_{split}_dict.pth", split))
    phrases = read_phrases(find(txt, "phrase_text_{split}.json", split))
    for side in (crops, boxes, phrases):
        side.require_rows(rows)
    assert boxes.notes == (f"{6 if split == 'train' else 1} boxes without area left out",)
    assert sum(map(len, crops.values.values())) == {"train": 32550, "val": 4344}[split]
    strong = read_scores(find(txt, "{split}_weight_strong.txt", split))
    assert len(strong.values) == pictures
    assert strong.notes == (f"{1803 if split == 'train' else 255} pictures have several scores",)
    empty = {"train": 30, "val": 4}[split]
    for model in ("BLIP", "instruct", "llavanext", "caption", "cogvlm", "minicpm"):
        captions = read_captions(shared_data / "mnre" / "caption" / f"{model}_{split}.txt")
        assert len(captions.values) == pictures + 1 and "inf.png" in captions.values
        if model == "BLIP":
            assert captions.notes[0] == f"{empty} of {pictures + 1} captions are empty"
            assert "say one word again and again" in captions.notes[1]


def test_empty_captions_and_filler_are_counted(tmp_path):
    """As BLIP's published files have them: nothing at all, or one word again and again."""
    texts = ["a dog", "", "  ", "person, person, person", "Person person person person", "person"]
    lines = [str({"img_id": f"{i}.jpg", "text": text}) for i, text in enumerate(texts)]
    (tmp_path / "blip_train.txt").write_text("\n".join(lines))
    assert read_captions(tmp_path / "blip_train.txt").notes == (
        "2 of 6 captions are empty",
        "2 of 6 captions say one word again and again, such as 'person, person, person'",
    )
