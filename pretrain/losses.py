"""Pre-training objectives: tensors in, one scalar out.

B: pairs on this rank, G = W·B: pairs over all W ranks, E: feature size, C: prompt classes.
Each value is scaled so that the *mean over ranks* of value and gradient, which is what a
data-parallel engine forms, is exactly the loss of the one-process batch of G pairs.
"""

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F


def itm_loss(logits: Tensor, matched: Tensor) -> Tensor:
    """Image-text matching, PROMU Eq. 3. logits: (B, 2), class 1 = matched; matched: (B,) bool."""
    return F.cross_entropy(logits.float(), matched.long())


def drawn_itm_loss(
    logits: Tensor, negative_logits: Tensor, matched: Tensor, usable: Tensor, all_matched: Tensor
) -> Tensor:
    """Image-text matching with drawn negatives: a mean over all rows, up to G + N·G.

    Args:
        logits: (B, 2) of the pairs. negative_logits: (N·B, 2), of `hard_negatives` (ALPRO, ALBEF)
            N = 2, of `next_captions` 1.
        matched, usable: (B,) bool; negatives count where their anchor is matched and has any.
        all_matched: (G,) bool.
    """
    size, total = len(matched), len(all_matched)
    drawn_per_pair = len(negative_logits) // size
    given = F.cross_entropy(logits.float(), matched.long(), reduction="sum")
    drawn = F.cross_entropy(
        negative_logits.float(), negative_logits.new_zeros(len(negative_logits)).long(),
        reduction="none",
    )  # fmt: skip
    counted = (matched & usable).repeat(drawn_per_pair)
    rows = total + drawn_per_pair * all_matched.sum()
    return (given + (drawn * counted).sum()) * (total // size) / rows


@torch.no_grad()
def hard_negatives(
    image_feat: Tensor, text_feat: Tensor, ids: Tensor, temperature: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """For each pair another picture and another caption of this rank, drawn by their similarity.

    Pairs that share caption or picture are no negatives of each other; where none is left (ALBEF's
    "sum of probabilities <= 0"), the draw is uniform and the row not `usable`.

    Returns:
        (B,) int64 picture for each caption; (B,) int64 caption for each picture; (B,) bool usable.
    """
    same = (ids[:, None] == ids[None]).any(dim=-1)
    usable = ~same.all(dim=1)
    allowed = ~same | ~usable[:, None]
    with torch.autocast(image_feat.device.type, enabled=False):
        similarity = text_feat.float() @ image_feat.float().T / temperature.float()
    both = torch.stack([similarity, similarity.T]).masked_fill(~allowed, -torch.inf)
    pictures, captions = both.softmax(dim=-1).flatten(0, 1).multinomial(1).view(2, -1)
    return pictures, captions, usable


def next_captions(ids: Tensor) -> tuple[Tensor, Tensor]:
    """For each pair the caption of the next one of this rank, the last one's next being the first.

    ids: (B, 2) int64, caption and picture -> (B,) int64; (B,) bool, whether the two pairs share
    neither. Each picture and each caption then stands in one right and one wrong pair.
    """
    captions = torch.arange(len(ids), device=ids.device).roll(-1)
    return captions, (ids != ids[captions]).all(dim=-1)


def cit_loss(
    image_feat: Tensor,
    text_feat: Tensor,
    all_image_feat: Tensor,
    all_text_feat: Tensor,
    all_matched: Tensor,
    all_ids: Tensor,
    temperature: Tensor,
    *,
    offset: int,
    negatives: Literal["matched", "all"] = "matched",
    normalize_by: Literal["matched", "batch"] = "matched",
) -> Tensor:
    """Contrastive image-text loss, PROMU Eq. 5, both directions averaged.

    Args:
        image_feat, text_feat: (B, E) unit vectors of this rank.
        all_image_feat, all_text_feat: (G, E) of all ranks, in rank order, with gradient.
        all_matched: (G,) bool. Only matched pairs are anchors.
        all_ids: (G, 2) int64: caption id and image id. Other rows with an anchor's caption or
            image are no negatives of it (NewsCLIPpings reuses both).
        temperature: (1,) similarities are divided by it.
        offset: first row of this rank in the gathered tensors (rank · B).
        negatives: `matched` (paper): candidates are matched pairs. `all` (released code): also
            captions and pictures of mismatched pairs.
        normalize_by: mean over matched pairs (paper), or over all pairs (released code).

    Returns:
        Scalar, float32; zero, attached to the graph, where no pair is matched anywhere.
    """
    size, total = len(image_feat), len(all_image_feat)
    rows = torch.arange(size, device=image_feat.device)
    anchors = rows + offset  # (B,)
    same = (all_ids[anchors, None, :] == all_ids[None, :, :]).any(dim=-1)  # (B, G)
    same[rows, anchors] = False
    hidden = same if negatives == "all" else same | ~all_matched
    hidden[rows, anchors] = False

    weight = all_matched[anchors].float()  # (B,)
    count = all_matched.sum().clamp(min=1) if normalize_by == "matched" else total
    with torch.autocast(image_feat.device.type, enabled=False):
        image_to_text = image_feat.float() @ all_text_feat.float().T / temperature.float()
        text_to_image = text_feat.float() @ all_image_feat.float().T / temperature.float()
        both = torch.stack([image_to_text, text_to_image]).masked_fill(hidden, -torch.inf)
        log_likelihood = both.log_softmax(dim=-1)[:, rows, anchors]  # (2, B)
        world = total // size
        # One pair alone is certain: a minus would make its loss -0.
        return 0 - (log_likelihood.mean(dim=0) * weight).sum() * world / count


def soft_label_loss(
    logits: Tensor, targets: Tensor, keep: Tensor, kept_everywhere: Tensor, world: int
) -> Tensor:
    """Cross-entropy against a prompter's soft labels: COE (PROMU Eq. 8) and CIR (Eq. 10).

    Args:
        logits: (B, C) of the student's head. targets: (B, C) probabilities; rows sum to one.
        keep: (B,) bool, rows that take part (for COE: those with a visible object).
        kept_everywhere: number of such rows over all ranks.
        world: number of ranks.

    Returns:
        Mean over the kept rows of all ranks; zero, attached to the graph, where none is kept:
        every rank must reach backward, or the gradient reduction of the others waits forever.
    """
    per_pair = -(targets * logits.float().log_softmax(dim=-1)).sum(dim=-1)  # (B,)
    return (per_pair * keep).sum() * world / kept_everywhere.clamp(min=1)


def soft_labels(
    features: Tensor,
    bank: Tensor,
    temperature: float,
    kind: Literal["soft", "hard"] = "soft",
) -> Tensor:
    """A frozen prompter's view as a distribution over its prompts, PROMU Eqs. 6 and 9.

    features: (B, E) unit vectors; bank: (C, E) encoded prompts -> (B, C) float32, rows sum to one.
    `hard` (Table 1, w/o soft pseudo labels): one-hot of the most likely prompt.
    """
    similarity = features.float() @ bank.float().T / temperature
    if kind == "hard":
        return F.one_hot(similarity.argmax(dim=-1), len(bank)).float()
    return similarity.softmax(dim=-1)


def pool_patches(patch_embeds: Tensor, patch_weights: Tensor) -> Tensor:
    """Weighted mean of patch states, PROMU Eq. 7.

    patch_embeds: (B, K, D); patch_weights: (B, K) >= 0 -> (B, D); zero where no patch has weight.
    """
    weights = patch_weights.to(patch_embeds.dtype)
    total = weights.sum(dim=1, keepdim=True).clamp(min=1e-6)
    return torch.einsum("bk,bkd->bd", weights / total, patch_embeds)
