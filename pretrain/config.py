"""A pre-training run as frozen dataclasses: the source of defaults, help texts and validation."""

import math
from dataclasses import dataclass, field, replace
from typing import Literal

from pretrain.data.config import MAX_LENGTH, DataConfig, check_share
from pretrain.model.config import LossConfig
from pretrain.model.stated import ModelConfig
from shards.location import names_tars

Precision = Literal["auto", "fp32", "bf16", "fp16"]


@dataclass(frozen=True, kw_only=True)
class PrompterConfig:
    """The frozen teacher behind COE and CIR; its picture features come from the teacher column."""

    source: str | None = None
    """Model directory or hub id of the prompter that wrote the teacher column."""
    entities: str | None = None
    """Entity vocabulary (`python -m shards nouns`)."""
    relations: str | None = None
    """Relation vocabulary; None: the 1,000 Wikidata properties that fusion-mre ships."""
    entity_prompts: tuple[Literal["1", "2"], ...] = ("1",)
    """Entity templates, Table 3; several are averaged."""
    relation_prompts: tuple[Literal["A", "B", "C"], ...] = ("A",)
    """Relation templates, Table 3; several are averaged."""
    temperature: float | None = None
    """Temperature of the soft labels; None: the prompter's own learned one."""
    mode: Literal["cached", "online_clean", "online_student_view"] = "cached"
    """cached: the teacher column. online_clean: the same views, computed while training.
    online_student_view: the prompter sees the student's augmented pixels (released code)."""
    erase_object: bool = False
    """With online_student_view: both labels are of the picture without its object (released code),
    not of the whole picture and of the object's crop."""
    object_labels: Literal["entities", "relations"] = "entities"
    """Prompts behind COE: relations is the released code's slip, both its prompters being of kind
    "image"."""


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """AdamW with linear warm-up from step 1 and linear decay to zero."""

    steps: int = 85_000
    """Optimizer steps of the whole run (paper)."""
    lr: float = 1e-4
    """Peak learning rate (paper)."""
    weight_decay: float = 1e-3
    """Decay (paper), not on biases, norms, embeddings of position and type, temperature."""
    betas: tuple[float, float] = (0.9, 0.98)
    """Adam betas (released code)."""
    eps: float = 1e-6
    """Adam epsilon (released code)."""
    warmup_ratio: float = 0.1
    """Share of the steps with rising learning rate."""
    clip: float = 2.0
    """Global gradient norm limit; 0: none."""
    layer_decay: float = 1.0
    """Factor on the learning rate for each layer between a parameter and the encoder's output."""
    tower_lr_scale: float = 1.0
    """Factor on the learning rate of both towers: 0.1 where they are published ones and fusion
    layers, projections and heads are new."""
    freeze: tuple[Literal["text", "vision"], ...] = ()
    """Towers that keep their first weights."""
    freeze_steps: int | None = None
    """So many first steps `freeze` holds for; then these towers warm up and learn with the others.
    None: the whole run."""
    nonfinite: Literal["stop", "skip"] = "stop"
    """A loss or gradient that is not finite: end the run and name the samples, or leave that update
    out, count it in `skipped_updates`, and go on."""

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"optim.steps must be at least 1, not {self.steps}")
        if not 0 < self.lr < math.inf:
            raise ValueError(f"optim.lr must be positive and finite, not {self.lr}")
        if self.tower_lr_scale <= 0:
            raise ValueError(
                f"optim.tower_lr_scale must be positive, not {self.tower_lr_scale}; towers that "
                "are to stay as they are: optim.freeze"
            )
        if self.freeze_steps is not None:
            if not self.freeze:
                raise ValueError("optim.freeze_steps: name the towers in optim.freeze")
            if not 0 < self.freeze_steps < self.steps:
                raise ValueError(
                    f"optim.freeze_steps {self.freeze_steps}: 1 to {self.steps - 1} of the "
                    f"{self.steps} steps; leave it out to freeze towers for the whole run"
                )
        if self.weight_decay < 0 or self.clip < 0:
            raise ValueError("optim.weight_decay and optim.clip must not be negative")
        if not all(0 <= beta < 1 for beta in self.betas) or self.eps <= 0:
            raise ValueError("optim: 0 <= betas < 1 and eps > 0 are needed")
        check_share("optim.warmup_ratio", self.warmup_ratio)
        check_share("optim.layer_decay", self.layer_decay)


