"""Pre-training on an accelerator against the CPU: `bash tests/run.sh -m gpu`."""

import os

import pytest
import torch
from bench.gpu.common import architecture, build_optimizer, make_batch, make_promu, move_banks

from pretrain.engine import SingleEngine

SIZES = {"vision_layers": 1, "text_layers": 1, "fusion_layers": 1}


def engine_on(device: torch.device, monkeypatch) -> SingleEngine:
    """One of a small student, the same weights on every device."""
    monkeypatch.setitem(os.environ, "DS_ACCELERATOR", device.type)
    model = make_promu(architecture("tiny", **SIZES))
    engine = SingleEngine(model, build_optimizer, precision="fp32", accumulation=1, clip=2.0)
    move_banks(model, engine.device)
    model.train()
    return engine


@pytest.mark.gpu
def test_losses_of_three_steps_are_the_cpus(accelerator, monkeypatch):
    """In float32; the second and third step read what the first has learned."""
    batches = [make_batch(architecture("tiny", **SIZES), 8, seed) for seed in range(3)]
    histories = []
    for device in (torch.device("cpu"), accelerator):
        engine = engine_on(device, monkeypatch)
        assert engine.device.type == device.type
        history = []
        for batch in batches:
            losses = engine(batch.to(engine.device))
            engine.backward(losses["loss"])
            engine.step()
            history.append({name: value.detach().cpu() for name, value in losses.items()})
        histories.append(history)
    torch.testing.assert_close(histories[1], histories[0], atol=1e-4, rtol=0)


@pytest.mark.gpu
def test_a_step_never_waits_for_the_device(accelerator, monkeypatch):
    """CUDA itself raises where the host would wait: forward, backward, clip, update."""
    if accelerator.type != "cuda":
        pytest.skip("host syncs are CUDA's to tell")
    engine = engine_on(accelerator, monkeypatch)
    batch = make_batch(architecture("tiny", **SIZES), 8).to(engine.device)
    torch.cuda.synchronize()
    try:
        for _ in range(3):
            engine.backward(engine(batch)["loss"])
            engine.step()
            torch.cuda.set_sync_debug_mode("error")  # after the first, which sets things up
    finally:
        torch.cuda.set_sync_debug_mode("default")
