"""Validation while pre-training: ITM accuracy, retrieval recall@k, agreement with the prompter.

Recall is over the matched pairs of one fixed sample of the validation shards; it says how a run
develops, not how one corpus compares with another.
"""

from collections.abc import Iterable

import torch
from torch import Tensor

from pretrain import distributed
from pretrain.batch import PretrainBatch
from pretrain.engine import autocast
from pretrain.model.promu import Promu


@torch.no_grad()
def validate(
    model: Promu, batches: Iterable[PretrainBatch], device: torch.device, precision: str
) -> dict[str, float]:
    """Metrics in percent over this rank's `batches` and those of all other ranks.

    Every rank must bring the same number of pairs.
    """
    model.eval()
    collected: dict[str, list[Tensor]] = {}
    with autocast(device, precision):
        for batch in batches:
            for name, value in _forward(model, batch.to(device)).items():
                collected.setdefault(name, []).append(value)
    model.train()
    columns = {name: distributed.gather(torch.cat(parts)) for name, parts in collected.items()}
    metrics = {
        name: 100 * columns[name].float().mean().item()
        for name in ("itm_accuracy", "relation_agreement")
        if name in columns
    }
    if "object_agreement" in columns and columns["visible"].any():
        agreement = columns["object_agreement"][columns["visible"]]
        metrics["object_agreement"] = 100 * agreement.float().mean().item()
    if "image_feat" in columns:
        keep = columns["matched"].bool()
        metrics |= recall(
            columns["image_feat"][keep], columns["text_feat"][keep], columns["ids"][keep]
        )
    return {f"val_{name}": value for name, value in metrics.items()}


def _forward(model: Promu, batch: PretrainBatch) -> dict[str, Tensor]:
    encoder, config = model.encoder, model.loss_config
    text = encoder.encode_text(batch.input_ids, batch.attention_mask)
    vision = encoder.encode_image(batch.pixel_values)
    out = {"matched": batch.matched, "ids": batch.ids}
    if config.cit:
        out |= {"image_feat": encoder.image_feat(vision), "text_feat": encoder.text_feat(text)}
    if not (config.itm or config.coe or config.cir):
        return out
    fused = encoder.fuse(text, batch.attention_mask, vision)
    patches = fused[:, batch.input_ids.shape[1] + 1 :]
    if config.itm:
        predicted = model.heads["itm"](fused[:, 0]).argmax(dim=-1)
        out["itm_accuracy"] = predicted == batch.matched
    if config.coe and batch.object_feat is not None:
        logits = model.heads["entity"](model.object_state(patches, batch.patch_weights))
        wanted = batch.object_feat.float() @ model.entity_bank.features.T
        out["object_agreement"] = logits.argmax(dim=-1) == wanted.argmax(dim=-1)
        out["visible"] = batch.patch_weights.sum(dim=1) > 0
    if config.cir and batch.image_feat is not None:
        state = fused[:, 0] if config.cir_pool == "cls" else patches.mean(dim=1)
        wanted = batch.image_feat.float() @ model.relation_bank.features.T
        out["relation_agreement"] = model.heads["relation"](state).argmax(-1) == wanted.argmax(-1)
    return out


def recall(
    image_feat: Tensor, text_feat: Tensor, ids: Tensor, ks: tuple[int, ...] = (1, 5, 10)
) -> dict[str, float]:
    """Retrieval recall@k in percent, mean of both directions, over (N, E) matched features.

    ids: (N, 2) caption and image id; any row with the same caption or image is a right answer.
    """
    similarity = image_feat @ text_feat.T  # (N, N)
    right = (ids[:, None] == ids[None]).any(dim=-1)
    result = {}
    for k in ks:
        if k > len(similarity):
            continue
        hits = [
            right.gather(1, scores.topk(k, dim=1).indices).any(dim=1).float().mean()
            for scores in (similarity, similarity.T)
        ]
        result[f"recall@{k}"] = 100 * torch.stack(hits).mean().item()
    return result
