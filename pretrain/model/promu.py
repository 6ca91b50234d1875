"""PROMU (MM'23): fusion encoder + heads -> named losses.

L = λ_ITM·L_ITM + λ_CIT·L_CIT + λ_COE·L_COE + λ_CIR·L_CIR (Eq. 11). With `fusion_layers: 0` and only
CIT switched on, the same class is the stage-1 prompter.
"""

from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn

from pretrain import distributed, losses
from pretrain.data.batch import PretrainBatch
from pretrain.gradcache import StepContrast
from pretrain.model.config import FusionEncoderConfig, HeadsConfig, LossConfig
from pretrain.model.fusion_encoder import FusionEncoder
from pretrain.model.stored import VisionStore
from pretrain.prompter.bank import PromptBank

Targets = dict[str, tuple[Tensor, Tensor]]
"""Of COE and CIR, where switched on: (B, C) soft labels, and (B,) bool which rows take part."""


class Promu(nn.Module):
    """The student of PROMU pre-training."""

    def __init__(
        self, encoder: FusionEncoder, heads: HeadsConfig, loss: LossConfig | None = None
    ) -> None:
        super().__init__()
        self.encoder, self.heads_config = encoder, heads
        self.loss_config = loss or LossConfig()
        width = encoder.config.hidden_size
        self.heads = nn.ModuleDict()
        if heads.itm:
            self.heads["itm"] = nn.Linear(width, 2)
        if heads.num_entities:
            self.heads["entity"] = _head(width, heads.num_entities, heads.hidden_mult)
        if heads.num_relations:
            self.heads["relation"] = _head(width, heads.num_relations, heads.hidden_mult)
        # One element, not a scalar: DeepSpeed cannot broadcast 0-dim parameters.
        self.temperature = nn.Parameter(torch.tensor([self.loss_config.temperature_init]))
        self.entity_bank: PromptBank | None = None
        self.relation_bank: PromptBank | None = None
        self.vision_store: VisionStore | None = None
        """Where views of a picture are always the same, its states while the tower rests."""

    def clamped_temperature(self) -> Tensor:
        """(1,) Clamped where used: an in-place clamp would be undone by the next ZeRO step."""
        return self.temperature.float().clamp(0.001, 0.5)

    def forward(self, batch: PretrainBatch, step: StepContrast | None = None) -> dict[str, Tensor]:
        """Named losses; `loss` is their weighted sum, the rest is detached.

        Every switched-on head runs on every rank in every step, whatever the batch holds. `step`
        makes CIT's negatives and COE's mean those of the whole optimizer step.
        """
        config, encoder = self.loss_config, self.encoder
        text = encoder.encode_text(batch.input_ids, batch.attention_mask)  # (B, L, D)
        vision = self.see(batch)  # (B, 1+M, Dv), M of K patches
        features = None
        if config.cit or config.itm_hard_negatives:
            features = encoder.image_feat(vision), encoder.text_feat(text, batch.attention_mask)
        targets = self._targets(batch)
        table = self._table(batch, targets)  # (B, 5), then (G, 5)
        terms: dict[str, Tensor] = {}
        if config.cit and features and step is None:
            terms["cit"], table = self.cit(*features, self.clamped_temperature(), table)
        else:
            table = distributed.gather(table)
            if config.cit and features and step:
                terms["cit"] = step.loss(*features, self.clamped_temperature())
        if config.itm or config.coe or config.cir:
            fused = encoder.fuse(text, batch.attention_mask, vision)  # (B, L+1+M, D)
            patches = fused[:, batch.input_ids.shape[1] + 1 :]  # (B, M, D)
            if config.itm:
                logits = self.heads["itm"](self.itm_state(fused, batch.attention_mask))
                if config.draws_negatives:
                    terms["itm"] = self._drawn_itm(logits, batch, text, vision, features, table)
                else:
                    terms["itm"] = losses.itm_loss(logits, batch.matched)
            terms |= self._soft_terms(
                fused, patches, batch, targets, step.takes_part if step else table[:, 3:]
            )
        total = sum(getattr(config, name) * term for name, term in terms.items())
        named = {f"{name}_loss": term.detach() for name, term in terms.items()}
        return {"loss": total, **named}

    def features(self, batch: PretrainBatch) -> tuple[Tensor, Tensor]:
        """(B, E) of the pictures and (B, E) of the captions, computed as `forward` does."""
        text = self.encoder.encode_text(batch.input_ids, batch.attention_mask)
        vision = self.see(batch)
        return self.encoder.image_feat(vision), self.encoder.text_feat(text, batch.attention_mask)

    def see(self, batch: PretrainBatch) -> Tensor:
        """(B, 1+M, Dv) vision tower: while it rests and views are fixed, from the store."""
        if self.vision_store and "vision" in self.encoder.resting:
            images, encode = batch.ids[:, 1], self.encoder.encode_image
            return self.vision_store(images, batch.pixel_values, encode)
        return self.encoder.encode_image(batch.pixel_values, batch.kept_patches)

    def table(self, batch: PretrainBatch) -> Tensor:
        """(B, 5) int64, what other ranks must know: two ids, matched, takes part in COE, in CIR."""
        return self._table(batch, self._targets(batch))

    def _table(self, batch: PretrainBatch, targets: Targets) -> Tensor:
        rows = [targets[name][1] if name in targets else batch.matched for name in ("coe", "cir")]
        return torch.cat([batch.ids, torch.stack([batch.matched, *rows], dim=1).long()], dim=1)

    def cit(
        self, image_feat: Tensor, text_feat: Tensor, temperature: Tensor, table: Tensor
    ) -> tuple[Tensor, Tensor]:
        """CIT of this rank's features against those of all ranks, and `table` of all ranks; one
        collective. table: (B, 5) of this rank."""
        features, table = distributed.gather_together(
            torch.cat([image_feat, text_feat], dim=1), table
        )
        all_image_feat, all_text_feat = features.chunk(2, dim=1)
        loss = losses.cit_loss(
            image_feat,
            text_feat,
            all_image_feat,
            all_text_feat,
            table[:, 2].bool(),
            table[:, :2],
            temperature,
            offset=distributed.rank() * len(image_feat),
            negatives=self.loss_config.cit_negatives,
            normalize_by=self.loss_config.cit_normalize_by,
        )
        return loss, table

    def _drawn_itm(
        self,
        logits: Tensor,
        batch: PretrainBatch,
        text: Tensor,
        vision: Tensor,
        features: tuple[Tensor, Tensor] | None,
        table: Tensor,
    ) -> Tensor:
        mask = batch.attention_mask
        if self.loss_config.itm_hard_negatives and features:
            pictures, captions, usable = losses.hard_negatives(
                *features, batch.ids, self.clamped_temperature()
            )
            texts, masks = torch.cat([text, text[captions]]), torch.cat([mask, mask[captions]])
            fused = self.encoder.fuse(texts, masks, torch.cat([vision[pictures], vision]))
        else:
            captions, usable = losses.next_captions(batch.ids)
            masks = mask[captions]
            fused = self.encoder.fuse(text[captions], masks, vision)
        drawn = self.heads["itm"](self.itm_state(fused, masks))
        return losses.drawn_itm_loss(logits, drawn, batch.matched, usable, table[:, 2].bool())

    def _soft_terms(
        self,
        fused: Tensor,
        patches: Tensor,
        batch: PretrainBatch,
        targets: Targets,
        takes_part: Tensor,
    ) -> dict[str, Tensor]:
        """COE and CIR. takes_part: (…, 2) rows of all ranks (and micro-batches)."""
        everywhere = takes_part.sum(dim=0)
        # Ranks and micro-batches average; each brings its share of one sum.
        parts = len(takes_part) // len(batch)
        terms = {}
        if "coe" in targets:
            logits = self.heads["entity"](self.object_state(patches, batch.seen_weights))
            terms["coe"] = losses.soft_label_loss(logits, *targets["coe"], everywhere[0], parts)
        if "cir" in targets:
            logits = self.heads["relation"](self.relation_state(fused, patches))
            terms["cir"] = losses.soft_label_loss(logits, *targets["cir"], everywhere[1], parts)
        return terms

    def _targets(self, batch: PretrainBatch) -> Targets:
        config, targets = self.loss_config, {}
        if config.coe:
            labels, takes_part = self._labels(batch.require("object_feat"), self.entity_bank)
            takes_part &= batch.seen_weights.sum(dim=1) > 0
            targets["coe"] = (
                labels,
                takes_part & batch.matched if config.coe_pairs == "matched" else takes_part,
            )
        if config.cir:
            targets["cir"] = self._labels(batch.require("image_feat"), self.relation_bank)
        return targets

    def itm_state(self, fused: Tensor, attention_mask: Tensor) -> Tensor:
        """(B, L+1+M, D), (B, L) -> (B, D) that ITM reads."""
        if self.loss_config.itm_pool == "cls":
            return fused[:, 0]
        length = attention_mask.shape[1]
        shown = attention_mask[..., None].to(fused.dtype)
        text = (fused[:, :length] * shown).sum(dim=1) / shown.sum(dim=1)
        return text * fused[:, length]

    def relation_state(self, fused: Tensor, patches: Tensor) -> Tensor:
        """(B, L+1+K, D), (B, K, D) -> (B, D) that CIR reads."""
        return fused[:, 0] if self.loss_config.cir_pool == "cls" else patches.mean(dim=1)

    def object_state(self, patches: Tensor, patch_weights: Tensor) -> Tensor:
        """(B, K, D), (B, K) -> (B, D): the object's pooled fused patches."""
        if self.loss_config.coe_patch_weighting == "binary":
            patch_weights = (patch_weights > 0).float()
        return losses.pool_patches(patches, patch_weights)

    def _labels(self, features: Tensor, bank: PromptBank | None) -> tuple[Tensor, Tensor]:
        # Its truth alone, `assert bank`, would break a compiled graph.
        assert bank is not None, "prepare_teacher encodes it"
        config = self.loss_config
        soft = losses.soft_labels(features, bank.features, bank.temperature)
        likeliest, classes = soft.max(dim=-1)
        takes_part = likeliest >= config.ignore_below
        if config.ignore_first_class:
            takes_part &= classes > 0
        if config.label_kind == "hard":
            soft = losses.soft_labels(features, bank.features, bank.temperature, "hard")
        return soft, takes_part

    # ------------------------------------------------------------------ as files

    def released_state(self) -> dict[str, Tensor]:
        """The tensors of `model.safetensors`: the encoder's as named there, ours under `heads.`."""
        state = self.state_dict()
        return {
            key.removeprefix("encoder.")
            if key.startswith("encoder.")
            else _release_name(key): value
            for key, value in state.items()
        }

    def released_config(self) -> dict[str, Any]:
        """The content of `config.json`."""
        return {**self.encoder.config.to_dict(), "heads": asdict(self.heads_config)}

    @classmethod
    def from_config(cls, content: dict[str, Any], loss: LossConfig | None = None) -> "Promu":
        """An instance with random weights from the content of `config.json`."""
        encoder = FusionEncoder(FusionEncoderConfig.from_dict(content))
        return cls(encoder, HeadsConfig(**content.get("heads", {"itm": False})), loss)


def _release_name(key: str) -> str:
    return key if key.startswith("heads.") else f"heads.{key}"


def _head(width: int, classes: int, hidden_mult: int) -> nn.Module:
    if not hidden_mult:
        return nn.Linear(width, classes)
    return nn.Sequential(
        nn.Linear(width, width * hidden_mult), nn.ReLU(), nn.Linear(width * hidden_mult, classes)
    )
