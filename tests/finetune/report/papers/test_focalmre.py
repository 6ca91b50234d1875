"""Figure 4 of a saved FocalMRE against the method itself; its light against known weights."""

import numpy as np
import pytest
import torch
from PIL import Image

from finetune.inputs.load import load_split
from finetune.inputs.split import InputOptions
from finetune.methods.base import Source
from finetune.methods.focalmre.model import FocalMRE, FocalMREConfig
from finetune.report import figures_command as plots
from finetune.report.papers.focalmre import attend, lit
from finetune.run import checkpoint
from finetune.tasks.mnre import Mnre
from finetune.tasks.region_cache import Region, Regions, write_regions
from shards.files import InputError


@pytest.fixture
def run(mnre_folder, tiny_model, tmp_path):
    """A seed's folder: FocalMRE with one region of each kind; the test rows have both."""
    config = FocalMREConfig(num_grounded=1, num_detected=1, frame_width=20)
    task = Mnre(mnre_folder)
    method, tokenizer = FocalMRE.build(config, task.info, Source(str(tiny_model)))
    header = {"tool": "test", "leaky": False}
    found = (Region((2.0, 2.0, 18.0, 14.0), 0.9, "Ann"),)
    rows = task.read("test")
    grounded = {row.row: Regions(row.image_id, (20, 16), found) for row in rows}
    detected = {row.image_id: Regions(row.image_id, (20, 16), found) for row in rows}
    write_regions(mnre_folder / "regions_vg_test.jsonl", header, grounded)
    write_regions(mnre_folder / "regions_od.jsonl", header, detected)
    options = InputOptions(
        images="required", max_length=40, regions=str(mnre_folder), cache=tmp_path / "cache"
    )
    checkpoint.save_method(
        tmp_path / "seed-1" / "model",
        method,
        tokenizer,
        name="focalmre",
        config=config,
        task=task.info,
        inputs=options.remembered(),
        card="",
    )
    return tmp_path / "seed-1", options


def test_panels_and_numbers_are_the_methods_own(run, mnre_folder):
    directory, options = run
    found = attend(str(directory / "model"), mnre_folder, "test", 4)
    method, tokenizer, _ = checkpoint.load_method(directory / "model")
    split = load_split(Mnre(mnre_folder), "test", tokenizer, method, options)
    glance = method.eval().glance(split.dataset.collate(np.array([4])))
    copies = glance.pictures[0].permute(0, 2, 3, 1).numpy()
    np.testing.assert_array_equal(found.arrays["pictures"][1:], copies)
    np.testing.assert_allclose(found.arrays["weights"][1:], glance.weights[0], atol=1e-6)
    np.testing.assert_allclose(found.arrays["gates"][1:], glance.gate[0], atol=1e-6)
    plain, framed = found.arrays["pictures"][:2]
    red = (framed == (255, 0, 0)).all(-1)
    assert red.any() and not (plain == (255, 0, 0)).all(-1).any()
    np.testing.assert_array_equal(framed[~red], plain[~red])
    titles = [title.partition("\n")[0] for title, _ in found.panels]
    assert titles == ["the picture", "no frame", "grounded", "detected"]


def test_command_writes_picture_and_numbers(run, mnre_folder, tmp_path):
    directory, _ = run
    words = ["--data", str(mnre_folder), "--row", "4", "--out", str(tmp_path / "f.png")]
    for _ in range(2):
        plots.main(["attention", str(directory / "model"), *words])
    with Image.open(tmp_path / "f.png") as picture:
        assert picture.width > 500
    assert np.load(tmp_path / "f.npz")["gates"].shape == (3, 2)
    np.savez(tmp_path / "f.npz", weights=np.zeros(9))
    with pytest.raises(InputError, match=r"f\.npz: not written by this command"):
        plots.main(["attention", str(directory / "model"), *words])


def test_light_falls_where_the_weights_are():
    weights = np.zeros((4, 4))
    weights[1, 2] = 1.0
    picture = Image.new("RGB", (40, 40), (200, 100, 50))
    bright = np.asarray(lit(picture, weights))[..., 0].astype(int)
    row, column = np.unravel_index(bright.argmax(), bright.shape)
    assert (row // 10, column // 10) == (1, 2) and bright.max() > 180
    assert bright[35, 5] == 60  # the least light: 0.3
    even = np.asarray(lit(picture, np.full((4, 4), 0.25)))
    np.testing.assert_array_equal(even, np.asarray(picture))


def test_no_such_row_and_runs_of_other_methods_are_refused(run, mnre_folder, tiny_model, tmp_path):
    directory, options = run
    with pytest.raises(InputError, match="--row 99: test has no such row"):
        attend(str(directory / "model"), mnre_folder, "test", 99)
    torch.manual_seed(0)
    task = Mnre(mnre_folder)
    config = FocalMREConfig(num_grounded=0, num_detected=0)
    method, tokenizer = FocalMRE.build(config, task.info, Source(str(tiny_model)))
    checkpoint.save_method(
        tmp_path / "text",
        method,
        tokenizer,
        name="focalmre",
        config=config,
        task=task.info,
        inputs=options.remembered(),
        card="",
    )
    with pytest.raises(InputError, match="that see pictures"):
        attend(str(tmp_path / "text"), mnre_folder, "test", 4)
