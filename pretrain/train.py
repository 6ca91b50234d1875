"""The pre-training loop, read top-down: prepare, then steps, then export."""

import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pretrain import distributed
from pretrain import engine as engines
from pretrain.batch import PretrainBatch
from pretrain.checkpoint import hub
from pretrain.checkpoint.card import pretraining_card
from pretrain.checkpoint.run import RunCheckpoints
from pretrain.checkpoint.zero import read_zero
from pretrain.cli import CommonError
from pretrain.config import PretrainConfig
from pretrain.data import open_reader, train_batches, val_batches
from pretrain.liveness import Liveness
from pretrain.numerics import FiniteWatch
from pretrain.optim import adamw, linear_schedule, parameter_groups
from pretrain.prepare import (
    build_model,
    check_teacher,
    encode_banks,
    pair_dataset,
    remember_config,
)
from pretrain.stopping import StopSignal, signals_blocked
from pretrain.tracking import Reporter
from pretrain.validate import validate
from shards.schema import TEACHER, InputError
from shards.stream import CanonicalOrder, RankBatches, ShardReader


def train(config: PretrainConfig) -> Path | None:
    """Run, or resume, one pre-training; the exported model directory `run_dir/model`.

    None where a signal ended it early: the same command goes on from there.
    """
    kind = engines.start(config.engine.kind)
    with Liveness():
        return _train(config, kind)


def _train(config: PretrainConfig, kind: str) -> Path | None:
    run_dir = Path(config.run_dir)
    try:
        _, micro, accumulation = config.batch.resolve(distributed.world_size())
    except ValueError as error:
        raise CommonError(str(error)) from error
    kept = config.checkpoint
    checkpoints = RunCheckpoints(run_dir, keep=kept.keep, best=kept.best)
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
    with signals_blocked():
        stream = train_batches(
            dataset, batches, workers=config.data.workers, pin=engine.device.type == "cuda"
        )
    run = Run(config, engine, tokenizer, checkpoints, feed=Feed(stream, engine.device))
    stopped = run.steps(done, samples)
    if stopped:
        return None
    distributed.on_main(lambda: export(engine, tokenizer, config, run_dir, order))
    return run_dir / "model"


class Feed:
    """The loader's batches on the device, and the time spent waiting for them."""

    def __init__(self, stream: Iterator[PretrainBatch], device: torch.device) -> None:
        self.stream, self.device, self.waited = stream, device, 0.0

    def __next__(self) -> PretrainBatch:
        since = time.perf_counter()
        try:
            batch = next(self.stream)
        except InputError as error:  # out of a worker it comes with the worker's traceback
            reason = str(error).strip().rpartition("\n")[2].rpartition("InputError: ")[2]
            raise InputError(f"rank {distributed.rank()}: {reason}") from None
        self.waited += time.perf_counter() - since
        return batch.to(self.device)


class Run:
    """The steps of one run, from wherever it is resumed."""

    def __init__(self, config: PretrainConfig, engine, tokenizer, checkpoints, feed: Feed) -> None:
        self.config, self.engine, self.tokenizer = config, engine, tokenizer
        self.checkpoints, self.feed = checkpoints, feed
        self.size, _, self.accumulation = config.batch.resolve(distributed.world_size())
        self.watch = FiniteWatch(config.optim.nonfinite)
        self.sums: dict[str, Tensor] = {}

    def steps(self, done: int, samples: int) -> str | None:
        """Steps done+1 … optim.steps; `samples` pairs were consumed before.

        Returns the reason where a signal ended them early, behind a checkpoint of the last step.
        """
        total, log, every = self.config.optim.steps, self.config.log, self.config.checkpoint.every
        self.report = None
        if distributed.is_main():
            run_dir = Path(self.config.run_dir)
            self.report = Reporter(run_dir, total=total, done=done, batch_size=self.size)
        reason = None
        with StopSignal() as stop:
            self.engine.module.train()
            for step in range(done + 1, total + 1):
                self.one_step(step)
                reason = stop.agreed() if step < total else None
                if step % log.every == 0 or step == total or reason:
                    self.log_losses(step)
                figures = {}
                if self._due(step, log.validate_every) and not reason:
                    figures = self.validate(step)
                if self._due(step, every) or reason or self.is_best(figures):
                    self.watch.check(self.engine.module)
                    consumed = samples + (step - done) * self.size
                    self.checkpoints.save(self.engine, step, consumed, figures)
                if reason:
                    break
                if figures or self._due(step, every):
                    self._restart_clock()
        if self.report:
            if reason:
                self.report.say(f"stopped after step {step} ({reason}); the same command goes on")
            self.report.close()
        return reason

    def one_step(self, step: int) -> None:
        """Forward, backward and update over all micro-batches of a step."""
        # Dropout is a function of (seed, step, rank): a resumed run repeats it without saved state.
        torch.manual_seed(_step_seed(self.config.seed, step))
        for _ in range(self.accumulation):
            batch = next(self.feed)
            losses = self.engine(batch)
            self.engine.backward(losses["loss"])
            self.engine.step()
            self.watch.saw_loss(step, losses["loss"], batch.keys)
            self._sum(losses)
        self.watch.saw_gradient(step, self.engine.grad_norm)
        if self.report:
            self.report.advance()

    def _sum(self, losses: dict[str, Tensor]) -> None:
        finite = losses["loss"].detach().isfinite()  # others are counted, not averaged in
        for name, value in {**losses, "count": torch.ones_like(losses["loss"])}.items():
            value = value.detach().where(finite, 0.0)
            self.sums[name] = self.sums[name] + value if name in self.sums else value

    def log_losses(self, step: int) -> None:
        """Mean losses since the last line, over ranks; what is not finite ends the run here."""
        self.watch.check(self.engine.module)
        values = distributed.mean_over_ranks(torch.stack(list(self.sums.values())).float())
        means = dict(zip(self.sums, (values / values[-1].clamp(min=1e-9)).tolist(), strict=True))
        del means["count"]
        extra = {"grad_norm": float(self.engine.grad_norm), "lr": self.engine.lr}
        if self.watch.skipped:
            extra["skipped_updates"] = self.watch.skipped
        if self.report:
            self.report.write(step, {**means, **extra, **self.report.speed(self.feed.waited)})
        self.sums = {}
        self._restart_clock()

    def _restart_clock(self) -> None:
        self.feed.waited = 0.0
        if self.report:
            self.report.restart_clock()

    def validate(self, step: int) -> dict[str, float]:
        """Metrics of the validation shards, recorded."""
        figures = run_validation(self.engine, self.config, self.tokenizer)
        if figures and self.report:
            self.report.write(step, figures)
        return figures

    def is_best(self, figures: dict[str, float]) -> bool:
        """Whether this validation's `checkpoint.best` beats those of all kept checkpoints."""
        best = self.config.checkpoint.best
        if not best or not figures:
            return False
        if best not in figures:
            raise CommonError(f"checkpoint.best {best}: no such figure; there are {list(figures)}")
        return self.checkpoints.is_better(figures[best])

    def _due(self, step: int, every: int) -> bool:
        return step % every == 0 or step == self.config.optim.steps


def run_validation(engine, config: PretrainConfig, tokenizer) -> dict[str, float]:
    """Metrics on a fixed sample of `data.val`, shared out over the ranks; {} without `data.val`."""
    if not config.data.val:
        return {}
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
