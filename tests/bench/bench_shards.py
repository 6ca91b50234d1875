"""Speed of writing, resuming and reading shards, as ratios measured in one run.

    python tests/bench/bench_shards.py [--pictures 200] [--pairs 71072]

Each figure is the median of interleaved repetitions, in CPU seconds of this process; the spread,
slowest by fastest, says how noisy the machine was. Reading is measured on a corpus of `--pairs`
tiny pictures. Its build, and one of a quarter of it, give the memory of all processes together and
what of it grows with the corpus: rows, and the caption and path of each article, held to the last
shard. Pictures never add to it.
"""

import argparse
import io
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import webdataset
from PIL import Image, ImageFilter

from shards.corpora import captions
from shards.images import QUALITY
from shards.stream import CanonicalOrder, RankBatches, ShardReader
from shards.write import build

ROOT = Path(__file__).resolve().parents[2]
REPETITIONS = 5
FULL = 1_110_000  # pairs of the union of NewsCLIPpings' sub-splits


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pictures", type=int, default=200, help="of 1280x960 (default: 200)")
    parser.add_argument("--pairs", type=int, default=20_000, help="tiny ones (default: 20,000)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        csv_file = photographs(root / "raw", args.pictures)
        print("| what | median | spread | ratio |\n|---|---|---|---|")
        writer(root, csv_file)
        quarter = memory(root / "quarter", args.pairs // 4)
        whole = memory(root / "whole", args.pairs)
        reader(root / "whole" / "news")
        growth = (whole - quarter) / (args.pairs - args.pairs // 4)
        at_full = (whole + growth * (FULL - args.pairs)) / 2**20
        print(f"Build, 2 processes: {whole / 2**20:.0f} MiB at most for {args.pairs:,} pairs,")
        print(f"{growth:,.0f} bytes more for each pair: {at_full:,.0f} MiB for {FULL:,}.")


def photographs(folder: Path, number: int) -> Path:
    """Pictures with the file size of photographs: smooth shapes plus a little grain."""
    folder.mkdir()
    random = np.random.default_rng(0)
    lines = ["image,caption"]
    for index in range(number):
        coarse = random.integers(0, 255, (12, 16, 3), dtype=np.uint8)
        image = Image.fromarray(coarse).resize((1280, 960), Image.Resampling.BICUBIC)
        grain = random.normal(0, 12, (960, 1280, 3))
        image = Image.fromarray((np.asarray(image) + grain).clip(0, 255).astype(np.uint8))
        image.filter(ImageFilter.GaussianBlur(0.7)).save(folder / f"{index}.jpg", quality=90)
        lines += [f"{index}.jpg,caption {index} {n}" for n in range(2)]
    (folder / "captions.csv").write_text("\n".join(lines))
    return folder / "captions.csv"


def compare(name: str, alone: Callable[[], object], ours: Callable[[], object], unit: int) -> None:
    """One line of the table: ours, and the ratio to `alone`; both do `unit` things per call."""
    times: dict[str, list[float]] = {"alone": [], "ours": []}
    for _ in range(REPETITIONS):
        for which, function in (("alone", alone), ("ours", ours)):
            start = time.process_time()
            function()
            times[which].append(time.process_time() - start)
    middle = {which: statistics.median(values) for which, values in times.items()}
    spread = max(times["ours"]) / min(times["ours"])
    ratio = middle["alone"] / middle["ours"]
    print(f"| {name} | {unit / middle['ours']:,.0f}/s | x{spread:.2f} | {ratio:.2f} |", flush=True)


def writer(root: Path, csv_file: Path) -> None:
    """One process, against decode + resize + encode of the same pictures and nothing else."""
    corpus = captions(csv_file.parent, csv_file, mismatch=0)
    names = dict.fromkeys(corpus.record(n).image for n in range(corpus.rows))
    contents = [(csv_file.parent / name).read_bytes() for name in names]

    def alone() -> None:
        for content in contents:
            with Image.open(io.BytesIO(content)) as image:
                image.draft("RGB", (384, 288))
                resized = image.resize((384, 288), Image.Resampling.LANCZOS)
                resized.save(io.BytesIO(), "JPEG", quality=QUALITY)

    runs = iter(range(REPETITIONS))
    compare(
        "build, pictures/s (1 process) vs decode + resize + encode alone",
        alone,
        lambda: build(corpus, root / f"shards{next(runs)}"),
        len(contents),
    )


def reader(directory: Path) -> None:
    """Access by address, against webdataset's sequential reading; and resuming."""
    counts = [shard.samples for shard in ShardReader(directory).index.shards]
    order = CanonicalOrder(counts, seed=0)
    addresses = [(0, *at) for at in order.epoch(0)[:].tolist()]
    urls = [str(path) for path in sorted(directory.glob("*.tar"))]

    def read_all(batch: list, decode: bool = False) -> None:
        reader = ShardReader(directory)
        for _, shard, row in batch:
            sample = reader.read(shard, row)
            if decode:
                Image.open(io.BytesIO(sample.image)).load()

    consumed = int(0.9 * len(addresses))

    def resume() -> None:
        order = CanonicalOrder(counts, seed=0)
        batches = RankBatches(order, rank=0, world=1, micro_batch_size=1, start=consumed)
        read_all(next(iter(batches)), decode=True)

    compare(
        "read in canonical order, pairs/s vs webdataset, tar order",
        lambda: sum(1 for _ in webdataset.WebDataset(urls, shardshuffle=False)),
        lambda: read_all(addresses),
        len(addresses),
    )
    compare(
        "resume at 90 % of an epoch to its first picture, vs decoding up to there",
        lambda: read_all(addresses[:consumed], decode=True),
        resume,
        1,
    )


def memory(root: Path, pairs: int) -> int:
    """Bytes, of all processes at their worst, of a build of `pairs` rows, a picture for every two.

    Shared pages are counted once (proportional set size).
    """
    origin = root / "vn" / "origin"
    origin.mkdir(parents=True)
    articles, rows = [], []
    for number in range(pairs // 2):
        path = f"bbc/images/{number // 1000:04d}/{number}.jpg"
        (origin / path).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (64, 48), (number % 256, number // 256 % 256, 0)).save(origin / path)
        caption = f"Caption number {number} " + "of some length " * 5
        article = {"id": number, "caption": caption, "image_path": f"./{path}", "source": "bbc"}
        articles.append(article | {"topic": "t", "article_path": f"./bbc/{number}.txt"})
        other = (number + 1) % (pairs // 2)
        rows.append({"id": number, "image_id": number, "falsified": False})
        rows.append({"id": number, "image_id": other, "falsified": True})
    (origin / "data.json").write_text(json.dumps(articles))
    path = root / "nc" / "data" / "merged_balanced" / "train.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"annotations": rows}))
    del articles, rows
    raw = ["--news-clippings", str(root / "nc"), "--visual-news", str(root / "vn")]
    options = ["--split", "train", "--out", str(root / "news"), "--jobs", "2"]
    command = [sys.executable, "-m", "shards", "build", "newsclippings", *raw, *options]
    peak = 0
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)
    while process.poll() is None:
        peak = max(peak, proportional_memory(process.pid))
        time.sleep(0.2)
    return peak


def proportional_memory(pid: int) -> int:
    """Bytes of a process and its children, shared pages divided among their users."""
    total = 0
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        for process in (str(pid), *children):
            for line in Path(f"/proc/{process}/smaps_rollup").read_text().splitlines():
                if line.startswith("Pss:"):
                    total += int(line.split()[1]) * 1024
    except OSError:
        pass  # it ended meanwhile
    return total


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
