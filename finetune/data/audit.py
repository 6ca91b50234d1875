"""`python -m finetune audit`: does an input give the label away?

The regions published with MNRE do. The grounding queries behind them were head, tail and the
entity types *named by the gold relation*, so the mere number of boxes tells whether a row is
related at all: on the test rows with precision 1.00 and recall 0.98. `leakage.py` has the method.

`--overlap` looks at the rows themselves: duplicates, and posts or pictures that splits share.
"""

import sys
from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from finetune.config import TaskOptions
from finetune.data.overlap import overlap
from finetune.tasks import side_files
from finetune.tasks.base import Row, Task
from finetune.tasks.leakage import THRESHOLD, AuditResult, audit_features, hashable
from finetune.tasks.region_cache import Regions, read_regions
from shards.command import exit_on_input_error
from shards.files import InputError, refuse_foreign
from shards.json_files import write_json
from shards.options import parse_config

TYPE_WORDS = ("person", "organization", "location", "misc")


# ---- Features: what a model could read off an input without looking at it ------------------------

Feature = Callable[[Row], Hashable]


def crop_features(folder: Path, split: str) -> dict[str, Feature]:
    """Of the community's crop lists: their length, and the three slots that loaders fill."""
    names = side_files.read_crop_names(side_files.find(folder, "txt/mre_{split}_dict.pth", split))
    return {
        "crops: number": lambda row: len(names.values[row.row]),
        "crops: mask of 3 slots": lambda row: min(len(names.values[row.row]), 3),
        "crops: at least 3": lambda row: len(names.values[row.row]) >= 3,
    }


def phrase_features(folder: Path, split: str) -> dict[str, Feature]:
    """Of TMR's grounding phrases: the type words at their end, and their number."""
    phrases = side_files.read_phrases(
        side_files.find(folder, "txt/phrase_text_{split}.json", split)
    )
    return {
        "phrases: type words": lambda row: trailing_types(phrases.values[row.row]),
        "phrases: number of words": lambda row: len(phrases.values[row.row].split()),
    }


def trailing_types(phrase: str) -> tuple[str, ...]:
    """The entity types, at most two, that end a grounding phrase."""
    types: list[str] = []
    for word in reversed(phrase.split()[-2:]):
        if word not in TYPE_WORDS:
            break
        types.insert(0, word)
    return tuple(types)


def box_features(folder: Path, split: str) -> dict[str, Feature]:
    """Of TMR's boxes in the generated pictures: their number."""
    boxes = side_files.read_generated_boxes(
        side_files.find(folder, "txt/mre_dif_{split}_dict.pth", split)
    )
    return {"boxes: number": lambda row: len(boxes.values[row.row])}


def region_features(folder: Path, split: str) -> dict[str, Feature]:
    """Of a region cache: number and kinds of the grounded boxes, number of the detected ones."""
    grounded = read_regions(side_files.find(folder, "regions_vg_{split}.jsonl", split)).values
    features: dict[str, Feature] = {
        "regions: number grounded": lambda row: len(grounded[row.row].regions),
        "regions: kinds grounded": lambda row: _kinds(grounded[row.row]),
    }
    if (folder / "regions_od.jsonl").is_file():
        objects = read_regions(folder / "regions_od.jsonl").values
        features["regions: number of objects"] = lambda row: len(objects[row.image_id].regions)
        features["regions: mask of 4 + 3 slots"] = lambda row: (
            min(len(grounded[row.row].regions), 4),
            min(len(objects[row.image_id].regions), 3),
        )
    return features


def _kinds(entry: Regions) -> str:
    counts = Counter(region.kind for region in entry.regions)
    return " ".join(f"{kind}*{count}" for kind, count in sorted(counts.items()))


def type_features(folder: Path, split: str) -> dict[str, Feature]:
    """Of a type source: the pair of entity types."""
    types = side_files.read_types(side_files.find(folder, "types_{split}.jsonl", split)).values
    return {"types: head, tail": lambda row: types[row.row]}


def file_features(pattern: str, split: str) -> dict[str, Feature]:
    """Of any `{"row", "feature"}` lines."""
    values = side_files.read_features(side_files.find(".", pattern, split)).values
    return {f"file: {Path(pattern).name}": lambda row: hashable(values[row.row])}


def label_of(answer: Any) -> str:
    """The label that the audit predicts: the relation, or the entity types that a post names."""
    if isinstance(answer, str):
        return answer
    return " ".join(sorted({tag[2:] for tag in answer if tag != "O"})) or "None"


