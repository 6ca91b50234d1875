"""The relation vocabulary: 1,000 Wikidata properties that hold between two items.

`relations.tsv` ships with the package; `choose` made it, by this rule:

1. from all properties whose value is an item (label and description in English, CC0);
2. drop those about Wikidata (its sandbox too), Wikimedia, identifiers, or words rather than things:
   the label matches `LABEL` or the description `DESCRIPTION`;
3. drop labels of more than `MAX_WORDS` words, and the later of two equal labels;
4. keep the 1,000 of the lowest number. Without statement counts, age is the best sign of common
   use that the list holds: `place of birth` is P19, `BAMID film rating` P9086.

Remake it: `python -m shards.relations ALL.tsv shards/relations.tsv`.
"""

import csv
import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from shards.command import Tool, exit_on_input_error
from shards.files import InputError, atomic_path
from shards.nouns import read_vocabulary
from shards.options import positive

SHIPPED = Path(__file__).with_name("relations.tsv")
LABEL = re.compile(
    r"wiki|sandbox|commons\b|categor(y|ies)\b|template|identifier|\bIDs?\b|\bproperty\b|deprecated|lexeme"
    r"|\bsense\b|grammatical|\blist of\b|list related|is a list|statement (disputed|supported)"
    r"|preferred rank|infobox|file$|model item|has list|main (topic|thesaurus)",
    re.IGNORECASE,
)
DESCRIPTION = re.compile(
    r"wikimedia (category|list|page|portal|thesaurus|project)|wikidata property|mediawiki"
    r"|wikiproject|commons (category|media)|lexeme|property constraint|\bexternal (id|identifier)"
    r"|used in references|link to (category|the (article|list))|^\W*category (item|containing|for)",
    re.IGNORECASE,
)
MAX_WORDS = 6


def relation_labels(path: str | os.PathLike[str] | None = None) -> list[str]:
    """Labels of the relation vocabulary, of a file of the user's or of the one shipped."""
    return read_vocabulary(path or SHIPPED)


def choose(properties: Path, size: int) -> list[tuple[str, str]]:
    """(P-id, label) of the chosen properties, by number.

    Args:
        properties: TSV with a header and the columns `id`, `label`, `description`.
    """
    with open(properties, encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    if not rows or not {"id", "label", "description"} <= set(rows[0]):
        raise InputError(f"{properties}: the header must name `id`, `label` and `description`")
    chosen: dict[str, str] = {}
    for row in sorted(rows, key=lambda row: int(row["id"][1:])):
        label = "".join(letter for letter in row["label"] if letter.isprintable()).strip()
        internal = LABEL.search(label) or DESCRIPTION.search(row["description"] or "")
        if label and not internal and len(label.split()) <= MAX_WORDS:
            chosen.setdefault(label, row["id"])
    if len(chosen) < size:
        raise InputError(f"{properties}: only {len(chosen)} properties pass the rule")
    return [(number, label) for label, number in list(chosen.items())[:size]]


@dataclass(frozen=True, kw_only=True)
class RelationsConfig:
    """Choose a relation vocabulary among all Wikidata properties."""

    POSITIONAL: ClassVar = ("properties", "out")
    properties: Path
    """TSV: id, label, description."""
    out: Path
    """TSV: id, label."""
    size: int = 1000
    """Relations chosen."""

    def __post_init__(self) -> None:
        positive(size=self.size)


def write_relations(config: RelationsConfig) -> None:
    """Write the list."""
    chosen = choose(config.properties, config.size)
    header = "# Wikidata properties, CC0; chosen by shards/relations.py"
    lines = [header, *(f"{number}\t{label}" for number, label in chosen)]
    with atomic_path(config.out) as temporary:
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    choose_relations = Tool(RelationsConfig, write_relations, "ALL.tsv shards/relations.tsv")
    exit_on_input_error(choose_relations.__call__)("python -m shards.relations", sys.argv[1:])
