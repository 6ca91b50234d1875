"""DGF-PT, the joint objective (§4.4). Consistency and contrast are as the text explains them; as
printed, eqs. 11 and 12 push the wrong way, and stay here as switches.

B: rows, L: text positions, C: relations, D: hidden size.
"""

from typing import Literal

import torch
from torch import Tensor

from finetune.methods.dgfpt.config import DgfptConfig


def joint(
    config: DgfptConfig,
    logits: Tensor,
    labels: Tensor,
    before: Tensor | None,
    compared: tuple[Tensor, Tensor, Tensor] | None,
) -> Tensor:
    """λ_d L_d + λ_s L_s + λ_c L_c (§4.4).

    Args:
        logits, labels: (B, C) and (B,). before: (B, C) before fusion; None: without L_s.
        compared: what `contrast` compares; None: without L_c.
    """
    total = config.class_weight * torch.nn.functional.cross_entropy(logits, labels)
    if before is not None:
        total = total + config.consistency_weight * consistency(
            logits, before, config.consistency, config.consistency_detach
        )
    if compared is not None:
        total = total + config.contrast_weight * contrast(*compared, config.contrast, config.margin)
    return total


def consistency(
    fused: Tensor,
    plain: Tensor,
    form: Literal["kl", "ce", "printed"] = "kl",
    detach: Literal["none", "pre", "post"] = "none",
) -> Tensor:
    """Eqs. 10–11: how far fusion moves the distribution of relations; mean over the batch.

    kl: Σ p̃ (log p̃ - log p) >= 0. ce: -Σ p̃ log p. printed: Σ p̃ log p, minus a cross-entropy, which
    falls without bound as the two part.

    Args:
        fused, plain: (B, C) float32 logits after and before fusion.
        detach: the side that gets no gradient.
    """
    after = (fused.detach() if detach == "post" else fused).log_softmax(-1)
    before = (plain.detach() if detach == "pre" else plain).log_softmax(-1)
    own = after if form == "kl" else 0.0
    sign = 1.0 if form == "printed" else -1.0
    return (after.exp() * (own + sign * before)).sum(-1).mean()


def contrast(
    plain: Tensor,
    fused: Tensor,
    same_post: Tensor,
    form: Literal["corrected", "printed"] = "corrected",
    margin: float = 0.2,
) -> Tensor:
    """Eq. 12: a row's two vectors know each other among the rows of the batch; mean over the batch.

    corrected: [m + s(x_n, x̃) - s(x, x̃)]₊ + [m + s(x, x̃_n) - s(x, x̃)]₊. printed: the negated
    differences without a margin, which punishes a pair for being alike.

    Args:
        plain, fused: (B, D): x and x̃, the texts before and after fusion, pooled.
        same_post: (B, B) bool: no negatives of one another (other entity pairs of a post are near
            duplicates). A row without any negative counts zero.
    """
    plain, fused = (torch.nn.functional.normalize(v.float(), dim=-1) for v in (plain, fused))
    alike = plain @ fused.T  # (B, B): s(x_i, x̃_j)
    pair = alike.diagonal()
    others = alike.masked_fill(same_post, -torch.inf)
    sign = 1.0 if form == "corrected" else -1.0
    margin = margin if form == "corrected" else 0.0
    alone = same_post.all(1)
    total = torch.zeros_like(pair)
    for hardest in (others.amax(0), others.amax(1)):  # x_n of x̃_i, x̃_n of x_i
        gap = sign * (hardest.masked_fill(alone, 0.0) - pair)
        total = total + (margin + gap).relu().masked_fill(alone, 0.0)
    return total.mean()


def same_posts(ids: Tensor, mask: Tensor) -> Tensor:
    """(B, L) word ids and mask -> (B, B) bool: equal texts, each row's own among them."""
    words = torch.where(mask, ids, -1)
    return (words[:, None] == words[None]).all(-1)
