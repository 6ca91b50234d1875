"""Validation while pre-training: ITM accuracy, retrieval recall@k, CIT loss, agreement with the
prompter.

Over one fixed sample of the validation shards, the same pairs whatever the number of ranks; it says
how a run develops, not how one corpus compares with another.
"""

import numpy as np
import torch
from torch import Tensor

from pretrain import distributed, losses
from pretrain.data.batch import PretrainBatch
from pretrain.data.pairs import PairDataset
from pretrain.engine import autocast
from pretrain.model.promu import Promu
from pretrain.prompter.bank import PromptBank
from shards.stream import CanonicalOrder

BATCH = 64
TOP = 3


class Validator:
    """The validation sample of a run, shared out over the ranks."""

    def __init__(self, dataset: PairDataset, pairs: int) -> None:
        """dataset: clean views of the validation shards. pairs: how many of them."""
        self.dataset = dataset
        counts = [shard.samples for shard in dataset.reader.index.shards]
        self.addresses = CanonicalOrder(counts, seed=0).epoch(0)[:pairs]  # (N, 2)
        read = dataset.reader.read
        self.sources = np.array([read(*map(int, at)).meta.source for at in self.addresses])

    @torch.no_grad()
    def columns(self, model: Promu, device: torch.device, precision: str) -> dict[str, Tensor]:
        """What the metrics are made of, a row a pair, in the sample's order on every rank."""
        total, world = len(self.addresses), distributed.world_size()
        # Ranks take turns; the last round is filled up, for every rank must make as many passes.
        rounds = np.resize(np.arange(total), -(-total // world) * world)
        mine = rounds[distributed.rank() :: world]
        collected: dict[str, list[Tensor]] = {}
        was_training = model.training
        model.eval()
        with autocast(device, precision):
            for start in range(0, len(mine), BATCH):
                batch = self.batch(mine[start : start + BATCH])
                for name, value in forward(model, batch.to(device)).items():
                    collected.setdefault(name, []).append(value)
        model.train(was_training)
        return {name: self._in_order(torch.cat(parts)) for name, parts in collected.items()}

    def _in_order(self, mine: Tensor) -> Tensor:
        everything = distributed.gather(mine)  # (W·n, …), rank by rank
        rows = everything.unflatten(0, (distributed.world_size(), len(mine)))
        return rows.transpose(0, 1).flatten(0, 1)[: len(self.addresses)]

    def batch(self, numbers: np.ndarray) -> PretrainBatch:
        """Clean views of some pairs of the sample."""
        rows = self.addresses[numbers].tolist()
        return self.dataset.__getitems__([(0, shard, sample) for shard, sample in rows])

    def metrics(self, columns: dict[str, Tensor], temperature: Tensor) -> dict[str, float]:
        """Percent, nats for losses and divergences; without `val_` only inside."""
        figures: dict[str, float] = {}
        if "itm" in columns:
            right = columns["itm"].cpu().numpy()
            figures["itm_accuracy"] = 100 * right.mean()
            for source in sorted(set(self.sources)):
                figures[f"itm_accuracy/{source}"] = 100 * right[self.sources == source].mean()
        if "image_feat" in columns:
            image, text = columns["image_feat"], columns["text_feat"]
            matched, ids = columns["matched"], columns["ids"]
            figures |= recall(image[matched], text[matched], ids[matched])
            # All pairs as one batch: the figure does not hang on micro-batches or ranks.
            cit = losses.cit_loss(image, text, image, text, matched, ids, temperature, offset=0)
            figures["cit_loss"] = cit.item()
        for kind in ("object", "relation"):
            if f"{kind}_agrees" in columns:
                # Where no patch shows the object, the student was asked nothing.
                keep = columns["visible"] if kind == "object" else ...
                agrees, kl = columns[f"{kind}_agrees"][keep], columns[f"{kind}_kl"][keep]
                if agrees.numel():
                    figures[f"{kind}_agreement"] = 100 * agrees.float().mean().item()
                    figures[f"{kind}_kl"] = kl.mean().item()
        return {f"val_{name}": float(value) for name, value in figures.items()}


def forward(model: Promu, batch: PretrainBatch) -> dict[str, Tensor]:
    """Columns of one batch, B rows each."""
    encoder, config = model.encoder, model.loss_config
    text = encoder.encode_text(batch.input_ids, batch.attention_mask)
    vision = model.see(batch)
    out = {"matched": batch.matched, "ids": batch.ids}
    if config.cit:
        text_feat = encoder.text_feat(text, batch.attention_mask)
        out |= {"image_feat": encoder.image_feat(vision), "text_feat": text_feat}
    # A prompter has no fusion layers, and without these losses nobody reads what they cost.
    if not (config.itm or config.coe or config.cir):
        return out
    fused = encoder.fuse(text, batch.attention_mask, vision)
    patches = fused[:, batch.input_ids.shape[1] + 1 :]
    if config.itm:
        logits = model.heads["itm"](model.itm_state(fused, batch.attention_mask))
        out["itm"] = logits.argmax(dim=-1) == batch.matched
    if config.coe and batch.object_feat is not None:
        out["visible"] = batch.patch_weights.sum(dim=1) > 0
        logits = model.heads["entity"](model.object_state(patches, batch.patch_weights))
        out |= _agreement("object", logits, batch.object_feat, model.entity_bank)
    if config.cir and batch.image_feat is not None:
        logits = model.heads["relation"](model.relation_state(fused, patches))
        out |= _agreement("relation", logits, batch.image_feat, model.relation_bank)
    return out


def _agreement(
    kind: str, logits: Tensor, features: Tensor, bank: PromptBank | None
) -> dict[str, Tensor]:
    """Student's p against the prompter's soft labels q: same top class, KL(q‖p), top classes."""
    assert bank, "prepare_teacher encodes it"
    p = logits.float().log_softmax(dim=-1)
    q = (features.float() @ bank.features.T / bank.temperature).log_softmax(dim=-1)
    top = min(TOP, q.shape[-1])
    (p_values, p_classes), (q_values, q_classes) = p.topk(top), q.topk(top)
    return {
        f"{kind}_agrees": p_classes[:, 0] == q_classes[:, 0],
        f"{kind}_kl": (q.exp() * (q - p)).sum(dim=-1),
        f"{kind}_p": p_values.exp(),
        f"{kind}_p_class": p_classes,
        f"{kind}_q": q_values.exp(),
        f"{kind}_q_class": q_classes,
    }


def recall(
    image_feat: Tensor, text_feat: Tensor, ids: Tensor, ks: tuple[int, ...] = (1, 5, 10)
) -> dict[str, float]:
    """Retrieval recall@k in percent over (N, E) matched features: both directions, and their mean.

    ids: (N, 2) caption and image id; any row with the same caption or image is a right answer.
    """
    similarity = image_feat @ text_feat.T  # (N, N)
    right = (ids[:, None] == ids[None]).any(dim=-1)
    result = {}
    for k in ks:
        if k > len(similarity):
            continue
        for name, scores in (("image_to_text", similarity), ("text_to_image", similarity.T)):
            hits = right.gather(1, scores.topk(k, dim=1).indices).any(dim=1)
            result[f"{name}_recall@{k}"] = 100 * hits.float().mean().item()
        both = result[f"image_to_text_recall@{k}"], result[f"text_to_image_recall@{k}"]
        result[f"recall@{k}"] = sum(both) / 2
    return result
