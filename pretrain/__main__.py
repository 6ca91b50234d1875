"""`python -m pretrain`, and what `launch/pretrain.sh` runs under any launcher."""

from collections.abc import Sequence

from shards.command import Module, dispatch, exit_on_input_error, without_local_rank
from shards.options import parse_config
from shards.processes import leave, run

COMMANDS = {
    "train": Module("pretrain.__main__:train", "pre-train; also without this word"),
    "label": Module("pretrain.label", "what a frozen prompter sees in every picture, once"),
    "convert": Module("pretrain.convert", "any known checkpoint to a model directory, and back"),
    "supervise": Module("pretrain.supervise", "a run that outlives its machines"),
    "doctor": Module("pretrain.cluster.doctor", "check the machines of a run before it starts"),
}


def train(argv: Sequence[str]) -> None:
    """Parse, train, and say where the model is."""
    from pretrain.config import PretrainConfig

    config = parse_config(
        PretrainConfig,
        argv,
        prog="python -m pretrain",
        example="deepspeed launch/pretrain.sh --config tiny --optim.lr 3e-4\n\n"
        f"Beside it, each with a --help of its own: python -m pretrain {' | '.join(COMMANDS)}",
        description="Pre-train the fusion encoder, or its prompter. Running it again resumes.",
    )
    from pretrain import distributed
    from pretrain.train import train

    model = train(config)
    if model is None:
        leave()
    if distributed.is_main():
        print(f"model directory: {model}", flush=True)


@exit_on_input_error
def main(argv: Sequence[str] | None = None) -> None:
    """Train where the first word is an option, else run the command that it names."""
    words = without_local_rank(argv)
    if not words or (words[0].startswith("-") and words[0] != "--version"):
        words = ["train", *words]
    example = "label shards/train --prompter runs/prompter/model"
    dispatch("python -m pretrain", COMMANDS, words, "The fusion encoder.", example)


if __name__ == "__main__":
    run(main)
