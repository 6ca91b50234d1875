"""`finetune figures`: the right numbers reach the axes, and what is missing is said in a line."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from results_by_hand import result_of

from finetune.inputs.batch import Batch
from finetune.report import figures, galleries, series
from finetune.report import figures_command as plots
from finetune.report.papers import focalmre
from finetune.report.papers import promu as states
from finetune.tasks.region_cache import Region, Regions, write_regions
from shards.files import InputError


@pytest.fixture
def drawn(monkeypatch):
    """The figures that were to be saved."""
    found = []
    monkeypatch.setattr(figures, "save", lambda figure, path, dpi=130: found.append(figure))
    return found


def study_file(folder: Path, columns: dict[str, float], table: str = "Noise") -> Path:
    cells = [
        {"table": table, "run": run, "column": column, "dev": {"f1": {"mean": 1, "sd": None}},
         "test": {"f1": {"mean": mean + more, "sd": 2.0}}}
        for run, more in (("text", 0), ("promu", 10))
        for column, mean in columns.items()
    ]  # fmt: skip
    path = folder / "study.json"
    path.write_text(json.dumps({"study": "noise", "seeds": "1,2", "cells": cells}))
    return path


def test_numbers_of_a_study_become_lines_in_their_order(tmp_path, drawn):
    path = study_file(tmp_path, {"50 %": 20, "none": 60, "10 %": 40})
    plots.main(["study", str(path), "--out", str(tmp_path / "f.png")])
    (axes,) = drawn[0].axes
    assert [text.get_text() for text in axes.get_xticklabels()] == ["none", "10 %", "50 %"]
    lines = {bar.get_label(): bar.lines[0].get_ydata().tolist() for bar in axes.containers}
    assert lines == {"text": [60, 40, 20], "promu": [70, 50, 30]}
    low, high = axes.containers[0].lines[1]
    assert (high.get_ydata() - low.get_ydata()).tolist() == [4, 4, 4]
    assert drawn[0].get_figwidth() == 3.3


def test_a_picture_of_somebody_else_stays(tmp_path):
    command = ["study", str(study_file(tmp_path, {"clean": 60})), "--out", f"{tmp_path}/f.png"]
    for _ in range(2):
        plots.main(command)
    theirs = figures.canvas(2, 2)
    theirs.savefig(tmp_path / "f.png")
    before = (tmp_path / "f.png").read_bytes()
    with pytest.raises(InputError, match=r"f\.png: not written by this command"):
        plots.main(command)
    assert (tmp_path / "f.png").read_bytes() == before


@pytest.mark.parametrize("columns", [{"none": 60, "10 %": 40}, {"clean": 60}])
def test_a_run_may_begin_with_an_underscore(tmp_path, drawn, columns):
    """Which matplotlib leaves out of legends."""
    path = study_file(tmp_path, columns)
    path.write_text(path.read_text().replace('"text"', '"_text"').replace('"promu"', '"_promu"'))
    plots.main(["study", str(path), "--out", str(tmp_path / "f.png")])
    (legend,) = drawn[0].legends
    assert [text.get_text().strip() for text in legend.get_texts()] == ["_text", "_promu"]


def test_other_columns_become_bars(tmp_path, drawn):
    path = study_file(tmp_path, {"clean": 60, "half taken away": 30})
    plots.main(["study", str(path), "--out", str(tmp_path / "f.png")])
    (axes,) = drawn[0].axes
    widths = [round(bar.get_width()) for bar in axes.patches]
    assert widths == [60, 30, 70, 40]


def test_leaky_cells_of_a_study_are_a_table_of_their_own(tmp_path, drawn):
    path = study_file(tmp_path, {"none": 60, "10 %": 40})
    content = json.loads(path.read_text())
    for cell in content["cells"]:
        cell["leaky"] = (cell["run"], cell["column"]) == ("promu", "10 %")
    path.write_text(json.dumps(content))
    clean, leaky = series.read_study(path).tables
    assert (clean["title"], leaky["title"]) == ("Noise", "Noise: leaky inputs")
    assert clean["runs"] == {"text": {"none": (60, 2), "10 %": (40, 2)}, "promu": {"none": (70, 2)}}
    assert leaky["runs"] == {"promu": {"10 %": (50, 2)}}
    plots.main(["study", str(path), "--out", str(tmp_path / "f.png")])
    titles = [axes.get_title(loc="left") for axes in drawn[0].axes]
    assert titles == ["Noise", "Noise: leaky inputs"]


@pytest.mark.parametrize(
    ("columns", "axis"),
    [
        (["none", "10 %", "100 %"], [0, 10, 100]),
        (["all", "10 %"], [100, 10]),
        (["2 each", "8 each"], [2, 8]),
        (["all", "2 each"], None),
        (["10 %", "8 each"], None),
        (["50 % wrong", "none"], None),
        (["F1"], None),
        (["5 %"], None),
    ],
)
def test_which_columns_are_numbers(columns, axis):
    assert series.numbers(columns) == axis


def test_relations_by_hand(tmp_path, drawn):
    run = tmp_path / "runs" / "promu"
    for seed, predicted in (("seed-1", "aab"), ("seed-2", "abb")):
        (run / seed).mkdir(parents=True)
        lines = [
            json.dumps({"row": i, "gold": gold, "pred": said})
            for i, (gold, said) in enumerate(zip("aab", predicted, strict=True))
        ]
        (run / seed / "pred_test.jsonl").write_text("\n".join(lines) + "\n")
    (run / "result.json").write_text(json.dumps(result_of()))
    plots.main(["relations", str(run), "--out", str(tmp_path / "f.png")])
    (axes,) = drawn[0].axes
    # Second seed: a has P 1, R 1/2; b has P 1/2, R 1; the first is right throughout.
    assert [bar.get_width() for bar in axes.patches] == pytest.approx([250 / 3, 250 / 3], abs=1e-3)
    assert [text.get_text() for text in axes.get_yticklabels()] == ["a (2)", "b (1)"]


def test_sample_number_by_hand(tmp_path, drawn, capsys):
    """Rare: `a` (5 rows of train); common: `b`, `c` (20, 99). A wrong `b` on a row of `a` costs the
    bin of `b` precision, and the bin of `a` recall."""
    run, gold = tmp_path / "dgfpt", ["a", "a", "b", "c", "None"]
    for seed, predicted in (("seed-1", "aabcb"), ("seed-2", "abbbN")):
        (run / seed).mkdir(parents=True)
        said = [{"N": "None"}.get(name, name) for name in predicted]
        lines = [json.dumps({"row": i, "gold": g, "pred": p})
                 for i, (g, p) in enumerate(zip(gold, said, strict=True))]  # fmt: skip
        (run / seed / "pred_test.jsonl").write_text("\n".join(lines) + "\n")
    train = {"a": 5, "b": 20, "c": 99, "None": 300}
    result = result_of({"train_rows": 424, "train_counts": train})
    (run / "result.json").write_text(json.dumps(result))
    plots.main(
        ["sample-number", str(run), "--edges", "0,20,100,1000", "--out", f"{tmp_path}/f.png"]
    )
    table = [line.split() for line in capsys.readouterr().out.splitlines()]
    # Seed 1: P 2/2, R 2/2; 2 of 3 claimed, 2 of 2 found. Seed 2: 1/1, 1/2; 1 of 3, 1 of 2.
    assert table[1] == ["0–20", "2", "100.00", "75.00", "83.33", "dgfpt"]
    assert table[2] == ["20–100", "2", "50.00", "75.00", "60.00", "dgfpt"]
    assert len(table) == 4  # None is in no bin; then the name of the file
    above, below = drawn[0].axes
    assert above.lines[0].get_ydata().tolist() == pytest.approx([250 / 3, 60], abs=1e-2)
    single = below.collections[0].get_offsets().tolist()
    assert [round(f1, 1) for _, f1 in single] == [83.3, 58.3, 50.0]
    assert [rows for rows, _ in single] == [5, 20, 99]
    for wrong in ("7", "5,5", "9,3", "a,b", "1,-2"):
        with pytest.raises(InputError, match="rising whole numbers"):
            plots.main(["sample-number", str(run), "--edges", wrong, "--out", f"{tmp_path}/f.png"])
    with pytest.raises(InputError, match="no relation with so many training rows"):
        plots.main(["sample-number", str(run), "--edges", "500,900", "--out", f"{tmp_path}/f.png"])


def test_leaky_runs_are_called_so_beside_the_others(tmp_path, drawn):
    for name in ("clean", "crops"):
        seed = tmp_path / name / "seed-1"
        seed.mkdir(parents=True)
        (seed / "pred_test.jsonl").write_text('{"row": 0, "gold": "a", "pred": "a"}\n')
        result = result_of(leaky=name == "crops")
        (tmp_path / name / "result.json").write_text(json.dumps(result))
    runs = [str(tmp_path / name) for name in ("clean", "crops")]
    plots.main(["relations", *runs, "--out", str(tmp_path / "f.png")])
    shown = [bar.get_label() for bar in drawn[0].axes[0].containers]
    assert shown == ["clean", "crops (leaky)"]


def test_states_on_the_axes(tmp_path, drawn):
    first, second = np.array([[0.0, 0], [1, 1]]), np.array([[2.0, 0], [3, 1]])
    panel = {"names": ("entity", "object"), "points": (first, second), "note": "cosine"}
    figures.states([panel], tmp_path / "f.png")
    (axes,) = drawn[0].axes
    shown = {dots.get_label(): dots.get_offsets().tolist() for dots in axes.collections}
    assert shown == {"entity": first.tolist(), "object": second.tolist()}
    assert [line.get_xydata().tolist() for line in axes.lines] == [
        [[0, 0], [2, 0]],
        [[1, 1], [3, 1]],
    ]


def test_cosines_by_hand():
    pairs = states.Pairs(("a", "b"), np.array([[2.0, 0], [0, 3]]), np.array([[1.0, 0], [1, 0]]))
    assert pairs.cosines() == (0.5, 0.5)


def test_entity_of_a_sentence_is_its_first_piece():
    text = torch.arange(12.0).view(2, 6, 1)
    # Of the second one, the first entity has no piece, and the last lies beyond --max_length.
    gold = [["O", "B-PER", "I-PER"], ["B-LOC", "B-ORG", "O", "B-PER"], ["O", "O", "O", "B-PER"]]
    loaded = SimpleNamespace(gold=gold)
    pieces = torch.zeros(2, 6, dtype=torch.long)
    starts = torch.tensor([[1, 3, 4], [0, 2, 4]])
    batch = Batch(
        rows=starts[:, 0], input_ids=pieces, attention_mask=pieces > 0, word_starts=starts
    )
    found = states.first_entity(text, batch, loaded, np.array([0, 1]), relation=False)
    assert found.flatten().tolist() == [3, 8]
    assert states.first_word(gold[2], [1, 2, 3]) is None


def test_patches_under_a_box_by_hand():
    patches = torch.arange(16.0)[:, None]  # 4 × 4, row by row
    best, other = Region((0, 0, 40, 20), 0.9, "car"), Region((0, 0, 80, 40), 0.5, "dog")
    regions = Regions("a.jpg", (80, 40), (other, best))
    assert states.under(patches, regions).tolist() == [np.mean([0, 1, 4, 5])]
    speck = Regions("a.jpg", (80, 40), (Region((61, 31, 62, 32), 0.9, "fly"),))
    assert states.under(patches, speck).tolist() == [15]


def test_states_of_a_run_come_from_its_fusion_layers(mnre_folder, tiny_model, tmp_path):
    from finetune import registry
    from finetune.methods.base import Source
    from finetune.run import checkpoint

    task = registry.load("tasks", "mnre")(mnre_folder)
    promu = registry.load("methods", "promu")
    method, tokenizer = promu.build(promu.Config(), task.info, Source(str(tiny_model)))
    inputs = {"images": "required", "max_length": 40}
    checkpoint.save_method(
        tmp_path / "run", method, tokenizer, name="promu", config=promu.Config(),
        task=task.info, inputs=inputs, card="",
    )  # fmt: skip
    (pairs,) = states.collect(str(tmp_path / "run"), mnre_folder, "test", 7, None)
    assert pairs.names == ("relation", "image")
    assert pairs.first.shape == pairs.second.shape == (7, 32)
    flat = pairs.flat()
    assert flat[0].shape == flat[1].shape == (7, 2) and np.isfinite(flat).all()
    with pytest.raises(InputError, match=r"regions_od\.jsonl"):
        states.collect(str(tmp_path / "run"), mnre_folder, "test", 7, tmp_path)
    found = (Region((0, 0, 10, 8), 0.9, "cat"),)
    names = [row.image_id for row in task.read("test")[:9]]
    cache = {name: Regions(name, (20, 16), found) for name in names}
    write_regions(tmp_path / "regions_od.jsonl", {"leaky": False}, cache)
    both = states.collect(str(tmp_path / "run"), mnre_folder, "test", 50, tmp_path)
    assert [pairs.names for pairs in both] == [("entity", "object"), ("relation", "image")]
    assert both[0].second.shape == (9, 32)  # the rows that have an object
    plots.main(
        [
            "states",
            str(tmp_path / "run"),
            "--data",
            str(mnre_folder),
            "--out",
            str(tmp_path / "f.png"),
        ]
    )
    assert Image.open(tmp_path / "f.png").width == 990


def test_attention_shows_the_copies_of_the_most_and_least_open_gate():
    copies = torch.stack([torch.full((3, 8, 8), value, dtype=torch.uint8) for value in (9, 99, 50)])
    weights = torch.zeros(1, 3, 2, 4)
    weights[0, :, :, 1] = 1
    gate = torch.tensor([0.2, 0.8, 0.5])[None, :, None].expand(1, 3, 2)
    glance = SimpleNamespace(pictures=copies[None], weights=weights, gate=gate)
    method = SimpleNamespace(glance=lambda batch: glance)
    panels = focalmre.attention(method, SimpleNamespace(pixel_values=1), "focal")
    assert [title for title, _ in panels] == [
        "focal\nmost open\ngate 0.80, peak 4.0×",
        "focal\nleast open\ngate 0.20, peak 4.0×",
    ]
    shown = [np.asarray(picture)[10, -10].tolist() for _, picture in panels]  # the brightest patch
    assert shown == [[99] * 3, [9] * 3]
    dark = [np.asarray(picture)[-10, 10].tolist() for _, picture in panels]
    assert dark == [[round(0.3 * 99)] * 3, [round(0.3 * 9)] * 3]
    assert focalmre.attention(object(), SimpleNamespace(pixel_values=1), "mtb") == []


def test_panels_of_a_look(tmp_path, drawn):
    galleries.looks([("a", Image.new("RGB", (4, 2), "red"))] * 4, "costs 5 $", tmp_path / "f.png")
    axes = drawn[0].axes
    assert len(axes) == 4 and axes[3].images[0].get_array().shape == (2, 4, 3)
    drawn[0].canvas.draw()  # a lone $ is no formula


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["study", "gone.json", "--out", "f.png"], "no such file"),
        (["relations", "gone", "--out", "f.png"], "not a finished run"),
        (["study", "gone.json", "--out", "f.pdf"], "a PNG is written"),
        (["states", "gone", "--data", ".", "--number", "2", "--out", "f.png"], "at least 3"),
    ],
)
def test_wrong_usage_is_one_line(argv, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=message) as error:
        plots.main(argv)
    assert "\n" not in str(error.value)


def test_damaged_study(tmp_path):
    path = tmp_path / "study.json"
    for content in ("", "[]", '{"cells": []}', '{"cells": [{}]}'):
        path.write_text(content)
        with pytest.raises(InputError, match=r"study\.json"):
            series.read_study(path)


def test_without_scikit_learn(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "sklearn.manifold", None)
    pairs = states.Pairs(("a", "b"), np.eye(3), np.eye(3))
    with pytest.raises(InputError, match=r"fusion-mre\[figures\]"):
        pairs.flat()


def test_a_run_that_finds_entities_has_no_look(monkeypatch, tmp_path):
    run = SimpleNamespace(run=SimpleNamespace(info=SimpleNamespace(kind="entities")))
    monkeypatch.setattr("finetune.predict.extractor.Extractor.from_pretrained", lambda *a, **k: run)
    post = ["--text", "Ann", "--head", "[0, 1]", "--tail", "[1, 2]", "--image", "a.jpg"]
    with pytest.raises(InputError, match="finds entities"):
        plots.main(["look", "ner", *post, "--out", str(tmp_path / "f.png")])
