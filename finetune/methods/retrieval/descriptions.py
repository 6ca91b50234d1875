"""What relations mean, in a text each: read from a table, and as word pieces."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from shards.files import InputError
from shards.tables import read_table

LOG = logging.getLogger(__name__)
SHIPPED = {path.stem: path for path in Path(__file__).parent.glob("*.tsv")}
LENGTH = 32
"""Word pieces of a description at most, specials included."""


def read_descriptions(name: str | Path) -> dict[str, str]:
    """Relation -> text, of a shipped file or one of the user's, in its order.

    Raises:
        InputError: no such file, a row without relation or description, a relation twice.
    """
    path = SHIPPED.get(str(name), Path(name))
    if not path.is_file():
        raise InputError(
            f"{name}: no file of descriptions; give one with the columns relation and description, "
            f"or {', '.join(sorted(SHIPPED))}"
        )
    table = read_table(path, ("relation", "description"))
    if unread := [column for column in table.columns if column not in ("relation", "description")]:
        LOG.warning("%s: not read: column %s", path, ", ".join(unread))
    texts: dict[str, str] = {}
    for row in table.accepted():
        relation, text = (row.fields[key].strip() for key in ("relation", "description"))
        if not relation or not text:
            raise InputError(f"{path}: line {row.line}: relation or description is empty")
        if relation in texts:
            raise InputError(f"{path}: line {row.line}: {relation} a second time")
        texts[relation] = text
    if not texts:
        raise InputError(f"{path}: no row in it")
    return texts


def described(texts: Mapping[str, str], labels: Sequence[str], source: str | Path) -> list[str]:
    """The text of each label.

    Raises:
        InputError: one has none.
    """
    if missing := [label for label in labels if label not in texts]:
        raise InputError(
            f"{source}: no description of {', '.join(missing[:3])}"
            f"{' …' if len(missing) > 3 else ''}; --model.descriptions takes a file that has one "
            "for each relation of the data"
        )
    return [texts[label] for label in labels]


def as_pieces(tokenizer: Any, texts: Sequence[str]) -> Tensor:
    """(C, LENGTH) int64 word pieces with specials, -1 where a text has ended."""
    if long := [t for t in texts if len(tokenizer(t, verbose=False)["input_ids"]) > LENGTH]:
        LOG.warning(
            "%d of %d descriptions are longer than %d word pieces, and read so far; shorten them: "
            "%.60s …", len(long), len(texts), LENGTH, long[0],
        )  # fmt: skip
    rows = tokenizer(list(texts), truncation=True, max_length=LENGTH)["input_ids"]
    ids = torch.full((len(texts), LENGTH), -1)
    for row, pieces in zip(ids, rows, strict=True):
        row[: len(pieces)] = torch.tensor(pieces)
    return ids
