"""20 steps of `tiny` from the same weights over the same batches, on the CPU and on the device."""

import torch
from bench.gpu.common import (
    DEVICE,
    REHEARSAL,
    Results,
    architecture,
    exact_float32,
    make_batch,
    make_promu,
    on,
    single_engine,
    train_steps,
    widest,
)

STEPS, PAIRS = 20, 4 if REHEARSAL else 16
CPU = torch.device("cpu")


def history(device: torch.device, precision: str) -> list[dict[str, float]]:
    """Losses of all steps; `tiny` has no dropout, which would fall differently."""
    config = architecture("tiny")
    with on(device):
        engine = single_engine(make_promu(config), precision)
        return train_steps(engine, [make_batch(config, PAIRS, seed) for seed in range(STEPS)])


def gradient(device: torch.device, precision: str) -> torch.Tensor:
    """All gradients of one batch in one vector, before clipping."""
    config = architecture("tiny")
    with on(device):
        engine = single_engine(make_promu(config), precision)
        engine.backward(engine(make_batch(config, PAIRS).to(engine.device))["loss"])
    parts = [p.grad.flatten() for p in engine.module.parameters() if p.grad is not None]
    return torch.cat(parts).double().cpu()


def main() -> None:
    results = Results("a. Correctness: CPU and device alike")
    exact_float32()
    apart = widest(history(CPU, "fp32"), history(DEVICE, "fp32"))
    results.check(f"{STEPS} steps in fp32: losses within 1e-4", apart <= 1e-4, f"{apart:.2e}")
    exact, low = gradient(CPU, "fp32"), gradient(CPU, "bf16")
    here = gradient(DEVICE, "bf16")
    cosine = float(torch.cosine_similarity(here, low, dim=0))
    results.check("bf16: gradient's cosine to the CPU's bf16 >= 0.999", cosine >= 0.999,
                  f"{cosine:.6f}")  # fmt: skip
    cosine = float(torch.cosine_similarity(here, exact, dim=0))
    results.check("bf16: gradient's cosine to the CPU's fp32 >= 0.999", cosine >= 0.999,
                  f"{cosine:.6f}")  # fmt: skip
    if REHEARSAL:
        return
    apart = widest(history(CPU, "bf16"), history(DEVICE, "bf16"))
    results.add("for information", figure=f"{STEPS} steps in bf16: widest loss", value=apart)


if __name__ == "__main__":
    main()
