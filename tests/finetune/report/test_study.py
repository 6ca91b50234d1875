"""Studies: the table says what the runs say, each is trained once, views reach the right split."""

import json
import shutil
import sys
from pathlib import Path

import pytest
import yaml

from finetune.__main__ import main
from finetune.report.study import StudyConfig, make_view, run_study
from finetune.report.study_cells import STUDIES, Cell, cells, read_study
from finetune.report.study_models import as_words
from finetune.report.study_tables import write_report
from shards.files import InputError
from shards.options import parse_config

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


def test_a_view_is_there_whole_or_not_at_all(tmp_path, mnre_folder, monkeypatch):
    """Also where a dot in its folder's name looks like the ending of a file."""
    from finetune.data import views

    cell = Cell("T", "text", "half", {}, {"tool": "image-drop", "keep": 0.5}, True)
    write_view, written = views.write_view, []

    def full(path, view):
        if written:
            raise OSError(28, "No space left on device", str(path))
        written.append(write_view(path, view))

    monkeypatch.setattr(views, "write_view", full)
    with pytest.raises(OSError):
        make_view(cell, str(mnre_folder), tmp_path)
    assert not list((tmp_path / "views").glob("[!.]*"))
    monkeypatch.undo()
    place = make_view(cell, str(mnre_folder), tmp_path)
    assert "." in place.name and len(list(place.iterdir())) == 3


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
    (written,) = (out / "runs" / "both").glob("evaluate_test_image-drop--0--test-????????.json")
    again = json.loads(written.read_text())
    assert found["Pictures", "both", "none at test"] == again["f1"]["mean"]
    assert f"| text | {trained('text'):.1f} | – | – |" in page
    also = again["per_seed"][0]["also_in_train"]["test"]
    line = next(line for line in page.splitlines() if line.startswith("| both | none at test |"))
    gain = again["f1"]["mean"] - trained("both")
    assert line.endswith(f"| {gain:+.2f} | {also['rows']}: {also['f1_without']:.2f} |")
    monkeypatch.setattr("finetune.run.train.SeedRun.run", lambda self: pytest.fail("trained twice"))
    run(study, mnre_folder, tiny_model, out)  # everything is there


def test_some_columns_leave_the_others_in_the_tables(
    tmp_path, study, mnre_folder, tiny_model, caplog
):
    """Computed one after the other or all at once: one study. Other seeds share no table."""

    def written(out, *words):
        places = ["--data", mnre_folder, "--model", tiny_model, "--out", out]
        main(["study", str(study), *map(str, places), *words])
        return json.loads((out / "study.json").read_text())["cells"]

    study.write_text(
        "settings: {task: mnre, optim.epochs: 1, init: $model, images: none, method: mtb}\n"
        "runs: {slow: {optim.lr: 1.0e-4}, fast: {}}\n"
        "tables: {All: {a: {}, b: {settings: {optim.epochs: 2}}, c: {settings: {seed: null}}}}\n"
    )
    parts = tmp_path / "parts"
    assert len(written(parts, "--seeds", "1", "--columns", "b")) == 2
    assert len(written(parts, "--seeds", "1", "--columns", "a")) == 4
    cells = written(parts, "--seeds", "1", "--columns", "b", "c")
    assert cells == written(tmp_path / "whole", "--seeds", "1") and len(cells) == 6
    assert (parts / "study.md").read_text() == (tmp_path / "whole/study.md").read_text()
    caplog.clear()
    assert len(written(parts, "--seeds", "2", "--columns", "a")) == 2
    (warning,) = [r.message for r in caplog.records if "left out of it now" in r.message]
    assert warning.endswith(": b, c")


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


def test_figures_as_papers_print_them(tmp_path):
    """P, R, F1, accuracy, and what F1 gains over the first column, or the first run."""

    def result(precision, recall, f1):
        scores = {"precision": precision, "recall": recall, "f1": f1, "accuracy": 50.0}
        means = {name: {"mean": value, "sd": None} for name, value in scores.items()}
        return {"dev": means, "test": means, "leaky": False}

    one = {
        ("T", "full", "F1"): result(60.0, 40.0, 48.0),
        ("T", "less", "F1"): result(1.0, 2.0, 45.5),
    }
    write_report("mine", one, "1", tmp_path)
    page = (tmp_path / "study.md").read_text()
    assert "| full | 60.00 | 40.00 | 48.00 | 50.00 | – | – |" in page
    assert "| less | 1.00 | 2.00 | 45.50 | 50.00 | -2.50 | – |" in page
    two = {("T", "a", "5 %"): result(1.0, 1.0, 1.0), ("T", "a", "10 %"): result(2.0, 2.0, 3.0)}
    two |= {("T", "b", "10 %"): result(2.0, 2.0, 4.0)}  # limited to one column: nothing to compare
    write_report("mine", two, "1", tmp_path)
    page = (tmp_path / "study.md").read_text()
    assert "| a | 10 % | 2.00 | 2.00 | 3.00 | 50.00 | +2.00 | – |" in page
    assert "| b | 10 % | 2.00 | 2.00 | 4.00 | 50.00 | – | – |" in page
    # Columns of two tasks are not compared: each with its first run.
    tasks = {
        ("T", run, column): result(1.0, 1.0, f1) | {"task": column}
        for run, column, f1 in (("a", "ner", 80.0), ("b", "ner", 81.0), ("b", "re", 60.0))
    }
    write_report(
        "mine", tasks | {("T", "c", "re"): result(1.0, 1.0, 63.0) | {"task": "re"}}, "1", tmp_path
    )
    page = (tmp_path / "study.md").read_text()
    assert "| b | ner | 1.00 | 1.00 | 81.00 | 50.00 | +1.00 | – |" in page
    assert "| b | re | 1.00 | 1.00 | 60.00 | 50.00 | – | – |" in page
    assert "| c | re | 1.00 | 1.00 | 63.00 | 50.00 | +3.00 | – |" in page


