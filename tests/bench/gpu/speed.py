"""Pre-training: samples a second, model FLOP/s and their share of the device's peak (MFU).

MFU = 3 x forward_flops(architecture, heads, word pieces) x samples a second / peak, the forward
operations being matrix products alone (`pretrain/flops.py`), the backward pass twice as much; what
activation checkpointing computes again is not counted, and padding is. `base` and `paper` are one
architecture: they differ in what the loader does and in the batch.
"""

import gc
import os
import tempfile
from pathlib import Path

import torch
from bench.bench_pretrain import released, write_corpus
from bench.gpu.common import (
    DEVICE,
    REHEARSAL,
    Results,
    architecture,
    make_batch,
    make_promu,
    move_banks,
    seconds_a_step,
    shipped,
    single_engine,
)
from bench.gpu.plain import PlainEncoder, PlainEngine

from pretrain.data.pairs import PairDataset, open_reader, train_batches
from pretrain.data.tokenizer import learn_tokenizer
from pretrain.flops import forward_flops, peak_flops
from pretrain.steps import Feed
from shards.stream import CanonicalOrder, RankBatches

MICRO = (2, 4) if REHEARSAL else (64, 128, 256, 512)
STEPS = 2 if REHEARSAL else 8
SLOW, COMPILING = (10, 40) if REHEARSAL else (25, 60)
"""Seconds that a measurement takes at most, and one that compiles before."""
OURS, PLAIN = "ours", "plain timm + Hugging Face"


def config_measured():
    """`base`, or at the rehearsal `tiny`."""
    return architecture("tiny") if REHEARSAL else architecture("base")


def figures(model, pairs: int, seconds: float, length: int = 32) -> dict[str, float | None]:
    """The columns of a row."""
    flops = 3 * forward_flops(model.encoder.config, model.heads_config, length) * pairs / seconds
    peak = peak_flops(DEVICE)
    memory = torch.cuda.max_memory_allocated() / 2**30 if DEVICE.type == "cuda" else None
    return {
        "samples/s": pairs / seconds, "TFLOP/s": flops / 1e12,
        "MFU %": 100 * flops / peak if peak else None, "peak GiB": memory,
    }  # fmt: skip


def measure(
    which: str, pairs: int, *, compile_layers: bool = False, checkpointing: bool = False
) -> dict[str, float | None]:
    """Steps on one batch that lies on the device: no loader."""
    config = config_measured()
    ours = which == OURS
    model = make_promu(config, encoder=None if ours else PlainEncoder(config))
    if checkpointing:
        model.encoder.checkpoint_activations()
    if compile_layers:
        model.encoder.compile_layers()
    if ours:
        engine = single_engine(model, "bf16")
    else:
        engine = PlainEngine(model, DEVICE)
        move_banks(model, DEVICE)
    batch = make_batch(config, pairs).to(engine.device)

    def step() -> None:
        losses = engine(batch)
        engine.backward(losses["loss"])
        engine.step()
        if not ours:
            losses["loss"].item()

    return figures(model, pairs, seconds_a_step(step, STEPS, warm=3))


def forget() -> None:
    """What came before takes no memory and leaves no peak."""
    gc.collect()
    if DEVICE.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def attempt(results: Results, table: str, way: str, which: str, pairs: int, **how) -> float:
    """A row; samples a second, 0 where memory did not suffice."""
    forget()
    try:
        row = measure(which, pairs, **how)
    except RuntimeError as error:  # no memory, or no compiler: the other rows go on
        row = {"samples/s": None, "note": f"{type(error).__name__}: {error}"[:200]}
    results.add(table, model=which, way=way, micro=pairs, **row)
    return row["samples/s"] or 0.0


