"""`python -m finetune types`: writes `types_{split}.jsonl`, the types of head and tail of each row.

ner       spaCy's named entities in the post
learned   a classifier of spans, trained on the types that the gold relations of *train* name;
          a train row gets its types from a classifier that saw neither it nor its post
gold      the types that the row's own gold relation names: leaky, to show what that does
"""

import argparse
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from finetune import registry
from finetune.inputs.types import FILE, TYPES, types_of
from finetune.tasks.base import Task
from finetune.tasks.mnre import RelationRow
from finetune.tasks.splits import SPLITS
from pretrain.checkpoint.hub import load_text_tower
from shards.command import CommandParser, exit_on_input_error
from shards.files import InputError, atomic_path

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
    found = []
    for row, doc in zip(rows, tqdm(docs, total=len(rows), disable=None), strict=True):
        found.append(tuple(_span_type(doc, span) for span in (row.head, row.tail)))
    return found


def _span_type(doc: Any, span: tuple[int, int]) -> str:
    tags = Counter(token.ent_type_ for token in doc[slice(*span)] if token.ent_type_)
    return SPACY_TAGS.get(tags.most_common(1)[0][0], "misc") if tags else "unknown"


# ---- learned -------------------------------------------------------------------------------------


class SpanEncoder:
    """A frozen BERT: an entity's vector is the mean of its pieces in the first, the middle and the
    last layer, side by side (3·D numbers)."""

    def __init__(self, source: str, device: str) -> None:
        self.bert, self.tokenizer = load_text_tower(source)
        self.bert.eval().to(device)
        self.device = device

    @torch.inference_mode()
    def __call__(self, rows: Sequence[RelationRow], chunk: int = 64) -> Tensor:
        """(N, 2, 3·D): of head and tail. Each distinct post is read once."""
        from tqdm import tqdm

        posts = sorted({row.tokens for row in rows}, key=len)
        wanted: dict[tuple[str, ...], list[tuple[int, int]]] = {post: [] for post in posts}
        for number, row in enumerate(rows):
            wanted[row.tokens] += [(number, 0), (number, 1)]
        vectors = torch.zeros(len(rows), 2, 3 * self.bert.config.hidden_size)
        for start in tqdm(range(0, len(posts), chunk), desc="posts", disable=None):
            some = posts[start : start + chunk]
            words, states = self._read(some)
            places = [(i, *place) for i, post in enumerate(some) for place in wanted[post]]
            spans = [(rows[n].head, rows[n].tail)[which] for _, n, which in places]
            index = torch.tensor([i for i, _, _ in places])
            first, end = torch.tensor(spans).T
            inside = (words[index] >= first[:, None]) & (words[index] < end[:, None])
            total = torch.einsum("nl,nld->nd", inside.float(), states[index])
            target = torch.tensor([place[1:] for place in places])
            vectors[target[:, 0], target[:, 1]] = total / inside.sum(1, keepdim=True).clamp(min=1)
        return vectors

    def _read(self, posts: Sequence[tuple[str, ...]]) -> tuple[Tensor, Tensor]:
        """(n, L) the word that each piece belongs to (-1: none), (n, L, 3·D) states."""
        encoded = self.tokenizer(
            list(map(list, posts)), is_split_into_words=True, truncation=True, padding=True,
            max_length=self.bert.config.max_position_embeddings, return_tensors="pt",
        )  # fmt: skip
        states = self.bert(
            input_ids=encoded["input_ids"].to(self.device),
            attention_mask=encoded["attention_mask"].to(self.device),
            output_hidden_states=True,
        ).hidden_states
        words = [
            [-1 if word is None else word for word in encoded.word_ids(i)]
            for i in range(len(posts))
        ]
        chosen = (states[0], states[len(states) // 2], states[-1])
        return torch.tensor(words), torch.cat(chosen, dim=-1).float().cpu()


def softmax_regression(vectors: Tensor, labels: Tensor, penalty: float = 1e-2) -> Callable:
    """Multinomial logistic regression with an L2 penalty: vectors (n, F) -> log-probabilities."""
    mean, scale = vectors.mean(0), vectors.std(0).clamp(min=1e-6)
    values = (vectors - mean) / scale
    weights = torch.zeros(values.shape[1] + 1, len(TYPES) - 1, requires_grad=True)
    optimizer = torch.optim.LBFGS([weights], max_iter=60, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        scores = values @ weights[:-1] + weights[-1]
        value = torch.nn.functional.cross_entropy(scores, labels)
        value = value + penalty * weights[:-1].square().sum() / 2
        value.backward()
        return value

    optimizer.step(loss)
    final = weights.detach()
    return lambda new: (((new - mean) / scale) @ final[:-1] + final[-1]).log_softmax(-1)


def fold_of(rows: Sequence[RelationRow], folds: int, seed: int) -> np.ndarray:
    """(N,) fold of each row; all rows of a picture or of a post lie in one."""
    parent: dict[Any, Any] = {}

    def root(key: Any) -> Any:
        while parent.setdefault(key, key) != key:
            key = parent[key]
        return key

    for row in rows:
        if row.image_id is not None:
            parent[root(row.image_id)] = root(row.tokens)
    groups: dict[Any, int] = {}
    numbers = np.array([groups.setdefault(root(row.tokens), len(groups)) for row in rows])
    order = np.random.Generator(np.random.PCG64(seed)).permutation(numbers.max() + 1)
    return order[numbers] % folds


def learn(
    rows: Mapping[str, Sequence[RelationRow]], encode: Callable, folds: int, seed: int
) -> tuple[dict[str, Pairs], float]:
    """The types of every split, and how many of train's named ones were found out of fold."""
    train = rows["train"]
    fold = torch.from_numpy(fold_of(train, folds, seed))
    truth = torch.tensor([[TYPES.index(name) for name in types_of(r.relation)] for r in train])
    known = (truth > 0).all(1)
    if any(not known[fold != k].any() for k in range(folds)):
        raise InputError(
            f"types learned: {int(known.sum())} relations of train name types (/per/org/…); too "
            f"few for {folds} folds"
        )
    vectors = {split: encode(some) for split, some in rows.items()}
    models = []
    for k in range(folds):
        chosen = known & (fold != k)
        models.append(
            softmax_regression(vectors["train"][chosen].flatten(0, 1), truth[chosen].flatten() - 1)
        )
    found = {}
    for split, values in vectors.items():
        scores = torch.stack([model(values) for model in models])  # (folds, N, 2, 4)
        own = scores[fold, torch.arange(len(train))] if split == "train" else scores.mean(0)
        found[split] = own.argmax(-1) + 1
    accuracy = (found["train"] == truth)[known].float().mean().item()
    pairs = {
        split: [(TYPES[head], TYPES[tail]) for head, tail in ids.tolist()]
        for split, ids in found.items()
    }
    return pairs, accuracy


# ---- Command -------------------------------------------------------------------------------------


def write_types(path: Path, header: Mapping[str, Any], pairs: Pairs, rows: Sequence[Any]) -> None:
    """A header line, then `{"row", "head", "tail"}` lines."""
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8") as lines:
        lines.write(json.dumps(header) + "\n")
        for row, (head, tail) in zip(rows, pairs, strict=True):
            lines.write(json.dumps({"row": row.row, "head": head, "tail": tail}) + "\n")


def run(args: argparse.Namespace, task: Task) -> None:
    """Write the files of all splits that there are."""
    rows = {split: task.read(split) for split in SPLITS if task.split_file(split)}
    header: dict[str, Any] = {"tool": "finetune types", "source": args.source, "leaky": False}
    if args.source == "gold":
        if not args.i_know_this_leaks:
            raise InputError(
                "types gold: the row's own relation names them, and a look-up table of these types "
                "alone reaches 86 F1 on MNRE; use `ner` or `learned`, or add --i-know-this-leaks"
            )
        header["leaky"] = True
        pairs = {split: [types_of(row.relation) for row in some] for split, some in rows.items()}
    elif args.source == "ner":
        header |= {"model": args.tagger, "spacy": version("spacy")}
        pairs = {split: named_entities(some, args.tagger) for split, some in rows.items()}
    else:
        if "train" not in rows:
            raise InputError(f"{args.data}: no train split to learn from")
        encode = SpanEncoder(args.encoder, args.device)
        pairs, accuracy = learn(rows, encode, args.folds, args.seed)
        header |= {"encoder": args.encoder, "folds": args.folds, "seed": args.seed}
        header["out_of_fold_accuracy"] = round(accuracy, 4)
        print(f"of the types that train's relations name, {100 * accuracy:.1f} % found out of fold")
    for split, found in pairs.items():
        path = args.out / FILE.format(split=split)
        path.parent.mkdir(parents=True, exist_ok=True)
        source = hashlib.sha256(task.split_file(split).read_bytes()).hexdigest()
        write_types(path, {**header, "split": split, "data": source}, found, rows[split])
        counts = Counter(name for pair in found for name in pair)
        print(f"{path}: {', '.join(f'{name} {counts[name]}' for name in TYPES if counts[name])}")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The subcommands of `python -m finetune types`."""
    sources = parser.add_subparsers(dest="source", required=True, metavar="SOURCE")

    def source(name: str, text: str, example: str) -> argparse.ArgumentParser:
        sub = sources.add_parser(
            name,
            help=text,
            description=text,
            epilog=f"example: python -m finetune types {name} --data MNRE --out TYPES{example}",
        )
        sub.add_argument("--data", required=True, type=Path, help="folder of the task's files")
        sub.add_argument("--task", default="mnre", help="mnre, relations, … (default mnre)")
        sub.add_argument("--out", required=True, type=Path, help="folder of types_{split}.jsonl")
        return sub

    sub = source("ner", "named entities by spaCy", "")
    sub.add_argument("--tagger", default="en_core_web_sm", help="spaCy model; default %(default)s")
    sub = source("learned", "a classifier of spans, trained on train's relations, across folds",
                 " --encoder bert-base-uncased")  # fmt: skip
    sub.add_argument("--encoder", required=True, help="BERT or fusion model: folder or hub id")
    sub.add_argument("--folds", type=int, default=5, help="default %(default)s")
    sub.add_argument("--seed", type=int, default=1, help="of the folds; default %(default)s")
    sub.add_argument("--device", default="cpu", help="cpu, cuda, …; default %(default)s")
    sub = source("gold", "of the row's own gold relation: leaks the label", " --i-know-this-leaks")
    sub.add_argument("--i-know-this-leaks", action="store_true", help="without it, refused")


@exit_on_input_error
def main(argv: Sequence[str] | None = None) -> None:
    """`python -m finetune types`"""
    parser = CommandParser(
        prog="python -m finetune types",
        description="Write the types of the two entities of each row.",
        epilog="example: python -m finetune types learned --data DATA/mnre --out TYPES "
        "--encoder bert-base-uncased",
    )
    add_arguments(parser)
    args = parser.parse_args(argv)
    if args.source == "learned" and args.folds < 2:
        raise InputError("--folds must be at least 2")
    run(args, registry.load("tasks", args.task)(args.data))
