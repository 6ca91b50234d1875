"""Pictures with several captions: disk, looking, loading and opening, beside an older checkout.

    python tests/bench/bench_pictures.py IMAGES CAPTIONS.csv --old CHECKOUT [--rounds 7]
        [--prompter MODEL_DIR] [--yolo WEIGHTS.pt]

Each checkout builds its own shards of the same files and runs in processes of its own, which take
turns; figures are medians, in CPU seconds of one process. `raw` decodes every distinct picture, as
it is, with simplejpeg and does nothing else. `worker` is a loader process of its own, whose batches
go to the trainer; `label`, three rounds, needs a prompter that both checkouts read, `detect` YOLO's
weights, one round.
"""

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import tracemalloc
from pathlib import Path

import numpy as np
from PIL import Image

NEW = Path(__file__).resolve().parents[2]
BATCH, SAMPLES = 48, 960


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("images", type=Path)
    parser.add_argument("captions", type=Path)
    parser.add_argument("--old", type=Path, required=True, help="a checkout to compare with")
    parser.add_argument("--prompter", type=Path, help="model directory; without: no labelling")
    parser.add_argument("--yolo", type=Path, help="weights; without: boxes of a file alone")
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        boxes = write_boxes(args.images, root / "boxes.jsonl", 1)
        raw = ["--images", str(args.images), "--captions", str(args.captions)]
        shards = {"old": (args.old, root / "old", []), "new": (NEW, root / "new", []),
                  "as it is": (NEW, root / "as_is", ["--as-is"])}  # fmt: skip
        print("| build | MiB | detect, CPU s |\n|---|---|---|")
        for name, (checkout, out, options) in shards.items():
            run(checkout, "build", "captions", *raw, "--out", str(out), "--jobs", "1", *options)
            spent = run(checkout, "detect", str(out), "--detector", "file", "--boxes", str(boxes))
            size = sum(path.stat().st_size for path in out.glob("*.tar")) / 2**20
            print(f"| {name} | {size:.1f} | {spent:.2f} |")
        if args.yolo:
            looking(shards, ["detect", "--weights", str(args.yolo.resolve())], "objects", 1)
        if args.prompter:
            looking(shards, ["label", "--prompter", str(args.prompter.resolve())], "teacher", 3)
        print("\n| loader, one core | samples/s | of old |\n|---|---|---|")
        children = {
            f"{kind}, {name}, {together} step(s) a decoding": Child(checkout, kind, out, together)
            for kind in ("load", "worker")
            for name, (checkout, out, _) in shards.items()
            for together in ((1,) if name == "old" else (1, 5))
        }
        children["raw simplejpeg, pictures/s"] = Child(NEW, "raw", args.images)
        report(children, args.rounds, lambda speed: f"{speed:,.0f}")
        one_row_a_picture(root, args.old, args.rounds)
        opened = {name: root / f"open_{name}" for name in ("old", "new")}
        many_objects(root, opened, args.old)
        print("\n| opening 2,048 pairs with ten boxes each | CPU ms; MiB of heap |\n|---|---|")
        for name, out in opened.items():
            child = Child(shards[name][0], "open", out)
            print(f"| {name} | {statistics.median(child.ask() for _ in range(args.rounds)):.1f}; "
                  f"{Child(shards[name][0], 'heap', out).ask():.3f} |")  # fmt: skip


def looking(shards: dict, command: list[str], column: str, rounds: int) -> None:
    """Seconds of a command that looks at every picture, one thread; called again, it has nothing to
    do. CPU's, but of `detect`, whose detector is a process that is not waited for."""
    clock = "wall" if command[0] == "detect" else "CPU"
    spent: dict[str, list[tuple[float, float]]] = {"old": [], "new": []}
    for _ in range(rounds):
        for name, times in spent.items():
            checkout, out, _ = shards[name]
            shutil.rmtree(out / column, ignore_errors=True)
            words = (command[0], str(out), *command[1:])
            times.append((run(checkout, *words, clock=clock), run(checkout, *words, clock=clock)))
    print(f"\n| {command[0]} | {clock} s | of that, to start | x old | without starting |")
    print("|---|---|---|---|---|")
    whole, start = (
        {name: statistics.median(pair[n] for pair in times) for name, times in spent.items()}
        for n in range(2)
    )
    for name in spent:
        ratio = whole["old"] / whole[name]
        without = (whole["old"] - start["old"]) / (whole[name] - start[name])
        print(f"| {name} | {whole[name]:.1f} | {start[name]:.1f} | {ratio:.2f} | {without:.2f} |")


