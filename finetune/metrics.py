"""Scores in percent. Relations: hvpnet.md §5.1, the field's convention."""

from collections.abc import Sequence

import numpy as np

NO_RELATION = ("None", "none", "NA", "na", "no_relation", "Other", "Others")
"""Names of the negative class; the first that a label list has is left out of P, R and F1."""


def relation_scores(
    gold: Sequence[int], predicted: Sequence[int], none_id: int | None
) -> dict[str, float]:
    """Micro precision, recall, F1 over all relations but `none_id`, and accuracy over all.

    A wrong relation on a related row costs precision and recall; a relation on a None row costs
    precision alone. A score whose denominator is zero is zero.
    """
    gold, predicted = np.asarray(gold), np.asarray(predicted)
    negative = -1 if none_id is None else none_id
    correct = int(((gold == predicted) & (gold != negative)).sum())
    claimed, related = int((predicted != negative).sum()), int((gold != negative).sum())
    return {
        **prf(correct, claimed, related),
        "accuracy": 100 * float((gold == predicted).mean()) if len(gold) else 0.0,
    }


def prf(correct: int, claimed: int, related: int) -> dict[str, float]:
    """F1, precision, recall in percent from counts; zero where undefined."""
    precision = correct / claimed if claimed else 0.0
    recall = correct / related if related else 0.0
    total = claimed + related
    return {
        "f1": 100 * 2 * correct / total if total else 0.0,
        "precision": 100 * precision,
        "recall": 100 * recall,
    }
