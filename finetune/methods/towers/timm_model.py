"""Networks of timm, by name (weights from hub or cache) or by directory in timm's layout."""

from pathlib import Path
from typing import Any

import timm

from finetune.methods.base import Source
from shards.files import InputError


def drawn_at_random(source: Source, vision_random: bool) -> bool:
    """Whether a picture tower of its own begins with random weights: as the settings ask, where
    all of the run does, and in a finished run, whose tensors are loaded afterwards."""
    return source.random_weights or source.finished or vision_random


def create(
    vision: str,
    *,
    random_weights: bool,
    name: str | None = None,
    can_be_random: bool = True,
    **options: Any,
) -> Any:
    """The network that `--model.vision` names.

    Args:
        name: as timm calls it; None: from `vision`.
        can_be_random: the method has `--model.vision_random`, which the error then offers.
        options: of `timm.create_model`.

    Raises:
        InputError: unknown, or not to be had.
    """
    if name is None:
        name = f"local-dir:{vision}" if Path(vision).is_dir() else vision
    try:
        return timm.create_model(name, pretrained=not random_weights, **options)
    except Exception as error:  # timm passes on whatever hub, file and registry raise
        reason = str(error).partition("\n")[0] or type(error).__name__
        advice = ", or --model.vision_random true" if can_be_random else ""
        raise InputError(
            f"--model.vision {vision}: timm cannot load it ({reason}); give a directory in timm's "
            f"layout{advice}"
        ) from error
