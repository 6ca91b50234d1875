"""Models that a study trains before its runs, each as `python -m pretrain` does it."""

import json
import shlex
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from shards.files import InputError


def places(models: Mapping[str, Any], settings: Path | None, out: Path) -> dict[str, str]:
    """The model directory of each: what `$name` stands for in the study.

    Raises:
        InputError: the study trains models and got no settings, or the other way round; a name that
            `$name` cannot be.
    """
    if models and settings is None:
        raise InputError(
            "the study trains models first: name the settings of `python -m pretrain` (data, "
            "prompter, …) as a file: --pretraining FILE.yaml, such as a run directory's config.yaml"
        )
    for name in models:
        if not name.isidentifier() or name in ("data", "model", "configs"):
            raise InputError(f"pretrain: {name!r} is no name for a model: letters, digits and _")
    if settings is not None and not models:
        raise InputError("--pretraining: this study trains no models; leave it out")
    if settings is not None and not settings.is_file():
        raise InputError(f"--pretraining {settings}: no such file")
    return {name: str(out / "pretrain" / name / "model") for name in models}


def train(models: Mapping[str, Any], settings: Path, launcher: str, out: Path) -> None:
    """Train what is missing; an interrupted pre-training goes on.

    Raises:
        InputError: one did not end well; what it said stands on the screen.
    """
    start = shlex.split(launcher) or [sys.executable, "-m", "pretrain"]
    for name, changed in models.items():
        run_dir = out / "pretrain" / name
        words = ["--config", str(settings), *as_words({"run_dir": str(run_dir)} | (changed or {}))]
        print(f"pre-training {name}: {shlex.join([*start, *words])}", flush=True)
        status = subprocess.run([*start, *words], check=False).returncode
        if status or not (run_dir / "model").is_dir():
            raise InputError(
                f"pre-training {name} ended with status {status} and without a model; mend what it "
                "says above and give the same command again"
            )


def as_words(options: Mapping[str, Any]) -> list[str]:
    """A mapping as words of a command line; what is null is left out."""
    return [f"--{key}={as_word(value)}" for key, value in options.items() if value is not None]


def as_word(value: Any) -> str:
    """A YAML value as a word of a command line."""
    return json.dumps(value) if isinstance(value, bool | list | dict) else str(value)
