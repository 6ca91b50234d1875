"""Figures that papers report, to stand beside ours with the protocol they come from.

Test precision, recall, F1 in percent. "community regions" leak the label on MNRE (README); such
figures measure the leak as much as the method.
"""

from dataclasses import dataclass

COMMUNITY = "community regions: leaky"
TEXT = "text only"
WHOLE = "whole picture"


@dataclass(frozen=True)
class Published:
    """One row of a paper's table."""

    task: str
    method: str
    figures: tuple[str, str, str]
    source: str
    protocol: str


TRAIN_ROWS = {"mnre": 12_247, "twitter2015": 4_000, "twitter2017": 3_373}
"""Size of the published training split: how a report tells it from other data in its format."""

FIGURES = tuple(
    Published(task, method, (precision, recall, f1), source, protocol)
    for task, method, figures, source, protocol in (  # precision / recall / F1
        ("mnre", "mtb", "64.46 / 57.81 / 60.86", "PROMU, Table 1", TEXT),
        ("mnre", "mtb", "66.00 / 61.56 / 63.70", "FocalMRE, Table 1", TEXT),
        ("mnre", "mega", "64.51 / 68.44 / 66.41", "PROMU, Table 1", "scene graph of the picture"),
        ("mnre", "umgf", "64.38 / 66.23 / 65.29", "PROMU, Table 1", "regions of its own"),
        ("mnre", "hvpnet", "83.64 / 80.78 / 81.85", "PROMU, Table 1", COMMUNITY),
        ("mnre", "hvpnet", "86.95 / 83.28 / 85.08", "FocalMRE, Table 1", COMMUNITY),
        ("mnre", "mkgformer", "86.26 / 84.38 / 85.31", "FocalMRE, Table 1", COMMUNITY),
        ("mnre", "focalmre", "88.85 / 87.19 / 88.01", "FocalMRE, Table 1", COMMUNITY),
        ("mnre", "dgfpt", "84.35 / 83.83 / 84.47", "DGF-PT, Table 1", "averaging, types unknown"),
        ("mnre", "promu", "84.95 / 85.76 / 84.86", "PROMU, Table 1", "inputs not published"),
        ("twitter2015", "bert_crf", "69.22 / 74.59 / 71.81", "PROMU, Table 1", TEXT),
        ("twitter2015", "umgf", "74.49 / 75.21 / 74.85", "PROMU, Table 1", "regions of its own"),
        ("twitter2015", "hvpnet", "73.87 / 76.82 / 75.32", "PROMU, Table 1", "community crops"),
        ("twitter2015", "promu", "80.03 / 80.97 / 80.50", "PROMU, Table 1", WHOLE),
        ("twitter2017", "bert_crf", "83.32 / 83.57 / 83.44", "PROMU, Table 1", TEXT),
        ("twitter2017", "umgf", "86.54 / 84.50 / 85.51", "PROMU, Table 1", "regions of its own"),
        ("twitter2017", "hvpnet", "85.84 / 87.93 / 86.87", "PROMU, Table 1", "community crops"),
        ("twitter2017", "promu", "91.97 / 91.33 / 91.65", "PROMU, Table 1", WHOLE),
    )
    for precision, recall, f1 in (figures.split(" / "),)
)
