"""How a number comes about: which epochs count, which of equal ones wins, which rows are trained
on, how seeds are averaged. The test split is read once, with the epoch that dev chose."""

import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

METRICS = ("f1", "precision", "recall", "accuracy")


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """Selection by F1 on dev; one entry for each way that papers do it."""

    source: str
    first_epoch: int = 1
    """Epochs before it are not candidates (1 = all are)."""
    ties: Literal["first", "last"] = "first"
    """Which epoch wins among those with equal dev F1."""

    def improves(self, f1: float, best: float | None) -> bool:
        """Whether an epoch with this dev F1 replaces the best one so far."""
        return best is None or f1 > best or (self.ties == "last" and f1 == best)


PROTOCOLS = {
    "standard": Protocol(source="this project; FocalMRE"),
    "hvpnet": Protocol(source="released code of HVPNeT (relations)", ties="last"),
    "hvpnet_ner": Protocol(source="released code of HVPNeT (NER)", first_epoch=3, ties="last"),
    "camim": Protocol(source="CAMIM: evaluates after its 8th epoch", first_epoch=9, ties="last"),
}


def seed_list(seeds: int | str) -> list[int]:
    """`1,2,3` as numbers.

    Raises:
        ValueError: something else, a number twice, or one that no generator takes.
    """
    try:
        numbers = [int(seed) for seed in str(seeds).split(",")]
    except ValueError:
        raise ValueError(f"seeds {seeds!r}: expected numbers like 1,2,3") from None
    if len(set(numbers)) != len(numbers):
        raise ValueError(f"seeds {seeds}: one is repeated")
    if not all(0 <= seed < 2**32 for seed in numbers):
        raise ValueError(f"seeds {seeds}: 0 to 4294967295")
    return numbers


def fraction_rows(total: int, fraction: float, seed: int, replacement: bool = False) -> np.ndarray:
    """floor(fraction · total) sorted positions, by default without replacement.

    Smaller fractions are prefixes of one permutation, so sets of one seed are nested.
    """
    count = int(fraction * total + 1e-9)  # 0.29 · 100 is 28.999…
    generator = np.random.Generator(np.random.PCG64(seed))
    if replacement:
        return np.sort(generator.integers(total, size=count))
    return np.sort(generator.permutation(total)[:count])


def seed_files(run: Path, name: str) -> list[Path]:
    """`seed-N/name` of the seeds that have one, by number: seed-2 comes before seed-10."""
    by_seed = {
        int(path.parent.name.removeprefix("seed-")): path
        for path in run.glob(f"seed-*/{name}")
        if re.fullmatch(r"seed--?\d+", path.parent.name)
    }
    return [by_seed[seed] for seed in sorted(by_seed)]


def aggregate(scores: Sequence[Mapping[str, float]]) -> dict[str, dict[str, float | None]]:
    """Mean and sample standard deviation over seeds of each metric; one seed has no deviation."""
    return {
        name: {
            "mean": round(statistics.mean(values), 4),
            "sd": round(statistics.stdev(values), 4) if len(values) > 1 else None,
        }
        for name in METRICS
        if (values := [score[name] for score in scores])
    }


def mean_and_sd(score: Mapping[str, float | None], digits: int = 2) -> str:
    """A metric of `aggregate` as it is printed everywhere."""
    mean, deviation = score["mean"], score["sd"]
    return f"{mean:.{digits}f}" + ("" if deviation is None else f" ± {deviation:.{digits}f}")
