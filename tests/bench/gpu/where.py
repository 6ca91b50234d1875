"""Where a step's time goes: largest kernels, gaps between them, host syncs, graph breaks."""

import collections
import warnings

import torch
from bench.gpu.common import (
    DEVICE,
    REHEARSAL,
    Results,
    architecture,
    make_batch,
    make_promu,
    single_engine,
)
from torch.profiler import ProfilerActivity, profile

PAIRS = 8 if REHEARSAL else 256
STEPS = 3
LENGTHS = (32, 24, 40)
"""Of captions: each other length of a batch may compile the graphs again."""
SYNCING = ("aten::_local_scalar_dense", "aten::nonzero", "aten::is_nonzero")
"""Operations that wait for the device's answer, seen on a CPU too."""


def stepper(engine, batches):
    """A function that makes the next update."""
    turn = iter(batches * 1000)

    def step() -> None:
        engine.backward(engine(next(turn))["loss"])
        engine.step()

    return step


def kernels(results: Results, step) -> None:
    """Ten largest by time, and how much of the time no kernel runs."""
    activities = [ProfilerActivity.CPU]
    if DEVICE.type == "cuda":
        activities.append(ProfilerActivity.CUDA)
    with profile(activities=activities) as recorded:
        for _ in range(STEPS):
            step()
        if DEVICE.type == "cuda":
            torch.cuda.synchronize()
    # Of a range that torch names, such as the optimizer's step, the device keeps a shadow.
    on_device = [
        event
        for event in recorded.events()
        if event.device_type == torch.autograd.DeviceType.CUDA
        and not event.is_user_annotation
        and not event.name.startswith("Optimizer.")
    ]
    if on_device:
        spent, calls = collections.Counter(), collections.Counter()
        for event in on_device:
            spent[event.name] += event.time_range.elapsed_us()
            calls[event.name] += 1
        gaps(results, [(e.time_range.start, e.time_range.end) for e in on_device])
    else:  # on a CPU the operations themselves
        averages = recorded.key_averages()
        spent = collections.Counter({row.key: row.self_cpu_time_total for row in averages})
        calls = collections.Counter({row.key: row.count for row in averages})
    total = sum(spent.values())
    for name, microseconds in spent.most_common(10):
        results.add("ten largest kernels", kernel=name[:90], share=100 * microseconds / total,
                    **{"ms a step": microseconds / 1000 / STEPS,
                       "calls a step": calls[name] / STEPS})  # fmt: skip


def gaps(results: Results, spans: list[tuple[float, float]]) -> None:
    """The time between the first kernel and the last in which none ran. Microseconds."""
    spans.sort()
    end, idle, longest, count = spans[0][1], 0.0, 0.0, 0
    for begin, stop in spans[1:]:
        if begin > end:
            idle += begin - end
            longest = max(longest, begin - end)
            count += begin - end > 10
        end = max(end, stop)
    whole = end - spans[0][0]
    results.add("gaps between kernels", **{
        "idle %": 100 * idle / whole, "ms a step": idle / 1000 / STEPS,
        "longest ms": longest / 1000, "over 10 us a step": count / STEPS,
    })  # fmt: skip


def waiting_operations(results: Results, engine, batch) -> None:
    """Forward and backward alone: the CPU's fused AdamW asks for its steps, a GPU's does not."""
    with profile(activities=[ProfilerActivity.CPU]) as recorded:
        engine.backward(engine(batch)["loss"])
    syncs = {row.key: row.count for row in recorded.key_averages() if row.key in SYNCING}
    results.check("operations that wait for the device: none forward and backward", not syncs,
                  str(syncs or 0))  # fmt: skip


def host_syncs(results: Results, step) -> None:
    """What CUDA's own watch reports while steps run, with the lines that wait."""
    if DEVICE.type != "cuda":
        return
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        for _ in range(STEPS):
            step()
        torch.cuda.set_sync_debug_mode("default")
    told = [w for w in caught if "synchroniz" in str(w.message)]
    places = collections.Counter(f"{w.filename}:{w.lineno}" for w in told)
    results.check("host syncs: none in a step", not told, str(dict(places.most_common(5)) or 0))


def compilation(results: Results, compiler: str) -> None:
    """Graphs, breaks and recompilations of the stacks of layers over captions of other lengths."""
    import torch._dynamo as dynamo

    dynamo.reset()
    dynamo.utils.counters.clear()
    config = architecture("tiny" if REHEARSAL else "base")
    model = make_promu(config)
    for stack in (model.encoder.text.encoder, model.encoder.vision, model.encoder.fusion):
        stack.compile(backend=compiler)
    engine = single_engine(model, "bf16")
    batches = [make_batch(config, PAIRS, length=n).to(engine.device) for n in LENGTHS * 2]
    step = stepper(engine, batches)
    for _ in batches:
        step()
    counted = dynamo.utils.counters
    breaks = dict(counted["graph_break"])
    results.check("graph breaks: none", not breaks, str(sum(breaks.values())))
    for reason, count in breaks.items():
        results.add("graph breaks", count=count, reason=reason[:200])
    graphs = counted["stats"].get("unique_graphs", 0)
    results.add("compiled graphs", stacks=3, lengths=len(LENGTHS), graphs=graphs, backend=compiler)
    results.check("recompilations: at most one a stack, for the changing length", graphs <= 6,
                  f"{graphs} graphs of 3 stacks")  # fmt: skip


def main() -> None:
    results = Results("c. Where the time goes")
    config = architecture("tiny" if REHEARSAL else "base")
    engine = single_engine(make_promu(config), "bf16")
    batch = make_batch(config, PAIRS).to(engine.device)
    step = stepper(engine, [batch])
    for _ in range(3):
        step()
    host_syncs(results, step)
    waiting_operations(results, engine, batch)
    kernels(results, step)
    if results.has_time(15, "graph breaks"):
        # The tracing is what is asked about here; `speed.py` measures what is generated.
        compilation(results, "aot_eager")


if __name__ == "__main__":
    main()
