"""What is to know of a task's rows before a figure is read: what repeats itself, within a split and
across, which rows contradict each other, entities inside others, tags that begin no entity.
"""

from collections.abc import Hashable, Mapping, Sequence
from itertools import combinations
from typing import Any

from finetune.tasks.base import Row, Task
from finetune.tasks.mnre import RelationRow
from finetune.tasks.twitter import NERRow


def overlap(task: Task, rows: Mapping[str, Sequence[Any]]) -> list[str]:
    """A line a split and one a pair of splits, with line numbers of the first example."""
    lines = []
    for split, split_rows in rows.items():
        repeated, contradicting = repetitions(split_rows, task.gold(split_rows))
        pictures = {row.image_id for row in split_rows} - {None}
        without = sum(row.image_id is None for row in split_rows)
        lines.append(
            f"{split}: {counted(len(split_rows), 'row')}, {counted(len(pictures), 'picture')}"
            + (f" ({counted(without, 'row')} without one)" if without else "")
            + f", {_pairs(repeated)} repeated, {_pairs(contradicting)} repeated with another answer"
        )
        lines += [f"{split}: {fact}" for fact in peculiarities(split_rows)]
    for one, other in combinations(rows, 2):
        lines.append(_shared(task, one, rows[one], other, rows[other]))
    return lines


def repetitions(
    rows: Sequence[Row], gold: Sequence[Any]
) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """(row, its first occurrence) of those with the same answer, and of those with another; from 1.

    A row repeats another where text and entities are the same, whatever its picture.
    """
    first_places: dict[Hashable, int] = {}
    repeated: list[tuple[int, int]] = []
    contradicting: list[tuple[int, int]] = []
    for place, row in enumerate(rows):
        first = first_places.setdefault(question(row), place)
        if first != place:
            same = gold[first] == gold[place]
            (repeated if same else contradicting).append((first + 1, place + 1))
    return repeated, contradicting


def peculiarities(rows: Sequence[Any]) -> list[str]:
    """What scorers and methods may read in two ways."""
    facts = []
    relation_rows = [row for row in rows if isinstance(row, RelationRow)]
    overlapping = [
        row.row + 1
        for row in relation_rows
        if max(row.head[0], row.tail[0]) < min(row.head[1], row.tail[1])
    ]
    if overlapping:
        nested = sum(_nested(row) for row in relation_rows)
        facts.append(
            f"head and tail share words in {counted(len(overlapping), 'row')} (first: "
            f"{overlapping[0]}), one "
            f"within the other in {nested}"
        )
    ner_rows = [row for row in rows if isinstance(row, NERRow)]
    orphans = [number for row in ner_rows if (number := _orphans(row.tags))]
    if orphans:
        facts.append(
            f"{counted(sum(orphans), 'I- tag')} after O, in {counted(len(orphans), 'post')}: read "
            "as the beginning of an entity (seqeval's default), which strict IOB2 would not count"
        )
    return facts


def _nested(row: RelationRow) -> bool:
    """Whether one entity's words are all words of the other."""
    (a, b), (c, d) = row.head, row.tail
    return (a <= c and d <= b) or (c <= a and b <= d)


def _orphans(tags: Sequence[str]) -> int:
    return sum(
        tag[0] == "I" and before == "O" for before, tag in zip(("O", *tags), tags, strict=False)
    )


def question(row: Any) -> Hashable:
    """What is asked of a row: its words and, of a relation, its entities."""
    return row.tokens, getattr(row, "head", None), getattr(row, "tail", None)


def also_in(first: Sequence[Any], second: Sequence[Any]) -> list[bool]:
    """Of each row of `second`, whether one of `first` asks the same: text and entities, whatever
    picture and answer."""
    asked = {question(row) for row in first}
    return [question(row) in asked for row in second]


def _shared(task: Task, one: str, first: Sequence[Any], other: str, second: Sequence[Any]) -> str:
    posts = {row.tokens for row in first}
    names = {row.image_id for row in first} - {None}
    shared = [row for row in second if row.tokens in posts]
    pictures = {row.image_id for row in second} & names
    answers: dict[Hashable, list[Any]] = {}
    for row, gold in zip(first, task.gold(first), strict=True):
        answers.setdefault(question(row), []).append(gold)
    repeated = [
        gold in answers[question(row)]
        for row, gold in zip(second, task.gold(second), strict=True)
        if question(row) in answers
    ]
    return (
        f"{other}: also in {one}: {counted(len({row.tokens for row in shared}), 'post')} in "
        f"{counted(len(shared), 'row')}, {counted(len(pictures), 'picture')}, "
        f"{counted(len(repeated), 'question')} ({repeated.count(False)} with another answer)"
    )


def counted(number: int, thing: str) -> str:
    """`1 row`, `2 rows`."""
    return f"{number} {thing}{'s' * (number != 1)}"


def _pairs(places: Sequence[tuple[int, int]]) -> str:
    example = f" (first: {places[0][0]} and {places[0][1]})" if places else ""
    return f"{len(places)}{example}"
