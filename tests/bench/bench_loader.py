"""Speed of the pre-training loader on one core, as ratios measured in one run.

    python tests/bench/bench_loader.py [--pictures 240] [--repetitions 7]

Pictures are synthetic, with the sides and the bytes of news photographs (512 pixels the shorter
one, near 85 KiB). Times are CPU seconds of this process, which is what one loader worker has; the
contestants take turns, and each figure is the median over the rounds. `spread`, slowest by fastest
round, says how noisy the machine was.
"""

import argparse
import contextlib
import io
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import numpy as np
from PIL import Image, ImageFilter

SIZES = ((768, 512), (683, 512), (512, 640))
WORDS = (
    "the",
    "of",
    "a",
    "in",
    "at",
    "after",
    "minister",
    "police",
    "match",
    "river",
    "two",
    "people",
)
BATCH = 48


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pictures", type=int, default=240, help="(default: %(default)s)")
    parser.add_argument("--repetitions", type=int, default=7, help="rounds (default: %(default)s)")
    args = parser.parse_args()
    import torch

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        shards = write_shards(Path(folder), args.pictures)
        seconds = measure(contestants(shards), args.repetitions)
    ours = statistics.median(seconds["ours"])
    print("| what, one core | samples/s | spread | ours is x |\n|---|---|---|---|")
    for name, times in seconds.items():
        middle = statistics.median(times)
        speed, spread = args.pictures / middle, max(times) / min(times)
        print(f"| {name} | {speed:,.0f} | x{spread:.2f} | {middle / ours:.2f} |")


def write_shards(root: Path, pictures: int) -> Path:
    """Shards of photographs with captions and boxes, written by the real commands."""
    from shards.__main__ import main as shards_command
    from shards.corpora import captions
    from shards.stream import ShardReader
    from shards.write import build

    random = np.random.default_rng(0)
    lines, size = ["image,caption"], []
    for number in range(pictures):
        content = photograph(random, *SIZES[number % len(SIZES)])
        (root / f"{number}.jpg").write_bytes(content)
        size.append(len(content))
        lines.append(f"{number}.jpg,{' '.join(random.choice(WORDS, 24))}")
    (root / "captions.csv").write_text("\n".join(lines))
    build(captions(root, root / "captions.csv"), root / "shards", shard_size=60)
    reader = ShardReader(root / "shards")
    with open(root / "boxes.jsonl", "w") as file:
        for shard in range(len(reader.index.shards)):
            for sample in reader.samples(shard):
                width, height = sample.meta.size
                box = [0.2 * width, 0.3 * height, 0.7 * width, 0.9 * height]
                item = {"box": box, "score": 0.9, "label": "person"}
                line = {"image_id": sample.meta.image_id, "objects": [item]}
                file.write(json.dumps(line) + "\n")
    detector = ["--detector", "file", "--boxes", str(root / "boxes.jsonl")]
    with contextlib.redirect_stdout(io.StringIO()):
        shards_command(["detect", str(root / "shards"), *detector])
    print(f"{pictures} JPEGs of {statistics.mean(size) / 1024:.0f} KiB on average\n")
    return root / "shards"


def photograph(random: np.random.Generator, width: int, height: int) -> bytes:
    """Noise on three scales, as JPEG: shapes, texture, grain."""
    image = random.normal(0, 5, (height, width, 3)).astype(np.float32)
    for cells, contrast in ((8, 54), (32, 24), (128, 12)):
        for channel in range(3):
            coarse = random.normal(0, contrast, (cells, cells)).astype(np.float32)
            coarse = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
            image[..., channel] += coarse
    picture = Image.fromarray((image + 128).clip(0, 255).astype(np.uint8))
    buffer = io.BytesIO()
    picture.filter(ImageFilter.GaussianBlur(0.7)).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def contestants(shards: Path) -> dict[str, Callable[[], object]]:
    """Each goes once through all pictures."""
    from pretrain import data
    from pretrain.config import DataConfig
    from pretrain.tokenizer import learn_tokenizer
    from shards.stream import CanonicalOrder

    reader = data.open_reader(str(shards), teacher=False)
    counts = [shard.samples for shard in reader.index.shards]
    addresses = [(0, *at) for at in CanonicalOrder(counts, seed=0).epoch(0).tolist()]
    captions = [reader.read(*at[1:]).meta.caption for at in addresses]
    tokenizer = learn_tokenizer(captions, 1000)
    options = {"image_size": 224, "patch_size": 16, "seed": 0, "augment": True}
    dataset = data.PairDataset(reader, tokenizer, DataConfig(train=str(shards)), **options)

    def ours() -> None:
        for start in range(0, len(addresses), BATCH):
            dataset.__getitems__(addresses[start : start + BATCH])

    with mock.patch.object(data, "decode_pixels", wraps=data.decode_pixels) as decoded:
        ours()
    pictures = [(call.args[0].image, call.args[1]) for call in decoded.call_args_list]

    def full() -> None:
        for content, _ in pictures:
            Image.open(io.BytesIO(content)).load()

    def scaled() -> None:
        for content, side in pictures:
            image = Image.open(io.BytesIO(content))
            image.draft("RGB", (side, side))
            image.load()

    return {
        "ours": ours,
        "decode alone, full size": full,
        "decode alone, scaled as ours": scaled,
        "webdataset + torchvision + tokenizer per sample": plain_pipeline(shards, tokenizer),
    }


def plain_pipeline(shards: Path, tokenizer) -> Callable[[], object]:
    """What most training scripts do; it carries no boxes and knows no brightness or sharpness."""
    import webdataset
    from torch.utils.data import default_collate
    from torchvision import transforms

    view = transforms.Compose(
        [
            transforms.RandomResizedCrop(
                224, scale=(0.2, 1.0), interpolation=transforms.InterpolationMode.BICUBIC
            ),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize((0.5,) * 3, (0.5,) * 3),
        ]
    )

    def tokens(meta: dict) -> dict:
        encoding = tokenizer(
            meta["caption"],
            padding="max_length",
            truncation=True,
            max_length=80,
            return_tensors="pt",
        )
        return {name: tensor[0] for name, tensor in encoding.items()}

    urls = [str(path) for path in sorted(shards.glob("*.tar"))]
    pipeline = (
        webdataset.WebDataset(urls, shardshuffle=False)
        .decode("pil")
        .to_tuple("jpg", "json")
        .map_tuple(view, tokens)
        .batched(BATCH, collation_fn=default_collate)
    )
    return lambda: sum(1 for _ in pipeline)


def measure(
    contestants: dict[str, Callable[[], object]], repetitions: int
) -> dict[str, list[float]]:
    """CPU seconds per call, the contestants taking turns; a first round warms up."""
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for turn in range(repetitions + 1):
        for name, run in contestants.items():
            start = time.process_time()
            run()
            if turn:
                seconds[name].append(time.process_time() - start)
    return seconds


if __name__ == "__main__":
    os.environ |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    main()
