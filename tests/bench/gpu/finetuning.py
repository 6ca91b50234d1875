"""Fine-tuning: rows a second of every method at BERT-base size, ours and as the field trains it.

The other side is the same method in float32 with attention in plain products, an AdamW that loops
over parameters and the loss read at every step; batches are the same.
"""

import importlib.util
import itertools
import tempfile
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from bench.bench_pretrain import LoopAdamW
from bench.gpu.common import DEVICE, REHEARSAL, ROOT, Results, architecture, on, seconds_a_step

from finetune.config import OptimConfig
from finetune.inputs.load import load_split
from finetune.tasks.mnre import Mnre
from finetune.tasks.twitter import Twitter2017
from pretrain.checkpoint.hub import save_model_directory
from pretrain.data.tokenizer import learn_tokenizer
from pretrain.engine import SingleEngine
from pretrain.model.config import FusionEncoderConfig
from pretrain.model.fusion_encoder import FusionEncoder
from pretrain.optim import adamw, linear_schedule

ROWS = 4 if REHEARSAL else 32
STEPS = 2 if REHEARSAL else 10
WORDS = ("near the old", "some quick brown fox", "in Oslo", "over a lazy dog", "river today")
GRID_SETTINGS = {"generated_boxes": "community", "scores": "txt"}
LARGE = {
    "mkgformer": {"vision": "random"},
    "hvpnet": {"vision_random": True},
    "camim_hvpnet": {"vision_random": True},
    "tmr": {"vision_random": True, **GRID_SETTINGS},
    "camim_tmr": {"vision_random": True, **GRID_SETTINGS},
}
"""What lets methods be built without a network; their sizes are their defaults."""


def of_tests(path: str) -> ModuleType:
    """A file of the tests, for what it writes: every side file that a method can read."""
    spec = importlib.util.spec_from_file_location(Path(path).stem, ROOT / "tests" / path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def model_directory(folder: Path) -> Path:
    """A fusion model of random weights: BERT-base and ViT-B, or `tiny`."""
    text = ["RT @x : Ann and Bob Cid Dora Eve Finn tonight [ ] / " + " ".join(WORDS)] * 3
    tokenizer = learn_tokenizer(text, 500)
    sizes = {"vocab_size": len(tokenizer)} if REHEARSAL else {}
    config = architecture("tiny" if REHEARSAL else "base", **sizes)
    torch.manual_seed(0)
    encoder = FusionEncoder(FusionEncoderConfig.from_dict(config.to_dict()))
    encoder.resize_token_embeddings(len(tokenizer))
    save_model_directory(
        folder, config=encoder.config.to_dict(), state=encoder.state_dict(),
        tokenizer=tokenizer, card="# random\n",
    )  # fmt: skip
    return folder


def longer(task_folder: Path) -> None:
    """Rows of about 25 words: news and tweets, not three names."""
    generator = np.random.default_rng(0)
    for path in (task_folder / "txt").glob("ours_*.txt"):
        rows = [eval(line) for line in path.read_text().splitlines()]
        for row in rows:
            phrases = generator.choice(WORDS, generator.integers(5, 9))
            row["token"] += " ".join(phrases).split()
        path.write_text("\n".join(map(repr, rows)) + "\n")


def ours(method, batches) -> float:
    """Rows a second in bf16 by the engine of training."""

    def build(module):
        optimizer = adamw(module.parameter_groups(OptimConfig()))
        return optimizer, linear_schedule(optimizer, 1, 1000)

    with on(DEVICE):
        engine = SingleEngine(method.train(), build, precision="bf16", accumulation=1, clip=1.0)
    turn = itertools.cycle(batches)

    def step() -> None:
        with torch.autocast(DEVICE.type, torch.bfloat16):
            loss = method(next(turn).to(DEVICE, non_blocking=True)).loss
        engine.backward(loss)
        engine.step()

    return ROWS / seconds_a_step(step, STEPS)


def as_the_field(method, batches) -> float:
    """Rows a second in float32, plain attention, an optimizer that loops, the loss read."""
    method.to(DEVICE).train()
    for module in method.modules():
        if getattr(module, "config", None) is not None and hasattr(
            module.config, "_attn_implementation"
        ):
            module.config._attn_implementation = "eager"
    optimizer = LoopAdamW(method.parameters())
    turn = itertools.cycle(batches)

    def step() -> None:
        loss = method(next(turn).to(DEVICE)).loss
        loss.backward()
        optimizer.step()
        loss.item()

    return ROWS / seconds_a_step(step, STEPS)


def main() -> None:
    results = Results("d. Fine-tuning: rows a second, batches of " + str(ROWS))
    tests, written = of_tests("finetune/methods/test_methods.py"), of_tests("finetune/conftest.py")
    if not REHEARSAL:
        tests.SETTINGS = LARGE
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        mnre = written.write_mnre(folder / "mnre", {"train": 120, "val": 30, "test": 30})
        longer(mnre)
        tasks = {"relation": Mnre(mnre), "entities": Twitter2017(tests.write_twitter(folder / "t"))}
        for task in tasks.values():
            tests.write_caches(task, task.folder)
        tests.write_texts_and_generated(tasks["relation"])
        tests.write_for_tweets(tasks["entities"])
        source = model_directory(folder / "model")
        done: set[str] = set()
        for method_name, kind in sorted(tests.CASES, key=lambda case: case[1], reverse=True):
            if method_name in done or not results.has_time(8, method_name):
                continue
            done.add(method_name)
            row(results, tests, tasks[kind], method_name, source)


def row(results: Results, tests: ModuleType, task, name: str, source: Path) -> None:
    """Both ways of one method; what cannot be built says so and the others go on."""
    try:
        (method, tokenizer), _ = tests.build(name, task, source)
        split = load_split(task, "train", tokenizer, method, tests.options(task, method)).dataset
        first, second = np.arange(ROWS) % len(split), np.arange(ROWS, 2 * ROWS) % len(split)
        batches = [split.collate(rows) for rows in (first, second)]
        mine = ours(method, batches)
        other = as_the_field(tests.build(name, task, source)[0][0], batches)
    except (RuntimeError, ValueError, OSError, AttributeError) as error:
        results.add("rows a second", method=name, task=task.info.kind, note=str(error)[:200])
        return
    results.add("rows a second", method=name, task=task.info.kind, **{
        "ours, bf16": mine, "as the field, fp32": other, "times": mine / other})  # fmt: skip


if __name__ == "__main__":
    main()
