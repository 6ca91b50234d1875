"""Regions on their way to a method: the right pixels and places, and the truth about leaks."""

from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
import torch
from PIL import Image

from finetune.__main__ import main as command
from finetune.data.view_rules import aug_noise
from finetune.inputs.load import load_split, read_views
from finetune.inputs.pictures import RESIZERS
from finetune.inputs.spec import InputSpec
from finetune.inputs.split import InputOptions
from finetune.inputs.view import Change, View, read_view, write_view
from finetune.methods.base import Source
from finetune.methods.promu import Promu, PromuConfig
from finetune.tasks.mnre import Mnre
from finetune.tasks.region_cache import Region, Regions, write_regions
from shards.files import InputError

SIZE = (20, 16)


class Reader:
    """All that `load_split` asks of a method."""

    def __init__(self):
        self.needs, self.region_slots = {"region_boxes", "region_pixels"}, {"vg": 2, "od": 1}

    @property
    def spec(self) -> InputSpec:
        return InputSpec(
            method="Reader", needs=self.needs, region_slots=self.region_slots, region_size=8
        )


@pytest.fixture
def parts(mnre_folder, tiny_model):
    """A task with two grounded and one detected slot, and what `load_split` wants."""
    task = Mnre(mnre_folder)
    _, tokenizer = Promu.build(PromuConfig(), task.info, Source(str(tiny_model)))
    return task, tokenizer, Reader()


def region(x1, y1, x2, y2, kind="head"):
    return Region((x1, y1, x2, y2), 0.5, "oslo", kind)


@pytest.fixture
def caches(mnre_folder):
    """Row r has r % 4 grounded regions, every picture one detected."""
    rows = range(30)
    grounded = {
        row: Regions(
            f"val{row}.jpg", SIZE, tuple(region(i, 1, i + 5, 9 + i) for i in range(row % 4))
        )
        for row in rows
    }
    detected = {
        f"val{row}.jpg": Regions(f"val{row}.jpg", SIZE, (region(0, 0, 10, 4),)) for row in rows
    }
    write_regions(mnre_folder / "regions_vg_val.jsonl", {"leaky": False}, grounded)
    write_regions(mnre_folder / "regions_od.jsonl", {"leaky": False}, detected)
    return mnre_folder


def load(parts, tmp_path, regions, **changes):
    task, tokenizer, method = parts
    options = InputOptions(
        images="required", max_length=40, regions=regions, cache=tmp_path / "cache"
    )
    return load_split(task, "val", tokenizer, method, replace(options, **changes))


def test_boxes_and_pixels_are_those_of_the_picture(parts, caches, tmp_path):
    loaded = load(parts, tmp_path, str(caches))
    batch = loaded.dataset.collate(np.array([1, 3, 0]))
    assert batch.region_mask.tolist() == [[1, 0, 1], [1, 1, 1], [0, 0, 1]]
    assert not loaded.leaky and len(loaded.files) == 4  # two caches, asked for boxes and pixels
    shares = torch.tensor([1 / 20, 1 / 16, 6 / 20, 10 / 16])
    assert torch.allclose(batch.region_boxes[1, 1], shares)
    assert not batch.region_boxes[0, 1].any() and not batch.region_pixels[0, 1].any()
    picture = Image.open(caches / "img_org/val/val3.jpg")
    expected = RESIZERS["squash"](np.array(picture.crop((1, 1, 6, 10))), 8)
    assert (batch.region_pixels[1, 1].numpy() == expected).all()


def test_a_view_exchanges_pictures_with_their_boxes_and_deletes_regions(parts, caches, tmp_path):
    changes = {
        3: Change(image_id="val7.jpg", vg=(region(2, 2, 8, 8),)),
        5: Change(od=()),
        6: Change(no_image=True),
    }
    views = {"val": [View("val", changes, {"leaky": True})]}
    loaded = load(parts, tmp_path, str(caches), views=views)
    batch = loaded.dataset.collate(np.array([3, 5, 6]))
    assert batch.region_mask.tolist() == [[1, 0, 1], [1, 0, 0], [0, 0, 0]]
    picture = Image.open(caches / "img_org/val/val7.jpg")
    expected = RESIZERS["squash"](np.array(picture.crop((2, 2, 8, 8))), 8)
    assert (batch.region_pixels[0, 0].numpy() == expected).all()
    assert loaded.leaky
    moved = {"val": [View("val", {3: Change(image_id="val7.jpg")}, {})]}
    with pytest.raises(InputError, match="row 3 shows another picture without its boxes"):
        load(parts, tmp_path, str(caches), views=moved)


