"""Plots made of pictures: the hardest cases of a run (the test rows where it was surest and wrong),
and where runs looked."""

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from finetune import registry
from finetune.protocols import seed_files
from finetune.report import figures
from finetune.report.figures import PAPER, SMALL
from finetune.run.results import Predictions
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


def hardest(run: Path, result: Mapping[str, Any], most: int = MOST) -> list[Case]:
    """Of the run's first seed, relations only; none where its data folder is gone."""
    path = next(iter(seed_files(run, "pred_test.jsonl")), None)
    if path is None or result["provenance"]["kind"] != "relation":
        return []
    given = Predictions.read(path)
    wrong = [
        (max(scores), row, gold, answer)
        for row, gold, answer, scores in zip(
            given.rows, given.gold, given.answers, given.probabilities or [], strict=False
        )
        if gold != answer and scores
    ]
    wrong.sort(key=lambda case: -case[0])
    try:
        task = registry.load("tasks", result["task"])(data_of(run, result))
        rows = {row.row: row for row in task.read("test")}
    except (InputError, OSError):
        return []
    cases = []
    for probability, number, gold, answer in wrong[:most]:
        row = rows.get(number)
        if row is None or row.relation != gold:  # of another version of the file
            return []
        picture = task.image_folder("test") / row.image_id if row.image_id else None
        text = with_entities(row.tokens, row.head, row.tail)
        image = picture if picture and picture.is_file() else None
        cases.append(Case(number, text, gold, answer, probability, image))
    return cases


def data_of(run: Path, result: Mapping[str, Any]) -> Path:
    """The folder that a run was trained on, from wherever it was named."""
    from finetune.run.provenance import kept_inputs  # torch: a report of files alone needs none

    for path in seed_files(run, "result.json"):
        if (inputs := kept_inputs(path.parent)) is not None:
            return Path(inputs.data)
    return Path(result["provenance"]["config"]["data"])


def with_entities(tokens: tuple[str, ...], head: tuple[int, int], tail: tuple[int, int]) -> str:
    """The text, head in [brackets] and tail in (parentheses)."""
    words = list(tokens)
    for (start, end), (opened, closed) in ((head, "[]"), (tail, "()")):
        words[start] = opened + words[start]
        words[end - 1] += closed
    return " ".join(words)


Panel = tuple[str, Image.Image]
"""Lines above a picture, and the picture."""


def cases(wrong: Sequence[Case], path: Path, columns: int = 4) -> None:
    """Wrong answers, each with its picture, what it was and what was said."""
    lines = -(-len(wrong) // columns)
    columns = min(columns, max(1, len(wrong)))
    figure = figures.canvas(2.6 * columns, 3.7 * lines)
    grid = figure.subplots(lines, columns, squeeze=False).flatten()
    for axes in grid:
        axes.axis("off")
    texts = [textwrap.wrap(case.text, 38, max_lines=3, placeholder=" …") for case in wrong]
    most = max(map(len, texts), default=0)
    from finetune.predict.occlusion import thumbnail  # torch: a report of files alone needs none

    for axes, case, text in zip(grid, wrong, texts, strict=False):
        if case.picture:
            axes.imshow(thumbnail(case.picture, 320), interpolation="bilinear")
        title = [
            f"row {case.row}: is {case.gold},",
            f"said {case.predicted} ({100 * case.probability:.0f} %)",
            *text,
            *[""] * (most - len(text)),  # all as high: the pictures stand in a line
        ]
        axes.set_title("\n".join(title), fontsize=7.5, loc="left")
    figures.save(figure, path)


def looks(panels: Sequence[Panel], text: str, path: Path) -> None:
    """Pictures with a line or two above each, below the post's text."""
    columns = 2 if len(panels) in (1, 2, 4) else 3
    lines, width = -(-len(panels) // columns), PAPER / columns
    tallest = max(picture.height / picture.width for _, picture in panels)
    heading = textwrap.fill(text, 58)
    height = lines * (width * min(tallest, 1.6) + 0.42) + 0.14 * (heading.count("\n") + 1)
    figure = figures.canvas(PAPER, height)
    grid = figure.subplots(lines, columns, squeeze=False).flatten()
    for axes in grid:
        axes.axis("off")
    for axes, (title, picture) in zip(grid, panels, strict=False):
        axes.imshow(picture, interpolation="bilinear")
        axes.set_title(title, fontsize=SMALL)
    figure.suptitle(heading, fontsize=SMALL + 1, x=0.02, ha="left")
    figures.save(figure, path, dpi=300)


def fitted(name: str, most: int = 22) -> str:
    """The end of a name that is too long for a panel."""
    return name if len(name) <= most else "…" + name[1 - most :]


def short(relation: str) -> str:
    """/per/org/member_of -> member_of"""
    return relation.rsplit("/", 1)[-1]
