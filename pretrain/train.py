"""The pre-training loop, read top-down: prepare, then steps, then export."""

import time
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch
import yaml
from torch import Tensor
from tqdm import tqdm

from pretrain import distributed
from pretrain import engine as engines
from pretrain.checkpoint import hub
from pretrain.checkpoint.card import pretraining_card
from pretrain.checkpoint.run import RunCheckpoints
from pretrain.checkpoint.teacher import load_prompter
from pretrain.checkpoint.zero import read_zero
from pretrain.cli import dump_config
from pretrain.config import PretrainConfig
from pretrain.data import PairDataset, open_reader, train_batches, val_batches
from pretrain.model.fusion_encoder import FusionEncoder
from pretrain.model.prompter import ENTITY_TEMPLATES, RELATION_TEMPLATES, encode_prompts
from pretrain.model.promu import HeadsConfig, Promu
from pretrain.optim import adamw, linear_schedule, parameter_groups
from pretrain.tokenizer import learn_tokenizer
from pretrain.tracking import MetricsLog
from pretrain.validate import validate
from shards.nouns import read_vocabulary
from shards.relations import relation_labels
from shards.schema import InputError, atomic_path
from shards.stream import CanonicalOrder, RankBatches

# Settings that a resumed run may change: they do not alter what is computed.
_FREE_TO_CHANGE = ("log", "checkpoint", "engine")


def train(config: PretrainConfig) -> Path:
    """Run, or resume, one pre-training; the exported model directory `run_dir/model`."""
    kind = engines.start(config.engine.kind)
    run_dir = Path(config.run_dir)
    if distributed.is_main():
        remember_config(config, run_dir)
    try:
        size, micro, accumulation = config.batch.resolve(distributed.world_size())
    except ValueError as error:
        raise InputError(str(error)) from error

    checkpoints = RunCheckpoints(run_dir, keep=config.checkpoint.keep)
    if checkpoints.complete_steps()[-1:] == [config.optim.steps] and (run_dir / "model").is_dir():
        if distributed.is_main():
            print(f"{run_dir}: finished before, at step {config.optim.steps}", flush=True)
        return run_dir / "model"

    torch.manual_seed(config.seed)
    needs_teacher = bool(config.loss.coe or config.loss.cir)
    reader = open_reader(config.data.train, teacher=needs_teacher)
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
    done = checkpoints.resume(engine)

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
        start=done * size,
    )
    stream = train_batches(
        dataset, batches, workers=config.data.workers, pin=engine.device.type == "cuda"
    )
    report = Reporter(config, run_dir, done, size) if distributed.is_main() else None
    run_steps(engine, stream, config, done, accumulation, checkpoints, report, tokenizer)
    if report:
        export(engine, tokenizer, config, run_dir, order)
        report.close()
    distributed.barrier()
    return run_dir / "model"


def run_steps(engine, stream, config, done, accumulation, checkpoints, report, tokenizer) -> None:
    """Steps done+1 … optim.steps."""
    total, log = config.optim.steps, config.log
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
        if config.data.val and (
            step == total or (log.validate_every and step % log.validate_every == 0)
        ):
            values = run_validation(engine, config, tokenizer)
            if report:
                report.write(step, values)
        if step % config.checkpoint.every == 0 or step == total:
            checkpoints.save(engine, step)


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
    reader = open_reader(config.data.val, teacher=False)
    if config.loss.coe or config.loss.cir:
        reader = open_reader(config.data.val, teacher=reader.has_column("teacher"))
    dataset = pair_dataset(reader, tokenizer, config, augment=False)
    world, rank = distributed.world_size(), distributed.rank()
    pairs = min(config.log.validation_pairs, reader.index.samples) // world * world
    batches = val_batches(dataset, pairs, rank=rank, world=world)
    return validate(engine.module, batches, engine.device, config.engine.precision)


def pair_dataset(reader, tokenizer, config: PretrainConfig, *, augment: bool) -> PairDataset:
    """The data set over `reader` that fits this run's model."""
    return PairDataset(
        reader,
        tokenizer,
        config.data,
        image_size=config.model.image_size,
        patch_size=config.model.patch_size,
        seed=config.seed,
        augment=augment,
    )


