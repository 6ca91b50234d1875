"""CAMIM's two additions (MM 2024): the caption-aware module, and mutual information as a loss.

N: sources (a picture with its caption, or a generated one with the sentence), M: pictures of a
source (the whole one, then its regions), P: positions of a picture, W: words, D: hidden size.
"""

from typing import Literal

import torch
from torch import Tensor, nn

from finetune.methods.camim.config import Combine, Direction, Levels
from finetune.methods.layers import attend
from pretrain import distributed

DROPOUT = 0.3


def projection(size: int) -> nn.Sequential:
    """Linear and dropout, as all six projections of the attention have them."""
    return nn.Sequential(nn.Linear(size, size), nn.Dropout(DROPOUT))


def widening(size: int) -> nn.Sequential:
    """D -> 2D -> D with tanh."""
    return nn.Sequential(nn.Linear(size, 2 * size), nn.Tanh(), nn.Linear(2 * size, size))


class CrossAttention(nn.Module):
    """Figure 3: each side attends to itself and to the other (Eqs. 7-14); no residual connection.

    Args:
        combine: how self and cross attention meet. concat: side by side, LayerNorm, Linear 2D -> D
            (Eq. 11). add: their sum, LayerNorm, Linear D -> D (released code). The norm has no
            parameters.
        swap_words: exchange query and key where words attend to words (released code).
        word_rows: also give the rows of the words; without them two of the four go.
    """

    def __init__(
        self, size: int, combine: Combine = "concat", swap_words: bool = False,
        word_rows: bool = True,
    ) -> None:  # fmt: skip
        super().__init__()
        self.query, self.key, self.value = (projection(size) for _ in range(3))
        self.word_key, self.word_value = projection(size), projection(size)
        self.word_query = projection(size) if word_rows else None
        self.combine, self.swap_words = combine, swap_words
        self.merge = nn.Linear(2 * size if combine == "concat" else size, size)
        self.finish = nn.Sequential(nn.Dropout(DROPOUT), nn.ELU())

    def forward(self, positions: Tensor, words: Tensor, mask: Tensor | None = None) -> Tensor:
        """(N, M, P, D), (N, W, D) -> (N, M, P+W, D), or (N, M, P, D) without `word_rows`.

        The words' projections are made once for the M pictures of a source, not once for each.

        Args:
            mask: (N, W) bool, False = a padded word that nothing attends to; None: all count.
        """
        query, key, value = (layer(positions) for layer in (self.query, self.key, self.value))
        word_key, word_value = self.word_key(words), self.word_value(words)
        seen = None if mask is None else mask[:, None, :]
        flat = query.flatten(1, 2)  # all pictures of a source ask the same words
        across = attend(flat, word_key, word_value, seen).view_as(positions)
        sides = [self.join(attend(query, key, value), across)]
        if self.word_query is not None:
            word_query = self.word_query(words)
            own = (word_key, word_query) if self.swap_words else (word_query, word_key)
            within = attend(*own, word_value, seen)[:, None]  # (N, 1, W, D)
            across = attend(word_query[:, None], key, value)  # (N, M, W, D)
            sides.append(self.join(within.expand_as(across), across))
        return self.finish(self.merge(torch.cat(sides, dim=2)))

    def join(self, own: Tensor, other: Tensor) -> Tensor:
        """Self and cross attention of one side, normalised."""
        joined = torch.cat([own, other], dim=-1) if self.combine == "concat" else own + other
        return nn.functional.layer_norm(joined, joined.shape[-1:])


class CaptionAware(nn.Module):
    """Aligns a picture with its caption: with the sentence as a whole, then word by word (§3.2).

    Args:
        levels: ws, or one of them: s leaves the attention out, w the sentence (Figure 4b).
        others: as for `CrossAttention`.
    """

    def __init__(
        self, size: int, levels: Levels = "ws", combine: Combine = "concat",
        swap_words: bool = False, word_rows: bool = True,
    ) -> None:  # fmt: skip
        super().__init__()
        self.sentence = nn.Linear(2 * size, size) if "s" in levels else None
        self.back = widening(size)
        self.word = self.attention = None
        if "w" in levels:
            self.word = widening(size)
            self.attention = CrossAttention(size, combine, swap_words, word_rows)

    def forward(
        self, positions: Tensor, sentence: Tensor, words: Tensor, mask: Tensor | None = None
    ) -> Tensor:
        """The aligned rows: (N, M, P+W, D) with `word_rows`, else (N, M, P, D).

        Args:
            positions: (N, M, P, D). sentence: (N, D). words: (N, W, D). mask: (N, W) bool or None.
        """
        if self.sentence is not None:  # Linear([V ; S]), with S multiplied once, not P times
            size = positions.shape[-1]
            weight, bias = self.sentence.weight, self.sentence.bias
            of_sentence = nn.functional.linear(sentence, weight[:, size:], bias)[:, None, None]
            positions = nn.functional.linear(positions, weight[:, :size]) + of_sentence
        positions = self.back(positions)
        if self.attention is None or self.word is None:
            return positions
        return self.attention(positions, self.word(words), mask)


def pool_sentence(
    words: Tensor, mask: Tensor, how: Literal["mean_masked", "mean_all", "cls"]
) -> Tensor:
    """A vector for a text: (N, W, D), (N, W) -> (N, D).

    mean_masked: mean over real word pieces. mean_all: padding counts (released code).
    """
    if how == "cls":
        return words[:, 0]
    if how == "mean_all":
        return words.mean(dim=1)
    weight = mask[..., None].to(words.dtype)
    return (words * weight).sum(dim=1) / weight.sum(dim=1).clamp(min=1)


def mutual_information(
    generated: Tensor,
    original: Tensor,
    direction: Direction = "g2o",
    temperature: float = 1.0,
    same: Tensor | None = None,
    gather: bool = False,
) -> Tensor:
    """InfoNCE over cosine similarities (Eqs. 20-22): a row's partner among those of the batch.

    With temperature 1 it lies between ln(1 + (B-1)·e⁻²) and ln(1 + (B-1)·e²); one row gives 0.

    Args:
        generated: (B, E). original: (B, E).
        direction: g2o: the generated feature is the anchor, originals are the candidates (text
            below Eq. 22, and the code). o2g: the other way (Eq. 22). symmetric: the mean of both.
        same: (B,) int64, rows with the same number (picture) are no negatives of each other.
        gather: take candidates from all processes, which must have equally many rows.

    Returns:
        Scalar, float32.
    """
    generated, original = (
        nn.functional.normalize(feature.float(), dim=-1, eps=1e-12)
        for feature in (generated, original)
    )
    pairs = {"g2o": [(generated, original)], "o2g": [(original, generated)]}
    pairs["symmetric"] = pairs["g2o"] + pairs["o2g"]
    targets = torch.arange(len(generated), device=generated.device)
    everyone = same
    if gather:
        targets = targets + distributed.rank() * len(generated)
        everyone = None if same is None else distributed.gather(same)
    losses = []
    for anchor, candidates in pairs[direction]:
        if gather:
            candidates = distributed.gather(candidates)
        with torch.autocast(anchor.device.type, enabled=False):  # it would multiply in bf16
            scores = anchor @ candidates.T / temperature
        if same is not None:
            friends = torch.eq(same[:, None], same if everyone is None else everyone)
            friends = friends.scatter(1, targets[:, None], False)
            scores = scores.masked_fill(friends, -torch.inf)
        losses.append(nn.functional.cross_entropy(scores, targets))
    return torch.stack(losses).mean()
