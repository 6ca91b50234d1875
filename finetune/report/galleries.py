"""Plots made of pictures: wrong answers, and where runs looked."""

import textwrap
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from finetune.predict.occlusion import thumbnail
from finetune.report import figures
from finetune.report.cases import Case
from finetune.report.figures import PAPER, SMALL

Panel = tuple[str, Image.Image]
"""Lines above a picture, and the picture."""


def cases(wrong: Sequence[Case], path: Path, columns: int = 4) -> None:
    """Wrong answers, each with its picture, what it was and what was said."""
    from matplotlib.figure import Figure

    lines = -(-len(wrong) // columns)
    columns = min(columns, max(1, len(wrong)))
    figure = Figure(figsize=(2.6 * columns, 3.7 * lines), layout="constrained")
    grid = figure.subplots(lines, columns, squeeze=False).flatten()
    for axes in grid:
        axes.axis("off")
    texts = [
        textwrap.wrap(case.text.replace("$", r"\$"), 38, max_lines=3, placeholder=" …")
        for case in wrong
    ]
    most = max(map(len, texts), default=0)
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
    from matplotlib.figure import Figure

    columns = 2 if len(panels) in (1, 2, 4) else 3
    lines, width = -(-len(panels) // columns), PAPER / columns
    tallest = max(picture.height / picture.width for _, picture in panels)
    heading = textwrap.fill(text.replace("$", r"\$"), 58)
    height = lines * (width * min(tallest, 1.6) + 0.42) + 0.14 * (heading.count("\n") + 1)
    figure = Figure(figsize=(PAPER, height), layout="constrained")
    grid = figure.subplots(lines, columns, squeeze=False).flatten()
    for axes in grid:
        axes.axis("off")
    for axes, (title, picture) in zip(grid, panels, strict=False):
        axes.imshow(picture, interpolation="bilinear")
        axes.set_title(title.replace("$", r"\$"), fontsize=SMALL)
    figure.suptitle(heading, fontsize=SMALL + 1, x=0.02, ha="left")
    figures.save(figure, path, dpi=300)


def fitted(name: str, most: int = 22) -> str:
    """The end of a name that is too long for a panel."""
    return name if len(name) <= most else "…" + name[1 - most :]


def short(relation: str) -> str:
    """/per/org/member_of -> member_of"""
    return relation.rsplit("/", 1)[-1]
