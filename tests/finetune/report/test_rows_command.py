"""`finetune rows`: posts with all their pairs, and the gates of a finished run."""

import json

import pytest
from results_by_hand import RESULT, result_of

from finetune.__main__ import main

RELATIONS = ("None", "/per/per/couple", "/per/org/member_of")


@pytest.fixture
def data(tmp_path):
    """Four rows: two pairs of one post, the same words with another picture, another post."""
    folder = tmp_path / "mnre"
    (folder / "txt").mkdir(parents=True)
    (folder / "ours_rel2id.json").write_text(json.dumps({r: i for i, r in enumerate(RELATIONS)}))
    words = ["Ann", "Lee", "and", "Bob", "in", "Oslo"]
    found = [
        (words, (0, 2), (3, 4), "a.jpg", 1),
        (words, (3, 4), (5, 6), "a.jpg", 2),
        (words, (0, 2), (3, 4), "b.jpg", 0),
        ([*words, "!"], (0, 2), (5, 6), "a.jpg", 2),
    ]
    lines = [
        repr(
            {
                "token": tokens,
                "h": {"name": " ".join(tokens[slice(*head)]), "pos": list(head)},
                "t": {"name": " ".join(tokens[slice(*tail)]), "pos": list(tail)},
                "img_id": image,
                "relation": RELATIONS[gold],
            }
        )
        for tokens, head, tail, image, gold in found
    ]
    (folder / "txt" / "ours_test.txt").write_text("\n".join(lines) + "\n")
    return folder


def run_folder(folder, answers, gold=(1, 2, 0, 2), **result):
    (folder / "seed-1").mkdir(parents=True)
    lines = [
        json.dumps({"row": i, "gold": RELATIONS[right], "pred": RELATIONS[said]})
        for i, (right, said) in enumerate(zip(gold, answers, strict=True))
    ]
    (folder / "seed-1" / "pred_test.jsonl").write_text("\n".join(lines) + "\n")
    (folder / "result.json").write_text(json.dumps(result_of(**result)))
    return str(folder)


def test_posts_on_which_runs_differ(data, tmp_path, capsys):
    one = run_folder(tmp_path / "mtb", (1, 2, 0, 0))
    two = run_folder(tmp_path / "dgfpt", (1, 1, 0, 0))
    main(["rows", "tweets", one, two, "--data", str(data)])
    first, *rest = capsys.readouterr().out.splitlines()
    assert first == "Ann Lee and Bob in Oslo  [a.jpg]"
    assert rest == [  # the pair on which they agree belongs to the post, too
        "  0: Ann Lee → Bob  gold: /per/per/couple  mtb: /per/per/couple  dgfpt: /per/per/couple",
        "  1: Bob → Oslo  gold: /per/org/member_of  mtb: /per/org/member_of  "
        "dgfpt: */per/per/couple",
        "1 of 3 posts: those on which the runs disagree",
    ]
    main(["rows", "tweets", one, "--data", str(data), "--all"])
    out = capsys.readouterr().out
    assert out.endswith("3 of 3 posts\n") and out.count("gold:") == 4


def test_what_is_refused(data, tmp_path, capsys):
    one = run_folder(tmp_path / "mtb", (1, 2, 0, 0))
    other = run_folder(tmp_path / "other", (1, 2, 0, 0), gold=(1, 2, 1, 2))
    tags = run_folder(
        tmp_path / "ner", (1, 2, 0, 0), provenance=RESULT["provenance"] | {"kind": "entities"}
    )
    for runs, message in (
        ([one], "one run disagrees with nobody"),
        ([one, other], "other: answered other rows than test of"),
        ([tags, one], "runs of one task with relations"),
        ([one, str(tmp_path / "gone")], "not a finished run"),
    ):
        with pytest.raises(SystemExit) as stopped:
            main(["rows", "tweets", *runs, "--data", str(data)])
        error = capsys.readouterr().err
        assert stopped.value.code == 2 and message in error and error.count("\n") == 1
    (tmp_path / "mtb/seed-1/pred_test.jsonl").write_text("{}\n")
    with pytest.raises(SystemExit):
        main(["rows", "tweets", one, "--all", "--data", str(data)])
    assert "damaged" in capsys.readouterr().err


def test_gates_of_a_finished_run(mnre_folder, tiny_model, tmp_path, capsys):
    run, views = tmp_path / "dgfpt", tmp_path / "views"
    common = f"--data {mnre_folder} --out"
    main(
        f"train --task mnre --method dgfpt --init {tiny_model} --fraction 0.2 --optim.epochs 1 "
        f"--model.vision test_resnet --model.vision_random true --model.image_size 32 "
        f"--model.objects 0 --regions none {common} {run}".split()
    )
    main(f"view align-noise --ratio 0.5 --scope test {common} {views}".split())
    capsys.readouterr()
    out = tmp_path / "gates.jsonl"
    main(f"rows gates {run} --view {views}/test.jsonl {common} {out}".split())
    records = [json.loads(line) for line in out.read_text().splitlines()]
    assert [record["row"] for record in records] == list(range(30))
    assert sum(record["changed"] for record in records) == 15
    # The probabilities are those of `evaluate` under the same view.
    main(f"evaluate {run} --data {mnre_folder} --view {views}/test.jsonl".split())
    (answers,) = (run / "seed-1").glob("pred_test_*.jsonl")
    said = answers.read_text().splitlines()
    labels = json.loads((mnre_folder / "ours_rel2id.json").read_text())
    for record, answer in zip(records, map(json.loads, said), strict=True):
        assert record["gold"] == answer["gold"]
        assert record["after"] == pytest.approx(answer["scores"][labels[answer["gold"]]], abs=1e-4)
    table = capsys.readouterr().out.splitlines()
    assert table[1].split()[0] == table[2].split()[0] == "15"
    with pytest.raises(SystemExit):
        main(f"rows gates {run} --split dev --view {views}/test.jsonl {common} {out}".split())
    assert "made for test, not for val" in capsys.readouterr().err
