"""One loop for all methods: train a seed, choose its epoch on dev, read test once.

An unfinished seed goes on after its last whole epoch (`seed-N/resume/`). Order and dropout of an
epoch are functions of (seed, epoch), so a run that was cut off ends like one that was not.
"""

import itertools
import logging
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch

from finetune.config import TrainConfig
from finetune.inputs.batch import num_batches
from finetune.inputs.load import audit_inputs, load_split, read_views
from finetune.inputs.split import InputOptions, LoadedSplit
from finetune.protocols import PROTOCOLS, fraction_rows
from finetune.run import checkpoint, provenance
from finetune.run.build import build_engine, build_method, set_seed
from finetune.run.chain_calibration import chain_of, keep_calibration, recorded
from finetune.run.evaluate import predict, repeated
from finetune.run.losses import READ_LOSS_EVERY, EpochLosses
from finetune.run.progress import Progress
from finetune.tasks.base import Task
from pretrain import distributed
from pretrain.tracking import MetricsLog
from shards.files import InputError, discard
from shards.json_files import write_json
from shards.progress import Progress as StepProgress

LOG = logging.getLogger(__name__)


class SeedRun:
    """One seed of a run: set-up, loop, final scores. Everything it writes is below `directory`."""

    def __init__(self, config: TrainConfig, task: Task, seed: int, directory: Path) -> None:
        self.config, self.task, self.seed, self.directory = config, task, seed, directory
        self.protocol = PROTOCOLS[config.protocol]
        set_seed(seed)
        self.method, self.tokenizer = build_method(config, task)
        self.options = InputOptions(
            images=config.images,
            max_length=config.max_length,
            regions=config.regions,
            captions=config.captions,
            max_caption_length=config.max_caption_length,
            types=config.types,
            cache=config.cache_dir,
            max_missing=config.max_missing,
            views=read_views(config.view_paths),
        )
        # All of them before the first step: what is missing from test shows now.
        whole, self.dev_split = self.load("train"), self.load("val")
        self.test_split = self.load("test") if task.split_file("test") else None
        provenance.begin(directory, config, task, [whole, self.dev_split, self.test_split])
        self.audit = audit_inputs(task, whole, self.dev_split)
        chosen = fraction_rows(len(whole), config.fraction, seed, config.bootstrap)
        self.train_split = whole.subset(chosen)
        if not len(self.train_split):
            raise InputError(f"--fraction {config.fraction}: no training row is left")
        self.engine, self.epochs = build_engine(config, self.method, len(self.train_split))
        self.progress = Progress.resume(directory, self.engine)
        self.log: MetricsLog | None = None

    def load(self, split: str) -> LoadedSplit:
        """A split, encoded for this run's method."""
        return load_split(self.task, split, self.tokenizer, self.method, self.options)

    def run(self) -> dict[str, Any]:
        """Train to the end; returns, and writes, this seed's `result.json`."""
        progress = self.progress
        started = time.monotonic() - progress.seconds
        if distributed.is_main():
            self.log = MetricsLog(self.directory, resume_step=progress.step)
            LOG.info("%s", self.describe())
            self.warn_of_labels()
        self.bar: StepProgress[None] = StepProgress(
            total=self.epochs * self.steps_an_epoch,
            done=progress.step,
            unit="step",
            samples=self.config.optim.global_batch_size,
            silent=not distributed.is_main(),
            say=lambda line: LOG.info("%s, epoch %d: %s", self.name, progress.epoch, line),
        )
        with self.bar:
            while progress.epoch < self.epochs and not self.out_of_patience():
                progress.epoch += 1
                self.one_epoch()
                progress.seconds = time.monotonic() - started
                progress.save(self.directory, self.engine)
        if self.log:
            self.log.close()
        distributed.barrier()  # the chosen weights are on disk
        return self.finish()

    @property
    def name(self) -> str:
        """What lines about it begin with: of a study's runs each speaks for itself."""
        return f"{self.directory.parent.name}, seed {self.seed}"

    def describe(self) -> str:
        """What this seed will do, in a line."""
        total, size = self.epochs * self.steps_an_epoch, self.config.optim.global_batch_size
        return (
            f"{self.name}: {len(self.train_split):,} rows, {self.epochs} epochs, {total:,} "
            f"steps of {size} rows; {sum(p.numel() for p in self.method.parameters()):,} parameters"
            f", {self.engine.device}, {self.engine.precision}; writes {self.directory}"
        )

    def warn_of_labels(self) -> None:
        """Of splits whose labels leave nothing to learn, or nothing to choose an epoch by."""
        relation = self.task.info.kind == "relation"
        gold = [split.gold for split in (self.train_split, self.dev_split)]
        train, dev = (set(g if relation else itertools.chain.from_iterable(g)) for g in gold)
        if len(train) == 1:
            LOG.warning("%s: all training rows say %r: nothing to learn", self.name, *train)
        if dev <= {self.task.info.negative if relation else "O"}:
            what = "relations" if relation else "entities"
            LOG.warning("%s: dev has no %s: its F1 is 0 in every epoch", self.name, what)

    def one_epoch(self) -> None:
        """Train, score dev where it is due, record both."""
        progress, lr = self.progress, self.engine.lr
        values = {"epoch": progress.epoch, "train_loss": self.train_epoch(), "lr": lr}
        last = progress.epoch == self.epochs
        if last or progress.epoch % self.config.optim.evaluate_every == 0:
            values |= self.evaluate()
        if self.log:
            self.log.write(progress.step, values)
            dev = f", dev F1 {values['dev_f1']:.2f}" if "dev_f1" in values else ""
            place = f"{self.name}, epoch {progress.epoch} of {self.epochs}"
            LOG.info("%s: loss %.4f%s", place, values["train_loss"], dev)
            self.bar.spoke()

    def evaluate(self) -> dict[str, float]:
        """Scores on dev; keeps the weights where the protocol prefers them."""
        predictions = predict(self.method, self.task, self.dev_split, self.engine.precision)
        scores = predictions.score(self.task)
        self.keep_if_best(scores["f1"])
        return {f"dev_{name}": value for name, value in scores.items()}

    @property
    def steps_an_epoch(self) -> int:
        """Optimiser steps over the training rows."""
        optim = self.config.optim
        parts = optim.accumulation * distributed.world_size()
        return num_batches(len(self.train_split), optim.global_batch_size, parts)

    def train_epoch(self) -> float:
        """One pass over the training rows; returns the mean loss a row.

        Raises:
            InputError: the loss is no longer finite; names step and rows.
        """
        optim, engine, progress = self.config.optim, self.engine, self.progress
        engine.module.train()
        epoch_seed = np.random.SeedSequence([self.seed, progress.epoch])
        torch.manual_seed(int(epoch_seed.generate_state(1)[0]))
        parts = optim.accumulation * distributed.world_size()
        batches = self.train_split.dataset.batches(
            optim.global_batch_size,
            np.random.default_rng(epoch_seed),
            parts=parts,
            rank=distributed.rank(),
            world=distributed.world_size(),
        )
        losses = EpochLosses(f"seed {self.seed}, epoch {progress.epoch}")
        batches_an_epoch = self.steps_an_epoch * optim.accumulation
        for number, batch in enumerate(batches, start=1):
            loss = engine(batch.to(engine.device, non_blocking=True)).loss
            engine.backward(loss * batch.weight)
            engine.step()
            losses.add(loss, batch.rows)
            last = number == batches_an_epoch
            if number % READ_LOSS_EVERY == 0 or last:
                losses.read()
            if number % optim.accumulation:
                continue
            progress.step += 1
            self.bar.advance()
            # Within an epoch, whose own line comes at its end; all processes take part.
            if number % (READ_LOSS_EVERY * optim.accumulation) == 0 and not last:
                mean = losses.recent()
                if self.log:
                    self.log.write(progress.step, {"loss": mean, "lr": engine.lr})
        return losses.whole()

    def keep_if_best(self, f1: float) -> None:
        """Save the weights where the protocol prefers this epoch to the best one so far."""
        progress = self.progress
        # A run shorter than the first epoch that its protocol takes would end without weights.
        last_chance = progress.epoch == self.epochs and progress.best_f1 is None
        candidate = progress.epoch >= self.protocol.first_epoch or last_chance
        if candidate and self.protocol.improves(f1, progress.best_f1):
            # On every process: `out_of_patience` must end them all after the same epoch.
            progress.best_f1, progress.best_epoch = f1, progress.epoch
            if not distributed.is_main():
                return
            checkpoint.save_method(
                self.directory / "model",
                self.method,
                self.tokenizer,
                name=self.config.method,
                config=self.config.model,
                task=self.task.info,
                inputs=self.options.remembered(),
                card=checkpoint.model_card(
                    self.config,
                    self.seed,
                    epoch=progress.best_epoch,
                    steps=progress.step,
                    dev_f1=f1,
                ),
            )

    def train_counts(self) -> dict[str, int]:
        """Relations of the training rows, or tags of their words: how often each was seen."""
        gold = self.train_split.gold
        relation = self.task.info.kind == "relation"
        counts = Counter(gold if relation else itertools.chain.from_iterable(gold))
        return {label: counts[label] for label in self.task.info.labels}

    def out_of_patience(self) -> bool:
        """Whether dev has not improved for `optim.patience` epochs."""
        patience, progress = self.config.optim.patience, self.progress
        if not patience or progress.best_f1 is None:
            return False
        return progress.epoch - progress.best_epoch >= patience

    def finish(self) -> dict[str, Any]:
        """Reload the chosen epoch from disk; score dev and, this once, test."""
        method, tokenizer, _ = checkpoint.load_method(self.directory / "model")
        self.method, self.tokenizer = method.to(self.engine.device), tokenizer
        result: dict[str, Any] = {"seed": self.seed, "dev": None, "test": None, "also_in_train": {}}
        splits, images = [self.train_split], {"train": self.train_split.images}
        for name, loaded in (("dev", self.dev_split), ("test", self.test_split)):
            if loaded is None:
                continue
            chain = chain_of(method) if name == "dev" else None
            with recorded(chain) as asked:
                predictions = predict(method, self.task, loaded, self.engine.precision)
            if distributed.is_main():
                predictions.write(self.directory / f"pred_{name}.jsonl")
            keep_calibration(chain, asked, self.directory)
            result[name] = dict(predictions.score(self.task))
            result["also_in_train"][name] = repeated(
                self.task, self.train_split.rows, loaded.rows, predictions
            )
            images[name] = loaded.images
            splits.append(loaded)
        result |= {
            "best_epoch": self.progress.best_epoch,
            "epochs": self.progress.epoch,
            "steps": self.progress.step,
            "train_rows": len(np.unique(self.train_split.dataset.rows)),
            "train_draws": len(self.train_split),  # more of them under --bootstrap
            "train_counts": self.train_counts(),
            "parameters": sum(parameter.numel() for parameter in method.parameters()),
            "seconds": round(self.progress.seconds, 1),
            "device": self.engine.device.type,
            "processes": distributed.world_size(),
            "precision": self.engine.precision,
            "images": images,
            "reads": provenance.fields_read(self.train_split.dataset),
            "leaky": any(split.leaky for split in splits)
            or any(entry["verdict"] == "flagged" for entry in self.audit),
            "audit": self.audit,
            "side_inputs": list(dict.fromkeys(str(path) for s in splits for path in s.files)),
        }
        if distributed.is_main():
            write_json(self.directory / "result.json", result, checksum=True)
            discard(self.directory / "resume")  # not before: killed here, it would begin anew
        return result