def one_row_a_picture(root: Path, old: Path, rounds: int) -> None:
    """Synthetic photographs with one caption each, loaded as both checkouts store them."""
    from bench_loader import photograph

    random = np.random.default_rng(0)
    for width, height in ((500, 375), (1024, 768)):
        images = root / f"{width}"
        images.mkdir()
        for number in range(2 * BATCH):
            (images / f"{number}.jpg").write_bytes(photograph(random, width, height))
        lines = [f"{n}.jpg,caption number {n} of some length" for n in range(2 * BATCH)]
        (root / "big.csv").write_text("\n".join(["image,caption", *lines]))
        raw = ["--images", str(images), "--captions", str(root / "big.csv"), "--mismatch", "0"]
        children = {}
        for name, checkout, options in (("old", old, []), ("new", NEW, []),
                                        ("as it is", NEW, ["--as-is"])):  # fmt: skip
            out = root / f"{name} {width}"
            run(checkout, "build", "captions", *raw, "--out", str(out), "--jobs", "1", *options)
            children[name] = Child(checkout, "load", out, 1)
        children["raw simplejpeg, pictures/s"] = Child(NEW, "raw", images)
        print(f"\n| loader, {width} x {height}, one row a picture | samples/s | of old |")
        print("|---|---|---|")
        report(children, rounds, lambda speed: f"{speed:,.0f}")


