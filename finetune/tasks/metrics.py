"""Scores in percent, by the field's conventions: relations, then entities."""

import re
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from itertools import pairwise

import numpy as np

NO_RELATION = ("none", "na", "norelation", "other", "others")
"""Names of the negative class in any case, with blanks and marks in them (`No relation`, `N/A`);
the first that a label list has is left out of P, R and F1."""


def negative_class(labels: Iterable[str]) -> str | None:
    """Of all labels of a task the one that says there is no relation; None: all are relations."""
    plain = {name: re.sub(r"[\W_]", "", name).lower() for name in sorted(labels)}
    negative = [name for name in plain if plain[name] in NO_RELATION]
    return min(negative, key=lambda name: NO_RELATION.index(plain[name]), default=None)


def relation_scores(
    gold: Sequence[Hashable], predicted: Sequence[Hashable], none: Hashable
) -> dict[str, float]:
    """Micro precision, recall, F1 over all relations but `none`, and accuracy over all, in percent.

    A wrong relation on a related row costs precision and recall; a relation on a None row costs
    precision alone. A score whose denominator is zero is zero.
    """
    correct, claimed, related = relation_counts(gold, predicted, none).sum(0).tolist()
    same = sum(truth == guess for truth, guess in zip(gold, predicted, strict=True))
    return {
        **prf(correct, claimed, related),
        "accuracy": 100 * (same / len(gold)) if len(gold) else 0.0,
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


def relation_scores_by_label(
    gold: Sequence[str], predicted: Sequence[str], none: str | None
) -> dict[str, dict[str, float]]:
    """Relation -> one-vs-rest f1, precision, recall in percent and `support`.

    Relations that `gold` has, without the negative class `none`, most frequent first.
    """
    correct = Counter(g for g, p in zip(gold, predicted, strict=True) if g == p)
    claimed, true = Counter(predicted), Counter(gold)
    return {
        name: {**prf(correct[name], claimed[name], count), "support": count}
        for name, count in sorted(true.items(), key=lambda item: (-item[1], item[0]))
        if name != none
    }


def macro_f1(by_label: Mapping[str, Mapping[str, float]]) -> float:
    """Unweighted mean of the labels' F1, in percent."""
    return float(np.mean([scores["f1"] for scores in by_label.values()])) if by_label else 0.0


def weighted_f1(by_label: Mapping[str, Mapping[str, float]]) -> float:
    """Mean of the labels' F1, each counted as often as `gold` has it, in percent."""
    weights = [scores["support"] for scores in by_label.values()]
    f1 = [scores["f1"] for scores in by_label.values()]
    return float(np.average(f1, weights=weights)) if by_label else 0.0


def scores_by_frequency(
    gold: Sequence[str],
    predicted: Sequence[str],
    train_counts: Mapping[str, int],
    edges: Sequence[int] = (0, 20, 100, 200, 500, 1000),
) -> dict[str, dict[str, float]]:
    """Micro scores of the relations whose number of training rows falls into each bin:
    "20–100" -> f1, precision, recall in percent and `support`. A predicted relation counts
    in its own bin, whatever the row's is. `train_counts` names all labels of the task."""
    result = {}
    none = negative_class(train_counts)
    for low, high in pairwise(edges):
        inside = {n for n, count in train_counts.items() if low <= count < high and n != none}
        correct = sum(g == p and g in inside for g, p in zip(gold, predicted, strict=True))
        claimed, true = (sum(name in inside for name in names) for names in (predicted, gold))
        result[f"{low}–{high}"] = {**prf(correct, claimed, true), "support": true}
    return result


def bootstrap_interval(
    counts: np.ndarray, *, draws: int = 2000, level: float = 0.95, seed: int = 0
) -> tuple[float, float]:
    """Percentile interval of micro F1, in percent, over rows drawn with replacement.

    Args:
        counts: (N, 3): of each row what is right, claimed, true (`relation_counts`).
    """
    generator = np.random.default_rng(seed)
    share = np.full(len(counts), 1 / len(counts))
    sums = generator.multinomial(len(counts), share, size=draws) @ counts  # (draws, 3)
    f1 = 200 * sums[:, 0] / np.maximum(sums[:, 1] + sums[:, 2], 1)
    low, high = np.quantile(f1, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def relation_counts(
    gold: Sequence[Hashable], predicted: Sequence[Hashable], none: Hashable
) -> np.ndarray:
    """(N, 3) int: right and related (not `none`), predicted as related, related."""
    truth, guesses = np.asarray(gold), np.asarray(predicted)
    claimed, related = guesses != none, truth != none
    return np.stack([(truth == guesses) & related, claimed, related], axis=1).astype(np.int64)


# ---- Named entities ----------------------------------------------------------------------------

Entity = tuple[str, int, int]
"""(type, first word, last word)"""
STRAY_TAGS = ("PAD", "X", "[CLS]", "[SEP]", "")
"""What a chain over word pieces may say of a word beside its tags, their ids following; the empty
one: the word has no piece."""


def without_strays(tags: Sequence[str]) -> tuple[list[str], dict[int, str]]:
    """Tags with `O` in the place of what no word has, and what stood there."""
    strays = {place: tag for place, tag in enumerate(tags) if tag in STRAY_TAGS}
    return ["O" if tag in STRAY_TAGS else tag for tag in tags], strays


def entities(tags: Sequence[str]) -> list[Entity]:
    """The entities of one sentence, as conlleval and seqeval's default mode find them.

    An `I-x` that follows no `x` begins an entity, and so does a change of type. A tag outside BIO
    (`X`, `PAD`, `[SEP]`) has its first letter for a prefix and the rest for a type, as there.
    """
    spans: list[Entity] = []
    prefix, kind, start = "O", "", 0
    for place, tag in enumerate([*tags, "O"]):
        next_prefix, next_kind = tag[0], tag[1:].split("-", maxsplit=1)[-1] or "_"
        changed = kind != next_kind
        inside_ends = prefix in "BI" and next_prefix in "BSO"
        if prefix in "ES" or inside_ends or (changed and prefix not in "O."):
            spans.append((kind, start, place - 1))
        outside_starts = prefix in "ESO" and next_prefix in "EI"
        if next_prefix in "BS" or outside_starts or (changed and next_prefix not in "O."):
            start = place
        prefix, kind = next_prefix, next_kind
    return spans


def padded(gold: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]]) -> list[list[str]]:
    """The predictions with `O` for the words where they were cut."""
    return [
        [*tags, *["O"] * (len(truth) - len(tags))]
        for truth, tags in zip(gold, predicted, strict=True)
    ]