def test_settings_over_those_of_the_study(tmp_path, study, mnre_folder, tiny_model):
    words = ["study", str(study), "--data", str(mnre_folder), "--model", str(tiny_model)]
    words += ["--out", f"{tmp_path}/out", "--seeds", "1", "--columns", "all"]
    run_words([*words, "--set", "optim.epochs=3", "max_length=40"])
    settings = yaml.safe_load((tmp_path / "out/runs/text/config.yaml").read_text())
    assert settings["optim"]["epochs"] == 3 and settings["max_length"] == 40
    page = (tmp_path / "out/study.md").read_text()
    assert "Not as the study has it: optim.epochs = 3, max_length = 40." in page
    content = json.loads((tmp_path / "out/study.json").read_text())
    assert content["set"] == {"optim.epochs": 3, "max_length": 40}
    with pytest.raises(ValueError, match=r"--set optim\.epochs: expected KEY=VALUE"):
        StudyConfig(study="x", data="D", out=Path("x"), set=("optim.epochs",))
    with pytest.raises(ValueError, match="no YAML"):
        StudyConfig(study="x", data="D", out=Path("x"), set=("optim.lr=[1",))
    with pytest.raises(ValueError, match="--set seeds=5: seeds is the study's own"):
        StudyConfig(study="x", data="D", out=Path("x"), set=("seeds=5",))


def test_nothing_is_an_empty_mapping_and_names_may_be_numbers(study):
    """As YAML has `text:` and `1:`."""
    study.write_text(
        "settings: {task: mnre, method: mtb}\nruns: {1: , text: }\n"
        "tables: {T: {2: , x: {only: [1], settings: }}}\n"
    )
    todo = [(c.run, c.column, c.own_training) for c in cells(read_study(str(study)), False, {})]
    assert todo == [("1", "2", False), ("text", "2", False), ("1", "x", False)]


def test_null_is_left_out_of_every_command():
    words = as_words({"optim.lr": None, "loss.coe": 0, "data.train": "x", "flag": False})
    assert words == ["--loss.coe=0", "--data.train=x", "--flag=false"]


def test_small_and_placeholders(study):
    todo = list(cells(read_study(str(study)), True, {"model": "M"}))
    assert {cell.settings["init"] for cell in todo} == {"M"}
    assert todo[0].settings["optim.epochs"] == 1
    content = read_study(str(study))
    content["runs"]["text"]["small"] = {"method": "x", "optim.epochs": 7}
    for small, expected in ((True, ("x", 7)), (False, ("mtb", 2))):
        cell = next(cells(content, small, {"model": "M"}))
        found = cell.settings["method"], cell.settings["optim.epochs"]
        assert cell.run == "text" and found == expected and "small" not in cell.settings
    with pytest.raises(InputError, match="wants --model"):
        list(cells(read_study(str(study)), False, {}))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("only: [both]", "only: [bath]"), "no run called 'bath'"),
        (("image-drop", "image-drip"), "no view tool 'image-drip'"),
        (("tables:", "tabels:"), "expected runs and tables"),
        (("runs:", "runs: ["), "while parsing"),
        (("{method: mtb, init: $model, images: none}", "3"), "runs: text: expected a mapping"),
        (("images: none}", "images: none, small: 3}"), "runs: text: small: expected a mapping"),
        (("    all: {}", "    all: [text]"), "tables: Labels: all: expected a mapping"),
        (("{optim.epochs: 3}}", "3}"), "more epochs: settings: expected a mapping"),
        (("only: [text]", "only: text"), "more epochs: only: expected a list of runs"),
        (("$model, images", "$5, images"), r"a \$ without a name"),
        (
            ("    all: {}", '    "none at all!": {only: [both], settings: {optim.epochs: 3}}'),
            "another training has its folder, both--none-at-all, already",
        ),
        (
            (
                "all: {}\n",
                "a: {tool: aug-noise, ratio: 1, regions: A}\n"
                "    all: {tool: aug-noise, ratio: 1, regions: B}\n",
            ),
            "Labels: all: another view has its file, aug-noise--1, already",
        ),
        (
            (
                "all: {}\n",
                "a: {tool: aug-noise, num-grounded: 2}\n"
                "    all: {tool: aug-noise, num_detected: 2}\n",
            ),
            "another view has its file, aug-noise--2",
        ),
    ],
)
def test_damaged_studies_are_one_line(study, change, message):
    study.write_text(STUDY.replace(*change))
    with pytest.raises(InputError, match=message):
        list(cells(read_study(str(study)), False, {"model": "M"}))
    with pytest.raises(InputError, match="did you mean protocols"):
        read_study("protocol")


