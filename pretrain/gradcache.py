"""Contrastive loss over a whole optimizer step, however many micro-batches it is cut into.

Plain accumulation averages gradients, but each micro-batch is contrasted with itself alone. Here
(GradCache: Gao et al., RepL4NLP 2021) a first pass without gradient collects the features of all
micro-batches, the loss of the whole step gives the gradient with respect to each feature, and the
ordinary pass then sends that gradient on: same loss and gradients as one large batch, at the
memory of a small one, for one more forward pass of both towers.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from pretrain.data.batch import PretrainBatch


class Contrasts(Protocol):
    """What `contrast_step` asks of `Promu`; the methods are explained there."""

    def features(self, batch: PretrainBatch) -> tuple[Tensor, Tensor]: ...
    def table(self, batch: PretrainBatch) -> Tensor: ...
    def clamped_temperature(self) -> Tensor: ...
    def cit(
        self, image_feat: Tensor, text_feat: Tensor, temperature: Tensor, table: Tensor
    ) -> tuple[Tensor, Tensor]: ...


@dataclass(frozen=True)
class StepContrast:
    """What one micro-batch of B pairs must know of its step."""

    image_grad: Tensor
    """(B, E) gradient of the step's contrastive loss, scaled as `losses.cit_loss` scales it."""
    text_grad: Tensor
    """(B, E) likewise."""
    temperature_grad: Tensor
    """(1,) likewise, of the whole step."""
    cit: Tensor
    """The step's loss itself, 0-dim."""
    takes_part: Tensor
    """(W·A·B, 2) int64: which pairs of the step take part in COE and in CIR."""
    accumulation: int
    """Micro-batches in the step; the engine divides by it."""

    def loss(self, image_feat: Tensor, text_feat: Tensor, temperature: Tensor) -> Tensor:
        """A scalar with the step's loss as value and this micro-batch's part of its gradient."""
        features = (image_feat * self.image_grad).sum() + (text_feat * self.text_grad).sum()
        carrier = features * self.accumulation + (temperature * self.temperature_grad).sum()
        return self.cit + carrier - carrier.detach()


def contrast_step(
    model: Contrasts,
    batches: Sequence[PretrainBatch],
    seeds: Sequence[int],
    precision: AbstractContextManager,
) -> list[StepContrast]:
    """First pass and loss of a step; collective.

    Args:
        batches: the micro-batches of this rank.
        seeds: set before each forward pass, here and by the caller in the second pass: dropout
            must fall alike in both.
        precision: the context that the second pass computes in.
    """
    cached = []
    with torch.no_grad(), precision:
        for batch, seed in zip(batches, seeds, strict=True):
            torch.manual_seed(seed)
            cached.append(model.features(batch))
    # (A·B, E) of this rank, and (W·A·B, …) of all: the order in which `cit_loss` wants them.
    image_feat, text_feat = (
        torch.cat(parts).requires_grad_() for parts in zip(*cached, strict=True)
    )
    temperature = model.clamped_temperature().detach().requires_grad_()
    local = torch.cat([model.table(batch) for batch in batches])
    loss, table = model.cit(image_feat, text_feat, temperature, local)
    gradients = torch.autograd.grad(loss, (image_feat, text_feat, temperature))
    sizes = [len(batch) for batch in batches]
    parts = zip(gradients[0].split(sizes), gradients[1].split(sizes), strict=True)
    return [
        StepContrast(image, text, gradients[2], loss.detach(), table[:, 3:], len(batches))
        for image, text in parts
    ]
