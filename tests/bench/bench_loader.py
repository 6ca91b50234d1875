"""Speed of the pre-training loader on one core, as ratios measured in one run.

    python tests/bench/bench_loader.py [--pictures 240] [--repetitions 7]

Pictures are synthetic, with the sides and the bytes of news photographs (512 pixels the shorter
one, near 76 KiB). `--folder` takes real ones instead. Times are CPU seconds of this process, which
is what one loader worker has; the contestants take turns batch by batch, and each figure is the
median over the rounds. `spread`, slowest by fastest round, says how noisy the machine was.

"Decode alone" turns the same bytes, already in memory, into RGB pixels of the full size, one
picture after the other, and does nothing else: no reading, no crop, no conversion to a tensor.
"As ours" decodes what our views show of them: rows above the crop's bottom, scaled where that
suffices; the distance to it is what everything but decoding costs.
"""

import argparse
import contextlib
import io
import itertools
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
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
    parser.add_argument(
        "--pictures", type=int, default=240, help=f"a multiple of {BATCH} (default: %(default)s)"
    )
    parser.add_argument("--folder", type=Path, help="with *.jpg to measure on")
    parser.add_argument("--repetitions", type=int, default=7, help="rounds (default: %(default)s)")
    args = parser.parse_args()
    import torch

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        shards = write_shards(Path(folder), pictures(args))
        batches, runs = contestants(shards)
        seconds = measure(batches, runs, args.repetitions)
    print("| what, one core | samples/s | spread | ours is x |\n|---|---|---|---|")
    for name, times in seconds.items():
        speed, spread = batches * BATCH / statistics.median(times), max(times) / min(times)
        ratio = statistics.median(a / b for a, b in zip(times, seconds["ours"], strict=True))
        print(f"| {name} | {speed:,.0f} | x{spread:.2f} | {ratio:.2f} |")


def pictures(args: argparse.Namespace) -> Iterator[bytes]:
    """JPEGs of a folder, or synthetic ones."""
    if args.folder:
        for path in sorted(args.folder.glob("*.jpg"))[: args.pictures]:
            yield path.read_bytes()
        return
    random = np.random.default_rng(0)
    for number in range(args.pictures):
        yield photograph(random, *SIZES[number % len(SIZES)])


def write_shards(root: Path, contents: Iterable[bytes]) -> Path:
    """Shards of photographs with captions and boxes, written by the real commands."""
    from shards.__main__ import main as shards_command
    from shards.corpora import captions
    from shards.stream import ShardReader
    from shards.write import Form, build

    random = np.random.default_rng(0)
    lines, size = ["image,caption"], []
    for number, content in enumerate(contents):
        (root / f"{number}.jpg").write_bytes(content)
        size.append(len(content))
        lines.append(f"{number}.jpg,{' '.join(random.choice(WORDS, 24))}")
    (root / "captions.csv").write_text("\n".join(lines))
    build(captions(root, root / "captions.csv"), root / "shards", form=Form(None), shard_size=60)
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
    print(f"{len(size)} JPEGs of {statistics.mean(size) / 1024:.0f} KiB on average\n")
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


def contestants(shards: Path) -> tuple[int, dict[str, Callable[[int], object]]]:
    """The number of pictures, and runs that each go through one batch of them."""
    import simplejpeg
    import torch
    from torchvision.io import ImageReadMode, decode_jpeg

    from pretrain.config import DataConfig
    from pretrain.data import pairs as data
    from pretrain.data import views
    from pretrain.data.tokenizer import learn_tokenizer
    from shards import shard
    from shards.jpeg import decode_rows
    from shards.stream import CanonicalOrder

    reader = data.open_reader(str(shards), teacher=False)
    counts = [shard.samples for shard in reader.index.shards]
    addresses = [(0, *at) for at in CanonicalOrder(counts, seed=0).epoch(0)[:].tolist()]
    captions = [reader.read(*at[1:]).meta.caption for at in addresses]
    tokenizer = learn_tokenizer(captions, 1000)
    options = {"image_size": 224, "patch_size": 16, "seed": 0, "augment": True}
    dataset = data.PairDataset(reader, tokenizer, DataConfig(train=str(shards)), **options)

    def ours(batch: int) -> None:
        dataset.__getitems__(addresses[batch * BATCH :][:BATCH])

    def unchecked(batch: int) -> None:
        with mock.patch.object(shard, "is_intact", return_value=True):
            ours(batch)

    parts = []
    for batch in range(len(addresses) // BATCH):
        with mock.patch.object(views, "decode_rows", wraps=views.decode_rows) as decoded:
            ours(batch)
        parts.append([call.args for call in decoded.call_args_list])

    def pillow(batch: int) -> None:
        for content, *_ in parts[batch]:
            Image.open(io.BytesIO(content)).load()

    def torchvision(batch: int) -> None:
        for content, *_ in parts[batch]:
            buffer = torch.frombuffer(bytearray(content), dtype=torch.uint8)
            decode_jpeg(buffer, ImageReadMode.RGB)

    def turbo(batch: int) -> None:
        for content, *_ in parts[batch]:
            simplejpeg.decode_jpeg(content, "RGB", strict=False)

    def as_ours(batch: int) -> None:
        for part in parts[batch]:
            decode_rows(*part)

    return len(parts), {
        "ours": ours,
        "ours without checksums": unchecked,
        "decode alone, Pillow": pillow,
        "decode alone, torchvision": torchvision,
        "decode alone, simplejpeg": turbo,
        "decode alone, as ours": as_ours,
        "webdataset + torchvision + tokenizer per sample": plain_pipeline(shards, tokenizer),
    }


def plain_pipeline(shards: Path, tokenizer) -> Callable[[int], object]:
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
            meta["pairs"][0]["caption"],
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
    endless = itertools.chain.from_iterable(itertools.repeat(pipeline))
    return lambda batch: next(endless)


def measure(
    batches: int, contestants: dict[str, Callable[[int], object]], repetitions: int
) -> dict[str, list[float]]:
    """CPU seconds per round, the contestants taking turns; a first round warms up."""
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for turn in range(repetitions + 1):
        spent = dict.fromkeys(contestants, 0.0)
        for batch in range(batches):
            for name, run in contestants.items():
                start = time.process_time()
                run(batch)
                spent[name] += time.process_time() - start
        for name, total in spent.items() if turn else ():
            seconds[name].append(total)
    return seconds


if __name__ == "__main__":
    os.environ |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    main()