def with_loader(results: Results, folder: Path, name: str, pairs: int) -> float:
    """Steps fed by the real loader on all cores, with the crops of a shipped configuration."""
    forget()
    config, data = config_measured(), shipped(name).data
    tokenizer = learn_tokenizer((folder / "captions.csv").read_text().splitlines(), 500)
    reader = open_reader(str(folder / "shards"), teacher=False)
    sizes = {"image_size": config.image_size, "patch_size": config.patch_size}
    dataset = PairDataset(reader, tokenizer, data, **sizes, seed=0, augment=True)
    order = CanonicalOrder([shard.samples for shard in reader.index.shards], seed=0)
    batches = RankBatches(order, rank=0, world=1, micro_batch_size=pairs, accumulation=1, start=0)
    model = make_promu(config)
    engine = single_engine(model, "bf16")
    cores = len(os.sched_getaffinity(0))
    stream = train_batches(dataset, batches, workers=cores, pin=DEVICE.type == "cuda")
    feed = Feed(stream, engine.device)
    features = make_batch(config, pairs).to(engine.device)
    lengths = []

    def step() -> None:
        batch = next(feed)
        if len(lengths) == 1:  # the first brought the workers up
            feed.waited = 0.0
        batch.image_feat, batch.object_feat = features.image_feat, features.object_feat
        lengths.append(batch.input_ids.shape[1])
        engine.backward(engine(batch)["loss"])
        engine.step()

    seconds = seconds_a_step(step, 2 * STEPS, warm=2)
    row = figures(model, pairs, seconds, round(sum(lengths) / len(lengths)))
    waited = feed.waited / (2 * STEPS + 1)
    results.add("with the loader", model=OURS, way=f"{name}, {cores} workers", micro=pairs, **row,
                **{"data wait %": 100 * waited / seconds})  # fmt: skip
    return row["samples/s"]


def released_rate(results: Results, folder: Path, pairs: int) -> float:
    """The released step with its own loader (`bench_pretrain.py`), in float32."""
    forget()
    size = "tiny" if REHEARSAL else "base"
    row = released(folder, size, pairs, 1 if REHEARSAL else 3)
    memory = row["peak"] / 2**30 if DEVICE.type == "cuda" else None
    rate = pairs / row["seconds"]
    results.add("with the loader", model="released", way="its own, in the step", micro=pairs,
                **{"samples/s": rate, "peak GiB": memory})  # fmt: skip
    return rate


def ratios(results: Results, rates: dict[str, float]) -> None:
    """Ours against the two others, each in the same run."""
    for other, bar in ((PLAIN, 1.3), ("released", 3.0)):
        mine = rates.get(f"{OURS}, {other}")
        if mine and rates.get(other):
            results.add("ratios", against=other, times=mine / rates[other], goal=bar)


def main() -> None:
    results = Results("b. Speed: pre-training in bf16")
    results.note(__doc__.partition("\n\n")[2].replace("\n", " ").strip())
    middle = MICRO[len(MICRO) // 2]
    table, rates = "one batch, no loader", {}
    rates[f"{OURS}, {PLAIN}"] = attempt(results, table, "eager", OURS, middle)
    rates[PLAIN] = attempt(results, table, "eager", PLAIN, middle)
    ratios(results, rates)
    with tempfile.TemporaryDirectory() as name:
        write_corpus(Path(name))
        if results.has_time(SLOW, "the loader"):
            rates[f"{OURS}, released"] = with_loader(results, Path(name), "base", middle)
        if results.has_time(SLOW, "the released step"):
            rates["released"] = released_rate(results, Path(name), MICRO[0])
            ratios(results, {key: rates.get(key, 0.0) for key in (f"{OURS}, released", "released")})
        if results.has_time(SLOW, "the loader with `paper`"):
            with_loader(results, Path(name), "paper", middle)
    ways = [("compiled", {"compile_layers": True}, (middle,))]
    ways += [("eager", {}, [micro for micro in MICRO if micro != middle])]
    ways += [("eager, checkpointing", {"checkpointing": True}, sorted({middle, MICRO[-1]}))]
    ways += [("compiled", {"compile_layers": True}, [m for m in MICRO if m != middle])]
    ways += [("compiled, checkpointing", {"compile_layers": True, "checkpointing": True},
              MICRO[-1:])]  # fmt: skip
    for way, how, sizes in ways:
        for pairs in sizes:
            seconds = COMPILING if how.get("compile_layers") else SLOW
            if results.has_time(seconds, f"{way}, micro-batch {pairs}"):
                attempt(results, table, way, OURS, pairs, **how)
    if peak_flops(DEVICE):
        rows = results.content["tables"][table]
        best = max(row.get("MFU %") or 0.0 for row in rows if row["model"] == OURS)
        results.add("ratios", against="peak: best MFU %", times=best, goal=55)


if __name__ == "__main__":
    main()
