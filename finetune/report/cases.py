"""The hardest cases of a run: the test rows where it was surest and wrong, with their pictures."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune import registry
from finetune.protocols import seed_files
from shards.files import InputError

MOST = 8


@dataclass(frozen=True)
class Case:
    """One wrong answer."""

    row: int
    text: str
    gold: str
    predicted: str
    probability: float
    """Of the wrong answer, in [0, 1]."""
    picture: Path | None
    """None: the row has none, or its file is not there any more."""


def hardest(run: Path, result: Mapping[str, Any], number: int = MOST) -> list[Case]:
    """Of the run's first seed, relations only; none where its data folder is gone."""
    path = next(iter(seed_files(run, "pred_test.jsonl")), None)
    if path is None or result["provenance"]["kind"] != "relation":
        return []
    records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    wrong = [r for r in records if r["gold"] != r["pred"] and r.get("scores")]
    wrong.sort(key=lambda record: -max(record["scores"]))
    try:
        task = registry.load("tasks", result["task"])(Path(result["provenance"]["config"]["data"]))
        rows = {row.row: row for row in task.read("test")}
    except (InputError, OSError):
        return []
    found = []
    for record in wrong[:number]:
        row = rows[record["row"]]
        picture = task.image_folder("test") / row.image_id if row.image_id else None
        found.append(
            Case(
                row=row.row,
                text=with_entities(row.tokens, row.head, row.tail),
                gold=record["gold"],
                predicted=record["pred"],
                probability=max(record["scores"]),
                picture=picture if picture and picture.is_file() else None,
            )
        )
    return found


def with_entities(tokens: tuple[str, ...], head: tuple[int, int], tail: tuple[int, int]) -> str:
    """The text, head in [brackets] and tail in (parentheses)."""
    words = list(tokens)
    for (start, end), (opened, closed) in ((head, "[]"), (tail, "()")):
        words[start] = opened + words[start]
        words[end - 1] += closed
    return " ".join(words)
