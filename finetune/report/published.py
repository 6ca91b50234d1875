"""Figures that papers report, to stand beside ours with the protocol they come from.

`papers/published.tsv` holds every row of Table 1 of the four papers: test precision, recall, F1 in
percent. "community regions" leak the label on MNRE (README); such figures measure the leak as much
as the method. Where F1 is not 2PR/(P + R), as in means over runs, the row says so.
"""

import csv
from dataclasses import dataclass
from pathlib import Path

TABLE = Path(__file__).parent / "papers" / "published.tsv"


@dataclass(frozen=True)
class Published:
    """One row of a paper's table."""

    task: str
    method: str
    precision: str
    recall: str
    f1: str
    source: str
    protocol: str

    @property
    def figures(self) -> tuple[str, str, str]:
        """Precision, recall, F1."""
        return self.precision, self.recall, self.f1


TRAIN_ROWS = {"mnre": 12_247, "twitter2015": 4_000, "twitter2017": 3_373}
"""Size of the published training split: how a report tells it from other data in its format."""

with TABLE.open(encoding="utf-8", newline="") as _file:
    FIGURES = tuple(Published(**row) for row in csv.DictReader(_file, delimiter="\t"))
