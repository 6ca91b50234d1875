"""The audit: hand-made cases, scikit-learn, a planted leak, and the published files' figures."""

import json

import numpy as np
import pytest
from sklearn.metrics import mutual_info_score, precision_recall_fscore_support

from finetune.data.audit import audit_features, label_of, main, trailing_types
from finetune.tasks.leakage import contingency, mutual_information
from finetune.tasks.region_cache import Region, Regions, write_regions

RELATIONS = ["None", "/per/per/peer", "/per/org/member_of", "/misc/misc/part_of"]


def test_by_hand():
    """2 -> None, 4 -> peer; an unseen value -> the majority."""
    result = audit_features(
        [2, 2, 2, 4, 4, 4, 4],
        ["None", "None", "part_of", "peer", "peer", "member_of", "None"],
        [2, 4, 4, 9, 2],
        ["None", "peer", "member_of", "None", "part_of"],
    )
    assert result.majority_accuracy == 40
    assert result.look_up.accuracy == 60 and result.look_up.positives == 2
    assert result.look_up.precision == 50 and result.look_up.recall == pytest.approx(100 / 3)
    assert result.related.precision == 100 and result.related.recall == pytest.approx(200 / 3)
    assert result.contingency["2"] == {"None": 2, "part_of": 1}
    assert result.excess == pytest.approx(20) and result.flagged


@pytest.mark.parametrize("seed", range(5))
def test_against_scikit_learn(seed):
    generator = np.random.default_rng(seed)
    labels = generator.choice(RELATIONS, size=600, p=[0.6, 0.2, 0.15, 0.05])
    leak = np.array([RELATIONS.index(label) for label in labels])
    noise = generator.random(600) < 0.3
    features = np.where(noise, generator.integers(0, 5, 600), leak).tolist()
    labels = labels.tolist()
    counts = contingency(features[:400], labels[:400])
    expected = mutual_info_score(features[:400], labels[:400]) / np.log(2)
    assert mutual_information(counts) == pytest.approx(expected)
    result = audit_features(features[:400], labels[:400], features[400:], labels[400:])
    table = {value: counts[value].most_common(1)[0][0] for value in counts}
    guesses = [table[value] for value in features[400:]]
    precision, recall, f1, _ = precision_recall_fscore_support(
        labels[400:], guesses, labels=RELATIONS[1:], average="micro", zero_division=0
    )
    assert result.look_up.f1 == pytest.approx(100 * f1)
    assert result.look_up.precision == pytest.approx(100 * precision)
    assert result.look_up.recall == pytest.approx(100 * recall)
    assert result.look_up.accuracy == pytest.approx(
        100 * np.mean(np.array(guesses) == labels[400:])
    )


def test_many_values_that_never_return_pass():
    """A picture's name is unique to a split: the table knows none of them, and says None."""
    labels = ["None"] * 60 + ["peer"] * 40
    result = audit_features([*range(100)], labels, [*range(100, 200)], labels)
    assert result.excess == 0 and not result.flagged
    assert len(result.contingency) == 13 and sum(result.contingency["(others)"].values()) == 88


def test_json_form_is_complete():
    result = audit_features([1, 1], ["None", "x"], [1], ["None"], name="f")
    fields = json.loads(json.dumps(result.to_dict()))
    assert fields["verdict"] == "pass" and fields["look_up"]["f1"] == 0 and fields["feature"] == "f"


def test_trailing_types():
    assert trailing_types("Bill Cosby Hollywood person") == ("person",)
    assert trailing_types("Ronaldo Messi person person") == ("person", "person")
    assert trailing_types("person Bob Oslo") == ()
    assert trailing_types("a person b location") == ("location",)
    assert trailing_types("person") == ("person",)


def test_label_of_entities():
    assert label_of("peer") == "peer"
    assert label_of(["O", "B-PER", "I-PER", "B-LOC", "B-PER"]) == "LOC PER"
    assert label_of(["O"]) == "None"


# ---- command ---------------------------------------------------------------------------------


@pytest.fixture
def corpus(tmp_path):
    """A small MNRE folder; rows of both splits cycle through the relations, half of them None."""
    (tmp_path / "txt").mkdir()
    (tmp_path / "ours_rel2id.json").write_text(json.dumps({r: i for i, r in enumerate(RELATIONS)}))
    generator = np.random.default_rng(0)
    for split, size in (("train", 400), ("val", 100)):
        lines = []
        for row in range(size):
            relation = RELATIONS[generator.integers(4)] if row % 2 else "None"
            lines.append(
                {
                    "token": ["Bob", "in", "Oslo"],
                    "h": {"name": "Bob", "pos": [0, 1]},
                    "t": {"name": "Oslo", "pos": [2, 3]},
                    "img_id": f"{split}_{row // 2}.jpg",
                    "relation": relation,
                }
            )
        path = tmp_path / "txt" / f"ours_{split}.txt"
        path.write_text("".join(f"{line}\n" for line in lines))
    return tmp_path


def write_cache(corpus, folder, leaky):
    """Regions whose number is the relation's id (leaky), or drawn at random."""
    folder.mkdir()
    generator = np.random.default_rng(1)
    box = Region((1, 1, 5, 5), 0.5, "x", "noun")
    for split in ("train", "val"):
        entries = {}
        for row, line in enumerate((corpus / "txt" / f"ours_{split}.txt").read_text().splitlines()):
            relation = next(i for i in (3, 2, 1, 0) if RELATIONS[i] in line)
            number = relation if leaky else int(generator.integers(4))
            entries[row] = Regions("x.jpg", (10, 10), (box,) * number)
        write_regions(folder / f"regions_vg_{split}.jsonl", {"leaky": leaky}, entries)
    return folder


