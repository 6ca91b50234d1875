"""CAMIM's fusion and head as printed (Eqs. 15 to 19), not as released.

B: rows, M: pictures of a source, L: word pieces, D: hidden size, K: sources.
"""

from typing import Any, cast

import torch
from torch import Tensor, nn

from finetune.inputs.batch import Batch
from finetune.methods.base import MethodOutput
from finetune.methods.camim.caption_aware import CaptionAware
from finetune.methods.layers import attend, marker_states, relation_loss
from finetune.methods.tmr.fusion import Look, pooled


class ClassTokenHead(nn.Module):
    """The sources' [CLS] rows ask the sentence (Eqs. 15, 16), an MLP joins what they are told
    (Eq. 17), one layer classifies it (Eq. 18).

    A cross attention's rows are those that ask, so [CLS] is that of the description (caption, or
    sentence), which the caption-aware module aligned with each picture. README.md names what the
    equations leave open.
    """

    def __init__(self, size: int, labels: int, sources: int, dropout: float) -> None:
        super().__init__()
        self.sources = sources
        self.query, self.key, self.value = (nn.Linear(size, size) for _ in range(3))
        self.final = nn.Sequential(
            nn.Linear(sources * size, 2 * size), nn.Tanh(), nn.Linear(2 * size, 2 * size)
        )
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(2 * size, labels)

    def features(
        self, classes: list[tuple[Tensor, Tensor | None]], text: Tensor, text_mask: Tensor | None
    ) -> list[Tensor]:
        """O_final and G_final: (B, D) of each source, the mean over its pictures that are there.

        Args:
            classes: of each source the rows of [CLS] (B, M, D), and (B, M), which pictures are
                there; None: all.
            text: (B, L, D). text_mask: (B, L) bool or None.
        """
        key, value = self.key(text), self.value(text)
        mask = None if text_mask is None else text_mask[:, None]
        return [
            pooled(attend(self.query(rows), key, value, mask), counted, mean=True)
            for rows, counted in classes
        ]

    def final_feature(self, features: list[Tensor]) -> Tensor:
        """F_final (B, 2D) from the K features."""
        return self.final(self.dropout(torch.cat(features, dim=-1)))

    def classify(self, final: Tensor) -> Tensor:
        """Logits (B, labels), float32."""
        return self.classifier(self.dropout(final)).float()


def relate_as_printed(
    method: Any, head: ClassTokenHead, batch: Batch, looks: list[Look]
) -> MethodOutput:
    """Logits and loss of the batch from what the sources of `method`, a `CamimTmr`, show."""
    text, text_mask, *_ = method.read(batch)
    aware, classes = cast(CaptionAware, method.aware), []
    for pictures, look, description in method.sources(batch, looks, text):
        rows = aware(pictures, *description)[:, :, pictures.shape[2]]  # words follow the positions
        seen = None
        if look is not None and method.config.mask_absent:
            seen = look.seen[:, None]
            if look.regions is not None and look.regions_seen is not None:
                seen = torch.cat([seen, look.regions_seen], dim=1)
        classes.append((rows, seen))
    features = head.features(classes, text, text_mask)
    final = head.final_feature(features)
    logits, pair = head.classify(final), marker_states(text, batch)
    loss = relation_loss(logits, batch.labels)
    return MethodOutput(logits, method.total_loss(loss, batch, pair, features, final))
