"""What a run needs before its first step: the method, the engine, the seeds."""

import random
from typing import Any

import numpy as np
import torch
from torch.optim.lr_scheduler import LambdaLR

from finetune import registry
from finetune.config import TrainConfig
from finetune.inputs.batch import num_batches
from finetune.methods.base import Method, Source
from finetune.run.evaluate import pick_precision
from finetune.tasks.base import Task
from pretrain import distributed
from pretrain.engine import DeepSpeedEngine, Engine, SingleEngine
from pretrain.optim import linear_schedule
from shards.files import InputError

OPTIMIZERS = {"adamw": "pretrain.optim:adamw", "bertadam": "finetune.methods.tmr.released:BertAdam"}
"""Names on the command line -> what makes one of parameter groups."""


def build_method(config: TrainConfig, task: Task) -> tuple[Method, Any]:
    """The method with the weights, or the architecture, that the run names."""
    method_class = registry.load("methods", config.method)
    if task.info.kind not in method_class.kinds:
        raise InputError(
            f"--method {config.method} does {', '.join(sorted(method_class.kinds))}; task "
            f"{task.info.name} is of kind {task.info.kind}"
        )
    source = Source(config.architecture or config.init or "", config.architecture is not None)
    method, tokenizer = method_class.build(config.model, task.info, source)
    method.before_training(config)
    return method, tokenizer


def build_engine(config: TrainConfig, method: Method, rows: int) -> tuple[Engine, int]:
    """The engine, and how many epochs reach both `optim.epochs` and `optim.min_steps`."""
    optim = config.optim
    parts = optim.accumulation * distributed.world_size()
    steps = num_batches(rows, optim.global_batch_size, parts)
    if not steps:
        raise InputError(
            f"{rows} training rows do not fill one row of each of the {parts} parts of a batch "
            "(optim.accumulation × processes)"
        )
    epochs = max(optim.epochs, -(-optim.min_steps // steps))
    total = steps * epochs

    def build(_: torch.nn.Module) -> tuple[torch.optim.Optimizer, LambdaLR]:
        optimizer = registry.imported(OPTIMIZERS[optim.optimizer])(method.parameter_groups(optim))
        return optimizer, linear_schedule(optimizer, round(optim.warmup * total), total)

    precision = pick_precision(config.engine.precision)
    if precision == "bf16" and distributed.device().type == "cpu":
        # The CPU's fused attention is slow backwards in bf16: a step of a small ViT (65 tokens)
        # takes 0.7 of fp32's time with it, 0.5 without.
        torch.backends.cuda.enable_flash_sdp(False)
    kind = config.engine.kind
    engine: Engine
    if kind == "deepspeed" or (kind == "auto" and torch.distributed.is_initialized()):
        engine = DeepSpeedEngine(
            method,
            build,
            precision=precision,
            accumulation=optim.accumulation,
            clip=optim.clip,
            micro_batch_size=max(1, optim.global_batch_size // parts),
            tuning=config.engine.deepspeed,
        )
    else:
        engine = SingleEngine(
            method, build, precision=precision, accumulation=optim.accumulation, clip=optim.clip
        )
    return engine, epochs


def set_seed(seed: int) -> None:
    """Seed every generator, and prefer deterministic kernels."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True
