"""The pre-training loader beside open_clip's, Streaming's and a plain webdataset's, on one core.

    python3 -m venv PEERS      # with torch, torchvision, tokenizers and pandas, and
    PEERS/bin/pip install open_clip_torch==3.3.0 webdataset==0.2.86 mosaicml-streaming==0.13.0
    python tests/bench/bench_peers.py IMAGES CAPTIONS.csv --peers PEERS/bin/python [--rounds 5]

The same pictures and captions in each one's own format, as they are, a sample a caption; ours is
what `shards build` makes of them. Each peer runs as its users run it: open_clip's `get_wds_dataset`
with its `image_transform` and tokenizer, Streaming's MDS of `jpeg` and `str` with torchvision's v2
and a fast tokenizer, webdataset with torchvision.io, v2 and the same tokenizer. 224 pixels, batches
of 48, shuffled, no loader process. open_clip crops nine tenths and more, the others a fifth and
more; ours alone changes brightness and sharpness and carries boxes. Processes take turns; medians
of samples a CPU second.
"""

import argparse
import csv
import io
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

ROOT = Path(__file__).resolve().parents[2]
BATCH, SAMPLES = 48, 960
MEAN = STD = (0.5, 0.5, 0.5)


def main() -> None:
    """Print the table."""
    sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]
    from bench_pictures import Child, run, write_boxes

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("images", type=Path)
    parser.add_argument("captions", type=Path)
    parser.add_argument("--peers", default=sys.executable, help="their Python")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        boxes = write_boxes(args.images, root / "boxes.jsonl", 1)
        raw = ["--images", str(args.images), "--captions", str(args.captions)]
        run(ROOT, "build", "captions", *raw, "--out", str(root / "ours"), "--mismatch", "0")
        run(ROOT, "detect", str(root / "ours"), "--detector", "file", "--boxes", str(boxes))
        given = [str(args.images.resolve()), str(args.captions.resolve())]
        for kind in ("tars", "mds"):
            command = [args.peers, __file__, "--write", kind, *given, str(root / kind)]
            subprocess.run(command, check=True)
        asked = {
            "ours, a decoding a sample": Child(ROOT, "load", root / "ours", 1),
            "ours, a decoding for five steps": Child(ROOT, "load", root / "ours", 5),
        }
        for name, kind in (("open_clip", "tars"), ("streaming", "mds"), ("webdataset", "tars")):
            asked[name] = Child(root, name, root / kind, python=args.peers, file=__file__)
        speeds: dict[str, list[float]] = {name: [] for name in asked}
        for _ in range(args.rounds):
            for name, child in asked.items():
                speeds[name].append(child.ask())
    print("| loader, one core | samples/s | ours is x | ours, five steps, is x |")
    print("|---|---|---|---|")
    first, five = list(speeds.values())[:2]
    for name, values in speeds.items():
        ratios = [
            statistics.median(mine / other for mine, other in zip(ours, values, strict=True))
            for ours in (first, five)
        ]
        print(f"| {name} | {statistics.median(values):,.0f} | {ratios[0]:.2f} | {ratios[1]:.2f} |")


# ------------------------------------------------------------------ with the peers' Python


