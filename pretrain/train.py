"""The pre-training loop, read top-down: prepare, then steps, then export."""

import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from pretrain import distributed
from pretrain import engine as engines
from pretrain.checkpoint import hub
from pretrain.checkpoint.card import pretraining_card
from pretrain.checkpoint.run import RunCheckpoints
from pretrain.checkpoint.zero import read_zero
from pretrain.config import PretrainConfig
from pretrain.data import open_reader, train_batches, val_batches
from pretrain.optim import adamw, linear_schedule, parameter_groups
from pretrain.prepare import (
    build_model,
    check_teacher,
    encode_banks,
    pair_dataset,
    remember_config,
)
from pretrain.tracking import MetricsLog
from pretrain.validate import validate
from shards.schema import TEACHER, InputError
from shards.stream import CanonicalOrder, RankBatches, ShardReader


def train(config: PretrainConfig) -> Path:
    """Run, or resume, one pre-training; the exported model directory `run_dir/model`."""
    kind = engines.start(config.engine.kind)
    run_dir = Path(config.run_dir)
    try:
        size, micro, accumulation = config.batch.resolve(distributed.world_size())
    except ValueError as error:
        raise InputError(str(error)) from error
    checkpoints = RunCheckpoints(run_dir, keep=config.checkpoint.keep)
    distributed.on_main(lambda: remember_config(config, run_dir, checkpoints.complete_steps()))
    if checkpoints.complete_steps()[-1:] == [config.optim.steps] and (run_dir / "model").is_dir():
        if distributed.is_main():
            print(f"{run_dir}: finished before, at step {config.optim.steps}", flush=True)
        return run_dir / "model"

    torch.manual_seed(config.seed)
    needs_teacher = bool(config.loss.coe or config.loss.cir)
    reader = open_reader(config.data.train, teacher=needs_teacher)
    if needs_teacher:
        distributed.on_main(lambda: check_teacher(reader, config.prompter.source))
    model, tokenizer = build_model(config, reader, run_dir)
    precision = config.engine.precision

    def build(module):
        groups = parameter_groups(
            module.named_parameters(), lr=config.optim.lr, weight_decay=config.optim.weight_decay
        )
        optimizer = adamw(groups, betas=config.optim.betas, eps=config.optim.eps)
        warmup = round(config.optim.warmup_ratio * config.optim.steps)
        return optimizer, linear_schedule(optimizer, warmup, config.optim.steps)

    common = {"precision": precision, "accumulation": accumulation, "clip": config.optim.clip}
    engine = (
        engines.SingleEngine(model, build, **common)
        if kind == "single"
        else engines.DeepSpeedEngine(
            model, build, **common, micro_batch_size=micro, tuning=config.engine.deepspeed
        )
    )
    if needs_teacher:
        encode_banks(model, config, engine.device)
    done, samples = checkpoints.resume(engine)

    dataset = pair_dataset(reader, tokenizer, config, augment=True)
    # Matched pairs stand first in every shard.
    counts = [s.matched if config.data.matched_only else s.samples for s in reader.index.shards]
    order = CanonicalOrder(counts, seed=config.seed, streams=config.data.streams)
    batches = RankBatches(
        order,
        rank=distributed.rank(),
        world=distributed.world_size(),
        micro_batch_size=micro,
        accumulation=accumulation,
        start=samples,
    )
    stream = train_batches(
        dataset, batches, workers=config.data.workers, pin=engine.device.type == "cuda"
    )
    report = Reporter(config, run_dir, done, size) if distributed.is_main() else None
    run_steps(engine, stream, config, done, samples, checkpoints, report, tokenizer)
    distributed.on_main(lambda: export(engine, tokenizer, config, run_dir, order))
    if report:
        report.close()
    return run_dir / "model"


def run_steps(engine, stream, config, done, samples, checkpoints, report, tokenizer) -> None:
    """Steps done+1 … optim.steps; `samples` pairs were consumed before."""
    total, log = config.optim.steps, config.log
    size, _, accumulation = config.batch.resolve(distributed.world_size())
    sums: dict[str, Tensor] = {}
    logged = done
    engine.module.train()
    for step in range(done + 1, total + 1):
        # Dropout is a function of (seed, step, rank): a resumed run repeats it without saved state.
        torch.manual_seed(_step_seed(config.seed, step))
        for _ in range(accumulation):
            waiting = time.perf_counter()
            batch = next(stream).to(engine.device)
            waited = time.perf_counter() - waiting
            losses = engine(batch)
            engine.backward(losses["loss"])
            engine.step()
            for name, value in losses.items():
                sums[name] = sums.get(name, 0) + value.detach() / accumulation
            if report:
                report.waited += waited
        if report:
            report.advance()
        if step % log.every == 0 or step == total:
            log_losses(sums, step, step - logged, engine.lr, report)
            sums, logged = {}, step
        if config.data.val and (step == total or step % log.validate_every == 0):
            values = run_validation(engine, config, tokenizer)
            if report:
                report.write(step, values)
        if step % config.checkpoint.every == 0 or step == total:
            checkpoints.save(engine, step, samples + (step - done) * size)


