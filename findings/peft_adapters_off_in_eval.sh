#!/usr/bin/env bash
# peft 0.21.2 on torch 2.13.0's nn.TransformerEncoder: LoRA learns, and in eval() its adapters do
# nothing. The layer then computes by a fused kernel that reads `linear1.weight` and
# `self_attn.in_proj_weight` and calls no submodule; peft answers such a read with the base weight.
# Nothing warns; the numbers are those of the model without adapters (logits within 1e-5), with
# gradients on or off (base weights are frozen, so torch deems the kernel safe). peft's reference says
# of targets only that they are replaced (huggingface.co/docs/peft/package_reference/lora), and that
# nn.MultiheadAttention is supported; eval() is said to change dropout and the like.
# Expected: eval() = the merged model, as for every other network.
# Seen, for adapters on the feed-forward, the attention or both: eval() = adapters disabled (loss
# 0.75); merge_and_unload(), or torch.backends.mha.set_fastpath_enabled(False), gives what was
# learned (0.11 to 0.16).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 peft==0.21.2 transformers==5.24.0 accelerate==1.15.0 numpy==2.4.6
"$folder/venv/bin/python" - <<'PY'
import peft
import torch
from torch import nn
from torch.nn.functional import cross_entropy

torch.set_num_threads(1)


class Classifier(nn.Module):
    def __init__(self):
        super().__init__()
        layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2)
        self.head = nn.Linear(16, 2)

    def forward(self, x):
        return self.head(self.encoder(x).mean(1))


print("torch", torch.__version__, "peft", peft.__version__)
assert torch.__version__.startswith("2.13.0") and peft.__version__ == "0.21.2"
torch.manual_seed(0)
x = torch.randn(64, 6, 16)
labels = (x[:, 0, 0] * x[:, 1, 1] > 0).long()
for targets in (["linear1", "linear2"], ["self_attn"], ["self_attn", "linear1", "linear2"]):
    torch.manual_seed(1)
    config = peft.LoraConfig(r=8, lora_alpha=32, target_modules=targets)
    model = peft.get_peft_model(Classifier(), config).train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 1e-2)
    for _ in range(150):
        loss = cross_entropy(model(x), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()
    plain = model(x)
    with torch.no_grad():
        without_gradients = model(x)
        torch.backends.mha.set_fastpath_enabled(False)
        slow = model(x)
        torch.backends.mha.set_fastpath_enabled(True)
        with model.disable_adapter():
            disabled = model(x)
        merged = model.merge_and_unload().eval()(x)
    losses = {"training": loss.item(), "eval": cross_entropy(plain, labels).item(),
              "adapters disabled": cross_entropy(disabled, labels).item(),
              "fast path off": cross_entropy(slow, labels).item(),
              "merged": cross_entropy(merged, labels).item()}  # fmt: skip
    print(" ".join(targets) + ":", ", ".join(f"{name} {value:.3f}" for name, value in losses.items()))
    assert torch.allclose(plain, disabled, atol=1e-5)
    assert torch.allclose(without_gradients, disabled, atol=1e-5)
    assert torch.allclose(slow, merged, atol=1e-4)
    assert losses["eval"] > 0.6 and losses["merged"] < 0.3
PY
