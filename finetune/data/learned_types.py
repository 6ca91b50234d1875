"""`python -m finetune types learned`: a classifier of spans, trained on the types that the gold
relations of *train* name; a train row gets its types from a classifier that saw neither it nor its
post."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from finetune.data.entity_types import Pairs
from finetune.inputs.types import TYPES, types_of
from finetune.tasks.mnre import RelationRow
from pretrain.checkpoint.hub import load_text_tower
from shards.files import InputError


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
        places_of: dict[tuple[str, ...], list[tuple[int, int]]] = {post: [] for post in posts}
        for number, row in enumerate(rows):
            places_of[row.tokens] += [(number, 0), (number, 1)]
        vectors = torch.zeros(len(rows), 2, 3 * self.bert.config.hidden_size)
        for start in tqdm(range(0, len(posts), chunk), desc="posts", disable=None):
            batch = posts[start : start + chunk]
            words, states = self._read(batch)
            places = [(i, *place) for i, post in enumerate(batch) for place in places_of[post]]
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
            max_length=self.bert.longest_text, return_tensors="pt",
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
    vectors = {split: encode(of_split) for split, of_split in rows.items()}
    models = []
    for k in range(folds):
        chosen = known & (fold != k)
        models.append(
            softmax_regression(vectors["train"][chosen].flatten(0, 1), truth[chosen].flatten() - 1)
        )
    types = {}
    for split, values in vectors.items():
        scores = torch.stack([model(values) for model in models])  # (folds, N, 2, 4)
        # Of a row of train the model that has not seen its label: else its types would tell it.
        own = scores[fold, torch.arange(len(train))] if split == "train" else scores.mean(0)
        types[split] = own.argmax(-1) + 1
    accuracy = (types["train"] == truth)[known].float().mean().item()
    pairs = {
        split: [(TYPES[head], TYPES[tail]) for head, tail in ids.tolist()]
        for split, ids in types.items()
    }
    return pairs, accuracy


# ---- Command -------------------------------------------------------------------------------------
