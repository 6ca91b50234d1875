"""torch.compile takes the whole step as one graph: encoder, heads and losses."""

import pytest
import torch
from bench.gpu.common import architecture, make_batch, make_promu


@pytest.mark.filterwarnings("ignore")
def test_encoder_and_losses_are_one_graph():
    """`fullgraph=True` raises at the first break; losses and gradients stay what they were."""
    torch._dynamo.reset()
    config = architecture("tiny", vision_layers=1, text_layers=1, fusion_layers=1)
    model = make_promu(config).train()
    batch = make_batch(config, 4, length=24)
    plain = model(batch)
    plain["loss"].backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    losses = compiled(batch)
    losses["loss"].backward()
    torch.testing.assert_close(losses, plain)
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
