"""Studies: the table says what the runs say, each is trained once, views reach the right split."""

import json
from pathlib import Path

import pytest

from finetune.__main__ import main
from finetune.report.study import STUDIES, cells, read_study
from finetune.report.study_tables import write_report
from shards.files import InputError

STUDY = """
settings: {task: mnre, optim.epochs: 2, optim.lr: 1.0e-3}
runs:
  text: {method: mtb, init: $model, images: none}
  both: {method: promu, init: $model, optim.head_lr: 3.0e-3}
tables:
  Pictures:
    as it is: {}
    none at test: {tool: image-drop, keep: 0, scope: test, only: [both]}
    none at all: {tool: image-drop, keep: 0, only: [both]}
  Labels:
    all: {}
    more epochs: {only: [text], settings: {optim.epochs: 3}}
small: {optim.epochs: 1}
"""


@pytest.fixture
def study(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(STUDY)
    return path


def run(study, data, model, out):
    words = ["study", study, "--data", data, "--model", model, "--out", out, "--seeds", "1"]
    main([str(word) for word in words])


def test_tables_hold_what_runs_and_evaluations_found(
    tmp_path, study, mnre_folder, tiny_model, capsys, monkeypatch
):
    out = tmp_path / "out"
    run(study, mnre_folder, tiny_model, out)
    page = capsys.readouterr().out
    assert "partial-" not in page
    assert f"{out}/views/image-drop--0--test.jsonl: changes 30 rows of test" in page
    assert f"{out}/views/image-drop--0/train.jsonl: changes 120 rows of train" in page
    folders = {path.name for path in (out / "runs").iterdir()}
    assert folders == {"text", "both", "both--none-at-all", "text--more-epochs"}
    found = {
        (cell["table"], cell["run"], cell["column"]): cell["test"]["f1"]["mean"]
        for cell in json.loads((out / "study.json").read_text())["cells"]
    }

    def trained(name):
        return json.loads((out / "runs" / name / "result.json").read_text())["test"]["f1"]["mean"]

    assert len(found) == 7
    assert found["Pictures", "text", "as it is"] == trained("text")
    assert found["Labels", "text", "all"] == trained("text")
    assert found["Pictures", "both", "none at all"] == trained("both--none-at-all")
    assert found["Labels", "text", "more epochs"] == trained("text--more-epochs")
    view = str(out / "views" / "image-drop--0--test.jsonl")
    main(["evaluate", str(out / "runs" / "both"), "--data", str(mnre_folder), "--view", view])
    again = json.loads(
        (out / "runs" / "both" / "evaluate_test_image-drop--0--test.json").read_text()
    )
    assert found["Pictures", "both", "none at test"] == again["f1"]["mean"]
    assert f"| text | {trained('text'):.1f} | – | – |" in page
    monkeypatch.setattr("finetune.run.train.SeedRun.run", lambda self: pytest.fail("trained twice"))
    run(study, mnre_folder, tiny_model, out)  # everything is there


def test_changed_data_are_named_and_tables_stay(tmp_path, study, mnre_folder, tiny_model, capsys):
    """The finished runs of a study are of the old rows: nothing new is written over them."""
    out = tmp_path / "out"
    run(study, mnre_folder, tiny_model, out)
    before = {path: path.read_bytes() for path in out.glob("study.*")}
    path = mnre_folder / "txt/ours_val.txt"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:20]))
    with pytest.raises(SystemExit):
        run(study, mnre_folder, tiny_model, out)
    assert f"{path}: changed since {out}/runs/text/seed-1 was trained" in capsys.readouterr().err
    assert before == {path: path.read_bytes() for path in out.glob("study.*")}


def test_leaky_figures_never_share_a_table(tmp_path):
    def result(f1, leaky):
        scores = {"f1": {"mean": f1, "sd": None}}
        return {"dev": scores, "test": scores, "leaky": leaky}

    results = {
        ("Table", "a", "as it is"): result(11.1, False),
        ("Table", "a", "more"): result(22.2, True),
        ("Table", "b", "as it is"): result(33.3, False),
    }
    write_report("mine", results, "1", tmp_path)
    clean, leaky = (tmp_path / "study.md").read_text().split("## ")[1:]
    assert "| a | 11.1 |" in clean and "| b | 33.3 |" in clean and "more" not in clean
    assert leaky.startswith("Table: *leaky* inputs") and "| a | 22.2 |" in leaky
    cells = json.loads((tmp_path / "study.json").read_text())["cells"]
    assert [cell["leaky"] for cell in cells] == [False, True, False]


def test_small_and_placeholders(study):
    todo = list(cells(read_study(str(study)), True, {"model": "M"}))
    assert {cell.settings["init"] for cell in todo} == {"M"}
    assert todo[0].settings["optim.epochs"] == 1
    with pytest.raises(InputError, match="wants --model"):
        list(cells(read_study(str(study)), False, {}))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("only: [both]", "only: [bath]"), "no run called 'bath'"),
        (("image-drop", "image-drip"), "no view tool 'image-drip'"),
        (("tables:", "tabels:"), "expected runs and tables"),
        (("runs:", "runs: ["), "while parsing"),
    ],
)
def test_damaged_studies_are_one_line(study, change, message):
    study.write_text(STUDY.replace(*change))
    with pytest.raises(InputError, match=message):
        list(cells(read_study(str(study)), False, {"model": "M"}))
    with pytest.raises(InputError, match=r"there are .*protocols"):
        read_study("protocol")


@pytest.mark.parametrize("path", sorted(STUDIES.glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_studies_are_well_formed(path: Path):
    places = {"model": "M", "data": "D", "bert": "B"}
    for small in (False, True):
        todo = list(cells(read_study(str(path)), small, places))
        assert todo and all("method" in cell.settings for cell in todo)
