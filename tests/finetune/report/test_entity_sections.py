"""Reports on entities: types, what becomes what, and the sentences that went wrong most."""

import json

from finetune.__main__ import main
from finetune.report.entity_sections import entity_cases, entity_pairs, entity_table, scorer_table
from finetune.run.results import Predictions

GOLD = [["B-PER", "I-PER", "O", "B-LOC"], ["O", "B-ORG"], ["O", "O"]]
SAID = [["B-PER", "I-PER", "O", "B-ORG"], ["O", "O"], ["B-LOC", "O"]]
SEED = Predictions([0, 1, 4], GOLD, SAID, None)


def test_types_pairs_and_cases():
    table = entity_table({"mine": [SEED, Predictions([0, 1, 4], GOLD, GOLD, None)]})
    assert table.rows == [
        ["LOC", "1", "50.00"],
        ["ORG", "1", "50.00"],
        ["PER", "1", "100.00"],
    ]
    pairs = list(zip(*entity_pairs([SEED]), strict=True))
    assert pairs == [("PER", "PER"), ("LOC", "ORG"), ("ORG", "None"), ("None", "LOC")]
    assert entity_cases(SEED, most=2).rows == [
        ["0", "2", "LOC 3–3", "ORG 3–3"],
        ["1", "1", "ORG 1–1", "–"],
    ]


def test_both_scorers_side_by_side():
    """The second sentence was cut before its entity; a stray tag in the first makes one."""
    said = [SAID[0], ["O"], ["O", "O"]]
    run = Predictions([0, 1, 4], GOLD, said, None, [{2: "X"}, {}, {}])
    (row,) = scorer_table({"mine": [run]}).rows
    assert row == ["mine", "40.00", "50.00", "33.33", "40.00", "33.33", "50.00", "1", "1"]


def test_a_report_of_entities(tmp_path, tiny_model, capsys):
    for split in ("train", "valid", "test"):
        tweets = (f"IMGID:{i}\nBob\tB-PER\nin\tO\nOslo\tB-LOC\n\n" for i in range(8))
        (tmp_path / f"{split}.txt").write_text("".join(tweets))
    main(
        f"train --task twitter2017 --method bert_crf --data {tmp_path} --init {tiny_model} "
        f"--images none --optim.epochs 1 --out {tmp_path}/ner".split()
    )
    main(f"report {tmp_path}/ner --out {tmp_path}/report.md".split())
    text = (tmp_path / "report.md").read_text()
    assert "## As HVPNeT's code counts twitter2017" in text
    capsys.readouterr()
    main(f"evaluate {tmp_path}/ner --data {tmp_path} --scorer hvpnet".split())
    told = json.loads((tmp_path / "ner/evaluate_test_scorer-hvpnet.json").read_text())
    assert told["scorer"] == "hvpnet" and not (tmp_path / "ner/evaluate_test.json").exists()
    assert f"f1 {told['f1']['mean']:.2f}" in capsys.readouterr().out
    assert "## Entity types of twitter2017" in text and "## Hardest cases of twitter2017" in text
    assert (tmp_path / "report_twitter2017_confusion.png").is_file()