TRAINS = """
pretrain:
  full: {}
  no_coe: {loss.coe: 0}
settings: {method: promu, task: mnre, optim.epochs: 1}
runs:
  all losses: {init: $full}
  without COE: {init: $no_coe}
tables:
  Table:
    here: {}
    elsewhere: {settings: {data: $data/../other}}
    nowhere: {settings: {data: $data/nowhere}}
"""
STANDS_IN = """
import pathlib, shutil, sys
model, log, *words = sys.argv[1:]
pathlib.Path(log).open("a").write(" ".join(words) + "\\n")
if model != "fails":
    run_dir = pathlib.Path(words[words.index("--config") + 2].removeprefix("--run_dir="))
    shutil.copytree(model, run_dir / "model", dirs_exist_ok=True)
sys.exit(model == "fails")
"""


def test_models_are_trained_before_the_runs_that_start_from_them(tmp_path, mnre_folder, tiny_model):
    (tmp_path / "mine.yaml").write_text(TRAINS)
    (tmp_path / "stands_in.py").write_text(STANDS_IN)
    (tmp_path / "pretraining.yaml").write_text("seed: 1\n")
    shutil.copytree(mnre_folder, mnre_folder.parent / "other")
    launcher = f"{sys.executable} {tmp_path}/stands_in.py"
    out = tmp_path / "out"
    words = ["study", f"{tmp_path}/mine.yaml", "--data", str(mnre_folder), "--out", str(out)]
    words += ["--seeds", "1", "--columns", "here", "elsewhere"]
    with pytest.raises(InputError, match="name the settings of"):
        run_words(words)
    words += ["--pretraining", f"{tmp_path}/pretraining.yaml", "--launcher"]
    with pytest.raises(InputError, match="pre-training full ended with status 1"):
        run_words([*words, f"{launcher} fails {tmp_path}/first"])
    with pytest.raises(InputError, match=r"--data .*/nowhere: no such folder"):
        run_words([*words, f"{launcher} {tiny_model} {tmp_path}/log", "--columns", "nowhere"])
    assert not (tmp_path / "log").exists()  # said before hours of pre-training
    run_words([*words, f"{launcher} {tiny_model} {tmp_path}/log"])
    config = f"--config {tmp_path}/pretraining.yaml --run_dir={out}/pretrain"
    assert (tmp_path / "log").read_text() == (f"{config}/full\n{config}/no_coe --loss.coe=0\n")
    cells = json.loads((out / "study.json").read_text())["cells"]
    assert [(cell["run"], cell["column"]) for cell in cells] == [
        ("all losses", "here"), ("without COE", "here"),
        ("all losses", "elsewhere"), ("without COE", "elsewhere"),
    ]  # fmt: skip
    settings = yaml.safe_load((out / "runs/without-COE--elsewhere/config.yaml").read_text())
    assert settings["init"] == f"{out}/pretrain/no_coe/model"
    assert settings["data"].endswith("/../other")


def run_words(words: list[str]) -> None:
    run_study(parse_config(StudyConfig, words[1:], prog="study", example=""))


def test_a_column_that_is_none_and_a_view_of_other_rows_are_one_line(study):
    content = read_study(str(study))
    with pytest.raises(InputError, match="--columns all labels: the study's columns are"):
        list(cells(content, False, {"model": "M"}, ["all labels"]))
    content["settings"]["data"] = "elsewhere"
    with pytest.raises(InputError, match="none at test: views are of the rows of --data"):
        list(cells(content, False, {"model": "M"}))


@pytest.mark.parametrize("path", sorted(STUDIES.glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_studies_are_well_formed(path: Path):
    content = read_study(str(path))
    places = {"model": "M", "data": "D"} | dict.fromkeys(content.get("pretrain", {}), "P")
    for small in (False, True):
        todo = list(cells(content, small, places))
        assert todo and all("method" in cell.settings for cell in todo)
        configs = {cell.settings["config"] for cell in todo if "config" in cell.settings}
        assert all((STUDIES.parents[2] / config).is_file() for config in configs)