@dataclass(frozen=True, kw_only=True)
class BatchConfig:
    """Global batch = micro-batch x accumulation x world: two given, the third computed."""

    global_size: int | None = 128
    """Pairs per optimizer step over all ranks (paper)."""
    micro_size: int | None = None
    """Pairs per forward pass of one rank."""
    accumulation: int | None = 1
    """Forward passes per optimizer step."""
    negatives: Literal["pass", "step"] = "pass"
    """Contrastive negatives of one forward pass, or of the whole step (GradCache): as one large
    batch, for one more forward pass of both towers."""

    def resolve(self, world: int) -> tuple[int, int, int]:
        """(global, micro, accumulation) for a number of ranks.

        Raises:
            ValueError: not exactly two given, or they do not divide.
        """
        size, micro, accumulation = self.global_size, self.micro_size, self.accumulation
        given = [number for number in (size, micro, accumulation) if number is not None]
        if len(given) != 2:
            raise ValueError(
                "batch: give two of global_size, micro_size, accumulation; the third is null"
            )
        if min(given) < 1:
            raise ValueError("batch: sizes must be at least 1")
        if size is None:
            micro, accumulation = given
            return micro * accumulation * world, micro, accumulation
        size, known = given
        if size % (known * world):
            raise ValueError(
                f"batch.global_size {size} is no multiple of {known * world} ({known} x {world})"
            )
        rest = size // (known * world)
        return (size, rest, known) if micro is None else (size, known, rest)


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """How the steps are computed."""

    kind: Literal["auto", "deepspeed", "single"] = "auto"
    """auto: DeepSpeed where a launcher started us, else this process alone."""
    deepspeed: str = "launch/zero1.json"
    """DeepSpeed tuning (stage, buckets, offload), relative to the repository or absolute."""
    precision: Precision = "auto"
    """auto: bf16 where the GPU or CPU computes in it, else fp16 on a GPU, fp32 on a CPU. bf16:
    autocast over float32 weights; features, softmax, losses and the sums of gradients over ranks
    stay float32. fp16: likewise, with a loss scale that finds itself; for GPUs without bf16."""
    activation_checkpointing: bool = False
    """Compute activations again in the backward pass: less memory, a third more computation."""
    compile: bool = False
    """torch.compile of the three stacks of layers; not under ZeRO-3."""


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """What is kept while running."""

    every: int = 1000
    """Steps between checkpoints; the last step always makes one."""
    keep: int = 2
    """Newest complete checkpoints kept."""
    best: str | None = None
    """Validation figure whose best checkpoint is kept too, such as val_recall@1; lower is better
    for names that end in loss or kl."""
    background: bool = False
    """Write while training goes on: a step waits only for a copy into host memory, which holds one
    more checkpoint meanwhile."""

    def __post_init__(self) -> None:
        if self.every < 1 or self.keep < 1:
            raise ValueError("checkpoint.every and checkpoint.keep must be at least 1")


@dataclass(frozen=True, kw_only=True)
class LogConfig:
    """What is told while running."""

    every: int = 50
    """Steps between log lines (the only device synchronisation)."""
    validate_every: int = 2000
    """Steps between validations; the last step always makes one."""
    validation_pairs: int = 1024
    """Validation pairs used."""

    def __post_init__(self) -> None:
        if min(self.every, self.validate_every, self.validation_pairs) < 1:
            raise ValueError("log.every, validate_every and validation_pairs must be at least 1")


