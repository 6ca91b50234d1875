"""PROMU (MM'23): fusion encoder + heads -> named losses.

L = λ_ITM·L_ITM + λ_CIT·L_CIT + λ_COE·L_COE + λ_CIR·L_CIR (Eq. 11). With `fusion_layers: 0` and only
CIT switched on, the same class is the stage-1 prompter.
"""

from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from pretrain import distributed, losses
from pretrain.batch import PretrainBatch
from pretrain.model.fusion_encoder import FusionEncoder, FusionEncoderConfig
from pretrain.model.prompter import PromptBank


@dataclass(frozen=True, kw_only=True)
class HeadsConfig:
    """Sizes of the heads that a pre-training checkpoint carries; 0 = no such head."""

    itm: bool = True
    """Image-text matching head."""
    num_entities: int = 0
    """Entity vocabulary (COE head)."""
    num_relations: int = 0
    """Relation vocabulary (CIR head)."""
    hidden_mult: int = 2
    """Hidden width of the COE and CIR heads in multiples of D; 0 = one Linear."""


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """Objectives and their readings: by default the paper's; `released_code.yaml`: the code's."""

    itm: float = 1.0
    """Weight of image-text matching; 0 switches it off."""
    cit: float = 1.0
    """Weight of the contrastive image-text loss; 0 switches it off."""
    coe: float = 1.0
    """Weight of the contrastive object-entity loss; 0 = Table 1, w/o entity-object."""
    cir: float = 1.0
    """Weight of the contrastive image-relation loss; 0 = Table 1, w/o relation-image."""
    label_kind: Literal["soft", "hard"] = "soft"
    """Prompter labels as distribution, or their arg-max (Table 1, w/o soft pseudo labels)."""
    cit_negatives: Literal["matched", "all"] = "matched"
    """CIT candidates: matched pairs (Eq. 5), or all captions and pictures (released code)."""
    cit_normalize_by: Literal["matched", "batch"] = "matched"
    """CIT mean over matched pairs (Eq. 5), or over the whole batch (released code)."""
    coe_patch_weighting: Literal["binary", "coverage"] = "binary"
    """COE pools patches that show the object alike (Eq. 7), or by covered area (released code)."""
    cir_pool: Literal["cls", "patch_mean"] = "cls"
    """CIR reads the fused class token (Eq. 9), or the mean of fused patches (released code)."""
    temperature_init: float = 0.07
    """Initial temperature; learned, used within 0.001 … 0.5."""


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

    def clamped_temperature(self) -> Tensor:
        """(1,) Clamped where used: an in-place clamp would be undone by the next ZeRO step."""
        return self.temperature.float().clamp(0.001, 0.5)

    def forward(self, batch: PretrainBatch) -> dict[str, Tensor]:
        """Named losses; `loss` is their weighted sum, the rest is detached.

        Every switched-on head runs on every rank in every step, whatever the batch holds.
        """
        config, encoder = self.loss_config, self.encoder
        text = encoder.encode_text(batch.input_ids, batch.attention_mask)  # (B, L, D)
        vision = encoder.encode_image(batch.pixel_values)  # (B, 1+K, Dv)
        visible = batch.patch_weights.sum(dim=1) > 0  # (B,)
        table = distributed.gather(
            torch.cat([batch.ids, batch.matched[:, None], visible[:, None]], dim=1)
        )  # (G, 4)
        terms: dict[str, Tensor] = {}
        if config.cit:
            terms["cit"] = self._cit(encoder.image_feat(vision), encoder.text_feat(text), table)
        if config.itm or config.coe or config.cir:
            fused = encoder.fuse(text, batch.attention_mask, vision)  # (B, L+1+K, D)
            terms |= self._fused_terms(fused, batch, visible, visible_everywhere=table[:, 3].sum())
        total = sum(getattr(config, name) * term for name, term in terms.items())
        named = {f"{name}_loss": term.detach() for name, term in terms.items()}
        return {"loss": total, **named}

    def _cit(self, image_feat: Tensor, text_feat: Tensor, table: Tensor) -> Tensor:
        return losses.cit_loss(
            image_feat,
            text_feat,
            distributed.gather(image_feat),
            distributed.gather(text_feat),
            table[:, 2].bool(),
            table[:, :2],
            self.clamped_temperature(),
            offset=distributed.rank() * len(image_feat),
            negatives=self.loss_config.cit_negatives,
            normalize_by=self.loss_config.cit_normalize_by,
        )

    def _fused_terms(
        self, fused: Tensor, batch: PretrainBatch, visible: Tensor, visible_everywhere: Tensor
    ) -> dict[str, Tensor]:
        config, terms = self.loss_config, {}
        patches = fused[:, batch.input_ids.shape[1] + 1 :]  # (B, K, D)
        world = distributed.world_size()
        if config.itm:
            terms["itm"] = losses.itm_loss(self.heads["itm"](fused[:, 0]), batch.matched)
        if config.coe:
            logits = self.heads["entity"](self.object_state(patches, batch.patch_weights))
            targets = self._labels(batch.object_feat, self.entity_bank)
            terms["coe"] = losses.soft_label_loss(
                logits, targets, visible, visible_everywhere, world
            )
        if config.cir:
            state = fused[:, 0] if config.cir_pool == "cls" else patches.mean(dim=1)
            targets = self._labels(batch.image_feat, self.relation_bank)
            everyone = torch.ones_like(visible)
            terms["cir"] = losses.soft_label_loss(
                self.heads["relation"](state), targets, everyone, everyone.sum() * world, world
            )
        return terms

    def object_state(self, patches: Tensor, patch_weights: Tensor) -> Tensor:
        """(B, K, D), (B, K) -> (B, D): the object's pooled fused patches."""
        if self.loss_config.coe_patch_weighting == "binary":
            patch_weights = (patch_weights > 0).float()
        return losses.pool_patches(patches, patch_weights)

    def _labels(self, features: Tensor, bank: PromptBank) -> Tensor:
        return losses.soft_labels(
            features, bank.features, bank.temperature, self.loss_config.label_kind
        )

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