# ---------------------------------------------------------------------- preparation


def remember_config(config: PretrainConfig, run_dir: Path) -> None:
    """Write `config.yaml`, or check that a resumed run is the same run."""
    path, text = run_dir / "config.yaml", dump_config(config)
    if path.exists():
        old, new = yaml.safe_load(path.read_text()), yaml.safe_load(text)
        changed = [
            f"{section}.{key} ({old[section].get(key)} -> {value})"
            for section, content in new.items()
            if isinstance(content, dict) and section not in _FREE_TO_CHANGE
            for key, value in content.items()
            if old.get(section, {}).get(key) != value and key != "workers"
        ]
        if changed:
            raise InputError(
                f"{run_dir} holds a run with another configuration: {'; '.join(changed)}; "
                "give another --run_dir, or the old settings to resume"
            )
    with atomic_path(path) as temporary:
        temporary.write_text(text)


def build_model(config: PretrainConfig, reader, run_dir: Path):
    """(model, tokenizer), identical on every rank; `run_dir/architecture` describes both."""
    tokenizer = run_tokenizer(config, reader, run_dir)
    heads = HeadsConfig(
        itm=bool(config.loss.itm),
        num_entities=len(read_vocabulary(config.prompter.entities)) if config.loss.coe else 0,
        num_relations=len(relation_labels(config.prompter.relations)) if config.loss.cir else 0,
    )
    architecture = replace(config.model.architecture(), vocab_size=len(tokenizer))
    if config.model.init:
        encoder, notes = hub.init_encoder(config.model.init, architecture)
        if distributed.is_main():
            print(f"model.init {config.model.init}: {notes}", flush=True)
    else:
        encoder = FusionEncoder(architecture)
    model = Promu(encoder, heads, config.loss)
    if distributed.is_main():
        hub.save_architecture(run_dir / "architecture", model.released_config(), tokenizer)
    return model, tokenizer


def run_tokenizer(config: PretrainConfig, reader, run_dir: Path):
    """The run's tokenizer: of `model.init`, `model.tokenizer`, or learned from the captions."""
    source = config.model.tokenizer or config.model.init
    if source:
        return hub.load_tokenizer(hub.resolve(source))
    folder = run_dir / "architecture"
    if distributed.is_main() and not (folder / "tokenizer.json").exists():
        shards = range(len(reader.index.shards))
        captions = {s.meta.caption for number in shards for s in reader.samples(number)}
        tokenizer = learn_tokenizer(sorted(captions), config.model.vocab_size)
        tokenizer.save_pretrained(folder)
    distributed.barrier()
    return hub.load_tokenizer(folder)


def encode_banks(model: Promu, config: PretrainConfig, device: torch.device) -> None:
    """Give the model the encoded prompts of its frozen prompter (text tower only; then dropped)."""
    settings = config.prompter
    teacher = load_prompter(settings.source)
    encoder, tokenizer = teacher.encoder.to(device), teacher.tokenizer
    temperature = settings.temperature or teacher.temperature
    if config.loss.coe:
        templates = [ENTITY_TEMPLATES[key] for key in settings.entity_prompts]
        vocabulary = read_vocabulary(settings.entities)
        model.entity_bank = encode_prompts(encoder, tokenizer, temperature, vocabulary, templates)
    if config.loss.cir:
        templates = [RELATION_TEMPLATES[key] for key in settings.relation_prompts]
        vocabulary = relation_labels(settings.relations)
        model.relation_bank = encode_prompts(encoder, tokenizer, temperature, vocabulary, templates)


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
    """Progress bar, `metrics.jsonl` and TensorBoard of the main process."""

    def __init__(self, config: PretrainConfig, run_dir: Path, done: int, batch_size: int) -> None:
        self.log = MetricsLog(run_dir, resume_step=done)
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
        self.bar.write(f"step {step}: " + " ".join(f"{k} {v}" for k, v in shown.items()))

    def close(self) -> None:
        """Flush everything."""
        self.bar.close()
        self.log.close()
