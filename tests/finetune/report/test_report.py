"""The report: every figure in it is a figure of the runs."""

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest
from PIL import Image
from results_by_hand import result_of
from sklearn.metrics import f1_score
from tiny_mnre import write_mnre

from finetune import registry
from finetune.__main__ import main
from finetune.report import pages, published, tables
from finetune.report.command import require_summary, run_names, summary
from finetune.report.galleries import hardest
from finetune.report.model_sections import drawn
from finetune.report.sections import averaged_over
from finetune.run.calibration import of_seed
from finetune.run.open_run import seed_directories
from finetune.run.results import Predictions, of_seeds
from finetune.tasks import metrics
from shards.files import InputError


@pytest.fixture(scope="module")
def trained(tmp_path_factory, tiny_model) -> Path:
    """The folder of `mnre`, and of `runs` on it."""
    folder = tmp_path_factory.mktemp("trained")
    data = write_mnre(folder / "mnre", {"train": 120, "val": 30, "test": 30})
    common = f"train --task mnre --data {data} --optim.epochs 1 --optim.lr 1e-3"
    for name, options in {
        "mtb": f"--method mtb --init {tiny_model}",
        "promu": f"--method promu --init {tiny_model} --seeds 1,2",
        "promu_10pct": f"--method promu --architecture {tiny_model} --fraction 0.1",
    }.items():
        main(f"{common} {options} --out {folder}/runs/{name}".split())
    return folder


@pytest.fixture
def runs(trained, tmp_path) -> Path:
    """Copies, which a test may change."""
    return Path(shutil.copytree(trained / "runs", tmp_path / "runs"))


@pytest.fixture
def data(trained, tmp_path) -> Iterator[Path]:
    """What they were trained on; a test may change it, since it is put back."""
    before = shutil.copytree(trained / "mnre", tmp_path / "before")
    yield trained / "mnre"
    shutil.rmtree(trained / "mnre", ignore_errors=True)
    shutil.copytree(before, trained / "mnre")


def test_runs_whose_inputs_changed_are_marked(tmp_path, runs, data, caplog):
    """Files and pictures by name, in the page and on the terminal; text alone minds no picture."""
    names, out = ("mtb", "promu"), tmp_path / "report.md"
    command = ["report", *(str(runs / name) for name in names), "--out", str(out)]
    main(command)
    assert "changed" not in out.read_text() + caplog.text
    Image.new("RGB", (20, 16), (1, 2, 3)).save(data / "img_org/test/test3.jpg")
    main(command)
    _, changed, page = out.read_text().split("\n## ", 2)
    assert changed.startswith("Inputs changed since training") and "train it again" in changed
    assert f"| promu | {data}/img_org/test: a picture of test |" in changed
    assert "| promu *inputs changed* |" in page and "| mtb |" in page
    assert "img_org/test: a picture of test: changed since" in caplog.text
    path = data / "txt/ours_train.txt"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:20]))
    (tmp_path / "noise").mkdir()
    study = study_file(tmp_path / "noise")
    shutil.copytree(runs / "mtb", tmp_path / "noise/runs/text")
    main([*command, "--study", str(study)])
    _, changed, page = out.read_text().split("\n## ", 2)
    for run in ("noise/text", *names):
        assert f"| {run} | {path}" in changed
    assert "| mtb *inputs changed* |" in page