def run(checkout: Path, *words: str, clock: str = "CPU") -> float:
    """A command of a checkout, one thread; its seconds."""
    before, since = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    command = ["pretrain.label", *words[1:]] if words[0] == "label" else ["shards", *words]
    subprocess.run([sys.executable, "-m", *command], check=True, cwd=checkout,
                   env=os.environ | {"OMP_NUM_THREADS": "1"},
                   stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # fmt: skip
    if clock == "wall":
        return time.perf_counter() - since
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def write_boxes(images: Path, path: Path, number: int) -> Path:
    """Boxes for every picture of a folder."""
    with open(path, "w") as file:
        for picture in sorted(images.glob("*.jpg")):
            with Image.open(picture) as image:
                width, height = image.size
            item = {"box": [0.2 * width, 0.2 * height, 0.8 * width, 0.9 * height], "label": "dog"}
            objects = [item | {"score": 0.9 - 0.01 * n} for n in range(number)]
            line = {"image_id": picture.name, "size": [width, height], "objects": objects}
            file.write(json.dumps(line) + "\n")
    return path


def many_objects(root: Path, outs: dict[str, Path], old: Path) -> None:
    """One shard of 2,048 small pictures, built by each checkout."""
    images, table = root / "small", root / "small.csv"
    images.mkdir()
    for number in range(2048):
        Image.new("RGB", (64, 48), (number % 256, number // 256, 0)).save(images / f"{number}.jpg")
    lines = [f"{n}.jpg,caption number {n} of some length and a few more words" for n in range(2048)]
    table.write_text("\n".join(["image,caption", *lines]))
    boxes = write_boxes(images, root / "many.jsonl", 10)
    raw = ["--images", str(images), "--captions", str(table), "--mismatch", "0"]
    for name, out in outs.items():
        checkout = old if name == "old" else NEW
        run(checkout, "build", "captions", *raw, "--out", str(out), "--shard-size", "2048")
        options = ["--detector", "file", "--boxes", str(boxes), "--keep", "10"]
        run(checkout, "detect", str(out), *options)


class Child:
    """A bench, run with a checkout's packages; each question costs one measurement."""

    def __init__(
        self, checkout: Path, *words: object, python: str = sys.executable, file: str = __file__
    ) -> None:
        command = [python, file, "--child", *map(str, words)]
        env = os.environ | {"PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            command, env=env, cwd=checkout, text=True, stderr=subprocess.DEVNULL,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip

    def ask(self) -> float:
        """One figure."""
        assert self.process.stdin and self.process.stdout  # pipes
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return float(self.process.stdout.readline())


def report(children: dict[str, Child], rounds: int, form) -> None:
    """A line each, the contestants taking turns."""
    figures: dict[str, list[float]] = {name: [] for name in children}
    for _ in range(rounds):
        for name, child in children.items():
            figures[name].append(child.ask())
    first = next(iter(figures.values()))
    for name, values in figures.items():
        ratio = statistics.median(a / b for a, b in zip(values, first, strict=True))
        print(f"| {name} | {form(statistics.median(values))} | x{ratio:.2f} |")


# ------------------------------------------------------------------ in a child


def child(kind: str, place: str, *rest: str) -> None:
    """Answer each line of standard input with a figure."""
    measure = {
        "load": loader,
        "worker": worker,
        "raw": raw_decoding,
        "open": opening,
        "heap": heap,
    }[kind](place, *rest)
    for _ in sys.stdin:
        print(measure(), flush=True)


def parts(place: str, together: str):
    """(data module, data set, batches of addresses) of either checkout."""
    import torch

    from pretrain.config import DataConfig

    try:
        from pretrain.data import pairs as data
        from pretrain.data.tokenizer import learn_tokenizer
    except ImportError:  # commit 265d405
        from pretrain.tokenizer import learn_tokenizer  # type: ignore[import-not-found,no-redef]

        from pretrain import data  # type: ignore[no-redef]
    from shards.stream import CanonicalOrder, RankBatches

    torch.set_num_threads(1)
    reader = data.open_reader(place, teacher=False)
    tokenizer = learn_tokenizer([s.meta.caption for s in reader.samples(0)] * 3, 1000)
    options = {"image_size": 224, "patch_size": 16, "seed": 0, "augment": True}
    dataset = data.PairDataset(reader, tokenizer, DataConfig(train=place), **options)
    blocks = hasattr(dataset, "block")
    extra = {"together": int(together), "pictures": reader.row_pictures} if blocks else {}
    order = CanonicalOrder([s.samples for s in reader.index.shards], seed=0, **extra)
    batches = RankBatches(order, rank=0, world=1, micro_batch_size=BATCH)
    return data, dataset, batches


def loader(place: str, together: str):
    """Samples per CPU second of making them."""
    _, dataset, batches = parts(place, together)
    blocks = hasattr(dataset, "block")
    feed = iter(batches.blocks() if blocks else ([batch] for batch in batches))

    def measure() -> float:
        start, done = time.process_time(), 0
        while done < SAMPLES:
            block = next(feed)
            made = dataset.block(block) if blocks else [dataset.__getitems__(block[0])]
            done += sum(map(len, made))
        return done / (time.process_time() - start)

    measure()
    return measure


def worker(place: str, together: str):
    """Samples per CPU second of a loader process, their way to the trainer included."""
    from multiprocessing import active_children

    data, dataset, batches = parts(place, together)
    feed = data.train_batches(dataset, batches, workers=1, pin=False)
    next(feed)
    (process,) = active_children()

    def spent() -> float:
        fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
        return sum(map(int, fields[11:13])) / os.sysconf("SC_CLK_TCK")

    def measure() -> float:
        start, done = spent(), 0
        while done < SAMPLES:
            done += len(next(feed))
        return done / (spent() - start)

    measure()
    return measure


def raw_decoding(place: str):
    """Pictures per CPU second."""
    import simplejpeg

    contents = [path.read_bytes() for path in sorted(Path(place).glob("*.jpg"))]

    def measure() -> float:
        start = time.process_time()
        for content in contents:
            simplejpeg.decode_jpeg(content, "RGB", strict=False)
        return len(contents) / (time.process_time() - start)

    return measure


def opening(place: str):
    """CPU ms from a reader to its first sample."""
    from shards.stream import ShardReader

    def measure() -> float:
        reader = ShardReader(place, columns=["objects"])
        start = time.process_time()
        reader.read(0, 0)
        return 1000 * (time.process_time() - start)

    measure()
    return measure


def heap(place: str):
    """MiB that an opened shard holds."""
    from shards.stream import ShardReader

    def measure() -> float:
        tracemalloc.start()
        before = tracemalloc.get_traced_memory()[0]
        reader = ShardReader(place, columns=["objects"])
        reader.read(0, 0)
        held = tracemalloc.get_traced_memory()[0] - before
        tracemalloc.stop()
        del reader
        return held / 2**20

    measure()
    return measure


if __name__ == "__main__":
    child(*sys.argv[2:]) if sys.argv[1:2] == ["--child"] else main()
