"""`python -m finetune data check`: what there is to say about a task's folder, before training."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from finetune.config import TaskOptions
from finetune.data.overlap import overlap
from finetune.tasks import metrics
from finetune.tasks.base import Task
from finetune.tasks.splits import SPLITS
from finetune.tasks.twitter import NERRow
from shards.files import InputError


@dataclass(frozen=True, kw_only=True)
class CheckConfig(TaskOptions):
    """Read every split and say what is in it: rows, labels, pictures, lengths, repeats."""

    task: str
    """mnre, twitter2015, relations, entities, …"""
    tokenizer: str | None = None
    """Model directory or hub id: counts its word pieces, for --max_length."""


def run_check(config: CheckConfig) -> None:
    """Print what there is to say."""
    print("\n".join(check(config.open(), config.tokenizer)))


def check(task: Task, tokenizer: str | None = None) -> list[str]:
    """What there is to say about a task's folder.

    Raises:
        InputError: splits with lines that are no rows: lists them, of all splits.
    """
    rows, problems = dict[str, Sequence[Any]](), list[str]()
    for split in SPLITS:
        if task.split_file(split):
            try:
                rows[split] = task.read(split)
            except InputError as error:
                problems.append(str(error))
    # After all splits: whoever mends one file wants to know of the others.
    if problems:
        raise InputError("\n".join(problems))
    if not rows:
        raise InputError(f"{task.folder}: no split of the task {task.info.name} in it")
    lines = []
    for split, split_rows in rows.items():
        labels = Counter(label for gold in task.gold(split_rows) for label in _labels(gold))
        folder, longest = task.image_folder(split), max(len(row.tokens) for row in split_rows)
        names = {row.image_id for row in split_rows} - {None}
        missing = sorted(name for name in names if not (folder / name).is_file())
        lines += [
            f"{split}: {task.split_file(split)}",
            f"  {len(split_rows)} rows, longest {longest} tokens",
            "  " + ", ".join(f"{label} {count}" for label, count in labels.most_common()),
            f"  pictures in {folder}: {len(names) - len(missing)} there, {len(missing)} missing"
            + (f", for example {missing[0]}" if missing else ""),
        ]
        if tokenizer:
            lines.append(f"  {word_pieces(task, split_rows, tokenizer)}")
    lines += [f"no {split} split" for split in SPLITS if split not in rows]
    return lines + dictionary(rows) + overlap(task, rows)


def _labels(gold: Any) -> list[str]:
    """The label of a relation row, or the types of a sentence's entities."""
    return [gold] if isinstance(gold, str) else [kind for kind, _, _ in metrics.entities(gold)]


def word_pieces(task: Task, rows: Sequence[Any], source: str) -> str:
    """How long the rows are to a model, marks of entities and both ends included."""
    from pretrain.checkpoint import hub  # torch, which parsing does without
    from pretrain.checkpoint.remote import resolve

    tokenizer: Any = hub.load_tokenizer(resolve(source))
    tokenizer.add_tokens(list(task.info.extra_tokens), special_tokens=True)
    columns = task.encode(rows, tokenizer, max_length=1_000_000)
    lengths = np.array([len(pieces) for pieces in columns["input_ids"]])
    middle, most = np.quantile(lengths, [0.5, 0.95], method="inverted_cdf")
    return f"word pieces a row: median {middle}, 95 % up to {most}, longest {lengths.max()}"


def dictionary(rows: Mapping[str, Sequence[Any]]) -> list[str]:
    """What a model must beat: entities of train, longest first, wherever their words stand again,
    with the type that they mostly have there. Nothing for relations."""
    if "train" not in rows or not isinstance(rows["train"][0], NERRow):
        return []
    types: dict[tuple[str, ...], Counter[str]] = defaultdict(Counter)
    for row in rows["train"]:
        for kind, first, last in metrics.entities(row.tags):
            types[row.tokens[first : last + 1]][kind] += 1
    entries = {words: counts.most_common(1)[0][0] for words, counts in types.items()}
    longest = max(map(len, entries), default=0)
    return [
        f"{split}: the {len(entries)} entities of train, looked up, reach F1 "
        f"{score['f1']:.1f} (precision {score['precision']:.1f}, recall {score['recall']:.1f})"
        for split, split_rows in rows.items()
        if split != "train"
        for score in [
            metrics.entity_scores(
                [row.tags for row in split_rows],
                [_looked_up(row.tokens, entries, longest) for row in split_rows],
            )
        ]
    ]


def _looked_up(
    tokens: tuple[str, ...], entries: Mapping[tuple[str, ...], str], longest: int
) -> list[str]:
    """BIO tags."""
    tags = ["O"] * len(tokens)
    place = 0
    while place < len(tokens):
        lengths = range(min(longest, len(tokens) - place), 0, -1)
        length = next((n for n in lengths if tokens[place : place + n] in entries), 0)
        if length:
            kind = entries[tokens[place : place + length]]
            tags[place : place + length] = [f"B-{kind}"] + [f"I-{kind}"] * (length - 1)
        place += max(length, 1)
    return tags
