"""The steps of a pre-training run: batches in; updates, log lines, validations, checkpoints out."""

import math
import multiprocessing
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import Tensor

from pretrain import distributed
from pretrain.checkpoint.run import RunCheckpoints
from pretrain.cluster.stopping import StopSignal
from pretrain.config import PretrainConfig
from pretrain.data.batch import PretrainBatch
from pretrain.engine import Engine, autocast
from pretrain.flops import forward_flops
from pretrain.gradcache import contrast_step
from pretrain.model.promu import Promu
from pretrain.numerics import FiniteWatch
from pretrain.panel import draw_panel
from pretrain.prepare import object_classes
from pretrain.prompter.online import OnlineTeacher
from pretrain.tracking import Reporter
from pretrain.validate import Validator
from shards.files import CommonError, InputError
from shards.relations import relation_labels

PANEL_PAIRS = 8


class Feed:
    """The loader's batches on the device, and the time spent waiting for them."""

    def __init__(
        self,
        stream: Iterator[PretrainBatch],
        device: torch.device,
        teacher: OnlineTeacher | None = None,
    ) -> None:
        self.stream, self.device, self.teacher, self.waited = stream, device, teacher, 0.0
        self.masked = True
        """Batches keep the loader's choice of patches; else all are seen."""

    def __next__(self) -> PretrainBatch:
        since = time.perf_counter()
        try:
            batch = next(self.stream)
        except InputError as error:  # out of a worker it comes with the worker's traceback
            reason = str(error).strip().rpartition("\n")[2].rpartition("InputError: ")[2]
            raise InputError(f"rank {distributed.rank()}: {reason}") from None
        self.waited += time.perf_counter() - since
        batch = batch if self.masked else replace(batch, kept_patches=None)
        batch = batch.to(self.device)
        return self.teacher(batch) if self.teacher else batch


class Run:
    """The steps of one run, from wherever it is resumed."""

    def __init__(
        self,
        config: PretrainConfig,
        engine: Engine,
        checkpoints: RunCheckpoints,
        feed: Feed,
        validator: Validator | None,
    ) -> None:
        self.config, self.engine, self.checkpoints = config, engine, checkpoints
        self.feed, self.validator = feed, validator
        self.size, _, self.accumulation = config.batch.resolve(distributed.world_size())
        self.watch = FiniteWatch(config.optim.nonfinite, config.engine.precision)
        self.model = cast(Promu, engine.module)
        self.report: Reporter | None = None
        self.sums: dict[str, Tensor] = {}
        self.flops = 0.0

    def steps(self, done: int, samples: int, begins: str) -> str | None:
        """Steps done+1 … optim.steps; `samples` pairs were consumed before, `begins` is the line
        that says what is to come.

        Returns the reason where a signal ended them early, behind a checkpoint of the last step.
        """
        total = self.config.optim.steps
        if distributed.is_main():
            run_dir = Path(self.config.run_dir)
            self.report = Reporter(run_dir, total=total, done=done, batch_size=self.size)
            self.report.say(begins)
        reason, step = None, done
        with StopSignal() as stop:
            self.model.train()
            with workers_watched(), self.checkpoints.finished():
                while step < total and not reason:
                    step += 1
                    self.one_step(step)
                    reason = stop.agreed() if step < total else None
                    self._after(step, reason, samples + (step - done) * self.size)
        if self.report:
            if reason:
                self.report.say(f"stopped after step {step} ({reason}); the same command goes on")
            self.report.close()
        return reason

    def _after(self, step: int, reason: str | None, consumed: int) -> None:
        """What is due after a step: log line, validation, checkpoint."""
        log, last = self.config.log, step == self.config.optim.steps
        self.checkpoints.check()
        if step % log.every == 0 or last or reason:
            self.log_losses(step)
        figures = {}
        if self._due(step, log.validate_every) and not reason:
            figures = self.validate(step)
        due = self._due(step, self.config.checkpoint.every)
        if due or reason or self.is_best(figures):
            self.watch.check(self.model)
            self.checkpoints.save(self.engine, step, consumed, figures)
        if figures or due:
            self._restart_clock()

    def one_step(self, step: int) -> None:
        """Forward, backward and update over all micro-batches of a step."""
        # Dropout is a function of (seed, step, rank): a resumed run repeats it without saved state.
        seeds = _seeds(self.config.seed, step, self.accumulation)
        self.feed.masked = step <= self.config.optim.steps - self.config.data.unmasked_steps
        optim = self.config.optim
        rest = optim.freeze_steps is None or step <= optim.freeze_steps
        self.model.encoder.resting = optim.freeze if rest else ()
        for batch, seed, contrast in self._micro_batches(seeds):
            torch.manual_seed(seed)
            losses = self.engine(batch, contrast)
            self.engine.backward(losses["loss"])
            self.engine.step()
            self.watch.saw_loss(step, losses["loss"], batch.keys)
            self._sum(losses)
            self.flops += 3 * len(batch) * self._forward_flops(batch)
        self.watch.saw_gradient(step, self.engine.grad_norm)
        if self.report:
            self.report.advance()

    def _micro_batches(self, seeds: list[int]) -> Iterator[tuple]:
        """(batch, seed, what it must know of its step), one for each seed."""
        if self.config.batch.negatives == "pass" or not self.config.loss.cit:
            yield from ((next(self.feed), seed, None) for seed in seeds)
            return
        batches = [next(self.feed) for _ in seeds]
        precision = autocast(self.engine.device, self.config.engine.precision)
        with self.engine.whole(self.model.temperature):
            contrasts = contrast_step(self.model, batches, seeds, precision)
        yield from zip(batches, seeds, contrasts, strict=True)

    def _forward_flops(self, batch: PretrainBatch) -> float:
        length, patches = batch.input_ids.shape[1], batch.seen_weights.shape[1]
        return forward_flops(self.model.encoder.config, self.model.heads_config, length, patches)

    def _sum(self, losses: dict[str, Tensor]) -> None:
        finite = losses["loss"].detach().isfinite()  # others are counted, not averaged in
        for name, value in {**losses, "count": torch.ones_like(losses["loss"])}.items():
            value = value.detach().where(finite, 0.0)
            self.sums[name] = self.sums[name] + value if name in self.sums else value

    def log_losses(self, step: int) -> None:
        """Mean losses since the last line, over ranks; what is not finite ends the run here."""
        self.watch.check(self.model)
        values = distributed.mean_over_ranks(torch.stack(list(self.sums.values())).float())
        means = dict(zip(self.sums, (values / values[-1].clamp(min=1e-9)).tolist(), strict=True))
        del means["count"]
        extra = {"grad_norm": float(self.engine.grad_norm), "lr": self.engine.lr}
        if not math.isfinite(extra["grad_norm"]):  # an update left out; JSON has no word for it
            del extra["grad_norm"]
        if self.watch.skipped:
            extra["skipped_updates"] = self.watch.skipped
        if self.report:
            speed = self.report.speed(self.feed.waited, self.flops, self.engine.device)
            self.report.write(step, {**means, **extra, **speed})
        self.sums = {}
        self._restart_clock()

    def _restart_clock(self) -> None:
        self.feed.waited = self.flops = 0.0
        if self.report:
            self.report.restart_clock()

    def validate(self, step: int) -> dict[str, float]:
        """Metrics of the validation shards, recorded with a panel of pictures; {} without them."""
        if self.validator is None:
            return {}
        model, precision = self.model, self.config.engine.precision
        columns = self.validator.columns(model, self.engine.device, precision)
        with self.engine.whole(model.temperature):
            figures = self.validator.metrics(columns, model.clamped_temperature().detach())
        if self.report:
            self.report.write(step, figures)
            self.report.picture(step, panel(self.validator, columns, self.config))
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