@pytest.fixture
def crops(mnre_folder, parts):
    """The published files: row r has 1 + r % 2 crops of its own colour."""
    parts[2].needs = {"region_pixels"}
    parts[2].region_slots = {"vg": 3}
    names = {row: [f"{row}_{i}.png" for i in range(1 + row % 2)] for row in range(30)}
    torch.save(names, mnre_folder / "txt/mre_val_dict.pth")
    folder = mnre_folder / "img_vg/val/crops"
    folder.mkdir(parents=True)
    for row, files in names.items():
        for number, name in enumerate(files):
            Image.new("RGB", (6, 6), (row, number, 0)).save(folder / name)
    return folder


def test_published_crops_are_read_and_stamped(parts, crops, tmp_path):
    loaded = load(parts, tmp_path, "community")
    batch = loaded.dataset.collate(np.arange(4))
    assert loaded.leaky
    assert batch.region_mask.tolist() == [[1, 0, 0], [1, 1, 0]] * 2
    assert (batch.region_pixels[3, 1] == torch.tensor([3, 1, 0]).view(3, 1, 1)).all()
    assert loaded.traces["regions: slots"][:2] == ["100", "110"]
    views = {"val": [View("val", {0: Change(image_id="val1.jpg")}, {})]}
    moved = load(parts, tmp_path, "community", views=views).dataset.collate(np.array([0]))
    assert (moved.region_pixels[0, 1] == torch.tensor([1, 1, 0]).view(3, 1, 1)).all()
    (crops / "0_0.png").unlink()
    with pytest.raises(InputError, match=r"1 are missing.*0_0.png"):
        load(parts, tmp_path, "community")


def test_blank_regions_need_no_file(parts, crops, tmp_path):
    for file in crops.iterdir():
        file.unlink()
    loaded = load(parts, tmp_path, "community", images="blank")
    batch = loaded.dataset.collate(np.arange(2))
    assert loaded.leaky and batch.region_mask.tolist() == [[1, 0, 0], [1, 1, 0]]
    assert batch.region_pixels.flatten(2).unique(dim=-1).flatten().tolist() == [
        127,
        0,
        0,
        127,
        127,
        0,
    ]


def test_no_regions_and_no_choice(parts, caches, tmp_path):
    empty = load(parts, tmp_path, "none").dataset.collate(np.arange(5))
    assert not empty.region_mask.any() and empty.region_pixels.shape == (5, 3, 3, 8, 8)
    with pytest.raises(InputError, match="--regions DIR"):
        load(parts, tmp_path, None)
    with pytest.raises(InputError, match="regions recover"):
        torch.save({row: ["a.png"] for row in range(30)}, caches / "txt/mre_val_dict.pth")
        parts[2].region_slots = {"vg": 1}
        load(parts, tmp_path, "community")
    (caches / "regions_od.jsonl").unlink()
    parts[2].region_slots = {"od": 1}
    with pytest.raises(InputError, match=r"regions_od\.jsonl"):
        load(parts, tmp_path, str(caches))


def test_a_cache_of_another_split_or_with_gaps_is_refused(parts, caches, tmp_path):
    cache = caches / "regions_vg_val.jsonl"
    lines = cache.read_text().splitlines()
    cache.write_text("\n".join(lines[:-1]) + "\n")
    with pytest.raises(InputError, match="29 lines below a header that counts others"):
        load(parts, tmp_path, str(caches))
    cache.write_text("\n".join(['{"leaky": false}', *lines[1:-1]]) + "\n")
    with pytest.raises(InputError, match="29 rows for a split of 30"):
        load(parts, tmp_path, str(caches))
    (caches / "regions_vg_val.jsonl").write_text("\n".join(lines) + "\n")
    found = (caches / "regions_od.jsonl").read_text().splitlines()
    without_a_count = '{"leaky": false}'
    (caches / "regions_od.jsonl").write_text("\n".join([without_a_count, *found[1:-1]]) + "\n")
    with pytest.raises(InputError, match=r"no line for val29.jpg \(row 29\)"):
        load(parts, tmp_path, str(caches))


