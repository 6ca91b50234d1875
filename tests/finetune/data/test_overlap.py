"""What test rows share with training rows, and what figures are without these."""

import json

from finetune.__main__ import main
from finetune.data.overlap import also_in, peculiarities
from finetune.run.evaluate import trained_rows
from finetune.run.results import Predictions
from finetune.tasks import metrics
from finetune.tasks.mnre import Mnre, RelationRow


def row(number, text, head, tail, relation="None", image="a.jpg"):
    return RelationRow(
        row=number, image_id=image, tokens=tuple(text.split()), head=head, tail=tail,
        relation=relation,
    )  # fmt: skip


def test_the_same_question_whatever_picture_and_answer():
    train = [row(0, "Ann met Bob", (0, 1), (2, 3), "/per/per/peer")]
    test = [
        row(0, "Ann met Bob", (0, 1), (2, 3), "None", "other.jpg"),
        row(1, "Ann met Bob", (2, 3), (0, 1)),  # head and tail exchanged: another question
        row(2, "Ann met Tom", (0, 1), (2, 3)),
    ]
    assert also_in(train, test) == [True, False, False]


def test_nested_entities_are_told_from_overlapping_ones():
    rows = [
        row(0, "New York City Council", (0, 3), (0, 4)),
        row(1, "New York City Council", (0, 2), (1, 4)),
        row(2, "New York City Council", (0, 2), (2, 4)),
    ]
    (fact,) = peculiarities(rows)
    assert fact == "head and tail share words in 2 rows (first: 1), one within the other in 1"


def test_a_run_says_how_many_test_rows_it_was_trained_on(mnre_folder, tiny_model, tmp_path, capsys):
    """Two test rows are made training rows of another answer; the F1 without them is that of the
    other rows."""
    lines = (mnre_folder / "txt/ours_test.txt").read_text().splitlines()
    known = [eval(line) for line in lines[:2]]  # our own literals
    with (mnre_folder / "txt/ours_train.txt").open("a") as train:
        train.writelines(f"{fields | {'img_id': '0.jpg'}}\n" for fields in known)
    main(
        f"train --task mnre --method mtb --data {mnre_folder} --init {tiny_model} --images none "
        f"--optim.epochs 1 --out {tmp_path}/run".split()
    )
    result = json.loads((tmp_path / "run/seed-1/result.json").read_text())
    task = Mnre(mnre_folder)
    shared = also_in(task.read("train"), task.read("test"))
    assert shared[:2] == [True, True] and not all(shared)
    given = Predictions.read(tmp_path / "run/seed-1/pred_test.jsonl")
    rest = [(g, a) for g, a, out in zip(given.gold, given.answers, shared, strict=True) if not out]
    gold, answers = zip(*rest, strict=True)
    expected = metrics.relation_scores(gold, answers, none=task.info.negative)["f1"]
    assert result["also_in_train"]["test"] == {"rows": sum(shared), "f1_without": expected}
    line = f"test rows also in train: {sum(shared)}; f1 {expected:.2f} without them\n"
    assert capsys.readouterr().out.count(line) == 1
    main(f"evaluate {tmp_path}/run --data {mnre_folder}".split())
    assert capsys.readouterr().out.endswith(line)
    again = json.loads((tmp_path / "run/evaluate_test.json").read_text())["per_seed"]
    assert again[0]["also_in_train"] == {"test": result["also_in_train"]["test"]}


def test_an_evaluation_counts_the_rows_that_were_trained_on(
    mnre_folder, tiny_model, tmp_path, caplog
):
    """Of a share, rows of a view left out; none where the training file is another by now."""
    view = tmp_path / "train.jsonl"
    main(f"view kshot --k 20 --data {mnre_folder} --out {view}".split())
    main(
        f"train --task mnre --method mtb --data {mnre_folder} --init {tiny_model} --images none "
        f"--optim.epochs 1 --fraction 0.5 --seeds 3 --view {view} --out {tmp_path}/run".split()
    )
    seed, task = tmp_path / "run/seed-3", Mnre(mnre_folder)
    result = json.loads((seed / "result.json").read_text())
    rows = trained_rows(seed, task)
    assert len(rows) == result["train_rows"] < len(task.read("train")) / 2
    assert sum(also_in(rows, task.read("test"))) == result["also_in_train"]["test"]["rows"]
    with (mnre_folder / "txt/ours_train.txt").open("a") as train:
        train.write("\n")
    assert trained_rows(seed, task) is None
    mnre_folder.rename(tmp_path / "moved")
    assert trained_rows(seed, Mnre(tmp_path / "moved")) is None
    assert "rows also in train are not counted: " in caplog.text
