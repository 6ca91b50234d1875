"""An installed package brings a method with inputs that nobody here has heard of."""

import json
import os
import subprocess
from pathlib import Path

import pytest

from finetune.tasks.mnre import Mnre

EXAMPLE = Path(__file__).parents[1] / "example_method" / "marks.py"
ROOT = Path(__file__).parents[3]
CUT_OFF = """
import os, signal, sys
from pathlib import Path
import marks
forward = marks.Marked.forward
def dying(self, batch):
    if (Path(sys.argv[1]) / "seed-1" / "resume").exists():
        os.kill(os.getpid(), signal.SIGKILL)
    return forward(self, batch)
marks.Marked.forward = dying
"""
"""Dies in the middle of the epoch after the first one that was kept."""
COMMANDS = """
import json, sys
from finetune.__main__ import main
for words in json.loads(sys.argv[2]):
    main(words)
"""


@pytest.fixture
def environment(tmp_path):
    """A package as an installer leaves it: a module, and metadata with its entry point."""
    site = tmp_path / "site"
    info = site / "marks_package-1.0.dist-info"
    info.mkdir(parents=True)
    (site / "marks.py").write_text(EXAMPLE.read_text())
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: marks-package\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[fusion_mre.methods]\nmarked = marks:Marked\n")
    return {**os.environ, "PYTHONPATH": f"{site}:{ROOT}", "OMP_NUM_THREADS": "1"}


def python(interpreter, environment, code, *words):
    return subprocess.run(
        [interpreter.path / "python", "-c", code, *map(str, words)],
        env=environment, cwd=environment["PYTHONPATH"].partition(":")[0],
        capture_output=True, text=True, check=False,
    )  # fmt: skip


def write_marks(folder):
    """As many marks as the number of the row's relation."""
    task = Mnre(folder)
    for split in ("train", "val", "test"):
        lines = [
            {"row": row.row, "feature": [1] * task.info.labels.index(row.relation)}
            for row in task.read(split)
        ]
        (folder / f"marks_{split}.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return task.info.labels


def test_it_trains_resumes_predicts_and_reports(
    tmp_path, environment, interpreter, mnre_folder, tiny_model
):
    labels, out = write_marks(mnre_folder), tmp_path / "run"
    train = ["train", "--task", "mnre", "--method", "marked", "--data", str(mnre_folder), "--init",
             str(tiny_model), "--out", str(out), "--optim.epochs", "8", "--optim.lr", "1e-3",
             "--optim.head_lr", "1e-2"]  # fmt: skip
    killed = python(interpreter, environment, CUT_OFF + COMMANDS, out, json.dumps([train]))
    assert killed.returncode == -9 and not (out / "result.json").exists(), killed.stderr

    posts = [
        {"text": "Ann and Bob tonight" + " !" * number, "head": "Ann", "tail": "Bob"}
        for number in range(len(labels))
    ]
    (tmp_path / "posts.jsonl").write_text("\n".join(map(json.dumps, posts)))
    commands = [
        train,
        ["evaluate", str(out), "--data", str(mnre_folder), "--split", "test"],
        ["predict", str(out), "--input", str(tmp_path / "posts.jsonl"),
         "--out", str(tmp_path / "answers.jsonl")],
        ["report", str(out), "--out", str(tmp_path / "report.md")],
    ]  # fmt: skip
    done = python(interpreter, environment, COMMANDS, out, json.dumps(commands))
    assert done.returncode == 0, done.stderr

    metrics = map(json.loads, (out / "seed-1/metrics.jsonl").read_text().splitlines())
    epochs = [line["epoch"] for line in metrics if "epoch" in line]
    assert sorted(set(epochs)) == list(range(1, 9))  # the first one from before the kill
    result = json.loads((out / "result.json").read_text())
    assert result["test"]["f1"]["mean"] > 90  # nothing but the marks tells the relation
    assert result["provenance"]["data"][str(mnre_folder / "marks_train.jsonl")]
    (audit,) = (e for e in result["provenance"]["audit"] if e["feature"] == "marks: number")
    assert audit["verdict"] == "flagged"
    again = json.loads((out / "evaluate_test.json").read_text())
    assert again["f1"] == result["test"]["f1"]
    answers = map(json.loads, (tmp_path / "answers.jsonl").read_text().splitlines())
    assert [answer["relation"] for answer in answers] == list(labels)
    assert "marked" in (tmp_path / "report.md").read_text()
