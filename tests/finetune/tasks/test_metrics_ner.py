"""Entity scores against seqeval on random tags and against the worked examples."""

import warnings

import numpy as np
import pytest
from seqeval.metrics import (
    accuracy_score,
    classification_report,
    f1_score,
    precision_score,
    recall_score,
)
from seqeval.metrics.sequence_labeling import get_entities

from finetune.tasks.metrics import (
    entities,
    entity_scores,
    entity_scores_by_type,
    hvpnet_entity_scores,
    padded,
    without_strays,
)

BIO = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC", "B-ORG", "I-ORG"]
ODD = [*BIO, "X", "PAD", "[SEP]", "[CLS]", "E-PER", "S-LOC", "B", "I", "B-a-b"]


def random_case(generator: np.random.Generator):
    """A few sentences of gold and predicted tags; every second case with odd predictions."""
    tags = ODD if generator.random() < 0.5 else BIO
    sentences = generator.integers(1, 5)
    lengths = generator.integers(1, 9, size=sentences)
    return (
        [[BIO[i] for i in generator.integers(len(BIO), size=n)] for n in lengths],
        [[tags[i] for i in generator.integers(len(tags), size=n)] for n in lengths],
    )


def test_equals_seqeval_on_1000_random_cases():
    generator = np.random.default_rng(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # seqeval warns of odd tags and of empty classes
        for _ in range(1000):
            gold, predicted = random_case(generator)
            assert [entities(tags) for tags in predicted] == list(map(get_entities, predicted))
            ours = entity_scores(gold, predicted, scorer="legacy")
            for name, oracle in [
                ("f1", f1_score),
                ("precision", precision_score),
                ("recall", recall_score),
                ("accuracy", accuracy_score),
            ]:
                assert ours[name] == pytest.approx(100 * oracle(gold, predicted), abs=1e-9), name
            report = classification_report(gold, predicted, output_dict=True)
            by_type = entity_scores_by_type(gold, predicted, scorer="legacy")
            for kind, scores in by_type.items():
                assert scores["support"] == report[kind]["support"]
                assert scores["f1"] == pytest.approx(100 * report[kind]["f1-score"], abs=1e-9)
            assert by_type.keys() == report.keys() - {"micro avg", "macro avg", "weighted avg"}


@pytest.mark.parametrize(
    ("gold", "predicted", "precision", "recall", "f1"),
    [
        ("O B-PER I-PER O B-LOC", "O B-PER O O B-LOC", 0.5, 0.5, 0.5),
        ("B-PER I-PER O", "I-PER I-PER O", 1, 1, 1),
        ("B-PER I-PER O", "B-PER I-ORG O", 0, 0, 0),
        ("B-PER B-PER O", "B-PER I-PER O", 0, 0, 0),
        ("O O B-PER", "O X B-PER", 0.5, 1, 0.6667),
        ("O O B-PER", "X [SEP] B-PER", 0.3333, 1, 0.5),
        ("B-PER O O", "B-PER PAD O", 0.5, 1, 0.6667),
        ("B-PER O O", "B-PER X O", 1, 1, 1),
        ("O O O", "O O O", 0, 0, 0),
    ],
)
def test_worked_examples(gold, predicted, precision, recall, f1):
    """specs/hvpnet.md §5.2."""
    scores = entity_scores([gold.split()], [predicted.split()], scorer="legacy")
    assert scores["precision"] == pytest.approx(100 * precision, abs=0.01)
    assert scores["recall"] == pytest.approx(100 * recall, abs=0.01)
    assert scores["f1"] == pytest.approx(100 * f1, abs=0.01)


def test_fixed_scorer_reads_odd_predictions_as_o():
    gold = [["O", "O", "B-PER"]]
    for stray in ("O X B-PER", "X [SEP] B-PER", "PAD [CLS] B-PER"):
        assert entity_scores(gold, [stray.split()])["f1"] == 100
    with pytest.raises(ValueError, match="scorer"):
        entity_scores(gold, gold, scorer="lenient")


def test_hvpnets_scorer_by_hand_and_by_seqeval():
    """A sentence cut after three of five words, a word without a piece, an X where O is right, an X
    within an entity."""
    gold = ["B-PER I-PER O O B-LOC", "O B-ORG O B-PER", "B-LOC I-LOC O O"]
    told = ["B-PER I-PER O", "X  O B-PER", "B-LOC X O O"]
    gold, told = ([line.split(" ") for line in lines] for lines in (gold, told))
    answers, strays = zip(*map(without_strays, told), strict=True)
    assert strays == ({}, {0: "X", 1: ""}, {1: "X"})
    assert answers[1] == ["O", "O", "O", "B-PER"] and answers[2][1] == "O"
    scores = hvpnet_entity_scores(gold, answers, strays)
    truth = [gold[0][:3], ["O", "O", "B-PER"], gold[2]]
    said = [told[0], ["X", "O", "B-PER"], told[2]]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name, oracle in (("precision", precision_score), ("recall", recall_score)):
            assert scores[name] == pytest.approx(100 * oracle(truth, said))
    ours = entity_scores(gold, padded(gold, answers))
    assert (ours["precision"], ours["recall"]) == (pytest.approx(200 / 3), 40)  # LOC and ORG missed
    assert scores["recall"] == pytest.approx(200 / 3)  # of three: LOC and ORG are not asked
    same = hvpnet_entity_scores(gold, gold)
    assert same == entity_scores(gold, gold) and same["f1"] == 100


def test_unequal_lengths_are_refused():
    with pytest.raises(ValueError, match="zip"):
        entity_scores([["O", "O"]], [["O"]])
    with pytest.raises(ValueError, match="zip"):
        entity_scores([["O"]], [])


@pytest.mark.parametrize(("year", "split", "count"), [(2015, "train", 6352), (2017, "valid", 1324)])
def test_entities_of_the_real_files(shared_data, year, split, count):
    """Orphan I- tags counted as the scorer counts them: specs/hvpnet.md §1.3."""
    path = shared_data / f"twitter{year}" / f"{split}.txt"
    total = 0
    for block in path.read_text(encoding="utf-8").split("\n\n"):
        total += len(entities([line.split("\t")[1] for line in block.split("\n")[1:] if line]))
    assert total == count
