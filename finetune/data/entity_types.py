"""`python -m finetune types`: writes `types_{split}.jsonl`, the types of head and tail of each row.

ner       spaCy's named entities in the post
learned   a classifier of spans, trained on the types that the gold relations of *train* name;
          a train row gets its types from a classifier that saw neither it nor its post
gold      the types that the row's own gold relation names: leaky, to show what that does
"""

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from finetune.config import TaskOptions
from finetune.tasks.mnre import RelationRow
from shards.command import Group, Tool
from shards.files import InputError
from shards.json_files import write_json_lines

Pairs = list[tuple[str, str]]
"""(head type, tail type) of each row"""

# ---- ner -----------------------------------------------------------------------------------------

SPACY_TAGS = {"PERSON": "person", "ORG": "organization", "GPE": "location", "LOC": "location",
              "FAC": "location"}  # fmt: skip


def named_entities(rows: Sequence[RelationRow], tagger: str) -> Pairs:
    """An entity takes the tag that most of its words have, the first of equal ones; a tag that is
    none of ours is misc, no tag is unknown."""
    import spacy
    from spacy.tokens import Doc
    from tqdm import tqdm

    try:
        nlp = spacy.load(tagger, exclude=["parser", "lemmatizer"])
    except OSError:
        raise InputError(
            f"spaCy model {tagger} is not installed: `python -m spacy download {tagger}`, "
            "or `python -m finetune types learned`"
        ) from None
    docs = nlp.pipe(Doc(nlp.vocab, words=list(row.tokens)) for row in rows)
    documents = zip(rows, tqdm(docs, total=len(rows), disable=None), strict=True)
    return [(_span_type(doc, row.head), _span_type(doc, row.tail)) for row, doc in documents]


def _span_type(doc: Any, span: tuple[int, int]) -> str:
    tags = Counter(token.ent_type_ for token in doc[slice(*span)] if token.ent_type_)
    return SPACY_TAGS.get(tags.most_common(1)[0][0], "misc") if tags else "unknown"


# ---- files ---------------------------------------------------------------------------------------


def write_types(path: Path, header: Mapping[str, Any], pairs: Pairs, rows: Sequence[Any]) -> None:
    """A header line, then `{"row", "head", "tail"}` lines."""
    named = zip(rows, pairs, strict=True)
    records = ({"row": row.row, "head": head, "tail": tail} for row, (head, tail) in named)
    write_json_lines(path, header, records)


@dataclass(frozen=True, kw_only=True)
class TypesConfig(TaskOptions):
    """What every source asks for."""

    out: Path
    """Folder of types_{split}.jsonl."""


@dataclass(frozen=True, kw_only=True)
class NerConfig(TypesConfig):
    """Named entities by spaCy."""

    tagger: str = "en_core_web_sm"
    """spaCy model."""


@dataclass(frozen=True, kw_only=True)
class LearnedConfig(TypesConfig):
    """A classifier of spans, trained on train's relations, across folds."""

    encoder: str
    """BERT or fusion model: folder or hub id."""
    folds: int = 5
    """A train row gets its types from the classifier that did not see its fold."""
    seed: int = 1
    """Of the folds."""
    device: str = "cpu"
    """cpu, cuda, …"""

    def __post_init__(self) -> None:
        if self.folds < 2:
            raise ValueError("--folds must be at least 2")


@dataclass(frozen=True, kw_only=True)
class GoldConfig(TypesConfig):
    """Of the row's own gold relation: leaks the label."""

    i_know_this_leaks: bool = False
    """Without it, refused."""

    def __post_init__(self) -> None:
        if not self.i_know_this_leaks:
            raise ValueError(
                "types gold: the row's own relation names them, and a look-up table of these types "
                "alone reaches 86 F1 on MNRE; use `ner` or `learned`, or add --i-know-this-leaks"
            )


def run_ner(config: NerConfig) -> None:
    """Tag every post."""
    rows = read_rows(config)
    header = {"source": "ner", "leaky": False, "model": config.tagger, "spacy": version("spacy")}
    write_all(config, rows, header, {s: named_entities(r, config.tagger) for s, r in rows.items()})


def run_learned(config: LearnedConfig) -> None:
    """Train the classifiers, and let them tell."""
    from finetune.data.learned_types import SpanEncoder, learn

    rows = read_rows(config)
    if "train" not in rows:
        raise InputError(f"{config.data}: no train split to learn from")
    encode = SpanEncoder(config.encoder, config.device)
    pairs, accuracy = learn(rows, encode, config.folds, config.seed)
    header = {"source": "learned", "leaky": False, "encoder": config.encoder}
    header |= {"folds": config.folds, "seed": config.seed}
    header["out_of_fold_accuracy"] = round(accuracy, 4)
    print(f"of the types that train's relations name, {100 * accuracy:.1f} % found out of fold")
    write_all(config, rows, header, pairs)


def run_gold(config: GoldConfig) -> None:
    """Look them up."""
    from finetune.inputs.types import types_of

    rows = read_rows(config)
    pairs = {split: [types_of(row.relation) for row in rows[split]] for split in rows}
    write_all(config, rows, {"source": "gold", "leaky": True}, pairs)


def read_rows(config: TypesConfig) -> dict[str, Sequence[RelationRow]]:
    """Of all splits that there are."""
    task = config.open()
    return {split: task.read(split) for split in config.splits()}


def write_all(
    config: TypesConfig,
    rows: Mapping[str, Sequence[RelationRow]],
    header: Mapping[str, Any],
    pairs: Mapping[str, Pairs],
) -> None:
    """The files of all splits, and a line about each."""
    from finetune.inputs.types import FILE, TYPES

    task = config.open()
    for split, types in pairs.items():
        path = config.out / FILE.format(split=split)
        path.parent.mkdir(parents=True, exist_ok=True)
        data = hashlib.sha256(Path(str(task.split_file(split))).read_bytes()).hexdigest()
        whole = {"tool": "finetune types", **header, "split": split, "data": data}
        write_types(path, whole, types, rows[split])
        counts = Counter(name for pair in types for name in pair)
        print(f"{path}: {', '.join(f'{name} {counts[name]}' for name in TYPES if counts[name])}")


_PLACES = "--data MNRE --out TYPES"
TOOLS = {
    "ner": Tool(NerConfig, run_ner, _PLACES, True),
    "learned": Tool(LearnedConfig, run_learned, f"{_PLACES} --encoder bert-base-uncased", True),
    "gold": Tool(GoldConfig, run_gold, f"{_PLACES} --i-know-this-leaks", True),
}
main = Group(
    "python -m finetune types", TOOLS,
    "Write the types of the two entities of each row.", "learned",
)  # fmt: skip