def test_report_and_summary(tmp_path, runs):
    pretraining = tmp_path / "pretrain"
    pretraining.mkdir()
    (pretraining / "metrics.jsonl").write_text(
        '{"step": 1, "loss": 2.0}\n{"step": 2, "val_itm_accuracy": 81.5, "val_recall@1": 30.25}\n'
    )
    out = tmp_path / "report" / "report.md"
    names = ("mtb", "promu", "promu_10pct")
    main(
        f"report {' '.join(str(runs / name) for name in names)} --out {out} --seconds 12 "
        f"--pretraining {pretraining} --summary {tmp_path}/s.json --study {study_file(tmp_path)} "
        f"--looks 2 --states 5".split()
    )
    text = out.read_text()
    results = {name: json.loads((runs / name / "result.json").read_text()) for name in names}
    for name, result in results.items():
        row = next(line for line in text.splitlines() if line.startswith(f"| {name} |"))
        assert f"{result['test']['f1']['mean']:.2f}" in row
        assert f"{result['test']['accuracy']['mean']:.2f}" in row
        seed = result["per_seed"][0]
        also = seed["also_in_train"]["test"]
        assert f"| {also['rows']}" in row and set(also) == {"rows", "f1_without"}
    assert " ± " in next(line for line in text.splitlines() if line.startswith("| promu |"))
    found = json.loads((tmp_path / "s.json").read_text())
    assert found == {
        "mtb_f1": results["mtb"]["test"]["f1"]["mean"],
        "promu_f1": results["promu"]["test"]["f1"]["mean"],
        "promu_f1_10pct": results["promu_10pct"]["test"]["f1"]["mean"],
        "itm_accuracy": 81.5,
        "recall_at_1": 30.25,
        "seconds": 12,
    }
    pictures = re.findall(r"!\[[^]]*\]\(([^)]+)\)", text)
    names = (
        *("f1", "curves", "few_labels", "mnre_relations", "mnre_confusion", "mnre_cases"),
        *("mnre_look1", "mnre_look2", "mnre_states", "study1", "pretraining"),
    )
    assert pictures == [f"report_{name}.png" for name in names]
    for picture in pictures:
        assert (out.parent / picture).read_bytes().startswith(b"\x89PNG")
    page = out.with_suffix(".html").read_text()
    assert page.count("data:image/png;base64,") == page.count("<figcaption>") == len(names)
    assert len(re.findall(r'<img alt="[^"]{10,}"', page)) == len(names)
    assert not re.search(r"https?:|(src|href)=\"(?!data:)", page)  # opens without a network
    captions = re.findall(r"<figcaption>(.*?)</figcaption>", page)
    assert all("chosen on dev" in caption for caption in captions[:-1])
    assert "Published" not in text  # these rows are not the published ones
    assert "## Leak audit" in text and "| *tells the label* |" not in text
    assert "## Few labels" in text and "## Relations of mnre" in text
    assert "Macro and weighted F1 are over the 2 relations that test rows have." in text
    assert "## Protocol" in text and "on, the first of equal dev F1" in text
    assert "| mtb | none beside the text |" in text
    fitted = of_seed(runs / "mtb/seed-1", list(results["mtb"]["per_seed"][0]["train_counts"]))
    shown = f"| mtb | {fitted.temperature:.2f} | 30 | {fitted.ece_before:.1f} |"
    assert shown in text


def study_file(folder):
    """A study of two columns."""
    cells = [
        {"table": "Noise", "run": "promu", "column": column, "dev": None,
         "test": {"f1": {"mean": mean, "sd": None}}}
        for column, mean in (("none", 60.0), ("10 %", 50.0))
    ]  # fmt: skip
    path = folder / "study.json"
    path.write_text(json.dumps({"study": "noise", "seeds": "1,2", "cells": cells}))
    return path


def by_hand(path) -> dict:
    """The content of a result, without the checksum that an edit would contradict."""
    content = json.loads(path.read_text())
    del content["_crc32"]
    return content


def test_leaky_runs_stand_apart(tmp_path, runs):
    path = runs / "promu" / "result.json"
    path.write_text(json.dumps(by_hand(path) | {"leaky": True}))
    out = tmp_path / "report.md"
    main(f"report {runs}/mtb {runs}/promu {runs}/promu_10pct --out {out}".split())
    sections = dict(part.split("\n", 1) for part in out.read_text().split("\n## ")[1:])
    clean = "".join(text for title, text in sections.items() if "leaky" not in title)
    leaky = "".join(text for title, text in sections.items() if title.endswith(": *leaky* runs"))
    audit = sections["Leak audit"]
    assert "\n| promu " not in clean.replace(audit, "") and "\n| promu |" in audit
    assert "\n| promu *leaky* |" in leaky and "mtb" not in leaky and "promu_10pct" not in leaky
    assert "(report_leaky_f1.png)" in leaky and (tmp_path / "report_leaky_f1.png").is_file()


def test_what_some_runs_cannot_show_does_not_end_the_report(tmp_path, runs, caplog):
    """Clean runs of the text alone beside a leaky one; then a best run whose data are gone."""
    path = runs / "promu" / "result.json"
    content = by_hand(path)
    path.write_text(json.dumps(content | {"leaky": True}))
    out, options = tmp_path / "report.md", "--looks 1 --states 5"
    main(f"report {runs}/mtb {runs}/promu --out {out} {options}".split())
    pictures = re.findall(r"!\[[^]]*\]\(([^)]+)\)", out.read_text())
    shown = [f"report_leaky_mnre_{name}.png" for name in ("look1", "states")]
    assert [name for name in pictures if "look" in name or "states" in name] == shown
    said = [line for line in caplog.messages if line.startswith("--")]
    assert [line.partition(" (")[0] for line in said] == [
        "--looks: nothing of the runs that are not leaky",
        "--states: nothing of the runs that are not leaky",
    ]

    content["dev"]["f1"]["mean"] = 100.0  # the best one: it is asked first
    path.write_text(json.dumps(content))
    inputs = runs / "promu" / "seed-1" / "inputs.json"
    inputs.write_text(json.dumps(by_hand(inputs) | {"data": "/gone"}))
    main(f"report {runs}/promu_10pct {runs}/promu --out {out} {options}".split())
    text = out.read_text()
    assert "(report_mnre_look1.png)" in text and "promu_10pct: relation beside image after" in text
    with pytest.raises(SystemExit):
        main(f"report {runs}/promu --out {tmp_path}/none.md {options}".split())
    assert not (tmp_path / "none.md").exists()


