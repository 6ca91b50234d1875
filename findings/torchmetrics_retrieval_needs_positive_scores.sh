#!/usr/bin/env bash
# torchmetrics 1.9.0 (1.7.4 too): RetrievalRecall, RetrievalPrecision, RetrievalMRR and RetrievalMAP hold a
# relevant document whose score is 0 or less to be irrelevant, also at rank 1 (`torch.where(preds > 0, ...)`
# in torchmetrics/functional/retrieval/recall.py and three more). RetrievalHitRate, RPrecision,
# NormalizedDCG and AUROC look at the order alone, as their definitions do. So negated distances and log
# probabilities have recall 0; and of cosines, MAP is too high: it averages over the relevant documents
# that are left, and the badly ranked ones are the negative ones. Any constant that is added to the scores
# changes the four. Nothing warns. The reference of the classes says "float predictions from a model
# output", that of the functions "estimated probabilities" (lightning.ai/docs/torchmetrics/stable/retrieval/
# recall.html, map.html): no threshold. The wish for it: github.com/Lightning-AI/torchmetrics/pull/3104.
# Expected: the same numbers for the same order; recall@1 = hit rate@1 where one document is relevant.
# Seen: recall@1 0.45 by probabilities, 0 by their logarithms; MAP 0.60 by cosine + 1, 0.66 by cosine.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torchmetrics==1.9.0 torch==2.13.0 numpy==2.4.6
"$folder/venv/bin/python" - <<'PY'
import torch
import torchmetrics
from torch.nn.functional import normalize
from torchmetrics.retrieval import (
    RetrievalAUROC,
    RetrievalHitRate,
    RetrievalMAP,
    RetrievalMRR,
    RetrievalNormalizedDCG,
    RetrievalPrecision,
    RetrievalRecall,
    RetrievalRPrecision,
)

print("torchmetrics", torchmetrics.__version__)
assert torchmetrics.__version__ == "1.9.0"
torch.manual_seed(0)
PICTURES, WIDTH = 100, 64
pictures = normalize(torch.randn(PICTURES, WIDTH), dim=1)


def cosines(likeness):
    """Of each picture with the captions of every picture, so many as are given and so like it."""
    captions = len(likeness)
    noise = torch.randn(PICTURES * captions, WIDTH) / WIDTH**0.5
    meant = pictures.repeat_interleave(captions, 0) * torch.tensor(likeness).repeat(PICTURES)[:, None]
    relevant = torch.eye(PICTURES).repeat_interleave(captions, 1).bool()
    return pictures @ normalize(meant + noise, dim=1).T, relevant


def metric(made, scores, relevant, **options):
    queries = torch.arange(PICTURES)[:, None].expand_as(scores)
    return made(**options)(scores, relevant, indexes=queries).item()


cosine, own = cosines([0.3])
first = (cosine.argmax(1) == torch.arange(PICTURES)).float().mean().item()
scores = {"probability": (10 * cosine).softmax(1), "cosine + 1": cosine + 1, "cosine": cosine,
          "log probability": (10 * cosine).log_softmax(1), "minus distance": -(2 - 2 * cosine).sqrt()}  # fmt: skip
by_order = (RetrievalRPrecision, RetrievalAUROC, RetrievalNormalizedDCG)
for name, one in scores.items():
    assert torch.equal(one.argsort(1, descending=True)[:, :5], cosine.argsort(1, descending=True)[:, :5])
    hit, recall, precision = (metric(made, one, own, top_k=1)
                              for made in (RetrievalHitRate, RetrievalRecall, RetrievalPrecision))  # fmt: skip
    rank = metric(RetrievalMRR, one, own)
    print(f"one caption, {name}: hit rate@1 {hit:.2f}, recall@1 {recall:.2f}, MRR {rank:.2f}")
    assert abs(hit - first) < 1e-6 and recall == precision
    assert (recall, rank) == (0, 0) if one.max() <= 0 else abs(recall - hit) < 1e-6
    for made in by_order:
        assert abs(metric(made, one, own) - metric(made, scores["probability"], own)) < 1e-3
cosine, own = cosines([0.4, 0.4, 0.4, 0.4, 0.0])  # the fifth is of something else
shifted, plain = metric(RetrievalMAP, cosine + 1, own), metric(RetrievalMAP, cosine, own)
negative = (cosine[own] <= 0).float().mean().item()
print(f"five captions, {negative:.0%} of them at a negative cosine: MAP {shifted:.2f} by cosine + 1, {plain:.2f} by cosine")
ranks = [row.argsort(descending=True) for row in cosine]
exact = torch.stack([
    (torch.arange(1, 6) / (own[n][order].nonzero().flatten() + 1)).mean() for n, order in enumerate(ranks)
]).mean().item()  # fmt: skip
assert abs(shifted - exact) < 1e-3 and plain > exact + 0.05
PY
