"""`python -m pretrain`, and what `launch/pretrain.sh` runs under any launcher."""

import sys

from pretrain.cli import exit_on_input_error, parse_config


@exit_on_input_error
def main(argv: list[str] | None = None) -> None:
    """Parse, train, and say where the model is; `doctor` checks the machines instead."""
    argv = sys.argv[1:] if argv is None else argv
    if argv[:1] == ["doctor"]:
        from pretrain.cluster.doctor import main as doctor

        return doctor(argv[1:])
    from pretrain.config import PretrainConfig

    config = parse_config(
        PretrainConfig,
        argv,
        prog="python -m pretrain",
        description="Pre-train the fusion encoder, or its prompter. Running it again resumes.",
        example="deepspeed launch/pretrain.sh --config pretrain/configs/tiny.yaml --optim.lr 3e-4",
    )
    from pretrain import distributed
    from pretrain.cluster.stopping import leave
    from pretrain.train import train

    model = train(config)
    if model is None:
        leave()
    if distributed.is_main():
        print(f"model directory: {model}", flush=True)


if __name__ == "__main__":
    main()