@pytest.mark.parametrize("option", ["--looks 1", "--states 5"])
def test_what_runs_cannot_show_is_said_in_a_line(option, tmp_path, runs, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(f"report {runs}/mtb --out {tmp_path}/r.md {option}".split())
    last = capsys.readouterr().err.splitlines()[-1]
    assert stopped.value.code == 2 and last.startswith(f"error: {option.split()[0]}: ")
    assert not (tmp_path / "r.md").exists()


def test_hardest_cases_are_the_surest_wrong_answers(tmp_path, runs, data, monkeypatch):
    run = runs / "promu"
    result = json.loads((run / "result.json").read_text())
    found = hardest(run, result, 5)
    lines = (run / "seed-1" / "pred_test.jsonl").read_text().splitlines()
    wrong = [r for r in map(json.loads, lines) if r["gold"] != r["pred"]]
    shares = sorted((max(r["scores"]) for r in wrong), reverse=True)
    assert [case.probability for case in found] == shares[:5]
    by_row = {record["row"]: record for record in wrong}
    for case in found:
        assert (case.gold, case.predicted) == (by_row[case.row]["gold"], by_row[case.row]["pred"])
        assert case.picture.name == f"test{case.row}.jpg"
        assert re.search(r"\[\w+\].*\(\w+\)", case.text)
    # Named from another folder, where others lie under that name; then changed, then gone.
    (tmp_path / "elsewhere").mkdir()
    shutil.copytree(data, tmp_path / "elsewhere/mnre")
    monkeypatch.chdir(tmp_path / "elsewhere")
    (tmp_path / "elsewhere/mnre/txt/ours_test.txt").write_text("")
    result["provenance"]["config"]["data"] = "mnre"
    assert hardest(run, result, 5) == found
    path = data / "txt/ours_test.txt"
    path.write_text("".join(reversed(path.read_text().splitlines(keepends=True))))
    assert hardest(run, result) == []
    shutil.rmtree(data)
    assert hardest(run, result) == []


def test_seeds_come_by_number(tmp_path):
    for seed in ("2", "10", "1", "old"):
        folder = tmp_path / f"seed-{seed}"
        folder.mkdir()
        record = {"row": 0, "gold": seed, "pred": "None", "scores": [0.5]}
        (folder / "pred_test.jsonl").write_text(json.dumps(record) + "\n")
        (folder / "result.json").write_text("{}")
    assert [seed.gold for seed in of_seeds(tmp_path, "test")] == [["1"], ["2"], ["10"]]
    names = [path.name for path in seed_directories(tmp_path)]
    assert names == ["seed-1", "seed-2", "seed-10"]


@pytest.mark.parametrize("name", ["result.json", "report.html"])
def test_a_report_is_called_md(tmp_path, capsys, name):
    """It would replace the run's figures, or its own page."""
    (tmp_path / name).write_text("kept")
    with pytest.raises(SystemExit):
        main(["report", str(tmp_path), "--out", str(tmp_path / name)])
    assert "name a .md" in capsys.readouterr().err and (tmp_path / name).read_text() == "kept"


def test_missing_runs_are_named(tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["report", str(tmp_path / "none")])
    assert stopped.value.code == 2 and "no result.json" in capsys.readouterr().err


def test_names_tell_runs_apart(tmp_path):
    runs = [tmp_path / "a" / "x", tmp_path / "b" / "x"]
    assert run_names(runs) == ["a/x", "b/x"]


def test_names_of_runs_and_relations_are_any(tmp_path):
    """Blanks, a formula that is none, an underscore first; a relation of 1,234 training rows."""
    names = ("_my run", r"a$x_$b")
    answers = [(r"a$\frac$", "None"), ("None", r"a$\frac$"), ("b", "b")]
    train = {"None": 5, r"a$\frac$": 1234, "b": 3}
    for name in names:
        (tmp_path / name / "seed-1").mkdir(parents=True)
        lines = [json.dumps({"row": i, "gold": g, "pred": p}) for i, (g, p) in enumerate(answers)]
        (tmp_path / name / "seed-1/pred_test.jsonl").write_text("\n".join(lines) + "\n")
        result = result_of({"train_counts": train})
        (tmp_path / name / "result.json").write_text(json.dumps(result))
    main(["report", *(str(tmp_path / name) for name in names), "--out", f"{tmp_path}/my report.md"])
    text = (tmp_path / "my report.md").read_text()
    links = re.findall(r"!\[.*\]\((.*)\)", text)
    assert links and all((tmp_path / unquote(link)).is_file() for link in links)
    assert not any(" " in link for link in links) and "| 1000–1235 | 1 | 0.00 | 0.00 |" in text


def test_summary_without_test():
    assert summary({"mtb": {"test": None}}, [], None) == {"mtb_f1": None}


def test_a_summary_of_somebody_else_stays(tmp_path):
    path = tmp_path / "s.json"
    for own in ("", '{"mtb_f1": null}', '{"promu_f1_10pct": 63.7, "seconds": 1}'):
        path.write_text(own)
        require_summary(path)
    for other in ("notes", "[]", "{}", '{"seconds": 1}', '{"mtb_f1": 3, "why": "tested"}'):
        path.write_text(other)
        with pytest.raises(SystemExit, match="2"):
            main(["report", "none", "--out", f"{tmp_path}/r.md", "--summary", str(path)])
        assert path.read_text() == other
        with pytest.raises(InputError, match=r"s\.json: .* choose another"):
            require_summary(path)


def test_cells_are_escaped():
    table = pages.Table(["a|b", "<x>"], [["1 *leaky*", "2"]], numeric=1)
    assert table.markdown() == ["| a\\|b | <x> |", "| --- | ---: |", "| 1 *leaky* | 2 |"]
    assert "<em>leaky</em>" in table.html() and "&lt;x&gt;" in table.html()


def test_bootstrap_covers_the_score():
    generator = np.random.default_rng(0)
    gold = np.array(["None", "a", "b"])[generator.integers(0, 3, 600)]
    predicted = np.where(generator.random(600) < 0.7, gold, "a")
    counts = metrics.relation_counts(gold, predicted, "None")
    f1 = 200 * counts[:, 0].sum() / counts[:, 1:].sum()
    low, high = metrics.bootstrap_interval(counts)
    assert low < f1 < high and 3 < high - low < 12
    assert (low, high) == metrics.bootstrap_interval(counts)
    answers = Predictions(list(range(600)), list(gold), list(predicted), None)
    result = {"provenance": {"kind": "relation"}}
    result["per_seed"] = [{"train_rows": 3, "train_counts": {"None": 1, "a": 1, "b": 1}}]
    others = tables.interval(result, [answers], seed=1)
    assert others != f" [{low:.1f}, {high:.1f}]" and abs(float(others[2:6]) - low) < 1
    assert tables.interval(result, [answers], 0) == (f" [{low:.1f}, {high:.1f}]")


def test_rows_to_show_follow_the_seed(mnre_folder):
    task = registry.load("tasks", "mnre")(mnre_folder)
    rows = {seed: [row.row for row in drawn(task, "test", 5, seed)] for seed in (0, 1)}
    assert rows[0] != rows[1] and all(found == sorted(found) for found in rows.values())
    assert rows[0] == [row.row for row in drawn(task, "test", 5, 0)]


def test_published_figures_are_percent():
    for entry in published.FIGURES:
        precision, recall, f1 = map(float, entry.figures)
        assert 1 < min(precision, recall, f1) <= max(precision, recall, f1) < 100
        if abs(2 * precision * recall / (precision + recall) - f1) > 0.1:
            assert "F1" in entry.protocol  # it says that these three do not belong together
    methods = {entry.method for entry in published.FIGURES}
    assert {
        "mtb",
        "umgf",
        "umt",
        "mega",
        "ifaformer",
        "tmr",
        "camim_tmr",
        "camim_hvpnet",
    } <= methods


def test_a_report_says_over_which_relations_macro_f1_is():
    gold, predicted = ["None", "a", "b", "a"], ["c", "a", "a", "None"]
    train = {"None": 5, "a": 3, "b": 2, "c": 1, "d": 0}
    note = averaged_over(gold, train)
    assert note == (
        " Macro and weighted F1 are over the 2 relations that test rows have; "
        "without a test row: c, d."
    )
    assert averaged_over(gold, {"None": 5, "a": 3, "b": 2}).endswith(
        "2 relations that test rows have."
    )
    macro = metrics.macro_f1(metrics.relation_scores_by_label(gold, predicted, "None"))
    over_those, over_all = (
        100 * f1_score(gold, predicted, labels=labels, average="macro", zero_division=0)
        for labels in (["a", "b"], ["a", "b", "c", "d"])
    )
    assert macro == pytest.approx(over_those) and macro == pytest.approx(2 * over_all)
