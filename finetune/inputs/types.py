"""Types of the two entities as an input: `entity_types`, from `types_{split}.jsonl`.

MNRE states no types; the only ones in it stand in the gold relation (`/per/org/member_of`), and a
look-up table of *those* reaches 86.6 test F1 without text or picture. So the files come from
`python -m finetune types`, which reads them off the text (`ner`, `learned`), or off the gold
relation (`gold`), to show that; the header says which, and `leaky` of the last.
"""

import logging

import numpy as np

from finetune.inputs.spec import Wanted
from finetune.inputs.split import LoadedSplit
from finetune.tasks import side_files
from pretrain import distributed
from shards.files import InputError

LOG = logging.getLogger(__name__)

TYPES = ("unknown", "person", "organization", "location", "misc")
"""Position = id."""
PARTS = {"per": "person", "org": "organization", "loc": "location", "misc": "misc"}
"""How the names of relations spell them."""
FILE = "types_{split}.jsonl"


def type_of(part: str) -> str | None:
    """The type that a part of a relation's name says, or None."""
    return PARTS.get(part)


def types_of(relation: str) -> tuple[str, str]:
    """The types that a relation's name says: `/per/org/member_of` -> (person, organization);
    unknown where it says none."""
    parts = relation.strip("/").split("/")
    if len(parts) != 3:
        return TYPES[0], TYPES[0]
    return PARTS.get(parts[0], TYPES[0]), PARTS.get(parts[1], TYPES[0])


def add_entity_types(loaded: LoadedSplit, wanted: Wanted) -> LoadedSplit:
    """`entity_types`: (N, 2) ids of head and tail; all unknown without `--types DIR`.

    Raises:
        InputError: a file of another version of the data, or a type that is none of `TYPES`.
    """
    # Once a run: every split comes by here.
    if wanted.options.types is None and wanted.split == "train" and distributed.is_main():
        LOG.warning(
            "%s reads entity types, and this run has none: every one is unknown; --types DIR gives "
            "them (`python -m finetune types learned …` makes them), --types none says so",
            wanted.spec.method,
        )
    if wanted.options.types is None or wanted.options.types == "none":
        ids = np.zeros((len(loaded), 2), dtype=np.int64)
        return loaded.with_column("entity_types", ids)
    path = side_files.find(wanted.options.types, FILE, wanted.split)
    source = side_files.read_types(path)
    source.require_rows(len(wanted.original))
    wanted.task.require_version(wanted.split, source.header.get("data"), name=str(path))
    number = {name: i for i, name in enumerate(TYPES)}
    pairs = source.of(loaded.rows)
    strange = next((name for pair in pairs for name in pair if name not in number), None)
    if strange is not None:
        raise InputError(f"{path}: unknown type {strange!r}; there are {', '.join(TYPES)}")
    ids = np.array([[number[name] for name in pair] for pair in pairs], dtype=np.int64)
    loaded = loaded.with_column("entity_types", ids.reshape(-1, 2))
    return loaded.with_source(source, **{"types: head, tail": pairs})
