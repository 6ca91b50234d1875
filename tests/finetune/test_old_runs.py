"""What commit 265d405 wrote is read, judged alike, shown and continued by today's code."""

import json
import shutil
import tarfile
from pathlib import Path

import pytest
import torch

from finetune.__main__ import main
from finetune.predict.extractor import Extractor
from finetune.run import train
from finetune.run.open_run import open_run
from finetune.run.results import Predictions, read_result
from pretrain.model.fusion_encoder import FusionEncoder

ARTEFACTS = Path(__file__).parent / "old_runs" / "artefacts.tar.xz"
RELATIONS = ("mtb", "promu", "hvpnet", "tmr", "camim_tmr", "mkgformer", "focalmre", "dgfpt")
ENTITIES = ("bert_crf", "promu_entities")
PREDICTED = ("mtb", "promu", "hvpnet", "mkgformer", "camim_tmr", "bert_crf")
COMMON = [
    *("--optim.epochs", "2", "--optim.global_batch_size", "8", "--max_length", "60"),
    *("--seeds", "1", "--images", "none", "--task", "mnre", "--method", "mtb", "--data", "mnre"),
    *("--architecture", "pretraining/model"),
]


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory):
    folder = tmp_path_factory.mktemp("old")
    with tarfile.open(ARTEFACTS) as archive:
        archive.extractall(folder, filter="data")
    return folder


