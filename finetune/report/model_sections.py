"""Sections of a report that ask runs themselves, on the data they were trained on: `--looks`,
`--states`. Each gives what it can, and the reasons why runs are not shown."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from finetune import registry
from finetune.predict.extractor import Extractor
from finetune.predict.occlusion import thumbnail
from finetune.report import figures, galleries
from finetune.report.galleries import data_of, with_entities
from finetune.report.looks import look
from finetune.report.pages import Picture, Section
from finetune.report.papers import promu as states
from finetune.report.sections import Report
from finetune.tasks.base import Task
from finetune.tasks.posts import parse_post
from shards.files import InputError

LOG = logging.getLogger(__name__)


def looks(report: Report, number: int) -> tuple[list[Section], list[str]]:
    """Where the runs that see pictures look, on test rows drawn by the report's seed; where there
    is nothing, at least one reason."""
    # It counts the pictures of every load: here forty-nine covered copies a row.
    logging.getLogger("finetune.inputs.load").setLevel(logging.WARNING)
    sections: list[Section] = []
    reasons: list[str] = []
    for task in [name for name, kind in report.tasks.items() if kind == "relation"]:
        names = [n for n in report.of_task(task) if report.results[n]["images"] == "required"]
        extracts: dict[str, Extractor] = {}
        for name in names:
            try:
                extracts[name] = Extractor.from_pretrained(report.runs[name])
            except InputError as error:
                reasons.append(f"{name} is not shown ({error})")
        if extracts:
            sections += look_at(report, task, extracts, number, reasons)
    return sections, reasons or ["no run sees pictures"]


def look_at(
    report: Report, task: str, extracts: dict[str, Extractor], number: int, reasons: list[str]
) -> list[Section]:
    """The rows of one task, of the first run whose data are there; a run that cannot read one joins
    the reasons."""
    errors = []
    # Runs of one task may have read different folders: one that is gone costs nothing.
    for name in extracts:
        try:
            data, split = folder_and_split(report.runs[name], report.results[name])
            opened = registry.load("tasks", task)(data)
            rows = drawn(opened, split, number, report.seed)
            break
        except InputError as error:
            errors.append(str(error))
    else:
        reasons += errors
        return []
    pictures: list[Picture] = []
    for row in rows:
        image = opened.image_folder(split) / row.image_id
        record = {"tokens": list(row.tokens), "head": list(row.head), "tail": list(row.tail)}
        panels = [("the picture", thumbnail(image))]
        for name, extract in list(extracts.items()):
            try:
                post = parse_post(record | {"image": image}, Path(), task)
                panels += look(name, extract, post).panels
            except InputError as error:
                reasons.append(f"{name} is not shown ({error})")
                # Its reason is said once, not again with every row.
                del extracts[name]
        if not extracts:
            break
        path = report.figure(f"{task}_look{len(pictures) + 1}")
        text = f"{with_entities(row.tokens, row.head, row.tail)} — gold: {row.relation}"
        galleries.looks(panels, text, path)
        caption = (
            f"Row {row.row} of {split}. Bright: where the probability of the run's own answer "
            f"falls most when a grey square covers it. {report.protocol(*extracts)}"
        )
        alt = f"Row {row.row}: its picture, and a map of what each run's answer needs of it"
        pictures.append(Picture(path, alt, caption))
    note = (
        f"Rows drawn by seed {report.seed} among those with a relation and a picture, not chosen. "
        "Each panel: what the run said and its calibrated probability; what the answer loses "
        "without the cell (of 7 x 7) that counts most."
    )
    note += "".join(f" *{reason}.*" for reason in reasons)
    return [Section(f"Where runs look: {task}", note, [], pictures)] if pictures else []


def drawn(task: Task, split: str, number: int, seed: int) -> Sequence[Any]:
    """Rows with a relation and a picture that is there, in file order."""
    folder = task.image_folder(split)
    related = [
        row
        for row in task.read(split)
        if row.relation != task.info.negative and row.image_id and (folder / row.image_id).is_file()
    ]
    if not related:
        raise InputError(f"{task.folder}: no {split} row with a relation and a picture")
    chosen = np.sort(np.random.default_rng(seed).permutation(len(related))[:number])
    return [related[i] for i in chosen]


def fused_states(report: Report, number: int) -> tuple[list[Section], list[str]]:
    """PROMU's Figure 3 of each task's best run that has fusion layers, and why the better
    ones are not shown.

    Raises:
        InputError: scikit-learn is not installed.
    """
    sections: list[Section] = []
    reasons: list[str] = []
    for task in report.tasks:
        for name in report.of_task(task):
            try:
                data, split = folder_and_split(report.runs[name], report.results[name])
                # Entities beside objects need their boxes; without, relations beside pictures.
                regions = data if (data / "regions_od.jsonl").is_file() else None
                pairs = states.collect(
                    str(report.runs[name]), data, split, number, regions, report.seed
                )
            except InputError as error:
                reasons.append(str(error))
                continue
            path = report.figure(f"{task}_states")
            figures.states(states.panels(pairs, report.seed), path)
            kinds = " and ".join(" beside ".join(kind.names) for kind in pairs)
            caption = (
                f"{name}: {kinds} after the fusion layers, t-SNE of {len(pairs[0].first)} rows of "
                f"{split} drawn by seed {report.seed}; grey lines join the two of a row. "
                f"{report.protocol(name)}"
            )
            picture = Picture(path, f"Scatter plots: {kinds}", caption)
            sections.append(Section(f"States of {task}", "PROMU, Figure 3.", [], [picture]))
            break
    return sections, reasons


def folder_and_split(run: Path, result: Mapping[str, Any]) -> tuple[Path, str]:
    """The data that a run was trained on, and the split to look at.

    Raises:
        InputError: the folder is gone.
    """
    folder = data_of(run, result)
    if not folder.is_dir():
        raise InputError(f"{folder}: the data of the run is not there any more")
    return folder, "val" if result["test"] is None else "test"
