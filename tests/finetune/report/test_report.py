"""The report: every figure in it is a figure of the runs."""

import json
import re

import numpy as np
import pytest
from sklearn.metrics import f1_score

from finetune import registry
from finetune.__main__ import main
from finetune.report import pages, published, series, tables
from finetune.report.command import run_names, summary
from finetune.report.galleries import hardest
from finetune.report.model_sections import drawn
from finetune.run.calibration import of_seed
from finetune.run.open_run import seed_directories
from finetune.run.results import Predictions, of_seeds
from finetune.tasks import metrics


@pytest.fixture
def runs(tmp_path, mnre_folder, tiny_model):
    common = f"train --task mnre --data {mnre_folder} --optim.epochs 1 --optim.lr 1e-3"
    for name, options in {
        "mtb": f"--method mtb --init {tiny_model}",
        "promu": f"--method promu --init {tiny_model} --seeds 1,2",
        "promu_10pct": f"--method promu --architecture {tiny_model} --fraction 0.1",
    }.items():
        main(f"{common} {options} --out {tmp_path}/runs/{name}".split())
    return tmp_path / "runs"


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
    assert "## Few labels" in text and "## Relations of mnre" in text and "macro F1" in text
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


def test_leaky_runs_stand_apart(tmp_path, runs):
    path = runs / "promu" / "result.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"leaky": True}))
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
    content = json.loads(path.read_text())
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
    content["provenance"]["config"]["data"] = "/gone"
    path.write_text(json.dumps(content))
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


def result(fraction=1.0, f1=50.0, views=(), **more):
    """What `result.json` says, as far as series read it."""
    config = {"fraction": fraction, "architecture": None, "init": "runs/pretrain/model"} | more
    return {
        "task": "mnre", "method": "promu", "images": "required", "views": list(views),
        "dev": None, "test": {"f1": {"mean": f1, "sd": None}}, "provenance": {"config": config},
    }  # fmt: skip


def test_series_of_shares_and_of_noise_by_hand():
    shares = {"all": result(1.0, 80), "tenth": result(0.1, 40), "again": result(0.1, 42)}
    (found,) = series.few_labels(shares)
    line = "promu, from pretrain/model"
    assert found["columns"] == ["10 %", "100 %"] and found["axis"] == [10, 100]
    assert found["runs"] == {
        line: {"100 %": (80, None), "10 %": (40, None)},
        f"{line}, again": {"10 %": (42, None)},
    }
    assert series.few_labels({"all": result()}) == []

    def noisy(ratio, f1, split="test"):
        params = {"ratio": ratio, "unit": "row"}
        return result(1.0, f1, [{"tool": "align-noise", "params": params, "split": split}])

    runs = {"clean": result(1.0, 80), "a": noisy(0.5, 60), "b": noisy(0.05, 75)}
    (found,) = series.strengths(runs)
    assert found["columns"] == ["none", "5 %", "50 %"] and found["axis"] == [0, 5, 50]
    assert found["runs"] == {line: {"none": (80, None), "5 %": (75, None), "50 %": (60, None)}}
    assert series.strengths({"clean": result(), "a": noisy(0.5, 60)}) == []
    tenth = result(0.1, 30)  # fewer labels: no point of that curve
    (again,) = series.strengths(runs | {"tenth": tenth})
    assert again == found
    (few,) = series.strengths(runs | {"tenth": tenth, "noisy tenth": noisy_tenth(0.5)})
    assert few["runs"] == found["runs"] | {
        f"{line}, 10 % of train": {"50 %": (20, None), "none": (30, None)}
    }
    (twice,) = series.strengths(runs | {"more seeds": result(1.0, 70)})
    assert twice["runs"] == found["runs"] | {f"{line}, more seeds": {"none": (70, None)}}


def noisy_tenth(ratio):
    """A tenth of the labels under a view."""
    params = {"ratio": ratio, "unit": "row"}
    return result(0.1, 20, [{"tool": "align-noise", "params": params, "split": "test"}])


def test_runs_of_other_settings_are_no_line():
    """Which runs belong together is what their configurations say, but for how long they train."""
    line = "promu, from pretrain/model"

    def run(fraction, f1, epochs=4, **more):
        optim = {"lr": 1e-4, "epochs": epochs, "evaluate_every": epochs}
        return result(fraction, f1, optim=optim, seeds=epochs, **more)

    newer = {"types": None, "bootstrap": False, "engine": {"precision": "auto"}}  # its defaults
    same = {"all": run(1.0, 80), "tenth": run(0.1, 40, epochs=9, **newer)}
    (found,) = series.few_labels(same)
    assert found["runs"] == {line: {"100 %": (80, None), "10 %": (40, None)}}
    other = {
        "all": run(1.0, 80, model={"gate": "dim"}, captions="caption"),
        "blip": run(1.0, 82, model={"gate": "dim"}, captions="BLIP"),
        "none": run(0.1, 40, model={"gate": "none"}, captions="caption"),
        "tenth": run(0.1, 50, model={"gate": "dim"}, captions="caption"),
    }
    (found,) = series.few_labels(other)
    assert found["runs"] == {
        f"{line}, all": {"100 %": (80, None), "10 %": (50, None)},
        f"{line}, blip": {"100 %": (82, None)},
        f"{line}, none": {"10 %": (40, None)},
    }
    table = tables.fraction_table(other)
    assert [row[1:] for row in table.rows] == [["50.00", "80.00"], ["–", "82.00"], ["40.00", "–"]]


