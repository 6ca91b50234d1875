"""What an engine costs beside the arithmetic: `base`'s tensors at tiny widths, CPU seconds a step.

    python tests/bench/bench_engines.py [--steps 5] [--rounds 7]

One process, one rank, one thread, fp32: the engine of one process, and DeepSpeed as
`launch/zero{0,1,2}.json` ask for it, in turn on the same batch. What they add is what a host pays
whatever the device. Beside them ZeRO 1 as it was until commit d3782de: a hook a parameter, and
the norm of one gradient at a time.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
WIDTHS = {
    "hidden_size": 24, "num_attention_heads": 2, "intermediate_size": 48, "vocab_size": 500,
    "vision_hidden_size": 24, "vision_heads": 2, "projection_size": 16, "image_size": 32,
}  # fmt: skip
PAIRS = 16


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=5, help="in a round")
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    os.environ |= {"DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""}
    sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
    import torch
    from bench.gpu.common import (
        architecture,
        build_optimizer,
        make_batch,
        make_promu,
        single_engine,
        train_steps,
    )
    from bench.gpu.engines import join_alone

    from pretrain.engine import DeepSpeedEngine

    torch.set_num_threads(1)
    join_alone()
    config = architecture("base", **WIDTHS)
    engines = {"one process": single_engine(make_promu(config), "fp32")}
    files = {f"ZeRO {stage}": str(ROOT / f"launch/zero{stage}.json") for stage in range(3)}
    with tempfile.NamedTemporaryFile("w", suffix=".json") as before:
        hooks = {"stage": 1, "overlap_comm": True, "contiguous_gradients": True}
        json.dump({"zero_optimization": hooks | {"reduce_bucket_size": 25_000_000}}, before)
        before.flush()
        for name, tuning in (files | {"ZeRO 1 as it was": before.name}).items():
            engines[name] = DeepSpeedEngine(
                make_promu(config), build_optimizer, precision="fp32", accumulation=1, clip=2.0,
                micro_batch_size=PAIRS, tuning=tuning,
            )  # fmt: skip
            engines[name].module.train()
    del engines["ZeRO 1 as it was"].engine.optimizer.get_grad_norm_direct  # ours: see `tuning.py`
    batches = [make_batch(config, PAIRS, seed) for seed in range(args.steps)]
    seconds: dict[str, list[float]] = {name: [] for name in engines}
    losses = {}
    for name, engine in engines.items():
        torch.manual_seed(0)  # of dropout
        losses[name] = train_steps(engine, batches)
    for _ in range(args.rounds):
        for name, engine in engines.items():
            since = time.process_time()
            train_steps(engine, batches)
            seconds[name].append((time.process_time() - since) / args.steps)
    torch.distributed.destroy_process_group()
    first = next(iter(engines))
    tensors = sum(1 for _ in engines[first].module.parameters())
    print(f"\n| {tensors} tensors, {PAIRS} pairs | ms a step | x | largest difference of a loss |")
    print("|---|---|---|---|")
    for name, times in seconds.items():
        ratio = statistics.median(a / b for a, b in zip(times, seconds[first], strict=True))
        apart = max(abs(a[k] - b[k]) for a, b in zip(losses[name], losses[first], strict=True)
                    for k in a)  # fmt: skip
        print(f"| {name} | {1000 * statistics.median(times):.1f} | {ratio:.2f} | {apart:.1e} |")


if __name__ == "__main__":
    main()
