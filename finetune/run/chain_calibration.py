"""Scores of entities that mean what they say: one temperature of the whole chain, fitted on dev.

A chain gives tags y of a sentence the probability exp(s(y)) / Σ exp(s(y')). Here s is divided by
the T that minimises the negative log-likelihood of dev's right tags, as `calibration.py` does it
for relations. The likeliest tags stay the same. Unlike there, the scores are not in any file: the
temperature is found when training reads dev for the last time.
"""

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from finetune.methods.crf import LinearChainCRF
from finetune.run.calibration import COOLEST, FILE, HOTTEST, read_kept
from pretrain import distributed
from shards.json_files import write_json

Asked = tuple[Tensor, Tensor, Tensor]
"""Emissions, tags and mask of a batch, as `LinearChainCRF.log_likelihood` takes them."""


@dataclass(frozen=True)
class ChainCalibration:
    """A fitted temperature, and what it did to dev."""

    temperature: float
    sentences: int
    nll_before: float
    """Of the right tags of a sentence, mean, in nats."""
    nll_after: float
    """The same with the temperature; of the very sentences that it was fitted on."""
    source: str
    """SHA-256 of the `pred_dev.jsonl` that was written with it."""


def chain_of(method: nn.Module) -> LinearChainCRF | None:
    """The chain that a method decodes with."""
    return next((part for part in method.modules() if isinstance(part, LinearChainCRF)), None)


@contextmanager
def recorded(chain: LinearChainCRF | None) -> Iterator[list[Asked]]:
    """What the chain is asked meanwhile, on the CPU; nothing without a chain."""
    batches: list[Asked] = []
    if chain is None:
        yield batches
        return
    plain = chain.log_likelihood

    def recording(emissions: Tensor, tags: Tensor, mask: Tensor) -> Tensor:
        batches.append((emissions.detach().cpu(), tags.detach().cpu(), mask.detach().cpu()))
        return plain(emissions, tags, mask)

    vars(chain)["log_likelihood"] = recording
    try:
        yield batches
    finally:
        del vars(chain)["log_likelihood"]  # the class's own again


def negative_log_likelihood(
    chain: LinearChainCRF, batches: Sequence[Asked], temperature: float
) -> float:
    """Mean over the sentences, in nats."""
    scaled = chain.scaled(1 / temperature)
    parts = [scaled.log_likelihood(e / temperature, tags, mask) for e, tags, mask in batches]
    return -torch.cat(parts).double().mean().item()


def fit_temperature(loss: Callable[[float], float], steps: int = 24) -> float:
    """Where `loss` is least between COOLEST and HOTTEST, by golden section over log T.

    The loss of a chain is convex in 1 / T, so it has one valley. 24 steps: T to 0.01 %.
    """
    low, high = math.log(COOLEST), math.log(HOTTEST)
    share = (5**0.5 - 1) / 2

    def at(place: float) -> float:
        return loss(math.exp(place))

    left, right = high - share * (high - low), low + share * (high - low)
    of_left, of_right = at(left), at(right)
    for _ in range(steps):
        if of_left < of_right:
            high, right, of_right = right, left, of_left
            left = high - share * (high - low)
            of_left = at(left)
        else:
            low, left, of_left = left, right, of_right
            right = low + share * (high - low)
            of_right = at(right)
    return math.exp((low + high) / 2)


@torch.no_grad()
def keep_calibration(
    chain: LinearChainCRF | None, batches: Sequence[Asked], directory: Path
) -> None:
    """Collective: fit on what all processes were asked, and write `calibration.json`."""
    if chain is None:
        return
    parts = [list(batches)]
    if distributed.world_size() > 1:
        parts = [[] for _ in range(distributed.world_size())]
        torch.distributed.all_gather_object(parts, list(batches))
    if not distributed.is_main():
        return
    # A copy: the method's own stays on its device; what was recorded lies on the CPU.
    chain = chain.scaled(1.0).cpu()
    everything = [batch for part in parts for batch in part]

    def loss(temperature: float) -> float:
        return negative_log_likelihood(chain, everything, temperature)

    temperature = fit_temperature(loss)
    fitted = ChainCalibration(
        temperature=temperature,
        sentences=sum(len(tags) for _, tags, _ in everything),
        nll_before=loss(1.0),
        nll_after=loss(temperature),
        source=digest(directory),
    )
    write_json(directory / FILE, asdict(fitted), checksum=True)


def of_seed(directory: Path) -> ChainCalibration | None:
    """Of a finished seed; None where there is none, or `pred_dev.jsonl` is another one.

    Raises:
        InputError: the file is damaged.
    """
    path = directory / FILE
    if not path.is_file() or not (directory / "pred_dev.jsonl").is_file():
        return None
    return read_kept(path, ChainCalibration, digest(directory))


def digest(directory: Path) -> str:
    """Of a seed's answers on dev."""
    return hashlib.sha256((directory / "pred_dev.jsonl").read_bytes()).hexdigest()
