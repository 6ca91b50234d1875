"""Configuration of `finetune train`: defaults, help texts and validation in one place."""

import hashlib
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field, make_dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, ClassVar, Literal

from finetune import registry
from finetune.methods.profiles import in_present_names
from finetune.protocols import PROTOCOLS, seed_list
from finetune.tasks.base import Task
from finetune.tasks.splits import SPLITS
from shards.files import InputError
from shards.options import look_ahead, parse_config

Split = Literal["train", "val", "test"]
"""Splits as their files are called."""


@dataclass(frozen=True, kw_only=True)
class TaskOptions:
    """What every command on a task's files asks for."""

    data: Path
    """Folder of the task's files."""
    task: str = "mnre"
    """mnre, twitter2015, relations, …"""

    def open(self) -> Task:
        """The task."""
        return registry.load("tasks", self.task)(self.data)

    def splits(self, names: Sequence[str] = ()) -> list[str]:
        """`names`, or where none are named all that the folder has."""
        task = self.open()
        return list(names) or [split for split in SPLITS if task.split_file(split)]


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """Optimisation; `finetune list --settings METHOD` says what papers state."""

    optimizer: Literal["adamw", "bertadam"] = "adamw"
    """bertadam: without bias correction, so with larger first steps (released TMR and CAMIM)."""
    lr: float = 3e-5
    """Peak learning rate of what `--init` holds."""
    layer_decay: float = 1.0
    """Each encoder layer learns at so much of the rate of the layer above it."""
    head_lr: float = 1e-3
    """Peak learning rate of new layers."""
    crf_lr: float = 5e-2
    """Peak learning rate of the transition scores of a CRF."""
    weight_decay: float = 1e-3
    """AdamW decay of matrices; biases and norms have none."""
    epochs: int = 15
    """Passes over the training rows."""
    min_steps: int = 0
    """Raise the epochs until there are at least this many optimiser steps (few labels)."""
    global_batch_size: int = 16
    """Rows an optimiser step."""
    accumulation: int = 1
    """Forward passes a step: each process sees global_batch_size / (accumulation × processes) rows
    in each."""
    warmup: float = 0.06
    """Share of all steps in which the learning rate rises linearly; it then falls to zero."""
    clip: float = 1.0
    """Largest gradient norm; 0 = no clipping."""
    evaluate_every: int = 1
    """Epochs between evaluations on dev; the last epoch always has one."""
    patience: int = 0
    """Stop after this many epochs without a better dev F1; 0 = never."""

    def __post_init__(self) -> None:
        for name in ("epochs", "evaluate_every", "global_batch_size", "accumulation"):
            if getattr(self, name) < 1:
                raise ValueError(f"optim.{name} must be at least 1")
        for name in ("lr", "head_lr", "crf_lr", "weight_decay", "clip", "min_steps", "patience"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"optim.{name} must not be negative")
            if getattr(self, name) == math.inf:  # 1e400
                raise ValueError(f"optim.{name} must be finite")
        if not 0 < self.layer_decay <= 1:
            raise ValueError("optim.layer_decay must be in (0, 1]")
        if not 0 <= self.warmup < 1:
            raise ValueError("optim.warmup is a share: 0 <= warmup < 1")
        if self.global_batch_size < self.accumulation:
            raise ValueError("optim.accumulation must not exceed optim.global_batch_size")


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """How the steps are computed."""

    kind: Literal["auto", "deepspeed", "single"] = "auto"
    """auto: DeepSpeed where a launcher started us, else this process alone."""
    deepspeed: str = "launch/zero1.json"
    """DeepSpeed tuning (ZeRO stage 0 to 2, buckets), relative to the repository or absolute."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """auto: bf16 autocast on CUDA, fp32 on CPU."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Train a method on a task: select on dev, test once."""

    model: ClassVar[Any]  # a field of what `with_method` makes: the method's own settings
    task: str
    """Task name: mnre, twitter2015, twitter2017, or an entry point's."""
    method: str
    """Method name: mtb, promu, …, or an entry point's."""
    data: str
    """Folder of the task's files."""
    out: str
    """Run directory; a finished seed in it is not trained again. At a URL (fsspec) the whole run is
    uploaded, and compared, once it is finished."""
    init: str | None = None
    """Start from these weights: fusion model directory, hub id, or (text methods) a BERT; none."""
    architecture: str | None = None
    """Instead of --init: the same architecture and tokenizer with random weights (scratch)."""
    images: Literal["required", "blank", "none"] = "required"
    """required: a picture missing or undecodable is an error. none: vision off. blank: one grey
    square for every picture and region, to see what their mere presence tells."""
    regions: str | None = None
    """For methods that read regions: a folder of region caches (`finetune regions build`);
    community: the published crop files, which leak the label; none: all slots empty."""
    captions: str | None = None
    """A captioner whose text follows the post: NAME for caption/NAME_{split}.txt in --data (CAMIM's
    caption, minicpm, cogvlm, BLIP, instruct, llavanext), or a path with {split} in it. Methods that
    need captions read it as a text of its own; none gives them empty ones."""
    max_caption_length: int = 64
    """Longest caption in word pieces."""
    types: str | None = None
    """For methods that read entity types: a folder of types_{split}.jsonl (`finetune types`); none:
    every type is unknown."""
    max_missing: int = 0
    """With images required: so many may be absent per split; those rows are masked, and counted."""
    cache: str | None = None
    """Folder of decoded pictures; default $FUSION_MRE_CACHE, else `.cache` beside --out."""
    max_length: int = 80
    """Longest text in word pieces; longer ones keep what is nearest to the entities."""
    fraction: float = 1.0
    """Share of the training rows, drawn by the run's seed, nested over shares."""
    bootstrap: bool = False
    """Draw those rows with replacement, once: of all, about 63 % are ever seen (released TMR and
    CAMIM; HVPNeT's sample_ratio)."""
    view: str | None = None
    """View manifests, or folders of them ({split}.jsonl), separated by commas."""
    seeds: int | str = 1
    """Comma-separated seeds; each is a whole training, the result is their mean."""
    protocol: str = "standard"
    """How dev chooses the epoch: an entry of `finetune/protocols.py`."""
    sweep: str | None = None
    """KEY=VALUE,VALUE;KEY=…: a run for each combination in a folder of its own; dev chooses."""
    optim: OptimConfig = field(default_factory=OptimConfig)
    """Optimisation."""
    engine: EngineConfig = field(default_factory=EngineConfig)
    """Processes and precision."""

    def __post_init__(self) -> None:
        if (self.init in (None, "none")) == (self.architecture is None):
            raise ValueError(
                "give exactly one of --init MODEL_DIR (its weights) and "
                "--architecture MODEL_DIR (its sizes and tokenizer, random weights)"
            )
        if not 0 < self.fraction <= 1:
            raise ValueError("fraction must be in (0, 1]")
        if self.max_length < 8:
            raise ValueError("max_length must be at least 8: four markers and two entities")
        if self.protocol not in PROTOCOLS:
            raise ValueError(f"protocol {self.protocol!r}: there are {', '.join(PROTOCOLS)}")
        seed_list(self.seeds)

    @property
    def seed_list(self) -> list[int]:
        """The seeds as numbers."""
        return seed_list(self.seeds)

    @property
    def view_paths(self) -> list[Path]:
        """The view manifests and folders."""
        return split_paths(self.view)

    @property
    def cache_dir(self) -> Path:
        """Where decoded pictures lie."""
        return cache_directory(self.cache, self.out)


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """Scores and predictions of a finished run."""

    POSITIONAL: ClassVar = ("run",)

    run: str
    """Run directory, or one seed's directory in it."""
    data: str
    """Folder of the task's files."""
    split: Literal["train", "dev", "val", "test"] = "test"
    """Which rows."""
    view: str | None = None
    """View manifests, or folders of them ({split}.jsonl), separated by commas."""
    captions: str | None = None
    """Another captioner than the run's, where it reads captions: NAME, a path with {split}, or
    none."""
    scorer: Literal["ours", "hvpnet"] = "ours"
    """Entities. hvpnet: as its code counts (PROMU used it): words cut or without a piece are left
    out, tags that no word has stand. A report prints both."""
    max_missing: int = 0
    """So many pictures may be absent; those rows are masked, and counted."""
    cache: str | None = None
    """Folder of decoded pictures; default $FUSION_MRE_CACHE, else `.cache` beside the run."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """auto: bf16 on CUDA, fp32 on CPU."""


def split_paths(option: str | None) -> list[Path]:
    """Paths separated by commas."""
    paths = [Path(name.strip()) for name in (option or "").split(",") if name.strip()]
    if option and not paths:
        raise InputError(f"--view {option}: names no manifest")
    return paths


def local_out(out: str) -> str:
    """`out`, or for a URL the folder on this machine where the run grows and resumes until it is
    whole and can be uploaded."""
    if "://" not in out:
        return out
    runs = Path(os.environ.get("FUSION_MRE_CACHE") or Path.home() / ".cache" / "fusion-mre")
    return str(runs / "runs" / hashlib.sha256(out.encode()).hexdigest()[:20])


def cache_directory(option: str | None, run: str | Path) -> Path:
    """--cache, else $FUSION_MRE_CACHE, else `.cache` beside the run."""
    named = option or os.environ.get("FUSION_MRE_CACHE")
    return Path(named) if named else Path(run).resolve().parent / ".cache"


@cache
def with_method(config_class: type, method_config: type) -> type:
    """`config_class` with the method's own settings as section `model`."""
    model = ("model", method_config, field(default_factory=method_config))
    return make_dataclass(
        config_class.__name__,
        [model],
        bases=(config_class,),
        frozen=True,
        kw_only=True,
        namespace={
            "__doc__": config_class.__doc__,
            "__module__": config_class.__module__,
            "read_file": partial(present_file, method_config),
        },
    )


def present_file(method_config: type, path: str) -> str:
    """`path` of a `--config` file, or its content where an older commit wrote it and a setting of
    the method is called otherwise today (`Profiled.former`)."""
    if not (former := getattr(method_config, "former", {})):
        return path
    import yaml

    content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    if not isinstance(content, dict) or not set(content.get("model") or {}) & set(former):
        return path
    content["model"] = in_present_names(method_config, content["model"])
    return yaml.safe_dump(content, sort_keys=False)


def parse_train(argv: Sequence[str]) -> TrainConfig:
    """The run that `argv` asks for. `--method` is looked up first: its settings are options too."""
    method = look_ahead("method", argv, TrainConfig)
    config_class: type = TrainConfig
    if method is not None and method in registry.known("methods"):
        config_class = with_method(TrainConfig, registry.load_config(method))
    prog = "python -m finetune train"
    config: TrainConfig = parse_config(
        config_class,
        argv,
        prog=prog,
        example=f"{prog} --task mnre --method promu --data DIR --init MODEL_DIR --out RUN "
        "--seeds 1,2,3",
    )
    registry.place_of("methods", config.method)  # an unknown name, once all else is in order
    return config
