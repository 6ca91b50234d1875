"""What the sections share: where results go, the device, models and batches of made-up pairs."""

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, fields
from pathlib import Path

import torch
from torch import nn

from pretrain.config import PretrainConfig
from pretrain.data.batch import PretrainBatch
from pretrain.engine import SingleEngine
from pretrain.model.config import FusionEncoderConfig, HeadsConfig
from pretrain.model.fusion_encoder import FusionEncoder
from pretrain.model.promu import Promu
from pretrain.optim import adamw, linear_schedule, parameter_groups
from pretrain.prompter.bank import PromptBank
from shards.options import parse_config

ROOT = Path(__file__).resolve().parents[3]
DEVICE = torch.device(os.environ.get("GPU_PASS_DEVICE", "cpu"))
REHEARSAL = DEVICE.type == "cpu"
CLASSES = 100 if REHEARSAL else 1000


class Results:
    """Tables of a section; on disk after every row, since the section may be cut off."""

    def __init__(self, title: str) -> None:
        self.content = {"title": title, "tables": {}, "notes": []}
        self.end = float(os.environ.get("GPU_PASS_END", time.time() + 600))

    def add(self, table: str, **row: object) -> None:
        """A row of a table."""
        self.content["tables"].setdefault(table, []).append(row)
        self._write()

    def check(self, name: str, passed: bool, detail: str) -> None:
        """What must hold, and the figure that says by how much."""
        self.add("checks", check=name, passed=bool(passed), detail=detail)

    def note(self, words: str) -> None:
        """A remark under the section's heading."""
        self.content["notes"].append(words)
        self._write()

    def has_time(self, seconds: float, what: str) -> bool:
        """Whether about so many are left; where not, the report says what was left out."""
        if time.time() + seconds <= self.end:
            return True
        self.note(f"no time left for {what}")
        return False

    def _write(self) -> None:
        path = Path(os.environ.get("GPU_PASS_PART", "part.json"))
        path.with_suffix(".new").write_text(json.dumps(self.content, indent=1))
        path.with_suffix(".new").replace(path)


def shipped(*names: str) -> PretrainConfig:
    """A run's configuration of shipped ones."""
    words = [word for name in names for word in ("--config", f"pretrain/configs/{name}.yaml")]
    for option in ("run_dir", "data.train", "prompter.source", "prompter.entities"):
        words += [f"--{option}", "unused"]
    return parse_config(PretrainConfig, words, prog="gpu", description="", example="")


def architecture(name: str, **changes: object) -> FusionEncoderConfig:
    """The encoder of a shipped configuration."""
    stated = asdict(shipped(name).model)
    known = {field.name for field in fields(FusionEncoderConfig)}
    return FusionEncoderConfig(**{k: v for k, v in stated.items() if k in known} | changes)


def make_promu(config: FusionEncoderConfig, seed: int = 0, encoder: nn.Module | None = None):
    """A student with all four losses, the same weights wherever it is built; banks on the CPU."""
    torch.manual_seed(seed)
    heads = HeadsConfig(num_entities=CLASSES, num_relations=CLASSES)
    model = Promu(encoder or FusionEncoder(config), heads)
    unit = nn.functional.normalize(torch.randn(CLASSES, config.projection_size), dim=-1)
    model.entity_bank = model.relation_bank = PromptBank(unit, 0.07)
    return model


def make_batch(
    config: FusionEncoderConfig, pairs: int, seed: int = 0, length: int = 32
) -> PretrainBatch:
    """Pairs with captions of 20 word pieces and more, the longest of `length`."""
    random = torch.Generator().manual_seed(seed)
    lengths = torch.randint(min(20, length), length + 1, (pairs, 1), generator=random)
    lengths[0] = length
    side, patches, e = config.image_size, config.grid**2, config.projection_size
    features = nn.functional.normalize(torch.randn(2, pairs, e, generator=random), dim=-1).half()
    return PretrainBatch(
        pixel_values=torch.randint(
            0, 256, (pairs, 3, side, side), generator=random, dtype=torch.uint8
        ),
        input_ids=torch.randint(5, config.vocab_size, (pairs, length), generator=random),
        attention_mask=(torch.arange(length) < lengths).long(),
        matched=torch.arange(pairs) % 2 == 0,
        ids=torch.arange(2 * pairs).view(pairs, 2),
        patch_weights=(torch.rand(pairs, patches, generator=random) - 0.5).clamp(min=0),
        image_feat=features[0],
        object_feat=features[1],
    )


def build_optimizer(module: nn.Module):
    """AdamW and schedule as `pretrain.train` makes them."""
    groups = parameter_groups(module.named_parameters(), lr=1e-4, weight_decay=1e-3)
    optimizer = adamw(groups, betas=(0.9, 0.98), eps=1e-6)
    return optimizer, linear_schedule(optimizer, 10, 1000)


def single_engine(model: Promu, precision: str, build=build_optimizer) -> SingleEngine:
    """This process's engine on the device that `on` or the section's environment names."""
    engine = SingleEngine(model, build, precision=precision, accumulation=1, clip=2.0)
    move_banks(model, engine.device)
    model.train()
    return engine


def move_banks(model: Promu, device: torch.device) -> None:
    """Encoded prompts beside the model, as the prompter leaves them."""
    for name in ("entity_bank", "relation_bank"):
        bank = getattr(model, name)
        setattr(model, name, PromptBank(bank.features.to(device), bank.temperature))


@contextmanager
def on(device: torch.device) -> Iterator[None]:
    """Engines built inside take this device: they ask what DeepSpeed's accelerator is."""
    before = os.environ.get("DS_ACCELERATOR")
    os.environ["DS_ACCELERATOR"] = device.type
    try:
        yield
    finally:
        os.environ.pop("DS_ACCELERATOR")
        if before is not None:
            os.environ["DS_ACCELERATOR"] = before


def train_steps(engine, batches: list[PretrainBatch]) -> list[dict[str, float]]:
    """Losses of one update a batch."""
    history = []
    for batch in batches:
        losses = engine(batch.to(engine.device))
        engine.backward(losses["loss"])
        engine.step()
        history.append({name: float(value.detach()) for name, value in losses.items()})
    return history


def widest(one: list[dict[str, float]], other: list[dict[str, float]]) -> float:
    """The largest difference of any loss at any step."""
    steps = zip(one, other, strict=True)
    return max(abs(a[name] - b[name]) for a, b in steps for name in a)


def exact_float32() -> None:
    """No TF32: what is compared in float32 is computed in it."""
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False


def seconds_a_step(step: Callable[[], object], steps: int, warm: int = 2) -> float:
    """Wall time of a step after some of warm-up, the device's work included."""
    for number in range(warm + steps):
        if number == warm:
            synchronize()
            since = time.perf_counter()
        step()
    synchronize()
    return (time.perf_counter() - since) / steps


def synchronize() -> None:
    """Wait for the device."""
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
