"""Checks of `pretrain doctor` that compare machines, and those that need the run's settings.

Each returns what it found out in a line, or raises InputError with what to do.
"""

from typing import Any

from pretrain.cluster.nodes import Host
from pretrain.config import PretrainConfig
from shards.files import InputError
from shards.schema import TEACHER

Facts = dict[str, dict[str, Any]]
"""Machine -> what `pretrain.cluster.probe` found there."""


def same(facts: Facts, fact: str, advice: str) -> str:
    """A fact is the same everywhere."""
    (first, value), *others = ((name, answer[fact]) for name, answer in facts.items())
    for name, other in others:
        if other != value:
            raise InputError(f"{first} has {_difference(value, other)} {name}: {advice}")
    return _words(value)


def batch(hosts: list[Host], config: PretrainConfig) -> str:
    """The number of ranks forms the global batch."""
    world = sum(host.slots for host in hosts)
    try:
        size, micro, accumulation = config.batch.resolve(world)
    except ValueError as error:
        raise InputError(f"{error}: change batch.* or the slots") from error
    return f"{size} = {micro} x {accumulation} accumulated x {world} ranks"


def data(facts: Facts, config: PretrainConfig) -> str:
    """Shards, and the columns that the losses need, are visible, complete, the same."""
    for name, answer in facts.items():
        for index in answer["data"].values():
            if "error" in index:
                raise InputError(f"{name}: {index['error']}")
    same(facts, "data", "mount the same shards at the same path on all")
    path, loss = config.data.train, config.loss
    shards = next(iter(facts.values()))["data"]
    if (loss.coe or loss.cir) and TEACHER not in shards[path]["columns"]:
        raise InputError(f"{path}: no complete teacher column: `python -m pretrain label {path}`")
    return "; ".join(f"{path}: {index['samples']} pairs" for path, index in shards.items())


def run_dir(facts: Facts, config: PretrainConfig) -> str:
    """One run directory for all: what one machine writes, the others see."""
    blind = [name for name, answer in facts.items() if not answer["token"]]
    if blind:
        raise InputError(
            f"{', '.join(blind)}: {config.run_dir} is not the directory that this machine "
            "sees, or not writable: put run_dir on a file system that all share"
        )
    return f"{config.run_dir}: seen and writable by all"


def disk(facts: Facts, config: PretrainConfig) -> str:
    """Room for the checkpoints that are kept, the best one, and the one being written."""
    import torch

    from pretrain.model.fusion_encoder import FusionEncoder
    from pretrain.prepare import settle

    architecture = settle(config)[0].model.architecture()
    with torch.device("meta"):
        encoder = FusionEncoder(architecture)
    # float32 weights, master copy and two moments of AdamW
    one = 16 * sum(parameter.numel() for parameter in encoder.parameters())
    need = one * (config.checkpoint.keep + 3)
    free = min(answer["free"] for answer in facts.values())
    if free < need:
        raise InputError(
            f"{config.run_dir}: {free / 1e9:.1f} GB free; checkpoints of "
            f"{one / 1e9:.1f} GB need {need / 1e9:.1f} GB: free some, or lower checkpoint.keep"
        )
    return f"{free / 1e9:.0f} GB free, {need / 1e9:.1f} GB needed"


def _words(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {item}" for key, item in value.items())
    return str(value)


def _difference(one: object, two: object) -> str:
    """`A where the other has B`, of dictionaries only the items that differ."""
    if isinstance(one, dict) and isinstance(two, dict):
        keys = [key for key in one if one[key] != two.get(key)]
        one, two = ({key: value.get(key) for key in keys} for value in (one, two))
    return f"{_words(one)} against {_words(two)} of"