@pytest.fixture
def old(unpacked, tmp_path, monkeypatch):
    """A copy as the working folder: the runs name their data by relative paths."""
    shutil.copytree(unpacked, tmp_path / "old")
    monkeypatch.chdir(tmp_path / "old")
    monkeypatch.setenv("FUSION_MRE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "old"


def same_answers(one: Path, two: Path) -> None:
    """Answers alike; probabilities to a unit of the last decimal written."""
    a, b = Predictions.read(one), Predictions.read(two)
    assert (a.rows, a.gold, a.answers) == (b.rows, b.gold, b.answers)
    assert (a.probabilities is None) == (b.probabilities is None)
    for ours, theirs in zip(a.probabilities or [], b.probabilities or [], strict=True):
        assert ours == pytest.approx(theirs, abs=2e-5)


@pytest.mark.parametrize("name", RELATIONS + ENTITIES)
def test_scores_and_answers_are_the_same(old, name):
    run = old / "runs" / name
    data = "twitter2017" if name in ENTITIES else "mnre"
    seeds = sorted(path.parent.name for path in run.glob("seed-*/result.json"))
    for split in ("dev", "test"):
        before = {s: (run / s / f"pred_{split}.jsonl").rename(run / s / "before") for s in seeds}
        main(["evaluate", f"runs/{name}", "--data", data, "--split", split])
        for seed, path in before.items():
            same_answers(path, run / seed / f"pred_{split}.jsonl")
        found = json.loads((run / f"evaluate_{split}.json").read_text())
        result = json.loads((run / "result.json").read_text())
        assert {key: found[key] for key in result[split]} == result[split]


@pytest.mark.parametrize("name", PREDICTED)
def test_posts_are_answered_alike(old, name):
    argv = ["predict", f"runs/{name}", "--input", "posts.jsonl", "--out", "now.jsonl"]
    main([*argv, "--regions", "none"])
    now, before = (
        [json.loads(line) for line in path.read_text().splitlines()]
        for path in (old / "now.jsonl", old / f"answers/{name}.jsonl")
    )
    assert len(now) == len(before) == 2
    for ours, theirs in zip(now, before, strict=True):
        assert ours.keys() == theirs.keys()
        assert ours.get("relation") == theirs.get("relation")
        assert ours.get("probability") == pytest.approx(theirs.get("probability"), abs=2e-5)
        names = [[entity["text"] for entity in a.get("entities", ())] for a in (ours, theirs)]
        assert names[0] == names[1]


def test_settings_are_those_of_the_time(old):
    assert open_run("runs/hvpnet").method.config.tagging == "pieces"  # of profile legacy
    legacy = open_run("runs/mkgformer")
    assert not any(weight.requires_grad for weight in legacy.method.head.parameters())  # preset
    assert legacy.description.inputs["regions"] == "mnre"
    assert open_run("runs/promu").directory.name in ("seed-1", "seed-2")


def test_report(old):
    """The table of runs as it was, but for the column that called runs with pictures text-only, and
    a later one, of which old runs know nothing."""
    names = ("mtb", "promu", "hvpnet", "bert_crf")
    main(["report", *(f"runs/{name}" for name in names), "--out", "now/report.md"])

    def table(path):
        lines = path.read_text().splitlines()
        rows = [[cell.strip() for cell in x.split("|")[1:-1]] for x in lines if x.startswith("|")]
        start = next(i for i, row in enumerate(rows) if row[0] == "run" and "test F1" in row)
        return {row[0]: row for row in rows[start + 2 : start + 2 + len(names)]}, rows[start]

    (now, head), (before, _) = table(old / "now/report.md"), table(old / "report/report.md")
    assert now.keys() == before.keys() == set(names)
    images = head.index("images")
    assert head[-1] == "test rows also in train: F1 without"
    for name, row in now.items():
        assert row[:images] + row[images + 1 :] == (
            before[name][:images] + before[name][images + 1 :] + ["–"]
        )
    assert {name: row[images] for name, row in now.items()} == {
        "mtb": "none", "promu": "required", "hvpnet": "required", "bert_crf": "none",
    }  # fmt: skip


@pytest.mark.parametrize("name", ("hvpnet", "tmr", "camim_tmr", "mkgformer", "focalmre", "dgfpt"))
def test_pictures_are_known_to_have_been_seen(old, name):
    assert read_result(old / "runs" / name)["images"] == "required"


def test_view(old):
    """The manifest changes the same rows: the same answers as then."""
    before = {
        seed: (old / f"runs/promu/{seed}/pred_test_view.jsonl").rename(old / f"{seed}.jsonl")
        for seed in ("seed-1", "seed-2")
    }
    main(["evaluate", "runs/promu", "--data", "mnre", "--view", "view.jsonl"])
    for seed, path in before.items():
        (again,) = (old / f"runs/promu/{seed}").glob("pred_test_view-*.jsonl")
        same_answers(path, again)


def test_study_goes_on_without_training(old, monkeypatch):
    def trained(*_):
        raise AssertionError("trained again")

    monkeypatch.setattr(train.SeedRun, "__init__", trained)
    before = json.loads((old / "study/study.json").read_text())
    main(
        [
            "study",
            "study.yaml",
            "--data",
            "mnre",
            "--model",
            "pretraining/model",
            "--out",
            "study",
            "--seeds",
            "1",
        ]
    )
    now = json.loads((old / "study/study.json").read_text())
    scores = [
        [(c["table"], c["run"], c["column"], c["test"]["f1"]) for c in content["cells"]]
        for content in (before, now)
    ]
    assert scores[0] == scores[1] and len(scores[0]) == 4


def test_unfinished_run_goes_on(old, caplog):
    """From its first epoch to where the run that was not cut off came to."""
    with caplog.at_level("INFO"):
        main(["train", "--out", "runs/unfinished", *COMMON])
    assert "goes on after epoch 1" in caplog.text
    now, whole = (read_result(old / "runs" / name) for name in ("unfinished", "whole"))
    assert now["test"] == whole["test"] and now["dev"] == whole["dev"]
    seeds = [old / "runs" / name / "seed-1/pred_test.jsonl" for name in ("unfinished", "whole")]
    same_answers(*seeds)


def test_model_directory(old):
    """Loads by hand, and starts a run."""
    encoder = FusionEncoder.from_pretrained("pretraining/model")
    assert all(torch.isfinite(tensor).all() for tensor in encoder.state_dict().values())
    assert encoder.config.hidden_size == 16
    argv = ["train", "--out", "runs/new", "--init", "runs/promu/seed-1/model", *COMMON[:-2]]
    main(argv)
    assert read_result(old / "runs/new")["test"] is not None


def test_as_a_function(old):
    answer = Extractor.from_pretrained("runs/mtb")("Ann in Oslo", head="Ann", tail="Oslo")
    assert answer["relation"] in open_run("runs/mtb").description.task.labels
