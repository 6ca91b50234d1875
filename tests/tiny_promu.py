"""A tiny PROMU with all heads, and a batch that it can read."""

import torch
from torch import nn

from pretrain.data.batch import PretrainBatch
from pretrain.model.config import FusionEncoderConfig
from pretrain.model.fusion_encoder import FusionEncoder
from pretrain.model.promu import HeadsConfig, LossConfig, Promu
from pretrain.prompter.bank import PromptBank

CONFIG = FusionEncoderConfig(
    vocab_size=60, hidden_size=16, num_attention_heads=2, intermediate_size=24, text_layers=3,
    fusion_layers=2, max_position_embeddings=16, hidden_dropout=0.0, attention_dropout=0.0,
    image_size=32, patch_size=8, vision_hidden_size=16, vision_layers=4, vision_heads=2,
    projection_size=8,
)  # fmt: skip


def promu(**loss) -> Promu:
    torch.manual_seed(0)
    heads = HeadsConfig(num_entities=5, num_relations=6)
    model = Promu(FusionEncoder(CONFIG), heads, LossConfig(**loss))
    model.entity_bank = PromptBank(nn.functional.normalize(torch.randn(5, 8), dim=-1), 0.1)
    model.relation_bank = PromptBank(nn.functional.normalize(torch.randn(6, 8), dim=-1), 0.1)
    return model


def batch(pairs: int = 6) -> PretrainBatch:
    random = torch.Generator().manual_seed(3)
    features = nn.functional.normalize(torch.randn(2, pairs, 8, generator=random), dim=-1).half()
    pixels = torch.randint(0, 256, (3, pairs, 3, 32, 32), generator=random, dtype=torch.uint8)
    weights = torch.zeros(pairs, 4, 4)
    weights[:, 1:3, 0:2] = 1
    return PretrainBatch(
        pixel_values=pixels[0], input_ids=torch.randint(5, 60, (pairs, 8), generator=random),
        attention_mask=torch.ones(pairs, 8, dtype=torch.int64),
        matched=torch.arange(pairs) % 3 > 0, ids=torch.arange(2 * pairs).view(pairs, 2),
        patch_weights=weights.flatten(1), box=torch.tensor([[0.0, 8, 16, 24]]).repeat(pairs, 1),
        image_feat=features[0], object_feat=features[1], image_view=pixels[1],
        object_view=pixels[2],
    )  # fmt: skip