def entity_scores(
    gold: Sequence[Sequence[str]],
    predicted: Sequence[Sequence[str]],
    scorer: str = "fixed",
) -> dict[str, float]:
    """Micro precision, recall, F1 of exact span + type, and accuracy over words, in percent.

    Args:
        gold, predicted: tags of each sentence, equally long.
        scorer: "fixed" reads a predicted tag outside BIO as `O`; "legacy" passes it on unchanged,
            as HVPNeT and TMR do: a stray `X` then makes an entity or hides one.
    """
    correct, claimed, true = (sum(c.values()) for c in _entity_counts(gold, predicted, scorer))
    words = [pair for g, p in zip(gold, predicted, strict=True) for pair in zip(g, p, strict=True)]
    same = sum(truth == guess for truth, guess in words)
    return {
        **prf(correct, claimed, true),
        "accuracy": 100 * same / len(words) if words else 0.0,
    }


def hvpnet_entity_scores(
    gold: Sequence[Sequence[str]],
    predicted: Sequence[Sequence[str]],
    strays: Sequence[Mapping[int, str]] = (),
) -> dict[str, float]:
    """`entity_scores` as HVPNeT's code counts, which PROMU says that it used: words that were cut
    or have no piece are left out, so that the entities in them are not missed; a tag that no word
    has stands as it is, so that it makes an entity or hides one.

    Args:
        predicted: tags of each sentence up to the word where it was cut.
        strays: of each sentence place -> such a tag; none: there were none.
    """
    truths, guesses = [], []
    for truth, guess, odd in zip(gold, predicted, strays or [{}] * len(gold), strict=True):
        tags = [odd.get(place, tag) for place, tag in enumerate(guess)]
        words = [pair for pair in zip(truth, tags, strict=False) if pair[1]]
        truths.append([true for true, _ in words])
        guesses.append([said for _, said in words])
    return entity_scores(truths, guesses, "legacy")


def entity_scores_by_type(
    gold: Sequence[Sequence[str]],
    predicted: Sequence[Sequence[str]],
    scorer: str = "fixed",
) -> dict[str, dict[str, float]]:
    """Type -> f1, precision, recall in percent and `support`, the number of gold entities."""
    correct, claimed, true = _entity_counts(gold, predicted, scorer)
    return {
        kind: {**prf(correct[kind], claimed[kind], true[kind]), "support": true[kind]}
        for kind in sorted(claimed.keys() | true.keys())
    }


def _entity_counts(
    gold: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]], scorer: str
) -> tuple[Counter[str], Counter[str], Counter[str]]:
    """Per type: entities predicted rightly, predicted, and true."""
    if scorer not in ("fixed", "legacy"):
        raise ValueError(f"scorer must be fixed or legacy, not {scorer!r}")
    correct: Counter[str] = Counter()
    claimed: Counter[str] = Counter()
    true: Counter[str] = Counter()
    for truth, guess in zip(gold, predicted, strict=True):
        if scorer == "fixed":
            guess = [tag if tag[:2] in ("B-", "I-") else "O" for tag in guess]
        gold_spans, predicted_spans = set(entities(truth)), set(entities(guess))
        correct.update(kind for kind, _, _ in gold_spans & predicted_spans)
        claimed.update(kind for kind, _, _ in predicted_spans)
        true.update(kind for kind, _, _ in gold_spans)
    return correct, claimed, true


def entity_counts(gold: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]]) -> np.ndarray:
    """(N, 3) int: of each sentence the entities predicted rightly, predicted, true."""
    rows = [
        [counter.total() for counter in _entity_counts([g], [p], "fixed")]
        for g, p in zip(gold, predicted, strict=True)
    ]
    return np.array(rows, dtype=np.int64)