def log_losses(sums: dict[str, Tensor], step: int, steps: int, lr: float, report) -> None:
    """Mean losses since the last line, over ranks; a non-finite one ends the run here."""
    means = distributed.mean_over_ranks(torch.stack(list(sums.values())).float() / steps).tolist()
    values = dict(zip(sums, means, strict=True))
    if not np.isfinite(values["loss"]):
        raise InputError(
            f"loss became {values['loss']} within steps {step - steps + 1}…{step}; the last "
            "checkpoint is intact: lower optim.lr, or use engine.precision fp32, and run again"
        )
    if report:
        report.write(step, {**values, "lr": lr})


def run_validation(engine, config: PretrainConfig, tokenizer) -> dict[str, float]:
    """Metrics on a fixed sample of `data.val`, shared out over the ranks."""
    labelled = ShardReader(config.data.val).has_column(TEACHER)
    reader = open_reader(config.data.val, teacher=labelled and bool(engine.module.entity_bank))
    dataset = pair_dataset(reader, tokenizer, config, augment=False)
    world, rank = distributed.world_size(), distributed.rank()
    pairs = min(config.log.validation_pairs, reader.index.samples) // world * world
    batches = val_batches(dataset, pairs, rank=rank, world=world)
    return validate(engine.module, batches, engine.device, config.engine.precision)


def export(engine, tokenizer, config: PretrainConfig, run_dir: Path, order) -> None:
    """`run_dir/model`: the release, after the last checkpoint is complete."""
    model = engine.module
    # Under ZeRO-3 a rank's module holds pieces; the checkpoint of all ranks holds the whole.
    partitioned = engine.layout.startswith("zero3")
    last = run_dir / "checkpoints" / f"step-{config.optim.steps}"
    state = hub.released_names(read_zero(last)) if partitioned else model.released_state()
    card = pretraining_card(asdict(config), run_dir, samples_per_epoch=len(order))
    hub.save_model_directory(
        run_dir / "model",
        config=model.released_config(),
        state=state,
        tokenizer=tokenizer,
        card=card,
    )


def _step_seed(seed: int, step: int) -> int:
    entropy = np.random.SeedSequence([seed, step, distributed.rank()])
    return int(entropy.generate_state(1, np.uint64)[0] >> 1)


class Reporter:
    """Progress bar, `log.txt`, `metrics.jsonl` and TensorBoard of the main process."""

    def __init__(self, config: PretrainConfig, run_dir: Path, done: int, batch_size: int) -> None:
        self.log = MetricsLog(run_dir, resume_step=done)
        self.text = (run_dir / "log.txt").open("a", encoding="utf-8")
        self.bar = tqdm(total=config.optim.steps, initial=done, unit="step", disable=None)
        self.batch_size, self.waited = batch_size, 0.0
        self.since, self.steps = time.perf_counter(), 0
        if done:
            print(f"resuming after step {done} from {run_dir / 'checkpoints'}", flush=True)

    def advance(self) -> None:
        """One optimizer step is done."""
        self.steps += 1
        self.bar.update()

    def write(self, step: int, values: dict[str, float]) -> None:
        """Record; with losses also the speed since the last record."""
        if "loss" in values:
            seconds = max(time.perf_counter() - self.since, 1e-9)
            values |= {
                "samples_per_second": self.steps * self.batch_size / seconds,
                "data_wait_percent": 100 * self.waited / seconds,
            }
        self.since, self.steps, self.waited = time.perf_counter(), 0, 0.0
        self.log.write(step, values)
        shown = {k: f"{v:.4g}" for k, v in values.items() if k not in ("lr",)}
        line = f"step {step}: " + " ".join(f"{k} {v}" for k, v in shown.items())
        self.bar.write(line)
        self.text.write(line + "\n")
        self.text.flush()

    def close(self) -> None:
        """Flush everything."""
        self.bar.close()
        self.text.close()
        self.log.close()
