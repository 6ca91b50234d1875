"""Probabilities that mean what they say: one temperature a run, fitted on dev.

Guo et al., ICML 2017: softmax(z / T) with the T that minimises the negative log-likelihood of the
right answers. A finished seed holds `pred_dev.jsonl` with the probability of every label; log p
is z up to a constant of the row, so neither model nor data are needed to fit.
"""

import contextlib
import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeVar, get_type_hints

import numpy as np

from finetune.run.results import AGAIN, Predictions
from finetune.tasks.reading import read_object
from shards.files import InputError
from shards.json_files import write_json

FILE = "calibration.json"
SMALLEST = 5e-6
"""`pred_dev.jsonl` has five decimals: what is written as 0 is at most this."""
COOLEST, HOTTEST = 0.05, 20.0
Kept = TypeVar("Kept")


@dataclass(frozen=True)
class Calibration:
    """A fitted temperature, and what it did to dev."""

    temperature: float
    rows: int
    ece_before: float
    """Expected calibration error in percent, 15 bins."""
    ece_after: float
    """The same with the temperature; of the very rows that it was fitted on."""
    ece_after_held_out: float
    """The same with two temperatures, each fitted on the other half of the rows."""
    nll_before: float
    nll_after: float
    source: str
    """SHA-256 of the `pred_dev.jsonl` it was fitted on."""


def sharpen(probabilities: np.ndarray, temperature: float) -> np.ndarray:
    """(…, C) softmax(log p / T); T > 1 makes it flatter."""
    scores = np.log(np.maximum(probabilities, SMALLEST)) / temperature
    values = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return values / values.sum(axis=-1, keepdims=True)


def fit_temperature(probabilities: np.ndarray, gold: np.ndarray) -> float:
    """The temperature of least negative log-likelihood.

    In b = 1 / T the likelihood is convex: its slope, the mean over rows of E[z] - z of the right
    label, grows with b, and bisection finds its zero.

    Args:
        probabilities: (N, C). gold: (N,) label ids.
    """
    scores = np.log(np.maximum(probabilities, SMALLEST))
    right = scores[np.arange(len(gold)), gold]
    low, high = 1 / HOTTEST, 1 / COOLEST
    for _ in range(60):
        middle = (low * high) ** 0.5
        slope = ((sharpen(probabilities, 1 / middle) * scores).sum(axis=1) - right).mean()
        low, high = (middle, high) if slope < 0 else (low, middle)
    return float(1 / (low * high) ** 0.5)


def calibration_error(probabilities: np.ndarray, gold: np.ndarray, bins: int = 15) -> float:
    """Expected calibration error of the likeliest label, in percent: over equal bins of confidence,
    the mean distance between confidence and accuracy, weighted by rows."""
    confidence = probabilities.max(axis=1)
    right = probabilities.argmax(axis=1) == gold
    place = np.minimum((confidence * bins).astype(int), bins - 1)
    gaps = np.bincount(place, weights=confidence - right, minlength=bins)
    return float(100 * np.abs(gaps).sum() / len(gold))


def negative_log_likelihood(probabilities: np.ndarray, gold: np.ndarray) -> float:
    """Mean over rows, in nats."""
    return float(-np.log(np.maximum(probabilities[np.arange(len(gold)), gold], SMALLEST)).mean())


def calibrate(probabilities: np.ndarray, gold: np.ndarray, source: str = "") -> Calibration:
    """Fit, and measure before and after."""
    temperature = fit_temperature(probabilities, gold)
    after = sharpen(probabilities, temperature)
    held_out = np.empty_like(probabilities)
    for half in (0, 1):
        other = fit_temperature(probabilities[1 - half :: 2], gold[1 - half :: 2])
        held_out[half::2] = sharpen(probabilities[half::2], other)
    return Calibration(
        temperature=temperature,
        rows=len(gold),
        ece_before=calibration_error(probabilities, gold),
        ece_after=calibration_error(after, gold),
        ece_after_held_out=calibration_error(held_out, gold),
        nll_before=negative_log_likelihood(probabilities, gold),
        nll_after=negative_log_likelihood(after, gold),
        source=source,
    )


def read_answers(path: Path, labels: Sequence[str]) -> tuple[np.ndarray, np.ndarray] | None:
    """(N, C) probabilities and (N,) right label ids of a prediction file; None: it has none.

    Raises:
        InputError: the file is damaged, or of other labels.
    """
    predictions = Predictions.read(path)
    if len(predictions) < 2 or predictions.probabilities is None:
        return None
    if foreign := set(predictions.gold) - set(labels):
        raise InputError(f"{path}: damaged (no label of the run: {min(foreign)!r}); {AGAIN}")
    if any(len(scores) != len(labels) for scores in predictions.probabilities):
        raise InputError(f"{path}: damaged (not {len(labels)} scores a line); {AGAIN}")
    number = {label: i for i, label in enumerate(labels)}
    scores = np.array(predictions.probabilities, dtype=np.float64)
    return scores, np.array([number[label] for label in predictions.gold])


def read_kept(path: Path, form: type[Kept], source: str) -> Kept | None:
    """A `calibration.json`; None where it was fitted on another `pred_dev.jsonl`.

    Raises:
        InputError: the file is damaged.
    """
    hints = get_type_hints(form)
    content = read_object(path, hints, "remove it: it is fitted again")
    return form(**{key: content[key] for key in hints}) if content["source"] == source else None


def of_seed(directory: Path, labels: Sequence[str]) -> Calibration | None:
    """The calibration of a finished seed: from `calibration.json`, else fitted and kept there.

    None where the seed has no `pred_dev.jsonl` with probabilities (entities, a bare model
    directory). Where the directory cannot be written, nothing is kept.

    Raises:
        InputError: one of the two files is damaged.
    """
    predictions, path = directory / "pred_dev.jsonl", directory / FILE
    if not predictions.is_file():
        return None
    source = hashlib.sha256(predictions.read_bytes()).hexdigest()
    if path.is_file() and (stored := read_kept(path, Calibration, source)) is not None:
        return stored
    answers = read_answers(predictions, labels)
    if answers is None:
        return None
    fitted = calibrate(*answers, source)
    with contextlib.suppress(OSError):  # somebody else's run: fit again next time
        write_json(path, asdict(fitted), checksum=True)
    return fitted
