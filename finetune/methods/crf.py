"""Linear-chain conditional random field over tags (Lafferty et al. 2001), in single precision.

B: sentences, T: positions, K: tags. Parameter names, shapes and initialisation are those of
`pytorch-crf`, so a checkpoint of HVPNeT or TMR loads unchanged.
"""

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from finetune.tasks.metrics import Entity


class LinearChainCRF(nn.Module):
    """Scores a tag sequence y over emissions e as

        start[y_1] + Σ_t e[t, y_t] + Σ_t transitions[y_{t-1}, y_t] + end[y_T]

    Computed in fp32 whatever the autocast type: a sum over T positions of log-partition terms
    loses whole units in bf16.
    """

    illegal_start: Tensor
    illegal_step: Tensor

    def __init__(self, labels: Sequence[str], *, mask_illegal: bool = False):
        """
        Args:
            labels: tag names in the order of the emission columns; K = their number.
            mask_illegal: decode only sequences in which `I-x` follows `B-x` or `I-x`. Training is
                untouched: the data itself holds orphan `I-` tags (Twitter-2015).
        """
        super().__init__()
        self.labels = tuple(labels)
        num_tags = len(labels)
        self.start_transitions = nn.Parameter(torch.empty(num_tags))
        self.end_transitions = nn.Parameter(torch.empty(num_tags))
        self.transitions = nn.Parameter(torch.empty(num_tags, num_tags))  # from, to
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -0.1, 0.1)
        start, step = illegal_transitions(labels)
        if not mask_illegal:
            start, step = torch.zeros_like(start), torch.zeros_like(step)
        self.register_buffer("illegal_start", start, persistent=False)
        self.register_buffer("illegal_step", step, persistent=False)
        self.temperature = 1.0
        """Of `entity_probabilities` alone; `chain_calibration.py` fits it."""

    def scaled(self, factor: float) -> "LinearChainCRF":
        """A copy whose scores are `factor` times these; emissions are the caller's to scale."""
        with torch.no_grad():
            scaled = copy.deepcopy(self)
            scaled.temperature = 1.0
            for parameter in scaled.parameters():
                parameter.mul_(factor)
        return scaled

    def log_likelihood(self, emissions: Tensor, tags: Tensor, mask: Tensor) -> Tensor:
        """Log-probability of each tag sequence.

        Args:
            emissions: (B, T, K), any floating type; what stands under the mask is ignored.
            tags: (B, T) in [0, K) where `mask`; anything elsewhere (-100 is fine).
            mask: (B, T) bool, a run of True from the first position on.

        Returns:
            (B,) float32.
        """
        check_mask(mask)
        with torch.autocast(emissions.device.type, enabled=False):
            emissions = emissions.float().masked_fill(~mask[..., None], 0.0)
            score = self._score(emissions, tags.masked_fill(~mask, 0), mask)
            return score - self._log_partition(
                emissions, mask, self.start_transitions, self.transitions
            )

    def _score(self, emissions: Tensor, tags: Tensor, mask: Tensor) -> Tensor:
        """(B,) unnormalised score of `tags`."""
        at_tags = emissions.gather(2, tags[..., None]).squeeze(2)  # (B, T); 0 under the mask
        steps = self.transitions[tags[:, :-1], tags[:, 1:]] * mask[:, 1:]
        last = tags.gather(1, mask.sum(1, keepdim=True) - 1).squeeze(1)  # (B,)
        ends = self.start_transitions[tags[:, 0]] + self.end_transitions[last]
        return ends + at_tags.sum(1) + steps.sum(1)

    def _log_partition(
        self, emissions: Tensor, mask: Tensor, start: Tensor, transitions: Tensor
    ) -> Tensor:
        """(B,) log of the summed exponential scores of all K^length sequences.

        What is -inf in an emission, in `start` (K,) or in `transitions` (K, K) takes no part.
        """
        alpha = start + emissions[:, 0]  # (B, K)
        for t in range(1, emissions.shape[1]):
            paths = alpha[:, :, None] + transitions + emissions[:, t, None, :]  # (B, K, K)
            alpha = torch.where(mask[:, t, None], paths.logsumexp(1), alpha)
        return (alpha + self.end_transitions).logsumexp(1)

    @torch.no_grad()
    def decode(self, emissions: Tensor, mask: Tensor) -> list[list[int]]:
        """The most likely tags of each sentence (Viterbi), as many as its mask is long.

        Shapes as in `log_likelihood`. Of equal scores the lower tag number wins.
        """
        check_mask(mask)
        with torch.autocast(emissions.device.type, enabled=False):
            emissions = emissions.float().masked_fill(~mask[..., None], 0.0)
            start, transitions = self._decoded_transitions()
            best = start + emissions[:, 0]  # (B, K)
            stay = torch.arange(best.shape[1], device=best.device).expand_as(best)
            backward = []  # per step (B, K): the best previous tag
            for t in range(1, emissions.shape[1]):
                top, previous = (best[:, :, None] + transitions).max(1)
                on = mask[:, t, None]
                best = torch.where(on, top + emissions[:, t], best)
                backward.append(torch.where(on, previous, stay))
            tag = (best + self.end_transitions).argmax(1)  # (B,)
        tags = [tag]
        for previous in reversed(backward):
            tag = previous.gather(1, tag[:, None]).squeeze(1)
            tags.append(tag)
        paths = torch.stack(tags[::-1], dim=1).tolist()
        return [path[:length] for path, length in zip(paths, mask.sum(1).tolist(), strict=True)]

    def _decoded_transitions(self) -> tuple[Tensor, Tensor]:
        """Start (K,) and step (K, K) scores; -inf where `mask_illegal` forbids."""
        start = self.start_transitions.masked_fill(self.illegal_start, -torch.inf)
        return start, self.transitions.masked_fill(self.illegal_step, -torch.inf)

    @torch.no_grad()
    def entity_probabilities(
        self,
        emissions: Tensor,
        mask: Tensor,
        places: Tensor,
        word_mask: Tensor,
        entities: Sequence[Sequence[Entity]],
    ) -> list[list[float]]:
        """Posterior probability that a sentence's tags read as this entity, exactly, with all
        scores of the chain divided by `temperature`.

        Its first word is `B-x`, or an `I-x` that follows no `x`; its other words are `I-x`, the
        word after it is not: what `metrics.entities` finds. The sum over all such sequences, by
        the forward recursion with the other tags at -inf, over the sum of all that `decode`
        chooses from. Words may share the chain with positions that are free (later pieces).

        Args:
            emissions, mask: as in `log_likelihood`.
            places: (B, W) the position at which each word's tag is read.
            word_mask: (B, W) bool, where a word is.
            entities: of each sentence.

        Returns:
            As many probabilities a sentence as it has entities.
        """
        check_mask(mask)
        if self.temperature != 1:
            cooled, emissions = self.scaled(1 / self.temperature), emissions.float()
            emissions = emissions / self.temperature
            return cooled.entity_probabilities(emissions, mask, places, word_mask, entities)
        device = emissions.device
        flat = [(row, entity) for row, of_row in enumerate(entities) for entity in of_row]
        if not flat:
            return [[] for _ in entities]
        rows = torch.tensor([row for row, _ in flat], device=device)
        shut = self._shut([entity for _, entity in flat], word_mask[rows]).float()
        where = places[rows, :, None].expand_as(shut[0])  # (N, W, K)
        with torch.autocast(device.type, enabled=False):
            emissions = emissions.float().masked_fill(~mask[..., None], 0.0)
            legal = self._decoded_transitions()
            total = self._log_partition(emissions, mask, *legal)[rows]  # (N,)
            parts = []
            for words in shut:  # begun with B-x, then with I-x
                at = torch.zeros_like(emissions[rows]).scatter_add_(1, where, words) > 0
                given = emissions[rows].masked_fill(at, -torch.inf)
                parts.append(self._log_partition(given, mask[rows], *legal))
            shares = iter((torch.logaddexp(*parts) - total).exp().clamp(max=1.0).tolist())
        return [[next(shares) for _ in of_row] for of_row in entities]

    def _shut(self, entities: Sequence[Entity], word_mask: Tensor) -> Tensor:
        """(2, N, W, K) bool: tags that no word can have if the N entities begin with B-x, with I-x.

        Args:
            word_mask: (N, W) of their sentences.
        """
        device = word_mask.device
        begin, inside = (
            torch.tensor(
                [[f"{p}-{kind}" == label for label in self.labels] for kind, _, _ in entities]
            )
            for p in "BI"
        )  # (N, K)
        begin, inside = begin.to(device)[:, None], inside.to(device)[:, None]
        spans = torch.tensor([span for _, *span in entities], device=device)
        first, last = spans[:, :1], spans[:, 1:]
        word = torch.arange(word_mask.shape[1], device=device)
        before, at = (word == first - 1)[..., None], (word == first)[..., None]  # (N, W, 1)
        within = ((first < word) & (word <= last))[..., None]
        after = ((word == last + 1) & word_mask)[..., None]
        rest = (within & ~inside) | (after & inside)
        with_b, with_i = at & ~begin, (at & ~inside) | (before & (begin | inside))
        return torch.stack([rest | with_b, rest | with_i])


