"""Parts of the tests of HVPNeT."""

from pathlib import Path

import torch
from transformers import BertConfig

from finetune.tasks.base import TaskInfo
from finetune.tasks.twitter import bio_labels
from pretrain.model.bert import Bert

GOLDEN = Path(__file__).parent / "finetune/golden"


ENTITIES = TaskInfo("twitter2017", "entities", bio_labels())


TINY = {
    "vision": "resnet10t",
    "vision_random": True,
    "vision_width": 4,
    "image_size": 64,
    "prompt_width": 8,
}


def close(found, wanted, tolerance):
    torch.testing.assert_close(found, torch.as_tensor(wanted), atol=tolerance, rtol=0)


def bert(layers=3, width=24, heads=4, words=60):
    config = BertConfig(
        vocab_size=words, hidden_size=width, num_hidden_layers=layers, num_attention_heads=heads,
        intermediate_size=2 * width, max_position_embeddings=40,
    )  # fmt: skip
    return Bert(config).eval()