def test_our_rows_stand_above_the_published_ones():
    seed = {"train_rows": 12_247}
    scores = {name: {"mean": 50.0, "sd": None} for name in ("precision", "recall", "f1")}
    run = result() | {"per_seed": [seed], "test": scores, "leaky": False}
    table = tables.published_table("mnre", {"mine": run})
    assert table.rows[0] == ["promu", "50.00", "50.00", "50.00", "this report, mine", "picture"]
    assert len(table.rows) == 1 + sum(entry.task == "mnre" for entry in published.FIGURES)
    assert tables.published_table("mnre", {"mine": run | {"per_seed": [{"train_rows": 9}]}}) is None


def test_hardest_cases_are_the_surest_wrong_answers(tmp_path, runs):
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
    gone = {**result, "provenance": {**result["provenance"], "config": {"data": "/none"}}}
    assert hardest(run, gone) == []


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


def test_missing_runs_are_named(tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["report", str(tmp_path / "none")])
    assert stopped.value.code == 2 and "no result.json" in capsys.readouterr().err


def test_names_tell_runs_apart(tmp_path):
    runs = [tmp_path / "a" / "x", tmp_path / "b" / "x"]
    assert run_names(runs) == ["a/x", "b/x"]


def test_summary_without_test():
    assert summary({"mtb": {"test": None}}, [], None) == {"mtb_f1": None}


def test_cells_are_escaped():
    table = pages.Table(["a|b", "<x>"], [["1 *leaky*", "2"]], numeric=1)
    assert table.markdown() == ["| a\\|b | <x> |", "| --- | ---: |", "| 1 *leaky* | 2 |"]
    assert "<em>leaky</em>" in table.html() and "&lt;x&gt;" in table.html()


def test_scores_by_label_equal_scikit_learn():
    generator = np.random.default_rng(0)
    names = np.array(["None", "a", "b", "c", "d"])
    for _ in range(100):
        gold, predicted = names[generator.integers(0, 5, (2, 40))].tolist()
        found = metrics.relation_scores_by_label(gold, predicted)
        labels = list(found)
        expected = f1_score(gold, predicted, labels=labels, average=None, zero_division=0)
        assert [found[name]["f1"] for name in labels] == pytest.approx((100 * expected).tolist())
        assert metrics.macro_f1(found) == pytest.approx(100 * expected.mean())
        weighted = f1_score(gold, predicted, labels=labels, average="weighted", zero_division=0)
        assert metrics.weighted_f1(found) == pytest.approx(100 * weighted)
        assert "None" not in found
        assert sum(scores["support"] for scores in found.values()) == 40 - gold.count("None")


def test_frequency_bins():
    train = {"None": 50, "a": 10, "b": 30, "c": 40}
    gold = ["a", "b", "c", "None", "b"]
    predicted = ["b", "b", "b", "a", "None"]
    found = metrics.scores_by_frequency(gold, predicted, train, edges=(0, 20, 100))
    assert found["0–20"] == {"f1": 0, "precision": 0, "recall": 0, "support": 1}
    assert found["20–100"]["precision"] == pytest.approx(100 / 3)
    assert found["20–100"]["recall"] == pytest.approx(100 / 3)


def test_bootstrap_covers_the_score():
    generator = np.random.default_rng(0)
    gold = np.array(["None", "a", "b"])[generator.integers(0, 3, 600)]
    predicted = np.where(generator.random(600) < 0.7, gold, "a")
    counts = metrics.relation_counts(gold, predicted)
    f1 = 200 * counts[:, 0].sum() / counts[:, 1:].sum()
    low, high = metrics.bootstrap_interval(counts)
    assert low < f1 < high and 3 < high - low < 12
    assert (low, high) == metrics.bootstrap_interval(counts)
    answers = Predictions(list(range(600)), list(gold), list(predicted), None)
    others = tables.interval("relation", [answers], seed=1)
    assert others != f" [{low:.1f}, {high:.1f}]" and abs(float(others[2:6]) - low) < 1
    assert tables.interval("relation", [answers], 0) == (f" [{low:.1f}, {high:.1f}]")


def test_rows_to_show_follow_the_seed(mnre_folder):
    task = registry.load("tasks", "mnre")(mnre_folder)
    rows = {seed: [row.row for row in drawn(task, "test", 5, seed)] for seed in (0, 1)}
    assert rows[0] != rows[1] and all(found == sorted(found) for found in rows.values())
    assert rows[0] == [row.row for row in drawn(task, "test", 5, 0)]


def test_published_figures_are_percent():
    for entry in published.FIGURES:
        precision, recall, f1 = map(float, entry.figures)
        assert 40 < min(precision, recall, f1) <= max(precision, recall, f1) < 100
