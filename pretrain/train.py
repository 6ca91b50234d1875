"""Pre-training, read top-down: prepare, then steps (`steps.py`), then export."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR
from transformers import PreTrainedTokenizerBase

from pretrain import distributed
from pretrain import engine as engines
from pretrain.checkpoint import hub
from pretrain.checkpoint.card import pretraining_card
from pretrain.checkpoint.run import RunCheckpoints
from pretrain.checkpoint.zero import read_zero
from pretrain.cluster.liveness import Liveness
from pretrain.cluster.stopping import signals_blocked
from pretrain.config import PretrainConfig
from pretrain.data.config import DataConfig
from pretrain.data.pairs import open_reader, train_batches
from pretrain.model.promu import Promu
from pretrain.numerics import precision_for
from pretrain.optim import adamw, layerwise_groups, linear_schedule
from pretrain.prepare import build_model, check_teacher, pair_dataset, prepare_teacher, settle
from pretrain.run_directory import remember_config, remember_inputs
from pretrain.steps import Feed, Run
from pretrain.tuning import read_tuning, zero_stage
from pretrain.validate import Validator
from shards import threads
from shards.files import CommonError, InputError
from shards.schema import FORMAT_VERSION, TEACHER
from shards.stream import CanonicalOrder, RankBatches, ShardReader
from shards.tars import open_shards


def train(config: PretrainConfig) -> Path | None:
    """Run, or resume, one pre-training; the exported model directory `run_dir/model`.

    None where a signal ended it early: the same command goes on from there.
    """
    kind = engines.start(config.engine.kind)
    tuning = read_tuning(config.engine.deepspeed) if kind == "deepspeed" else {}
    if config.engine.compile and zero_stage(tuning) == 3:
        raise CommonError(
            f"engine.compile: not under ZeRO-3 ({config.engine.deepspeed}), which moves weights "
            "while layers run; take launch/zero2.json, or set engine.compile to false"
        )
    with Liveness(), distributed.held(Path(config.run_dir)):
        return _train(config, kind)


def _train(config: PretrainConfig, kind: str) -> Path | None:
    run_dir = Path(config.run_dir)
    try:
        _, micro, accumulation = config.batch.resolve(distributed.world_size())
    except ValueError as error:
        raise CommonError(str(error)) from error
    policy = config.checkpoint
    checkpoints = RunCheckpoints(
        run_dir, keep=policy.keep, best=policy.best, background=policy.background
    )
    config, init = settle(config)
    precision = distributed.on_main(
        lambda: precision_for(config.engine.precision, distributed.device())
    )
    config = replace(config, engine=replace(config.engine, precision=precision))
    # One process looks and tells the others: a shared disk may show them different states.
    resumes = distributed.on_main(checkpoints.complete_steps)
    extension = distributed.on_main(lambda: remember_config(config, run_dir, resumes))
    newest = checkpoints.complete_steps()[-1:]
    finished = newest == [config.optim.steps] and (run_dir / "model").is_dir()
    needs_teacher = bool(config.loss.coe or config.loss.cir)
    cached = needs_teacher and config.prompter.mode == "cached"
    readers = {}
    try:
        readers["data.train"] = reader = open_reader(config.data.train, teacher=cached)
        if config.data.val:
            readers["data.val"] = open_reader(config.data.val, teacher=False)
    except InputError:
        if not finished:  # then what is gone contradicts nothing
            raise
    if distributed.is_main() and config.data.val == config.data.train:
        print("data.val is data.train: its figures are of pairs that are trained on", flush=True)
    distributed.on_main(
        lambda: remember_inputs(config, readers, run_dir, resumes=bool(resumes), init=init)
    )
    if finished:
        if distributed.is_main():
            print(f"{run_dir}: finished before, at step {config.optim.steps}", flush=True)
        return run_dir / "model"

    if distributed.is_main():
        print(threads.account(), flush=True)
        if line := without_effect(config.data, reader):
            print(line, flush=True)
    torch.manual_seed(config.seed)
    if cached:  # before the model is built: a wrong column should cost seconds
        distributed.on_main(lambda: check_teacher(reader, str(config.prompter.source)))
    model, tokenizer = build_model(config, reader, run_dir, init, resumes=bool(resumes))
    parameters = sum(parameter.numel() for parameter in model.parameters())
    engine = build_engine(model, config, kind)
    # After the engine: prompts and prompter go where its model lies.
    teacher = prepare_teacher(model, config, engine.device) if needs_teacher else None
    done, samples = checkpoints.resume(engine)
    if extension:
        engine.follow_schedule()
        if distributed.is_main():
            print(f"{run_dir}: {extension} ({engine.lr:.3g} next)", flush=True)

    dataset = pair_dataset(reader, tokenizer, config, augment=True, teacher=teacher)
    # Matched pairs stand first in every shard.
    counts = [s.matched if config.data.matched_only else s.samples for s in reader.index.shards]
    order = CanonicalOrder(
        counts,
        seed=config.seed,
        streams=config.data.streams,
        together=config.data.steps_per_decode,
        pictures=open_shards(config.data.train).row_pictures,
    )
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
    validator = open_validator(config.data.val, config, tokenizer) if config.data.val else None
    run = Run(config, engine, checkpoints, Feed(stream, engine.device, teacher), validator)
    if run.steps(done, samples, begins=describe(config, engine, order, parameters)):
        return None
    distributed.on_main(lambda: export(engine, tokenizer, config, run_dir, order))
    return run_dir / "model"


def without_effect(data: DataConfig, reader: ShardReader) -> str:
    """A line about a setting that these shards give nothing to do, or ""."""
    index = reader.index
    if data.steps_per_decode == 1 or index.pictures < index.samples:
        return ""
    line = (
        f"data.steps_per_decode {data.steps_per_decode} has no effect: every pair of {data.train} "
        "has a picture of its own"
    )
    if index.format < FORMAT_VERSION:  # a picture is stored with each of its pairs
        line += " in this old format; `python -m shards convert` makes one of equal ones"
    return line


def build_engine(model: Promu, config: PretrainConfig, kind: str) -> engines.Engine:
    """The model with its optimizer and schedule, as this process or DeepSpeed runs them."""
    optim = config.optim
    _, micro, accumulation = config.batch.resolve(distributed.world_size())

    def build(module: nn.Module) -> tuple[torch.optim.Optimizer, LambdaLR]:
        groups = layerwise_groups(
            module.named_parameters(),
            lr=optim.lr,
            weight_decay=optim.weight_decay,
            layer_decay=optim.layer_decay,
            # Names of heads go through as they are: of no tower, with no layer above.
            above=lambda name: model.encoder.layers_above(name.removeprefix("encoder.")),
            tower=lambda name: model.encoder.tower_of(name.removeprefix("encoder.")),
            tower_scale=optim.tower_lr_scale,
            rests=optim.freeze,
        )
        optimizer = adamw(groups, betas=optim.betas, eps=optim.eps)
        warmup = round(optim.warmup_ratio * optim.steps)
        return optimizer, linear_schedule(optimizer, warmup, optim.steps, optim.freeze_steps or 0)

    common: dict[str, Any] = {"precision": config.engine.precision, "accumulation": accumulation}
    common["clip"] = optim.clip
    if kind == "single":
        return engines.SingleEngine(model, build, **common)
    tuning = config.engine.deepspeed
    return engines.DeepSpeedEngine(model, build, **common, micro_batch_size=micro, tuning=tuning)


def describe(
    config: PretrainConfig, engine: engines.Engine, order: CanonicalOrder, parameters: int
) -> str:
    """What this run will do, in a line."""
    size, micro, accumulation = config.batch.resolve(distributed.world_size())
    steps, pairs = config.optim.steps, len(order)
    return (
        f"{steps:,} steps of {size} pairs ({micro} x {accumulation} x {distributed.world_size()} "
        f"processes), {pairs:,} pairs in {config.data.train}: {steps * size / pairs:.1f} epochs; "
        f"{parameters:,} parameters, {engine.device.type}, {config.engine.precision}, "
        f"{engine.layout}; writes {config.run_dir}"
    )


def open_validator(
    shards: str, config: PretrainConfig, tokenizer: PreTrainedTokenizerBase
) -> Validator:
    """The fixed sample of `data.val`."""
    labelled = open_shards(shards).has_column(TEACHER)
    has_teacher = bool(config.loss.coe or config.loss.cir)
    reader = open_reader(shards, teacher=labelled and has_teacher)
    dataset = pair_dataset(reader, tokenizer, config, augment=False)
    return Validator(dataset, min(config.log.validation_pairs, reader.index.samples))


def export(
    engine: engines.Engine,
    tokenizer: PreTrainedTokenizerBase,
    config: PretrainConfig,
    run_dir: Path,
    order: CanonicalOrder,
) -> None:
    """`run_dir/model`: the release, after the last checkpoint is complete."""
    model = cast(Promu, engine.module)
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
