#!/usr/bin/env bash
# torch 2.13.0 (2.15.0 does the same), bf16 autocast on a CPU: a LayerNorm that follows a Linear (or a
# convolution) loses most of its bias gradient, and some of its weight gradient, once a batch has more
# than some hundred rows (pictures x patches, texts x tokens). Autocast is said to keep parameters and
# their gradients in float32 (docs.pytorch.org/docs/stable/amp.html), and they are float32 tensors; but
# layer_norm, which CUDA's autocast runs in float32, has no rule on a CPU, and its backward pass adds
# up one row after the other in bfloat16, where 256 + 1 = 256. Linear sums the same rows in float32.
# A residual that adds a float32 parameter early (BERT, plain ViT) keeps its LayerNorms in float32;
# bf16 streams (Swin, ConvNeXt, projections of Linear and LayerNorm) do not.
# Expected: every gradient within 1 % of the float32 one, as with Linear.
# Seen with one thread: 256 for a sum of 4096 ones; bias gradient off by 40 % at 4096 rows, by 74 % at
# 16384; with the input cast to float32 before the LayerNorm, by 0.0 %.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6
"$folder/venv/bin/python" - <<'PY'
import torch
from torch import nn
from torch.nn.functional import layer_norm, linear

torch.set_num_threads(1)  # each thread sums its own rows: more of them hide a part
torch.manual_seed(0)
WIDTH = 64


def gradients(rows, norm_in_float32, autocast=True):
    """Of the biases of Linear and LayerNorm; the loss pulls every unit up by 0.03 ± 0.1 a row."""
    random = torch.Generator().manual_seed(rows)
    x = torch.randn(rows, WIDTH, generator=random)
    pull = 0.03 + 0.1 * torch.randn(rows, WIDTH, generator=random)
    weight = torch.randn(WIDTH, WIDTH, generator=random) / WIDTH**0.5
    bias, scale, shift = (nn.Parameter(value) for value in (torch.zeros(WIDTH), torch.ones(WIDTH), torch.zeros(WIDTH)))
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        states = linear(x, weight, bias)
        states = states.float() if norm_in_float32 else states
        states = layer_norm(states, (WIDTH,), scale, shift)
    (states.float() * pull).sum().backward()
    assert shift.grad.dtype == torch.float32
    return shift.grad, pull.sum(0)


def error(rows, norm_in_float32=False):
    gradient, exact = gradients(rows, norm_in_float32)
    return ((gradient - exact).norm() / exact.norm()).item()


print("torch", torch.__version__)
assert torch.__version__.startswith("2.13.0")
block = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.LayerNorm(WIDTH))
with torch.autocast("cpu", torch.bfloat16):
    states = block(torch.randn(4096, WIDTH))
states.sum().backward()
ones = block[1].bias.grad[0].item()
print(f"4096 rows of gradient 1: their sum is {ones:g} for LayerNorm's bias")
for rows in (256, 4096, 16384):
    print(f"{rows} rows: bias gradient off by {error(rows):.1%}, in float32 by {error(rows, True):.1%}")
assert ones == 256
assert error(4096) > 0.2 and error(16384) > 0.5
assert error(4096, True) < 0.01 and error(16384, True) < 0.01
PY
