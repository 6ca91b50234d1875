"""Posts in bulk: throughput, memory, and damaged rows in their places.

    python tests/bench/bench_predict.py [--posts 10000] [--damaged 0.01]

A tiny PROMU with random weights (its answers mean nothing) reads posts of 40 distinct texts with
400 distinct 320 x 240 pictures on the CPU. Prints posts a second, the resident memory after each
tenth of the file, and whether every damaged row, and no other, was answered by an error.
"""

import argparse
import json
import logging
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from finetune.methods.base import Source
from finetune.methods.promu import Promu, PromuConfig
from finetune.predict.command import PredictConfig, build, read_posts
from finetune.run.checkpoint import save_method
from finetune.tasks.base import TaskInfo
from finetune.tasks.mnre import MARKERS
from pretrain.checkpoint.hub import save_model_directory
from pretrain.data.tokenizer import learn_tokenizer
from pretrain.model.fusion_encoder import FusionEncoder, FusionEncoderConfig

NAMES = ("Ann", "Bob", "Cid", "Dora", "Eve")
DAMAGES = ("syntax", "span", "absent", "truncated", "key")


def make_run(folder: Path) -> Path:
    """A run directory of one seed, 128 wide, pictures of 64 pixels."""
    tokenizer = learn_tokenizer(
        ["RT @x : " + " and ".join(NAMES) + " tonight [ ] / E1 E2"] * 3, 120
    )
    encoder = FusionEncoder(
        FusionEncoderConfig(
            vocab_size=len(tokenizer), hidden_size=128, num_attention_heads=4,
            intermediate_size=512, text_layers=2, fusion_layers=2, image_size=64, patch_size=8,
            vision_hidden_size=128, vision_layers=3, vision_heads=4, projection_size=128,
        )
    )  # fmt: skip
    save_model_directory(
        folder / "model", config=encoder.config.to_dict(), state=encoder.state_dict(),
        tokenizer=tokenizer, card="# tiny\n",
    )  # fmt: skip
    task = TaskInfo("mnre", "relation", ("None", "a", "b"), MARKERS)
    method, tokenizer = Promu.build(PromuConfig(), task, Source(str(folder / "model")))
    run = folder / "run"
    save_method(
        run / "seed-1/model", method, tokenizer, name="promu", config=PromuConfig(), task=task,
        inputs={"images": "required", "max_length": 80}, card="# tiny\n",
    )  # fmt: skip
    (run / "seed-1/result.json").write_text('{"dev": {"f1": 0}}')
    return run


def make_posts(folder: Path, number: int, damaged: float, pictures: int = 400) -> tuple[Path, set]:
    """The file, and the rows that cannot be read."""
    generator = np.random.default_rng(0)
    (folder / "pictures").mkdir()
    for i in range(pictures):
        small = generator.integers(0, 256, (15, 20, 3), dtype=np.uint8)
        picture = Image.fromarray(small).resize((320, 240), Image.Resampling.BICUBIC)
        picture.save(folder / f"pictures/{i}.jpg", quality=90)
    whole = (folder / "pictures/0.jpg").read_bytes()
    (folder / "pictures/cut.jpg").write_bytes(whole[: len(whole) // 2])
    bad = set(generator.permutation(number)[: round(damaged * number)].tolist())
    lines = []
    for row in range(number):
        head, tail = generator.choice(NAMES, 2, replace=False)
        post = {"text": f"RT @x : {head} and {tail} tonight", "head": head, "tail": tail}
        post["image"] = f"pictures/{row % pictures}.jpg"
        if row in bad:
            kind = DAMAGES[row % len(DAMAGES)]
            change = {
                "span": {"head": [3, 999]},
                "absent": {"image": "pictures/no.jpg"},
                "truncated": {"image": "pictures/cut.jpg"},
                "key": {"colour": 1},
            }
            post |= change.get(kind, {})
        line = json.dumps(post)
        lines.append(line[:-5] if row in bad and kind == "syntax" else line)
    path = folder / "posts.jsonl"
    path.write_text("\n".join(lines) + "\n")
    return path, bad


def resident() -> float:
    """MiB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--posts", type=int, default=10_000)
    parser.add_argument("--damaged", type=float, default=0.01)
    args = parser.parse_args()
    logging.disable(logging.WARNING)
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source, bad = make_posts(folder, args.posts, args.damaged)
        extractor = build(PredictConfig(run=str(make_run(folder)), input=str(source)))
        memory, wrong = [], []
        wall, cpu = time.monotonic(), time.process_time()
        with source.open("rb") as file:
            answers = extractor.stream(read_posts(file, folder, extractor.task))
            for row, answer in enumerate(answers):
                if ("error" in answer) != (row in bad):
                    wrong.append((row, answer))
                if (row + 1) % (args.posts // 10) == 0:
                    memory.append(resident())
        wall, cpu = time.monotonic() - wall, time.process_time() - cpu
        print(f"{row + 1} posts: {wall:.1f} s, {(row + 1) / wall:.0f} a second; {cpu:.1f} s of CPU")
        print("resident MiB after each tenth:", " ".join(f"{value:.0f}" for value in memory))
        print(f"{len(bad)} damaged rows, all reported in place: {not wrong} {wrong[:3] or ''}")


if __name__ == "__main__":
    main()