def write(kind: str, images: str, captions: str, out: str) -> None:
    """One sample a caption: tars of 500, or MDS."""
    with open(captions, newline="") as file:
        rows = [(row[0], row[1]) for row in csv.reader(file)][1:]
    pictures = {name: (Path(images) / name).read_bytes() for name, _ in rows}
    if kind == "mds":
        from PIL import Image
        from streaming import MDSWriter

        with MDSWriter(out=out, columns={"image": "jpeg", "caption": "str"}) as writer:
            for name, caption in rows:
                picture = Image.open(io.BytesIO(pictures[name]))  # whose bytes are kept
                writer.write({"image": picture, "caption": caption})
        return
    Path(out).mkdir()
    for start in range(0, len(rows), 500):
        with tarfile.open(f"{out}/{start // 500:04}.tar", "w") as tar:
            for number, (name, caption) in enumerate(rows[start : start + 500], start):
                for ending, content in (("jpg", pictures[name]), ("txt", caption.encode())):
                    member = tarfile.TarInfo(f"{number:06}.{ending}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))


def open_clip(place: str) -> Iterator[int]:
    """Sizes of batches, by open_clip's own loader."""
    import open_clip as package
    from open_clip_train.data import get_wds_dataset

    tars = sorted(Path(place).glob("*.tar"))
    args = SimpleNamespace(
        train_data=f"{place}/{{0000..{len(tars) - 1:04}}}.tar", train_num_samples=500 * len(tars),
        train_data_upsampling_factors=None, dataset_resampled=False, seed=0, world_size=1,
        workers=0, batch_size=BATCH,
    )  # fmt: skip
    transform = package.image_transform(224, is_train=True, mean=MEAN, std=STD)
    tokenizer = package.get_tokenizer("ViT-B-32")
    while True:
        info = get_wds_dataset(args, transform, is_train=True, tokenizer=tokenizer)
        for images, _ in info.dataloader:
            yield len(images)


def view_and_tokens():
    """v2's transforms on uint8, and a fast tokenizer with BERT's rules."""
    import torch
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
    from torchvision.transforms import v2

    transform = v2.Compose([
        v2.ToImage(),
        v2.RandomResizedCrop(224, (0.2, 1.0), interpolation=v2.InterpolationMode.BICUBIC),
        v2.RandomHorizontalFlip(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD),
    ])  # fmt: skip
    letters = "abcdefghijklmnopqrstuvwxyz0123456789.,'-"
    words = ["[UNK]", "[PAD]", *letters, *(f"##{letter}" for letter in letters)]
    vocabulary = {word: number for number, word in enumerate(words)}
    fast = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    fast.normalizer, fast.pre_tokenizer = (
        normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    )  # fmt: skip
    fast.enable_truncation(80)
    fast.enable_padding(length=80, pad_id=1, pad_token="[PAD]")
    return transform, lambda caption: torch.tensor(fast.encode(caption).ids)


def streaming(place: str) -> Iterator[int]:
    """Sizes of batches, by a StreamingDataset."""
    import torch
    from streaming import StreamingDataset

    transform, tokens = view_and_tokens()

    class Pairs(StreamingDataset):
        def __getitem__(self, at):
            row = super().__getitem__(at)
            return transform(row["image"].convert("RGB")), tokens(row["caption"])

    pairs = Pairs(local=place, shuffle=True, batch_size=BATCH)
    loader = torch.utils.data.DataLoader(pairs, batch_size=BATCH, num_workers=0)
    while True:
        for images, _ in loader:
            yield len(images)


def webdataset(place: str) -> Iterator[int]:
    """Sizes of batches, by webdataset with torchvision's decoder."""
    import torch
    import webdataset as package
    from torchvision.io import ImageReadMode, decode_jpeg

    transform, tokens = view_and_tokens()

    def view(content: bytes) -> torch.Tensor:
        pixels = torch.frombuffer(bytearray(content), dtype=torch.uint8)
        return transform(decode_jpeg(pixels, ImageReadMode.RGB))

    tars = [str(path) for path in sorted(Path(place).glob("*.tar"))]
    pipeline = (
        package.WebDataset(tars, shardshuffle=len(tars)).shuffle(1000).to_tuple("jpg", "txt")
        .map_tuple(view, lambda caption: tokens(caption.decode())).batched(BATCH)
    )  # fmt: skip
    while True:
        for images, _ in pipeline:
            yield len(images)


def child(kind: str, place: str) -> None:
    """Answer each line of standard input with samples a CPU second."""
    import torch

    torch.set_num_threads(1)
    sizes = {"open_clip": open_clip, "streaming": streaming, "webdataset": webdataset}[kind](place)
    next(sizes)
    for _ in sys.stdin:
        since, done = time.process_time(), 0
        while done < SAMPLES:
            done += next(sizes)
        print(done / (time.process_time() - since), flush=True)


if __name__ == "__main__":
    given = {"--write": write, "--child": child}.get(sys.argv[1] if sys.argv[1:] else "")
    given(*sys.argv[2:]) if given else main()
