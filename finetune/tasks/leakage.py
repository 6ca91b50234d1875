"""Look-up tables that see neither text nor pixels: what one feature tells about the label.

A table "value -> most frequent relation", fitted on train and scored on other rows, makes a leak
visible in any input: counts, padding masks, phrase kinds, entity types.
"""

import json
import math
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from finetune.tasks.metrics import prf

THRESHOLD = 1.0
"""Points of accuracy above the majority class that a harmless input may reach by chance."""
SHOWN_VALUES = 12


@dataclass(frozen=True)
class LookUp:
    """A look-up table's scores on one split, in percent; P, R and F1 leave `None` out."""

    accuracy: float
    precision: float
    recall: float
    f1: float
    positives: int
    """Rows for which the table says a relation."""


@dataclass(frozen=True)
class Detection:
    """Telling related rows from unrelated ones with the table; in percent."""

    accuracy: float
    precision: float
    recall: float


@dataclass(frozen=True)
class AuditResult:
    """What one feature tells about the label."""

    feature: str
    values: int
    """Distinct values in train."""
    mutual_information: float
    """Bits between value and relation in train (plug-in estimate: rises with `values`)."""
    label_entropy: float
    """Bits; the most that any input could tell."""
    majority_accuracy: float
    """Of the most frequent train relation, on the scored split."""
    look_up: LookUp
    related: Detection
    contingency: Mapping[str, Mapping[str, int]]
    """Value -> relation -> train rows, most frequent values first; the tail is `(others)`."""

    @property
    def excess(self) -> float:
        """Points of accuracy by which the table beats the majority class."""
        return self.look_up.accuracy - self.majority_accuracy

    @property
    def flagged(self) -> bool:
        """Whether the input leaks the label."""
        return self.excess > THRESHOLD

    def to_dict(self) -> dict[str, Any]:
        """The JSON form, verdict included, for `audit.json` and `result.json`."""
        verdict = "flagged" if self.flagged else "pass"
        return {**asdict(self), "excess": self.excess, "verdict": verdict}

    def __str__(self) -> str:
        table, related = self.look_up, self.related
        return (
            f"{'FLAGGED' if self.flagged else 'pass   '} {self.feature}: accuracy "
            f"{table.accuracy:.2f} (majority {self.majority_accuracy:.2f}), "
            f"P {table.precision:.2f} R {table.recall:.2f} F1 {table.f1:.2f}; related-or-not "
            f"accuracy {related.accuracy:.2f} P {related.precision:.2f} R {related.recall:.2f}; "
            f"{self.mutual_information:.3f} of {self.label_entropy:.3f} bits"
        )


def audit_features(
    train_features: Sequence[Hashable],
    train_labels: Sequence[str],
    dev_features: Sequence[Hashable],
    dev_labels: Sequence[str],
    *,
    name: str = "feature",
    none: str | None = "None",
) -> AuditResult:
    """Fit the tables on train, score them on dev. One feature value and one label a row; `none` is
    the label of the rows without relation.

    A value that train lacks is answered with train's majority; of equally frequent relations the
    one more frequent in all of train wins. Unhashable JSON values go through `hashable` first.
    """
    overall = Counter(train_labels)
    majority = max(overall, key=lambda label: (overall[label], label))
    table = most_frequent(train_features, train_labels)
    binary = most_frequent(train_features, [label != none for label in train_labels])
    counts = contingency(train_features, train_labels)
    guesses = [table.get(value, majority) for value in dev_features]
    related = [bool(binary.get(value, majority != none)) for value in dev_features]
    return AuditResult(
        feature=name,
        values=len(counts),
        mutual_information=mutual_information(counts),
        label_entropy=_entropy(overall.values()),
        majority_accuracy=_accuracy([majority] * len(dev_labels), dev_labels),
        look_up=_look_up(guesses, dev_labels, none),
        related=_detection(related, [label != none for label in dev_labels]),
        contingency=_table(counts),
    )


def most_frequent(
    features: Iterable[Hashable], labels: Sequence[Hashable]
) -> dict[Hashable, Hashable]:
    """Value -> its most frequent label; of equals, the one that is more frequent altogether."""
    overall = Counter(labels)
    return {
        value: max(row, key=lambda label: (row[label], overall[label], label))
        for value, row in contingency(features, labels).items()
    }


def _look_up(guesses: Sequence[Hashable], gold: Sequence[str], none: str | None) -> LookUp:
    right = sum(guess == label != none for guess, label in zip(guesses, gold, strict=True))
    positives = sum(guess != none for guess in guesses)
    return LookUp(
        accuracy=_accuracy(guesses, gold),
        **prf(right, positives, sum(label != none for label in gold)),
        positives=positives,
    )


def _detection(related: Sequence[bool], truth: Sequence[bool]) -> Detection:
    hits = sum(guess and label for guess, label in zip(related, truth, strict=True))
    scores = prf(hits, sum(related), sum(truth))
    return Detection(_accuracy(related, truth), scores["precision"], scores["recall"])


def contingency(
    features: Iterable[Hashable], labels: Iterable[Hashable]
) -> dict[Hashable, Counter[Hashable]]:
    """Value -> label -> rows."""
    counts: dict[Hashable, Counter[Hashable]] = {}
    for value, label in zip(features, labels, strict=True):
        counts.setdefault(value, Counter())[label] += 1
    return counts


def mutual_information(counts: Mapping[Hashable, Counter[Hashable]]) -> float:
    """Bits that the value tells about the label: H(label) - H(label | value)."""
    total = sum(row.total() for row in counts.values())
    labels: Counter[Hashable] = Counter()
    for row in counts.values():
        labels.update(row)
    given = sum(row.total() / total * _entropy(row.values()) for row in counts.values())
    return max(0.0, _entropy(labels.values()) - given)


def hashable(value: Any) -> Hashable:
    """A JSON value as a dictionary key."""
    return value if isinstance(value, str | int | float) else json.dumps(value, sort_keys=True)


def _entropy(counts: Iterable[int]) -> float:
    counts = [count for count in counts if count]
    total = sum(counts)
    return -sum(count / total * math.log2(count / total) for count in counts)


def _accuracy(guesses: Sequence[Hashable], gold: Sequence[Hashable]) -> float:
    hits = sum(guess == label for guess, label in zip(guesses, gold, strict=True))
    return 100 * hits / len(gold) if gold else 0.0


def _table(counts: Mapping[Hashable, Counter[Hashable]]) -> dict[str, dict[str, int]]:
    """Value -> label -> rows, most frequent first; values beyond `SHOWN_VALUES` as one."""
    order = sorted(counts, key=lambda value: (-counts[value].total(), str(value)))
    rows = {str(value): counts[value] for value in order[:SHOWN_VALUES]}
    if rest := order[SHOWN_VALUES:]:
        rows["(others)"] = sum((counts[value] for value in rest), Counter())
    return {
        value: {str(label): number for label, number in row.most_common()}
        for value, row in rows.items()
    }