@contextmanager
def workers_watched() -> Iterator[None]:
    """A loader worker that dies becomes an `InputError` of this rank, and no error leaves workers
    behind: they do not hear the signal by which the loader would end them, and the interpreter
    would wait for them at its exit without end."""
    try:
        yield
    except (RuntimeError, OSError, EOFError) as error:
        if not (reason := dead_worker(error)):
            raise
        raise InputError(
            f"rank {distributed.rank()}: {reason.rstrip('. ')}: out of memory? data.workers sets "
            "how many there are; the same command goes on from the last complete checkpoint"
        ) from None
    finally:
        if sys.exc_info()[0] is not None:
            # PyTorch raises for every worker that dies, also for those that die here, by our hand.
            # A mask would not do: other threads hear the signal, and its handler runs in this one.
            handler = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            for worker in multiprocessing.active_children():
                worker.kill()
                worker.join()
            signal.signal(signal.SIGCHLD, handler)


def dead_worker(error: Exception) -> str:
    """What PyTorch says of a loader worker that has died, if `error` comes of that; else "".

    A batch that a worker has made is fetched through it: of one that is gone the connection breaks,
    and that may come first. The process itself ends a little later than its connections.
    """
    broken = isinstance(error, ConnectionError | EOFError | FileNotFoundError)
    try:
        for _ in range(100 if broken and not getattr(error, "filename", None) else 0):
            torch._C._error_if_any_worker_fails()
            time.sleep(0.02)
    except RuntimeError as told:
        error = told
    reason = str(error).strip().partition("\n")[0]
    return reason if "DataLoader worker" in reason else ""


def panel(validator: Validator, columns: dict[str, Tensor], config: PretrainConfig) -> np.ndarray:
    """The first pairs of the sample with what prompter and student say about them."""
    names: dict[str, Sequence[str]] = {}
    if "object_q" in columns:
        names["object"] = object_classes(config)
    if "relation_q" in columns:
        names["relation"] = relation_labels(config.prompter.relations)
    pairs = min(PANEL_PAIRS, len(validator.addresses))
    return draw_panel(validator.batch(np.arange(pairs)), columns, names)


def _seeds(seed: int, step: int, count: int) -> list[int]:
    """One for each micro-batch of a step on this rank."""
    entropy = np.random.SeedSequence([seed, step, distributed.rank()])
    return [int(number >> 1) for number in entropy.generate_state(count, np.uint64)]
