"""DGF-PT, deciding: pictures as segments, dual gates (§4.2), decoder and head (§4.3).

B: rows, L: text positions, K: objects, M: image blocks, D: hidden size, C: relations.
"""

import copy
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from finetune.inputs.types import TYPES, type_of, types_of
from finetune.methods.dgfpt.language_model import pieces, top_layers

Alpha = Literal["shifted", "softmax", "raw"]
DECODER_LAYERS = 2
SOFTMAX_TEMPERATURE = 0.1
SMALLEST = 1e-4
"""Of the literal eq. 4's denominator, which may be anything."""
HIDDEN = -1e9
"""Added to the attention scores of what a position must not see."""


class VisualSegments(nn.Module):
    """One feature vector a picture -> M blocks; one an object -> one position (§4.1.1).

    Both end in a LayerNorm as large as the word table's entries, so that a frozen language model
    sees inputs of the size that it knows.
    """

    def __init__(self, width: int, words: Tensor, blocks: int) -> None:
        """
        Args:
            width: F, of a feature vector.
            words: (V, D) the word table.
        """
        super().__init__()
        size = words.shape[1]
        self.image = nn.Linear(width, blocks * size)
        self.object = nn.Linear(width, size)
        self.image_norm, self.object_norm = nn.LayerNorm(size), nn.LayerNorm(size)
        for norm in (self.image_norm, self.object_norm):
            nn.init.constant_(norm.weight, words.detach().std().item())

    def image_blocks(self, features: Tensor) -> Tensor:
        """(B, F) -> (B, M, D)."""
        blocks = self.image(features)
        return self.image_norm(blocks.unflatten(-1, (-1, self.image_norm.normalized_shape[0])))

    def objects(self, features: Tensor) -> Tensor:
        """(B, K, F) -> (B, K, D)."""
        return self.object_norm(self.object(features))


def select_object(
    entity: Tensor,
    objects: Tensor,
    mask: Tensor,
    how: Literal["soft", "hard", "score"],
    rank: int = 0,
) -> Tensor:
    """The object that an entity means: (B, D), (B, K, D), (B, K) -> (B, D); zero without objects.

    soft: Σ_k softmax_k(e·o_k / √D) o_k. hard: the o_k of the largest product. score: object number
    `rank`, they come best first.
    """
    if how == "score":
        rank = min(rank, objects.shape[1] - 1)
        return objects[:, rank] * mask[:, rank, None]
    scores = torch.einsum("bd,bkd->bk", entity, objects).float() * entity.shape[-1] ** -0.5
    scores = scores.masked_fill(~mask, HIDDEN)
    if how == "soft":
        shares = scores.softmax(-1)
    else:
        shares = nn.functional.one_hot(scores.argmax(-1), scores.shape[-1])
    return torch.einsum("bk,bkd->bd", (shares * mask).to(objects.dtype), objects)


def object_shares(text: Tensor, objects: Tensor, mask: Tensor, form: Alpha) -> Tensor:
    """Eq. 4: α (B, K) of each object, from its cosine with the text; zeros where masked.

    raw divides by a sum of signed cosines, so shares may be negative and of any size. shifted:
    (1 + cos) / Σ (1 + cos). softmax: at temperature 0.1.

    Args:
        text: (B, D) pooled. objects: (B, K, D). mask: (B, K).
    """
    cosine = nn.functional.cosine_similarity(text[:, None].float(), objects.float(), dim=-1)
    if form == "softmax":
        return (cosine / SOFTMAX_TEMPERATURE).masked_fill(~mask, HIDDEN).softmax(-1) * mask
    weights = (cosine + 1 if form == "shifted" else cosine) * mask
    total = weights.sum(-1, keepdim=True)
    sign = torch.where(total < 0, -1.0, 1.0)
    return weights / torch.where(total.abs() < SMALLEST, SMALLEST * sign, total)


class DualGate(nn.Module):
    """Eqs. 4–7: objects through the local gate β, the picture through the global gate γ."""

    def __init__(self, size: int, dropout: float, alpha: Alpha) -> None:
        super().__init__()
        self.alpha = alpha
        self.object_gate = nn.Linear(size, size)
        self.image_gate = nn.Linear(size, size)
        self.mlp = nn.Sequential(
            nn.Linear(size, size), nn.GELU(), nn.Dropout(dropout), nn.Linear(size, size)
        )

    def forward(
        self,
        states: Tensor,
        pooled: Tensor,
        objects: tuple[Tensor, Tensor] | None,
        image: tuple[Tensor, Tensor] | None,
    ) -> Tensor:
        """h̃_t (B, L, D) = MLP(h_t ⊙ γ + β) + h_t; a row without objects has β = 0, one without a
        picture γ = 1.

        Args:
            states: h_t (B, L, D). pooled: (B, D), eq. 4's text.
            objects: h_o (B, K, D) and which are there (B, K); None: vision is off.
            image: h̄_i (B, D) and which are there (B,); None: vision is off.
        """
        gated = states
        if image is not None:
            gated = gated * self.global_gate(*image)[:, None]
        if objects is not None:
            gated = gated + self.local_gate(pooled, *objects)[1][:, None]
        return self.mlp(gated) + states

    def global_gate(self, image: Tensor, present: Tensor) -> Tensor:
        """γ (B, D) of h̄_i (B, D); ones where no picture is `present` (B,)."""
        return torch.where(present[:, None], torch.tanh(self.image_gate(image)), 1.0)

    def local_gate(self, pooled: Tensor, objects: Tensor, present: Tensor) -> tuple[Tensor, Tensor]:
        """α (B, K) and β (B, D) of h_o (B, K, D); zeros where no object is `present` (B, K)."""
        shares = object_shares(pooled, objects, present, self.alpha).to(objects.dtype)
        seen = self.object_gate(torch.einsum("bk,bkd->bd", shares, objects))
        return shares, torch.where(present.any(1)[:, None], seen, 0.0)