def check_mask(mask: Tensor) -> None:
    """ValueError unless every row of the (B, T) mask is bool, True first, with no hole; on a GPU,
    which would have to be waited for, its own error at the next wait."""
    if mask.dtype != torch.bool:
        raise ValueError(f"the mask must be bool, not {mask.dtype}")
    rule = "every mask row must be a run of True from the first position on"
    good = mask[:, 0].all() & ~(mask[:, 1:] & ~mask[:, :-1]).any()
    if mask.device.type != "cpu":
        torch._assert_async(good, rule)
    elif not good:
        raise ValueError(rule)


def illegal_transitions(labels: Sequence[str]) -> tuple[Tensor, Tensor]:
    """What BIO forbids: (K,) bool tags that cannot start, (K, K) bool pairs [from, to]."""
    entered = [label[2:] if label.startswith("I-") else None for label in labels]
    inside = [label[2:] if label[:2] in ("B-", "I-") else None for label in labels]
    start = torch.tensor([entity is not None for entity in entered])
    step = torch.tensor(
        [[to is not None and to != since for to in entered] for since in inside], dtype=torch.bool
    )
    return start, step


class PieceTags:
    """HVPNeT's and TMR's way: the CRF runs over word pieces, with four tags more than words have.

    Ids: `PAD` 0, word label i is i + 1, then `X` (a later piece of a word), `[CLS]`, `[SEP]`.
    L: word pieces, W: words.
    """

    def __init__(self, labels: Sequence[str]):
        """
        Args:
            labels: word labels, `O` first.
        """
        self.names = ("PAD", *labels, "X", "[CLS]", "[SEP]")
        self.num_word_labels = len(labels)

    def from_words(
        self, labels: Tensor, word_starts: Tensor, word_mask: Tensor, attention_mask: Tensor
    ) -> Tensor:
        """(B, L) piece tags from (B, W) word labels, starts and mask, and the (B, L) piece mask.

        A word without pieces (start 0, where [CLS] stands) loses its label, as in the originals.
        """
        x, cls, sep = range(self.num_word_labels + 1, self.num_word_labels + 4)
        tags = torch.full_like(attention_mask, x, dtype=torch.long)
        tags.scatter_(1, word_starts * word_mask, torch.where(word_mask, labels + 1, cls))
        tags[:, 0] = cls
        tags.scatter_(1, attention_mask.sum(1, keepdim=True) - 1, sep)
        return tags * attention_mask

    def to_words(
        self, paths: Sequence[Sequence[int]], word_starts: Tensor, word_mask: Tensor
    ) -> list[list[int]]:
        """Word labels read at first pieces (at [CLS] where a word has none); beyond these the
        number in `metrics.STRAY_TAGS` of a tag that no word has, or of a word without pieces."""
        count, words = self.num_word_labels, []
        ids = {tag: tag - 1 if 1 <= tag <= count else tag or count for tag in range(count + 4)}
        for path, starts, mask in zip(paths, word_starts.tolist(), word_mask.tolist(), strict=True):
            here = [start for start, on in zip(starts, mask, strict=True) if on]
            tags = [ids[path[start]] for start in here]
            words.append(
                [
                    tag if start or tag < count else count + 4
                    for start, tag in zip(here, tags, strict=True)
                ]
            )
        return words