@dataclass(frozen=True, kw_only=True)
class PretrainConfig:
    """One pre-training run."""

    run_dir: str
    """Everything the run writes; running again resumes it."""
    data: DataConfig
    """Shards and batches."""
    extend: bool = False
    """Train the run in `run_dir` on to a larger `optim.steps`. From its newest checkpoint on the
    learning rate is that of the longer schedule: higher than where the shorter one had ended."""
    seed: int = 42
    """Seed of weights, sample order, augmentation and dropout."""
    model: ModelConfig = field(default_factory=ModelConfig)
    """Architecture; null: as in `model.init`, else as in BERT-base and ViT-B/16."""
    loss: LossConfig = field(default_factory=LossConfig)
    """Objectives."""
    prompter: PrompterConfig = field(default_factory=PrompterConfig)
    """Teacher."""
    optim: OptimConfig = field(default_factory=OptimConfig)
    """Optimizer and schedule."""
    batch: BatchConfig = field(default_factory=BatchConfig)
    """Batch sizes."""
    engine: EngineConfig = field(default_factory=EngineConfig)
    """Engine and precision."""
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    """Checkpoints."""
    log: LogConfig = field(default_factory=LogConfig)
    """Logging and validation."""

    def __post_init__(self) -> None:
        for name in ("itm", "cit", "coe", "cir"):
            if not 0 <= getattr(self.loss, name) < math.inf:
                raise ValueError(f"loss.{name}: a weight is finite and not negative")
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"seed {self.seed}: must not be negative, nor beyond 63 bits")
        if not (self.loss.itm or self.loss.cit or self.loss.coe or self.loss.cir):
            raise ValueError("loss: all four weights are 0; nothing to train")
        if (self.loss.coe or self.loss.cir) and not self.prompter.source:
            raise ValueError(
                "prompter.source: COE and CIR need a prompter: train one (configs/prompter.yaml), "
                "run `python -m pretrain label`; or set loss.coe and loss.cir to 0"
            )
        # Of `model.init` the sizes are read once it is resolved: `settle` comes by here again.
        if not self.model.init:
            object.__setattr__(self, "model", self.model.settled())
        if not self.model.unsettled():
            self._settle_length(self.model.max_position_embeddings)
        if self.prompter.erase_object and self.prompter.mode != "online_student_view":
            raise ValueError("prompter.erase_object: only with prompter.mode online_student_view")
        if self.checkpoint.best and not self.data.val:
            raise ValueError("checkpoint.best: needs data.val, a shard directory to validate on")
        if self.data.matched_only and self.loss.itm and not self.loss.draws_negatives:
            raise ValueError(
                "data.matched_only: ITM needs mismatched pairs; set loss.itm to 0, or "
                "loss.itm_batch_negatives"
            )
        if self.data.keep_patches < 1 and self.data.unmasked_steps >= self.optim.steps:
            raise ValueError("data.keep_patches: data.unmasked_steps leaves no step that drops any")
        self._check_tars()
        needs_entities = self.loss.coe and self.prompter.object_labels == "entities"
        if needs_entities and not self.prompter.entities:
            raise ValueError("prompter.entities: COE needs a vocabulary (`python -m shards nouns`)")

    def _check_tars(self) -> None:
        cached = self.prompter.mode == "cached"
        missing = {
            "loss.itm": self.loss.itm and not self.loss.draws_negatives,  # mismatched pairs
            "loss.coe": self.loss.coe,  # objects
            "loss.cir": self.loss.cir and cached,  # a teacher column
        }
        for location in filter(None, (self.data.train, self.data.val)):
            if names_tars(location) and any(missing.values()):
                losses = " and ".join(name for name, needed in missing.items() if needed)
                raise ValueError(
                    f"{location}: tars as they are hold no mismatched pairs, objects or teacher "
                    f"column; set {losses} to 0, or make shards of them: `python -m shards build "
                    f"webdataset --tars '{location}' --out DIR`, then `detect` and `label`"
                )

    def _settle_length(self, positions: int) -> None:
        length = self.data.max_length
        if length is None:  # the collator pads to whole blocks of 8
            length = min(MAX_LENGTH, positions // 8 * 8)
            object.__setattr__(self, "data", replace(self.data, max_length=length))
        if length > positions:
            raise ValueError(
                f"data.max_length {length} is beyond model.max_position_embeddings {positions}"
            )
