"""Scores of single relations, against scikit-learn, and of bins of them by hand."""

import numpy as np
import pytest
from sklearn.metrics import f1_score

from finetune.tasks import metrics


def test_scores_by_label_equal_scikit_learn():
    generator = np.random.default_rng(0)
    names = np.array(["None", "a", "b", "c", "d"])
    for _ in range(100):
        gold, predicted = names[generator.integers(0, 5, (2, 40))].tolist()
        found = metrics.relation_scores_by_label(gold, predicted, "None")
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