def test_boxes_of_a_picture_that_lay_on_its_side_are_refused(parts, caches, tmp_path):
    """Caches of earlier versions hold pixels of the file, not of the picture as it is seen."""
    path, exif = caches / "img_org" / "val" / "val3.jpg", Image.Exif()
    exif[0x0112] = 6
    Image.open(path).save(path, exif=exif)
    with pytest.raises(InputError, match=r"val3\.jpg is 20x16 there, 16x20 once turned"):
        load(parts, tmp_path, str(caches))


def test_rows_in_another_order_are_refused(parts, tmp_path, caches):
    """A cache and a view count rows: they belong to the file that they were made of."""
    write_regions(caches / "regions_vg_val.jsonl", {"leaky": False}, {
        row: Regions(f"val{(row + 1) % 30}.jpg", SIZE, ()) for row in range(30)
    })  # fmt: skip
    with pytest.raises(InputError, match=r"vg_val.jsonl: row 0 shows val1.jpg, but val0.jpg"):
        load(parts, tmp_path, str(caches))


def test_views_and_types_of_another_version_are_refused(parts, tmp_path, caches, capsys):
    task, tokenizer, method = parts
    places = f"--data {caches} --out"
    command(f"view fraction {places} {tmp_path / 'views'} --ratio 0.5".split())
    command(f"types gold {places} {tmp_path / 'types'} --i-know-this-leaks".split())
    method.needs = {"entity_types"}
    options = InputOptions(
        images="none", max_length=40, cache=tmp_path, types=str(tmp_path / "types"),
        views=read_views([tmp_path / "views"]),
    )  # fmt: skip
    load_split(task, "train", tokenizer, method, options)
    path = caches / "txt/ours_train.txt"
    path.write_text("".join(reversed(path.read_text().splitlines(keepends=True))))
    with pytest.raises(InputError, match=r"view fraction: made of another version of .*ours_train"):
        load_split(task, "train", tokenizer, method, options)
    with pytest.raises(InputError, match=r"types_train\.jsonl: made of another version of"):
        load_split(task, "train", tokenizer, method, replace(options, views={}))


def test_a_deleted_region_leaves_its_slot_empty(parts, mnre_folder, tmp_path):
    """50 % deleted of 4 cached, 2 seen: half of the seen slots are empty, and none has moved."""
    grounded = {
        row: Regions(f"val{row}.jpg", SIZE, tuple(region(i, 1, i + 5, 9 + i) for i in range(4)))
        for row in range(30)
    }
    detected = {f"val{row}.jpg": Regions(f"val{row}.jpg", SIZE, ()) for row in range(30)}
    write_regions(mnre_folder / "regions_vg_val.jsonl", {"leaky": False}, grounded)
    write_regions(mnre_folder / "regions_od.jsonl", {"leaky": False}, detected)
    whole = load(parts, tmp_path, str(mnre_folder)).dataset
    rows = parts[0].read("val")
    changes = aug_noise(rows, grounded, detected, Fraction(1, 2), 1, p_modify=0, num_grounded=2)
    write_view(tmp_path / "val.jsonl", View("val", changes))
    view = read_view(tmp_path / "val.jsonl")
    assert view.changes == changes
    spoilt = load(parts, tmp_path, str(mnre_folder), views={"val": [view]}).dataset
    boxes, mask = (spoilt.columns[name] for name in ("region_boxes", "region_mask"))
    assert mask[:, :2].sum() == len(rows)  # of 2 a row
    true = whole.columns["region_boxes"]
    assert np.array_equal(boxes[mask], true[mask]) and not boxes[~mask].any()
    index = spoilt.pictures["region_pixels"].index
    assert np.array_equal(index >= 0, mask)