class TypeQuestions(nn.Module):
    """The types of both entities one by one, then a query for the relation."""

    def __init__(self, types: Tensor) -> None:
        """
        Args:
            types: (5, D) first embeddings of `TYPES`.
        """
        super().__init__()
        self.types = nn.Embedding.from_pretrained(types.detach().clone(), freeze=False)
        self.query = nn.Parameter(types.detach().mean(0))

    def forward(self, types: Tensor) -> Tensor:
        """(B, 2) type ids -> (B, 3, D)."""
        return torch.cat([self.types(types), self.query.expand(len(types), 1, -1)], dim=1)


class TypeDecoder(nn.Module):
    """Eq. 9: two causal layers, begun as copies of the language model's last two, read the text and
    then the questions; r is what stands at the end."""

    def __init__(self, encoder: nn.Module, size: int, dropout: float) -> None:
        super().__init__()
        self.layers = nn.ModuleList(map(copy.deepcopy, top_layers(encoder, DECODER_LAYERS)))
        self.layers.requires_grad_(True)
        self.norm = nn.LayerNorm(size)
        self.dropout = nn.Dropout(dropout)

    def forward(self, states: Tensor, mask: Tensor, questions: Tensor) -> Tensor:
        """(B, L, D), (B, L), (B, 3, D) -> r (B, D)."""
        states = self.dropout(torch.cat([states, questions], dim=1))
        counted = torch.cat([mask, mask.new_ones(questions.shape[:2])], dim=1)
        length = counted.shape[1]
        seen = torch.ones(length, length, dtype=torch.bool, device=mask.device).tril()
        own = torch.eye(length, dtype=torch.bool, device=mask.device)  # never a row without a key
        seen = ((seen & counted[:, None]) | own)[:, None]  # (B, 1, S, S)
        hidden = torch.zeros_like(seen, dtype=states.dtype).masked_fill(~seen, HIDDEN)
        for layer in self.layers:  # GPT's layers take an additive mask alone; the others, too
            out = layer(states, attention_mask=hidden)
            states = out[0] if isinstance(out, list | tuple) else out
        return self.norm(states[:, -1])


class RelationPredictor(nn.Module):
    """Eq. 13: u = LN(r + P [h̄_i; h̃[e1]; h̃[e2]]), logits = u Wᵀ + b.

    W begins as the words of the relations' names.
    """

    def __init__(self, names: Tensor, dropout: float) -> None:
        """
        Args:
            names: (C, D) mean word embeddings of the relations.
        """
        super().__init__()
        labels, size = names.shape
        self.evidence = nn.Linear(3 * size, size)
        self.norm = nn.LayerNorm(size)
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(size, labels)
        with torch.no_grad():
            self.classifier.weight.copy_(names)

    def forward(self, relation: Tensor, image: Tensor | None, head: Tensor, tail: Tensor) -> Tensor:
        """r, h̄_i (None: zeros), h̃[e1], h̃[e2], each (B, D) -> (B, C) float32."""
        image = torch.zeros_like(relation) if image is None else image
        evidence = self.evidence(torch.cat([image, head, tail], dim=-1))
        return self.classifier(self.dropout(self.norm(relation + evidence))).float()


# ---- Words and types of labels -------------------------------------------------------------------


def mean_embeddings(tokenizer: Any, words: Tensor, texts: Iterable[str]) -> Tensor:
    """(texts, D) mean rows of the word table over each text's pieces."""
    rows = [words[pieces(tokenizer, text)] for text in texts]
    return torch.stack([row.sum(0) / max(len(row), 1) for row in rows])


def relation_words(label: str) -> str:
    """`/per/org/member_of` -> "person organization member of"; `None` -> "none"."""
    parts = [type_of(part) or part for part in label.strip("/").split("/")]
    return " ".join(parts).replace("_", " ").lower() if len(parts) > 1 else label.lower()


def signature_penalties(labels: Sequence[str], form: Literal["off", "soft", "hard"]) -> Tensor:
    """(5, 5, C): what a relation loses whose name contradicts the types of head and tail.

    The type "unknown" and a name without types (`None`, or your own) contradict nothing.
    """
    penalties = torch.zeros(len(TYPES), len(TYPES), len(labels))
    strength = {"off": 0.0, "soft": -5.0, "hard": -1e4}[form]
    for column, label in enumerate(labels):
        for axis, name in enumerate(types_of(label)):
            if name != "unknown":
                wrong = [i for i, other in enumerate(TYPES) if other not in ("unknown", name)]
                penalties[..., column].index_fill_(axis, torch.tensor(wrong), strength)
    return penalties