def test_leaky_cache_is_flagged_and_its_shuffle_passes(corpus, tmp_path, capsys):
    cache = write_cache(corpus, tmp_path / "leaky", leaky=True)
    options = ["--data", str(corpus), "--regions", str(cache), "--strict"]
    with pytest.raises(SystemExit) as stop:
        main([*options, "--out", str(tmp_path / "audit.json")])
    assert stop.value.code == 1
    assert "FLAGGED regions: number grounded" in capsys.readouterr().out
    written = json.loads((tmp_path / "audit.json").read_text())["splits"]["val"]
    assert written[0]["verdict"] == "flagged" and written[0]["look_up"]["accuracy"] == 100
    main([*options, "--shuffle", "3"])
    assert "FLAGGED" not in capsys.readouterr().out


def test_label_free_cache_passes(corpus, tmp_path, capsys):
    cache = write_cache(corpus, tmp_path / "fair", leaky=False)
    main(["--data", str(corpus), "--regions", str(cache), "--strict"])
    assert "pass" in capsys.readouterr().out


def test_any_feature_file(corpus, tmp_path, capsys):
    for split, size in (("train", 400), ("val", 100)):
        lines = [json.dumps({"row": row, "feature": [row % 3, {"a": 1}]}) for row in range(size)]
        (tmp_path / f"f_{split}.jsonl").write_text("\n".join(lines))
    options = ["--data", str(corpus), "--features", str(tmp_path / "f_{split}.jsonl")]
    main(options)
    assert "file: f_{split}.jsonl" in capsys.readouterr().out
    (tmp_path / "f_val.jsonl").write_text(lines[0])
    with pytest.raises(SystemExit) as stop:
        main(options)
    assert stop.value.code == 2
    assert "no entry for 1 in val" in capsys.readouterr().err


@pytest.mark.parametrize(
    "options",
    [[], ["--crops"], ["--phrases"], ["--boxes"], ["--regions", "."], ["--types", "."]],
    ids=lambda options: " ".join(options) or "nothing",
)
def test_one_line_where_something_is_missing(corpus, options, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--data", str(corpus), *options])
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    origin = {
        "--crops": "lists of grounded crops are in the MNRE archive", "--boxes": "TMR's boxes",
        "--phrases": "TMR's grounding phrases", "--types": "`python -m finetune types` makes it",
    }  # fmt: skip
    assert origin.get(options[0] if options else "", "") in error


def test_overlap(corpus, capsys):
    """The corpus repeats one sentence; two rows of a picture with unlike relations contradict."""
    main(["--data", str(corpus), "--overlap"])
    train, val, both = capsys.readouterr().out.splitlines()
    assert train.startswith("train: 400 rows, 200 pictures, ") and "(first: " in train
    assert val.startswith("val: 100 rows, 50 pictures, ")
    assert both.startswith("val: also in train: 1 post in 100 rows, 0 pictures, ")


def test_overlap_of_the_real_rows(shared_data, capsys):
    """specs/focalmre.md §1.1: no repeated row, no shared picture, five posts of val in train."""
    main(["--data", str(shared_data / "mnre"), "--overlap"])
    out = capsys.readouterr().out
    assert "train: 12247 rows, 7356 pictures, 0 repeated, 27 (first: " in out
    assert (
        "train: head and tail share words in 59 rows (first: 678), one within the other in" in out
    )
    assert (
        "val: also in train: 5 posts in 6 rows, 0 pictures, 6 questions (6 with another answer)"
        in out
    )
    main(["--data", str(shared_data / "twitter2017"), "--task", "twitter2017", "--overlap"])
    assert "train: 3373 rows" in capsys.readouterr().out


# ---- the published files: validation figures ---------------------------------------------------

GOLDEN = {
    # feature: accuracy, P, R, F1 of the table; accuracy, P, R of related-or-not
    "crops: number": (72.72, 29.72, 29.01, 29.36, 99.08, 100.0, 97.60),
    "crops: at least 3": (68.97, 19.70, 19.23, 19.46, 99.08, 100.0, 97.60),
    "phrases: type words": (93.41, 84.89, 82.85, 83.86, 99.08, 100.0, 97.60),
}


def test_community_files_leak(shared_data, tmp_path):
    """specs/focalmre.md §0 gives the test rows' figures; these are the validation rows'."""
    options = ["--data", str(shared_data / "mnre"), "--crops", "--phrases", "--boxes"]
    out = tmp_path / "audit.json"
    main([*options, "--out", str(out)])
    found = {r["feature"]: r for r in json.loads(out.read_text())["splits"]["val"]}
    for feature, expected in GOLDEN.items():
        result = found[feature]
        table, related = result["look_up"], result["related"]
        got = [table[name] for name in ("accuracy", "precision", "recall", "f1")]
        got += [related[name] for name in ("accuracy", "precision", "recall")]
        assert got == pytest.approx(expected, abs=0.005), feature
        assert result["majority_accuracy"] == pytest.approx(61.576, abs=0.001)
    assert found["crops: at least 3"]["look_up"]["positives"] == 609
    assert {result["verdict"] for result in found.values()} == {"flagged"}
    # The contingency of specs/focalmre.md §0: None has two crops, but for two rows with one.
    crops = found["crops: number"]["contingency"]
    assert crops["2"] == {"None": 7742, "/misc/misc/part_of": 81} and crops["1"] == {"None": 2}
    main([*options, "--shuffle", "0", "--strict"])  # would exit 1
