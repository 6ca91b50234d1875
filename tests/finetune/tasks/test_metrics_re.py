"""Relation scores equal scikit-learn's and the worked examples of hvpnet.md and tmr.md."""

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, precision_recall_fscore_support

from finetune.tasks.metrics import (
    negative_class,
    relation_counts,
    relation_scores,
    relation_scores_by_label,
)


def test_equal_to_scikit_learn():
    """1,000 random cases, labels 1…22; zero where undefined."""
    generator = np.random.default_rng(0)
    for _ in range(1000):
        size, classes = generator.integers(1, 60), generator.integers(2, 24)
        gold, predicted = generator.integers(0, classes, (2, size))
        if generator.random() < 0.1:
            predicted[:] = 0
        if generator.random() < 0.05:
            gold[:] = 0
        found = relation_scores(gold, predicted, none=0)
        expected = precision_recall_fscore_support(
            gold, predicted, labels=range(1, 23), average="micro", zero_division=0
        )
        for name, value in zip(("precision", "recall", "f1"), expected[:3], strict=True):
            assert found[name] == pytest.approx(100 * value, abs=1e-9)
        assert found["accuracy"] == pytest.approx(100 * accuracy_score(gold, predicted))


@pytest.mark.parametrize(
    ("gold", "predicted", "expected"),
    [
        ([0, 3, 9, 15, 5, 0, 12, 7], [2, 3, 0, 15, 14, 0, 0, 7], (50, 60, 50, 54.5455)),
        (
            [0, 0, 3, 9, 15, 15, 5, 0, 12, 0, 3],
            [0, 5, 3, 0, 15, 14, 5, 0, 12, 0, 9],
            (63.6364, 57.1429, 57.1429, 57.1429),
        ),
        ([0, 1, 2, 0], [0, 0, 0, 0], (50, 0, 0, 0)),
        ([0, 0], [0, 0], (100, 0, 0, 0)),
    ],
)
def test_worked_examples(gold, predicted, expected):
    found = relation_scores(gold, predicted, none=0)
    names = ("accuracy", "precision", "recall", "f1")
    assert [found[name] for name in names] == pytest.approx(expected, abs=1e-4)


def test_without_negative_class():
    """Every label counts: F1 is accuracy."""
    found = relation_scores([0, 1, 2, 2], [0, 1, 1, 2], none=None)
    assert found["f1"] == found["accuracy"] == 75


@pytest.mark.parametrize(
    ("labels", "negative"),
    [
        (("a", "None", "Other"), "None"),
        (("Other", "a"), "Other"),
        (("a", "No relation"), "No relation"),
        (("NO_RELATION", "a"), "NO_RELATION"),
        (("N/A", "a"), "N/A"),
        (("a", "another", "nonesuch"), None),
    ],
)
def test_names_of_the_negative_class(labels, negative):
    assert negative_class(labels) == negative_class(labels[::-1]) == negative


def test_the_negative_class_is_the_task_s_not_the_rows_at_hand():
    """Of a task with None and Other, rows without None: Other is a relation there, too."""
    gold, predicted = ["Other", "a", "a"], ["Other", "Other", "a"]
    assert relation_counts(gold, predicted, "None").sum(0).tolist() == [2, 3, 3]
    assert relation_scores(gold, predicted, "None")["f1"] == pytest.approx(200 / 3)
    assert set(relation_scores_by_label(gold, predicted, "None")) == {"Other", "a"}
