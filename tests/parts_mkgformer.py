"""Parts of the tests of MKGformer."""

import zlib

import numpy as np
import torch
from transformers import (
    BertConfig,
)

from finetune.inputs.batch import Batch
from finetune.methods.mkgformer.model import MKGformer, MKGformerConfig
from finetune.methods.mkgformer.vision import Layout, VisionTower
from finetune.methods.mkgformer.weights import drawn
from finetune.tasks.base import TaskInfo
from finetune.tasks.mnre import MARKERS
from pretrain.model.bert import Bert

RELATION = TaskInfo("mnre", "relation", ("None", "a", "b"), MARKERS)


TINY = {"vg_size": 32, "od_size": 16, "vision_patch": 8, "vision": "random"}


def bert(layers: int = 4, words: int = 60, width: int = 32) -> Bert:
    config = BertConfig(
        vocab_size=words, hidden_size=width, num_hidden_layers=layers, num_attention_heads=2,
        intermediate_size=2 * width, max_position_embeddings=96,
    )  # fmt: skip
    return Bert(config)


def tiny(task: TaskInfo = RELATION, **settings) -> MKGformer:
    """Four layers of width 32, two of them joined; random weights."""
    torch.manual_seed(0)
    config = MKGformerConfig(**{"fusion_layers": 2} | TINY | settings)
    encoder = bert()
    sizes, state = drawn(encoder.config, config.vision_patch)
    regions = Layout(config.vg, config.vg_size, config.od, config.od_size, config.use_full_image)
    tower = VisionTower(sizes, regions)
    tower.load(state, config.settled().positions, "random")
    return MKGformer(encoder, tower, task, config)


def batch(method: MKGformer, rows: int = 3, length: int = 16, seed: int = 1, **changed) -> Batch:
    """Random ids and regions; row i is i word pieces shorter and lacks its last i % 3 regions."""
    generator = torch.Generator().manual_seed(seed)
    config = method.config
    slots, side = config.vg + config.od, config.vg_size
    mask = torch.arange(length) < (length - torch.arange(rows)[:, None])
    ids = torch.randint(5, 60, (rows, length), generator=generator) * mask
    present = torch.arange(slots) < slots - torch.arange(rows)[:, None] % 3
    pixels = torch.randint(0, 256, (rows, slots, 3, side, side), generator=generator)
    values = {
        "rows": torch.arange(rows),
        "input_ids": ids,
        "attention_mask": mask,
        "labels": torch.arange(rows) % 3,
        "head_start": torch.full((rows,), 1),
        "tail_start": torch.full((rows,), 4),
        "region_pixels": (pixels * present[:, :, None, None, None]).to(torch.uint8),
        "region_mask": present,
    }
    if config.use_full_image:
        shape = (rows, 3, method.image_size, method.image_size)
        values["pixel_values"] = torch.randint(0, 256, shape, generator=generator).to(torch.uint8)
        values["image_mask"] = torch.ones(rows, dtype=torch.bool)
    return Batch(**values | changed)


def image(key: str, lead: tuple[int, ...], side: int) -> torch.Tensor:
    """A picture likewise: an offset, coarse cells and fine noise."""
    r = np.random.default_rng(zlib.crc32(key.encode()))
    o = r.standard_normal((*lead, 3, 1, 1))
    c = r.standard_normal((*lead, 3, side // 32, side // 32))
    f = r.standard_normal((*lead, 3, side, side))
    return torch.from_numpy((o + c.repeat(32, -2).repeat(32, -1) + 0.5 * f).astype(np.float32))