# ---- Command ------------------------------------------------------------------------------------

Source = Callable[[str], dict[str, Feature]]
"""Split -> features."""


def audit_source(
    task: Task,
    rows: Mapping[str, Sequence[Row]],
    source: Source,
    shuffle: int | None = None,
) -> dict[str, list[AuditResult]]:
    """Every feature of a source, fitted on train, scored on each other split.

    Args:
        rows: split -> its rows, train among them.
        shuffle: a seed; the values are then dealt out anew within each split, so that nothing can
            be left of a leak: the control that must pass.
    """
    features = {split: source(split) for split in rows}

    def values(split: str, name: str) -> list[Hashable]:
        try:  # a feature looks its row up only now
            column = [features[split][name](row) for row in rows[split]]
        except KeyError as error:
            raise InputError(
                f"{name}: no entry for {error.args[0]!r} in {split}; complete the file"
            ) from None
        if shuffle is None:
            return column
        order = np.random.Generator(np.random.PCG64(shuffle)).permutation(len(column))
        return [column[i] for i in order]

    gold = {split: [label_of(answer) for answer in task.gold(rows[split])] for split in rows}
    results: dict[str, list[AuditResult]] = {split: [] for split in rows if split != "train"}
    none = task.info.negative if task.info.kind == "relation" else label_of([])
    for name in features["train"]:
        fitted = values("train", name), gold["train"]
        for split in results:
            results[split].append(
                audit_features(*fitted, values(split, name), gold[split], name=name, none=none)
            )
    return results


@dataclass(frozen=True, kw_only=True)
class AuditConfig(TaskOptions):
    """Test whether an input leaks the label."""

    overlap: bool = False
    """Duplicates; what splits share."""
    crops: bool = False
    """The community's crop lists in --data."""
    phrases: bool = False
    """TMR's phrase files in --data."""
    boxes: bool = False
    """TMR's boxes in --data."""
    regions: Path | None = None
    """A region cache."""
    types: Path | None = None
    """Folder of types_{split}.jsonl."""
    features: str | None = None
    """Any {"row", "feature"} lines; a path that holds {split}."""
    split: tuple[Literal["val", "test"], ...] = ("val",)
    """Score on these."""
    shuffle: int | None = None
    """Control: deal the values out anew, by this seed."""
    out: Path | None = None
    """Write the results as JSON."""
    strict: bool = False
    """Exit 1 if anything is flagged."""

    def __post_init__(self) -> None:
        if not self.overlap and not self.sources():
            raise ValueError("nothing to audit: give --overlap, --crops, --phrases, --regions, …")

    def sources(self) -> list[Source]:
        """Of the features that the options name."""
        folders = (
            (crop_features, self.data if self.crops else None),
            (phrase_features, self.data if self.phrases else None),
            (box_features, self.data if self.boxes else None),
            (region_features, self.regions),
            (type_features, self.types),
        )
        sources: list[Source] = [
            partial(read, folder) for read, folder in folders if folder is not None
        ]
        return sources + ([partial(file_features, self.features)] if self.features else [])


def run(config: AuditConfig) -> dict[str, list[AuditResult]]:
    """Audit what the options name; prints verdicts, writes `out`."""
    if config.out:
        refuse_foreign(config.out, '{\n  "threshold":')
    task, sources = config.open(), config.sources()
    results: dict[str, list[AuditResult]] = {split: [] for split in config.split}
    rows = {split: task.read(split) for split in ("train", *results)}
    if config.overlap:
        print("\n".join(overlap(task, rows)))
    for source in sources:
        for split, verdicts in audit_source(task, rows, source, config.shuffle).items():
            results[split] += verdicts
    for split, verdicts in results.items() if sources else ():
        print(f"fitted on train, scored on {split}:")
        for result in verdicts:
            print(f"  {result}")
    if config.out:
        content = {s: [result.to_dict() for result in verdicts] for s, verdicts in results.items()}
        audit = {"threshold": THRESHOLD, "shuffle": config.shuffle, "splits": content}
        write_json(config.out, audit)
    return results


@exit_on_input_error
def main(argv: Sequence[str]) -> None:
    """`python -m finetune audit`; exit status 1 where `--strict` finds a leak."""
    prog = "python -m finetune audit"
    example = f"{prog} --data DATA/mnre --crops --phrases"
    config = parse_config(AuditConfig, argv, prog=prog, example=example)
    results = run(config)
    if config.strict and any(result.flagged for split in results.values() for result in split):
        sys.exit(1)
