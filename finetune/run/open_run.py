"""A finished run opened: its best seed, or each of them; and the data it is asked about."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune import registry
from finetune.config import cache_directory
from finetune.inputs.load import load_split
from finetune.inputs.split import InputOptions, LoadedSplit
from finetune.inputs.view import View
from finetune.methods.base import Method
from finetune.protocols import seed_files
from finetune.run.checkpoint import Description, load_method
from finetune.run.results import read_seed
from finetune.tasks.base import Task
from pretrain import distributed
from pretrain.checkpoint.remote import resolve
from shards.files import InputError

LOG = logging.getLogger(__name__)
Views = Mapping[str, Sequence[View]]
"""Split -> what an experiment changes in it."""


@dataclass(frozen=True)
class FinishedSeed:
    """One trained model, on this process's device, and what it reads."""

    directory: Path
    """`seed-N` of a run, or a model directory of its own."""
    method: Method
    tokenizer: Any
    description: Description

    def load(
        self,
        data: Path,
        split: str,
        *,
        views: Views | None = None,
        captions: str | None = None,
        max_missing: int = 0,
        cache: Path | None = None,
    ) -> tuple[Task, LoadedSplit]:
        """A data folder, and a split of it with the inputs that the seed was trained with.

        Args:
            captions: another captioner's than the run's.
            cache: folder of decoded pictures; None: the run's own.

        Raises:
            InputError: the folder has other labels, or lacks what the run reads.
        """
        task = registry.load("tasks", self.description.task.name)(data)
        check_labels(task, self.description.task.labels, data)
        options = InputOptions(
            **with_captions(self.description.inputs, captions),
            cache=cache or cache_directory(None, self.directory.parent),
            max_missing=max_missing,
            views=views or {},
        )
        return task, load_split(task, split, self.tokenizer, self.method, options)


def open_seed(directory: Path) -> FinishedSeed:
    """What lies in a seed's directory, or a model directory.

    Raises:
        InputError: a damaged model.
    """
    method, tokenizer, description = load_method(model_of(directory))
    return FinishedSeed(directory, method.to(distributed.device()), tokenizer, description)


def model_of(directory: Path) -> Path:
    """The model directory in a seed's directory, or the one that it is."""
    return directory / "model" if (directory / "model").is_dir() else directory


def open_run(source: str | Path) -> FinishedSeed:
    """The best seed of a run directory; one seed's; or a model directory, also by hub id."""
    return open_seed(best_seed(str(source)))


def best_seed(source: str) -> Path:
    """The seed directory of a run with the best dev F1, or the model directory itself."""
    path = Path(source)
    if (path / "method.json").is_file():
        return path.parent if (path.parent / "pred_dev.jsonl").is_file() else path
    if not path.exists():
        try:
            return Path(resolve(source))
        except InputError as error:
            raise InputError(
                f"{source}: no such run, and no model within reach ({error})"
            ) from None
    seeds = seed_directories(path)
    if len(seeds) == 1:
        return seeds[0]
    best = max(seeds, key=lambda seed: read_seed(seed / "result.json")["dev"]["f1"])
    LOG.info("%s: of %d seeds, %s has the best dev F1", source, len(seeds), best.name)
    return best


def seed_directories(run: Path) -> list[Path]:
    """The finished seeds of a run directory, or the directory itself where it is one seed's, or a
    converted checkpoint's.

    Raises:
        InputError: none is finished.
    """
    seeds = [path.parent for path in seed_files(run, "result.json")]
    begun = [path.parent for path in seed_files(run, "metrics.jsonl")]
    if unfinished := [seed.name for seed in begun if seed not in seeds]:
        LOG.warning("%s: not finished, and left out: %s", run, ", ".join(unfinished))
    if not seeds and (run / "model").is_dir():
        if (run / "metrics.jsonl").is_file() and not (run / "result.json").is_file():
            raise InputError(
                f"{run}: this seed is not finished; give its `finetune train` command again"
            )
        return [run]
    if not seeds:
        raise InputError(f"{run}: no finished seed in it (expected seed-*/result.json)")
    return seeds


def with_captions(inputs: dict[str, Any], captions: str | None) -> dict[str, Any]:
    """What a run reads, its captions by another captioner where one is named."""
    if captions is None:
        return inputs
    if inputs.get("captions") is None:
        raise InputError(f"--captions {captions}: this run was trained without captions")
    return inputs | {"captions": captions}


def check_labels(task: Task, trained: Sequence[str], data: Path) -> None:
    """Refuse a data folder whose labels are not those that the weights were trained on."""
    if tuple(trained) != task.info.labels:
        raise InputError(
            f"{data}: its {len(task.info.labels)} labels are not the {len(trained)} that this run "
            "was trained on, or in another order; evaluate with the same label file"
        )
