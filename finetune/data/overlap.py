"""What repeats itself in a task's rows: duplicates within a split, posts and pictures across."""

from collections.abc import Hashable, Mapping, Sequence
from itertools import combinations
from typing import Any

from finetune.tasks.base import Row, Task


def overlap(task: Task, rows: Mapping[str, Sequence[Row]]) -> list[str]:
    """What repeats itself, with line numbers: rows within a split, posts and pictures across."""
    lines = []
    for split, some in rows.items():
        gold = task.gold(some)
        seen: dict[Hashable, int] = {}
        repeated, contradicting = [], []
        for place, row in enumerate(some):
            first = seen.setdefault(_question(row), place)
            if first != place:
                same = gold[first] == gold[place]
                (repeated if same else contradicting).append((first + 1, place + 1))
        lines.append(
            f"{split}: {len(some)} rows, {len({r.image_id for r in some})} pictures, "
            f"{_pairs(repeated)} repeated, {_pairs(contradicting)} repeated with another answer"
        )
    for one, other in combinations(rows, 2):
        posts = {row.tokens for row in rows[one]}
        names = {row.image_id for row in rows[one]} - {None}
        shared = [row for row in rows[other] if row.tokens in posts]
        pictures = {row.image_id for row in rows[other]} & names
        lines.append(
            f"{other}: {len({row.tokens for row in shared})} posts in {len(shared)} rows and "
            f"{len(pictures)} pictures occur in {one}, too"
        )
    return lines


def _question(row: Any) -> Hashable:
    """Everything of a row but its answer and its place."""
    return row.tokens, getattr(row, "head", None), getattr(row, "tail", None), row.image_id


def _pairs(places: Sequence[tuple[int, int]]) -> str:
    example = f" (first: {places[0][0]} and {places[0][1]})" if places else ""
    return f"{len(places)}{example}"
