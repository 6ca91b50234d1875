"""What a run wrote: `result.json` of a run and of its seeds, `pred_*.jsonl`; read strictly.

Nothing here needs torch: tables of finished runs are made of files alone.
"""

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from finetune.protocols import METRICS, seed_files
from finetune.tasks.base import Task
from finetune.tasks.metrics import STRAY_TAGS
from finetune.tasks.reading import checked, damaged, is_row, read_object
from shards.files import InputError, atomic_path
from shards.json_files import read_json_lines, with_crc32

Results = Mapping[str, Mapping[str, Any]]
"""Run name -> content of its `result.json`."""
SCORES = dict.fromkeys(METRICS, float)
SEED = {
    "seed": int, "dev": SCORES, "test": dict | None, "leaky": bool, "best_epoch": int,
    "epochs": int, "steps": int, "train_rows": int, "train_counts": dict, "parameters": int,
    "seconds": float, "device": str, "processes": int, "precision": str, "images": dict,
    "audit": list[dict], "side_inputs": list[str],
}  # fmt: skip
"""What `seed-N/result.json` holds at least."""
MEANS = {name: {"mean": float, "sd": float | None} for name in METRICS}
RESULT = {
    "task": str, "method": str, "protocol": str, "leaky": bool, "views": list[dict], "dev": MEANS,
    "test": dict | None, "per_seed": list[dict],
    "provenance": {
        "config": {
            "data": str, "images": str, "fraction": float, "architecture": str | None,
            "init": str | None,
        },
        "kind": Literal["relation", "entities"], "data": dict, "versions": dict, "seconds": float,
        "audit": list[dict],
    },
}  # fmt: skip
"""What a run's `result.json` holds at least."""
AGAIN = "`python -m finetune evaluate RUN --data DIR` writes it again"
SEED_AGAIN = "remove the seed's folder to train it again"
RUN_AGAIN = "give the run's `finetune train` command again: it writes it of the finished seeds"


@dataclass(frozen=True)
class Predictions:
    """Answers of one split in file order."""

    rows: list[int]
    gold: list[Any]
    answers: list[Any]
    probabilities: list[list[Any]] | None
    """Relations: one a label, in order of the labels. Entities: None, or where they were asked for
    one an entity, in order of `metrics.entities`, which is None if the method knows none."""
    strays: Sequence[Mapping[int, str]] = ()
    """Entities: of each row the words that were told what is no tag of a word, and what; the answer
    there is `O`."""

    def __len__(self) -> int:
        return len(self.rows)

    def write(self, path: Path) -> None:
        """`pred_{split}.jsonl`."""
        split = _split_of(path)
        with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8") as lines:
            for i, row in enumerate(self.rows):
                record = {"split": split, "row": row, "gold": self.gold[i], "pred": self.answers[i]}
                if self.probabilities is not None:
                    record["scores"] = self.probabilities[i]
                if self.strays and self.strays[i]:
                    record["strays"] = {str(word): tag for word, tag in self.strays[i].items()}
                lines.write(json.dumps(with_crc32(record), ensure_ascii=False) + "\n")

    @classmethod
    def read(cls, path: Path) -> "Predictions":
        """What `write` wrote.

        Raises:
            InputError: the file is damaged; names file and line.
        """
        records: dict[int, dict[str, Any]] = {}
        try:
            for number, record in read_json_lines(path):
                where = f"{path}: line {number}"
                _check(record, where)
                if record.get("split", _split_of(path)) != _split_of(path):
                    raise InputError(f"{where}: an answer of {record['split']}")
                if record["row"] in records:
                    raise InputError(f"{where}: row {record['row']} a second time")
                records[record["row"]] = record
            if not records or not path.read_bytes().endswith(b"\n"):
                raise InputError(f"{path}: line {len(records)}: it ends in the middle of a line")
            with_scores = {"scores" in record for record in records.values()}
            if len(with_scores) > 1:
                raise InputError(f"{path}: scores in some of its lines")
        except InputError as error:
            raise damaged(path, error, AGAIN) from None
        gold, answers = ([record[key] for record in records.values()] for key in ("gold", "pred"))
        scores = [record["scores"] for record in records.values()] if True in with_scores else None
        odd = [record.get("strays", {}) for record in records.values()]
        strays = [{int(word): tag for word, tag in one.items()} for one in odd]
        return cls(list(records), gold, answers, scores, strays if any(strays) else ())

    def without(self, left_out: Sequence[bool]) -> "Predictions":
        """The rows that are not left out."""
        stay = [i for i, out in enumerate(left_out) if not out]
        shares = self.probabilities and [self.probabilities[i] for i in stay]
        rows, gold, answers = (
            [values[i] for i in stay] for values in (self.rows, self.gold, self.answers)
        )
        strays = self.strays and [self.strays[i] for i in stay]
        return Predictions(rows, gold, answers, shares, strays)

    def score(self, task: Task) -> dict[str, float]:
        """The task's metric, in percent."""
        return dict(task.score(self.gold, self.answers))


