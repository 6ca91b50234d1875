"""Which runs of a report were trained on something else than what lies there now."""

import logging
from collections.abc import Iterable, Mapping
from pathlib import Path

from finetune import registry
from finetune.config import cache_directory
from finetune.protocols import seed_files
from finetune.report.pages import Section, Table
from finetune.run import provenance
from finetune.run.results import read_result
from shards.files import InputError

LOG = logging.getLogger(__name__)
REMEDY = "restore it, or remove the run's seed folders and train it again"


def changed_inputs(runs: Mapping[str, Path]) -> dict[str, list[str]]:
    """Run -> what it read that is another by now: files, a split's pictures; unchanged runs are
    left out. What is gone contradicts nothing."""
    changed: dict[str, list[str]] = {}
    for name, run in runs.items():
        differing: dict[str, None] = {}
        for path in seed_files(run, "result.json"):  # one may have been trained later than others
            before = provenance.kept_inputs(path.parent)
            if before is None or not Path(before.data).is_dir():
                continue
            try:
                task = registry.load("tasks", read_result(run)["task"])(Path(before.data))
                now = provenance.changes(before, task, cache_directory(None, run))
            except InputError as error:
                now = [f"{before.data}: cannot be read any more ({error})"]
            differing |= dict.fromkeys(now)
        if differing:
            changed[name] = list(differing)
            first = changed[name][0]
            LOG.warning("%s: %s: changed since the run was trained; %s", run, first, REMEDY)
    return changed


def of_study(path: Path) -> dict[str, Path]:
    """The runs beside a `study.json`."""
    folders = sorted(result.parent for result in path.parent.glob("runs/*/result.json"))
    return {f"{path.parent.name}/{folder.name}": folder for folder in folders}


def section(changed: Mapping[str, Iterable[str]]) -> list[Section]:
    """What a reader must know before any figure; nothing where nothing changed."""
    note = (
        "These runs were trained on something else than what lies there now: their figures are not "
        f"those of the present files. For each file: {REMEDY}."
    )
    table = Table(
        ["run", "changed"], [[name, ", ".join(paths)] for name, paths in changed.items()], 2
    )
    return [Section("Inputs changed since training", note, [table])] if changed else []
