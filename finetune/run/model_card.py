"""README.md of a fine-tuned model."""

from finetune.config import TrainConfig
from pretrain.checkpoint.card import card, hardware, table


def model_card(config: TrainConfig, seed: int, *, epoch: int, steps: int, dev_f1: float) -> str:
    """What the weights are, how they came about, and what chose them.

    Args:
        epoch: the chosen one. steps: optimiser steps up to it. dev_f1: its score, in percent.
    """
    random_start = f"random weights, architecture of `{config.architecture}`"
    drawn = ", drawn with replacement" if config.bootstrap else ""
    settings = {
        "data": f"`{config.data}`, {config.fraction:.0%} of the training rows{drawn}",
        "initialised from": f"`{config.init}`" if config.architecture is None else random_start,
        "images": config.images,
        "views": config.view or "none",
        "protocol": f"{config.protocol}; the epoch is chosen on dev, test is read once",
        "seed": seed,
        "epoch": f"{epoch}, after {steps} steps",
        "hardware": hardware(),
    }
    return card(
        f"{config.method} on {config.task}, fine-tuned with Fusion-MRE",
        {
            "Training": table(settings),
            "Validation": f"dev F1 {dev_f1:.2f} %; this figure chose the epoch.",
        },
        loading="`python -m finetune evaluate RUN --data DIR`, with this directory inside its run; "
        "or `python -m finetune train … --init THIS`, to go on from its encoder.",
    )
