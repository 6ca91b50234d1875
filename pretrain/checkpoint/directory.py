"""A model directory, resolved once: where it lies, what its `config.json` says, what kind it is."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pretrain.checkpoint.remote import resolve
from pretrain.checkpoint.strict import read_config


@dataclass(frozen=True)
class ModelDirectory(os.PathLike[str]):
    """What a path, hub id or URL came to. Whoever takes a path takes this."""

    name: str
    """As the user wrote it: what messages call it."""
    path: Path
    """A local folder."""
    config: dict[str, Any]
    """Content of its `config.json`."""

    @classmethod
    def open(
        cls,
        source: "str | os.PathLike[str] | ModelDirectory",
        *,
        revision: str | None = None,
        local_files_only: bool = False,
    ) -> "ModelDirectory":
        """Find `source` as `resolve` does, and read its `config.json`; itself, if it is one.

        Raises:
            InputError: not there, no model directory, or damaged.
        """
        if isinstance(source, ModelDirectory):
            return source
        path = resolve(source, revision=revision, local_files_only=local_files_only)
        return cls(str(source), path, read_config(path))

    @property
    def kind(self) -> str:
        """`model_type`: `fusion-mre`, `bert`, `clip`, …; "" where none is named."""
        return str(self.config.get("model_type", ""))

    def __fspath__(self) -> str:
        return str(self.path)

    def __str__(self) -> str:
        return self.name
