"""HVPNeT's tokens and prefixes against worked examples and loops."""

import math

import pytest
import torch
from parts_hvpnet import bert, close

from finetune.methods.hvpnet.prefix import VisualPrefix, encode_with_prefix
from finetune.methods.towers.resnet import prompt_tokens
from pretrain.checkpoint.hub import load_text_tower


def test_pooling_ignores_the_last_row_and_column():
    rows = torch.arange(7.0).view(1, 1, 7, 1).expand(1, 1, 7, 7)
    tokens = prompt_tokens([rows])
    assert tokens.flatten().tolist() == [1, 1, 4, 4]
    assert prompt_tokens([rows.mT]).flatten().tolist() == [1, 4, 1, 4]


def test_token_layouts():
    grid = torch.arange(16.0).view(1, 4, 2, 2)
    slabs = [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11], [12, 13, 14, 15]]
    assert prompt_tokens([grid])[0].tolist() == slabs
    places = [[0, 4, 8, 12], [1, 5, 9, 13], [2, 6, 10, 14], [3, 7, 11, 15]]
    assert prompt_tokens([grid], "spatial")[0].tolist() == places


def test_head_split():
    """2 tokens of 6 numbers, 3 heads of 2."""
    numbers = torch.arange(12.0).view(1, 1, 2, 6)
    prefix = VisualPrefix(4, layers=1, heads=3, size=6, width=2)
    as_released = [[[0, 1], [2, 3]], [[4, 5], [6, 7]], [[8, 9], [10, 11]]]
    assert prefix._split(numbers)[0, 0].tolist() == as_released
    prefix.head_split = "transpose"
    usual = [[[0, 1], [6, 7]], [[2, 3], [8, 9]], [[4, 5], [10, 11]]]
    assert prefix._split(numbers)[0, 0].tolist() == usual


def naive_prefix(prefix, tokens):
    """Per layer (B, P, 2D), looped as §3.2 tells it."""
    layers = []
    for layer in range(prefix.layers):
        weight = prefix.gates.weight[4 * layer : 4 * layer + 4]
        bias = prefix.gates.bias[4 * layer : 4 * layer + 4]
        rows = []
        for row in tokens:
            parts = []
            for picture in row:
                slices = prefix.encode(picture).split(2 * prefix.size, dim=-1)
                mean = torch.stack(slices).mean(0).reshape(-1)
                gates = torch.nn.functional.leaky_relu(weight @ mean + bias, 0.01).softmax(0)
                parts.append(sum(gate * part for gate, part in zip(gates, slices, strict=True)))
            rows.append(torch.cat(parts))
        layers.append(torch.stack(rows))
    return layers


def naive_states(encoder, ids, length, prefix, layers, seen):
    """One row through every layer with keys [prefix ; text]; `seen`: (H, P) slots attended to."""
    heads = encoder.config.num_attention_heads
    states = encoder.embeddings(input_ids=ids[None, :length])[0]
    for layer, numbers in zip(encoder.encoder.layer, layers, strict=True):
        attention = layer.attention.self
        keys, values = prefix._split(numbers[None, None].chunk(2, -1)[0])[0, 0], None
        values = prefix._split(numbers[None, None].chunk(2, -1)[1])[0, 0]
        parts = []
        for head in range(heads):
            width = states.shape[1] // heads
            columns = slice(head * width, (head + 1) * width)
            query = attention.query(states)[:, columns]
            key = torch.cat([keys[head][seen[head]], attention.key(states)[:, columns]])
            value = torch.cat([values[head][seen[head]], attention.value(states)[:, columns]])
            parts.append((query @ key.T / math.sqrt(width)).softmax(-1) @ value)
        output = layer.attention.output(torch.cat(parts, dim=-1), states)
        states = layer.output(layer.intermediate(output), output)
    return states


@pytest.mark.parametrize("split", ["reshape", "transpose"])
@pytest.mark.parametrize("absent", ["mask", "mask_slots", "attend"])
def test_prefixed_layers_against_loops(split, absent):
    """The naive network leaves masked slots out instead of masking them."""
    torch.manual_seed(0)
    encoder, (batch, length) = bert(), (3, 9)
    prefix = VisualPrefix(10, layers=3, heads=4, size=24, width=7, head_split=split, absent=absent)
    tokens = torch.randn(batch, 3, 4, 10)
    present = torch.tensor([[True, True, True], [True, False, True], [False, False, False]])
    ids = torch.randint(60, (batch, length))
    lengths = torch.tensor([9, 5, 7])
    mask = torch.arange(length) < lengths[:, None]
    with torch.no_grad():
        states = encode_with_prefix(encoder, ids, mask, prefix(tokens, present))
        naive = naive_prefix(prefix, tokens)
        for row in range(batch):
            seen = torch.ones(4, 12, dtype=torch.bool)
            for head in range(4):
                for slot in range(12):
                    # Where the slot's six numbers lie in the row's (12, 24): in which token.
                    token = (head * 12 + slot) * 6 // 24 if split == "reshape" else slot
                    token = slot if absent == "mask_slots" else token
                    seen[head, slot] = present[row, token // 4] or absent == "attend"
            wanted = naive_states(
                encoder, ids[row], lengths[row], prefix, [layer[row] for layer in naive], seen
            )
            close(states[row, : lengths[row]], wanted, 1e-5)


def test_layers_of_a_fusion_model_find_their_own_prefix(tiny_model):
    """Stacked from a text tower and fusion layers, whose numbers both begin at 0."""
    encoder, _ = load_text_tower(tiny_model)
    encoder.eval()
    prefix = VisualPrefix(5, layers=2, heads=2, size=32, width=3)
    tokens, ids = torch.randn(1, 1, 4, 5), torch.arange(6)[None]
    with torch.no_grad():
        states = encode_with_prefix(
            encoder, ids, torch.ones_like(ids).bool(), prefix(tokens, torch.ones(1, 1).bool())
        )
        layers = [layer[0] for layer in naive_prefix(prefix, tokens)]
        seen = torch.ones(2, 4, dtype=torch.bool)
        close(states[0], naive_states(encoder, ids[0], 6, prefix, layers, seen), 1e-5)
