"""Parts of the tests of DGF-PT."""

import numpy as np
import torch

from finetune.inputs.load import load_split
from finetune.inputs.split import InputOptions
from finetune.methods.base import Source
from finetune.methods.dgfpt.config import DgfptConfig
from finetune.methods.dgfpt.model import Dgfpt

WORDS = "RT @x : Ann and Bob met Dora Finn tonight in Oslo. Consider, predict relation. None none"


TOWER = {"vision": "test_resnet", "vision_random": True, "image_size": 32, "objects": 3}


def build(task, source, **settings):
    torch.manual_seed(0)
    method, tokenizer = Dgfpt.build(DgfptConfig(**settings), task.info, Source(str(source)))
    return method, tokenizer


def batch_of(task, tmp_path, method, tokenizer, rows=8, **changes):
    options = {"images": "required", "max_length": 40, "regions": str(task.folder)} | changes
    split = load_split(
        task, "val", tokenizer, method, InputOptions(cache=tmp_path / "cache", **options)
    )
    return split.dataset.collate(np.arange(rows))
