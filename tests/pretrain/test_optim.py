"""Weight-decay groups and the learning-rate curve."""

import pytest
import torch

from pretrain.model.config import FusionEncoderConfig
from pretrain.model.fusion_encoder import FusionEncoder
from pretrain.model.promu import HeadsConfig, Promu
from pretrain.optim import adamw, linear_schedule, parameter_groups


def test_groups_cover_all_and_decay_matrices_only():
    config = FusionEncoderConfig(
        vocab_size=20, hidden_size=16, num_attention_heads=2, intermediate_size=16, text_layers=1,
        fusion_layers=1, image_size=16, patch_size=8, vision_hidden_size=16, vision_layers=1,
        vision_heads=2, projection_size=8,
    )  # fmt: skip
    model = Promu(FusionEncoder(config), HeadsConfig(num_entities=3, num_relations=3))
    names = {id(p): name for name, p in model.named_parameters()}
    decayed, plain = parameter_groups(model.named_parameters(), lr=1.0, weight_decay=0.1)
    assert sum(len(group["params"]) for group in (decayed, plain)) == len(names)
    plain_names = {names[id(p)] for p in plain["params"]}
    for name in names.values():
        never = name.endswith("bias") or "norm" in name.lower() or "temperature" in name
        never |= "cls_token" in name or "pos" in name.split(".")[-1] or "position" in name
        assert (name in plain_names) == (never or "token_type" in name), name


def test_learning_rate_rises_from_the_first_step_and_ends_at_zero():
    optimizer = adamw([{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": 2.0}])
    schedule = linear_schedule(optimizer, warmup_steps=10, total_steps=100)
    used = []
    for _ in range(100):
        used.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert used[0] == pytest.approx(0.2)
    assert used[9] == pytest.approx(2.0) == max(used)
    assert used[54] == pytest.approx(1.0) and used[99] == 0.0
