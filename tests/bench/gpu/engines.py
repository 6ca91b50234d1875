"""DeepSpeed at ZeRO 0 to 3 against the engine of one process; the device's collectives."""

import json
import os
import socket
import tempfile
from pathlib import Path

import torch
from bench.gpu.common import (
    DEVICE,
    REHEARSAL,
    Results,
    architecture,
    build_optimizer,
    exact_float32,
    make_batch,
    make_promu,
    move_banks,
    single_engine,
    train_steps,
    widest,
)

from pretrain import engine as engines

STEPS, PAIRS = (3, 4) if REHEARSAL else (8, 16)


def join_alone() -> None:
    """This process as a world of one rank, as a launcher would start it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    os.environ |= {
        "RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }  # fmt: skip
    engines.start("deepspeed")


def zero_history(stage: int, precision: str) -> list[dict[str, float]]:
    """Losses of all steps under a ZeRO stage."""
    config = architecture("tiny")
    with tempfile.NamedTemporaryFile("w", suffix=".json") as tuning:
        json.dump({"zero_optimization": {"stage": stage}}, tuning)
        tuning.flush()
        model = make_promu(config)
        engine = engines.DeepSpeedEngine(
            model, build_optimizer, precision=precision, accumulation=1, clip=2.0,
            micro_batch_size=PAIRS, tuning=str(Path(tuning.name)),
        )  # fmt: skip
    move_banks(model, engine.device)
    engine.module.train()
    return train_steps(engine, [make_batch(config, PAIRS, seed) for seed in range(STEPS)])


def main() -> None:
    results = Results("a. Correctness: engines alike")
    exact_float32()
    join_alone()
    ones = torch.ones(4, device=DEVICE)
    torch.distributed.all_reduce(ones)
    backend = torch.distributed.get_backend()
    expected = "nccl" if DEVICE.type == "cuda" else "gloo"
    results.check(f"{expected}, a world of one: all_reduce",
                  backend == expected and float(ones.sum()) == 4, backend)  # fmt: skip
    for precision, bound in (("fp32", 1e-4), ("bf16", 1e-2)):
        config = architecture("tiny")
        engine = single_engine(make_promu(config), precision)
        alone = train_steps(engine, [make_batch(config, PAIRS, seed) for seed in range(STEPS)])
        for stage in range(4):
            if not results.has_time(3, f"ZeRO {stage} in {precision}"):
                break
            apart = widest(alone, zero_history(stage, precision))
            results.check(f"ZeRO {stage}, {precision}: losses of {STEPS} steps within {bound:g} of "
                          "the single engine's", apart <= bound, f"{apart:.2e}")  # fmt: skip
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
