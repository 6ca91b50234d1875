"""The prompter at work while the student trains, where no teacher column is to be used.

`cached` features are constants of clean views. `online_clean` computes the same ones in the loop;
`online_student_view` shows the prompter what the student sees, as the released code does. The
prompter is no part of the student's module: it has no gradient, no optimizer state, and no place
in checkpoints.
"""

from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor
from torchvision.ops import roi_align

from pretrain.data.batch import PretrainBatch
from pretrain.engine import autocast
from pretrain.prompter.load import Prompter


class OnlineTeacher:
    """Fills `image_feat` and `object_feat` of a batch."""

    def __init__(
        self,
        prompter: Prompter,
        view: Literal["clean", "student"],
        erase_object: bool,
        device: torch.device,
        precision: str,
    ) -> None:
        """erase_object: both features are of the picture without its object (released code), not
        of the whole picture and of the object's crop (paper)."""
        self.encoder = prompter.encoder.eval().requires_grad_(False).to(device)
        self.view, self.erase_object = view, erase_object
        self.device, self.precision = device, precision

    @torch.no_grad()
    def __call__(self, batch: PretrainBatch) -> PretrainBatch:
        """The batch with both features, (B, E) float16."""
        if self.view == "clean":
            views = [batch.require("image_view"), batch.require("object_view")]
        elif self.erase_object:
            views = [erased(batch.pixel_values, batch.require("box"))]
        else:
            views = [batch.pixel_values, object_crops(batch.pixel_values, batch.require("box"))]
        with autocast(self.device, self.precision):
            states = self.encoder.encode_image(torch.cat(views))
            features = self.encoder.image_feat(states).half().split(len(batch))
        return replace(batch, image_feat=features[0], object_feat=features[-1])


def erased(pixels: Tensor, box: Tensor) -> Tensor:
    """(B, 3, S, S) uint8 with zeros inside the boxes (B, 4), before any normalisation."""
    places = torch.arange(pixels.shape[-1], device=pixels.device) + 0.5
    across = (places >= box[:, 0:1]) & (places < box[:, 2:3])  # (B, S)
    down = (places >= box[:, 1:2]) & (places < box[:, 3:4])
    inside = down[:, :, None] & across[:, None, :]
    return pixels.masked_fill(inside[:, None], 0)


def object_crops(pixels: Tensor, box: Tensor) -> Tensor:
    """(B, 3, S, S) uint8, boxes (B, 4) in pixels -> each box's content, scaled to S x S."""
    size = pixels.shape[-1]
    rows = torch.arange(len(box), device=box.device, dtype=torch.float32)
    regions = torch.cat([rows[:, None], box.float()], dim=1)
    crops = roi_align(pixels.float(), regions, size, sampling_ratio=2, aligned=True)
    return crops.round().clamp(0, 255).to(torch.uint8)
