"""Parts of the tests of FocalMRE."""

import dataclasses

import torch
from torch import nn

from finetune.inputs.batch import Batch
from finetune.methods.base import Source
from finetune.methods.focalmre.model import FocalMRE, FocalMREConfig
from finetune.tasks.base import TaskInfo
from finetune.tasks.mnre import MARKERS

TASK = TaskInfo("mnre", "relation", ("None", "a", "b"), MARKERS)


def build(model, **settings) -> FocalMRE:
    torch.manual_seed(0)
    method, _ = FocalMRE.build(FocalMREConfig(**settings), TASK, Source(str(model)))
    for weights in method.fusion.values():  # apart from their even start
        nn.init.uniform_(weights, 0.2, 1.0)
    return method.eval()


def some_batch(method: FocalMRE, rows=2, length=20, seed=0) -> Batch:
    random = torch.Generator().manual_seed(seed)
    regions, size = sum(method.config.slots.values()), method.image_size
    corners = torch.rand(rows, regions, 2, generator=random) * 0.6
    sides = 0.1 + torch.rand(rows, regions, 2, generator=random) * 0.3
    mask = torch.ones(rows, regions, dtype=torch.bool)
    ids = torch.randint(5, 60, (rows, length), generator=random)

    def pictures(*shape):
        return torch.randint(0, 256, (*shape, 3, size, size), generator=random, dtype=torch.uint8)

    return Batch(
        rows=torch.arange(rows),
        input_ids=ids,
        attention_mask=torch.ones(rows, length, dtype=torch.bool),
        head_start=torch.arange(rows) + 1,
        tail_start=torch.arange(rows) + 7,
        labels=torch.arange(rows) % 3,
        pixel_values=pictures(rows),
        image_mask=torch.ones(rows, dtype=torch.bool),
        region_boxes=torch.cat([corners, corners + sides], -1),
        region_pixels=pictures(rows, regions),
        region_mask=mask,
    )


def with_mask(batch: Batch, *patterns: str) -> Batch:
    mask = torch.tensor([[letter == "1" for letter in pattern] for pattern in patterns])
    boxes = batch.region_boxes * mask[..., None]
    pixels = batch.region_pixels * mask[:, :, None, None, None]
    return dataclasses.replace(batch, region_mask=mask, region_boxes=boxes, region_pixels=pixels)


def states(seed=0, positions=1):
    random = torch.Generator().manual_seed(seed)
    return (
        torch.randn(1, positions, 8, generator=random),
        torch.randn(1, 2, 5, 6, generator=random),
    )
