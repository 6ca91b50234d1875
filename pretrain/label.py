"""`python -m pretrain label`: what a frozen prompter sees in every picture, written once."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from shards import threads
from shards.command import exit_on_input_error, without_local_rank
from shards.options import parse_config, positive


@dataclass(frozen=True, kw_only=True)
class LabelConfig:
    """Store what a frozen prompter sees in every picture and its best object."""

    POSITIONAL: ClassVar = ("shards",)
    shards: str
    """Shard directory with an objects column."""
    prompter: str
    """Model directory or hub id."""
    batch_size: int = 64
    """Pictures per forward pass."""
    workers: int | None = None
    """Processes per rank that decode (default: the cores that this rank has beside its own)."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """auto: bf16 on a GPU, else fp32."""

    def __post_init__(self) -> None:
        positive(batch_size=self.batch_size)


def label(config: LabelConfig) -> None:
    """Label every shard that is not labelled yet; several ranks share them out."""
    from pretrain import engine
    from pretrain.prompter.column import write_teacher_column

    engine.start("auto")
    cores = threads.share(threads.processes_here())
    write_teacher_column(
        config.shards,
        config.prompter,
        batch_size=config.batch_size,
        precision=None if config.precision == "auto" else config.precision,
        workers=max(cores - 1, 0) if config.workers is None else config.workers,
    )


@exit_on_input_error
def main(argv: Sequence[str] | None = None) -> None:
    """python -m pretrain label"""
    prog = "python -m pretrain label"
    example = f"{prog} shards/train --prompter runs/prompter/model"
    label(parse_config(LabelConfig, without_local_rank(argv), prog=prog, example=example))


if __name__ == "__main__":
    main()