def _split_of(path: Path) -> str:
    """`dev` or `test`, in the name of a file of predictions."""
    return path.stem.removeprefix("pred_").partition("_")[0]


def _check(record: Any, where: str) -> None:
    """A relation, or the tags of the words, and a probability a label or entity."""
    checked(record, {"row": int, "gold": str | list[str], "pred": str | list[str]}, where)
    strays = checked(record.get("strays", {}), dict, f"{where}: strays")
    if not all(word.isdecimal() and tag in STRAY_TAGS for word, tag in strays.items()):
        raise InputError(f"{where}: strays: expected word numbers and tags that no word has")
    if not is_row(record["row"]) or type(record["gold"]) is not type(record["pred"]):
        raise InputError(f"{where}: expected a row number, and gold and pred of one kind")
    if "scores" in record:
        checked(record["scores"], list[float | None], f"{where}: scores")


def read_seed(path: Path) -> dict[str, Any]:
    """`result.json` of a seed.

    Raises:
        InputError: damaged; names file and key.
    """
    record = read_object(path, SEED, SEED_AGAIN)
    try:
        if record["test"] is not None:
            checked(record["test"], SCORES, f"{path}: test")
    except InputError as error:
        raise damaged(path, error, SEED_AGAIN) from None
    return record


def read_result(run: Path) -> dict[str, Any]:
    """`result.json` of a run directory; `images` as its seeds recorded them.

    Raises:
        InputError: not a finished run, or damaged; names file and key.
    """
    path = run / "result.json"
    if not path.is_file():
        raise InputError(f"{run}: no result.json; not a finished run")
    if (run / "metrics.jsonl").is_file():
        raise InputError(f"{run}: one seed of a run; give the run's folder, {run.parent}")
    result = read_object(path, RESULT, RUN_AGAIN)
    try:
        if not result["per_seed"]:
            raise InputError(f"{path}: per_seed: no seed in it")
        for seed in result["per_seed"]:
            checked(seed, SEED, f"{path}: per_seed")
        if result["test"] is not None:
            checked(result["test"], MEANS, f"{path}: test")
    except InputError as error:
        raise damaged(path, error, RUN_AGAIN) from None
    result["images"] = images_of(result["per_seed"], result["provenance"]["config"]["images"])
    return result


def images_of(per_seed: Sequence[Mapping[str, Any]], asked: str) -> str:
    """`--images` as asked, where the seeds loaded any picture; else none."""
    return asked if any(map(loaded_pictures, per_seed)) else "none"


def loaded_pictures(seed: Mapping[str, Any]) -> bool:
    """Whether a seed's rows came with pixels, whole or cut, or what a frozen tower saw in them."""
    if "reads" in seed:
        return bool(seed["reads"]["pictures"])
    # Older runs counted whole pictures alone; cut ones show in the files of their boxes.
    boxes = any("regions_" in name or "_img2crop" in name for name in seed["side_inputs"])
    return boxes or seed["images"].get("train") is not None


def also_in_train(per_seed: Sequence[Mapping[str, Any]], split: str = "test") -> str:
    """How many rows of a split ask what a training row asks, and the mean F1 of the others; "–"
    where a seed knows no count: runs older than it, training data that are gone."""
    counts = [seed.get("also_in_train", {}).get(split) for seed in per_seed]
    known = [count for count in counts if count]
    if not known or len(known) < len(counts):
        return "–"
    rows = sorted({count["rows"] for count in known})
    scores = [count["f1_without"] for count in known if count["f1_without"] is not None]
    numbers = f"{rows[0]}" if len(rows) == 1 else f"{rows[0]} to {rows[-1]}"
    return f"{numbers}: {statistics.mean(scores):.2f}" if scores else numbers


def of_seeds(run: Path, split: str) -> list[Predictions]:
    """`pred_{split}.jsonl` of each seed that has one, as `dev` or `test`.

    Raises:
        InputError: one of them is damaged.
    """
    return [Predictions.read(path) for path in seed_files(run, f"pred_{split}.jsonl")]
