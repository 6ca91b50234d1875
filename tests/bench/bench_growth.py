"""What starting costs as a corpus grows: index, columns, order; another checkout beside this.

    python tests/bench/bench_growth.py [--old CHECKOUT] [--pairs 1e6 1e7 1e8] [--rounds 3]

The directory is described, not written: `index.json` and both `column.json` for shards of 2,048
pairs of 512 pictures, whose tars nobody opens. Each figure is a process of its own, in turn: CPU
seconds and memory from opening the directory to the addresses of a first batch (rank 0 of 8, 128
pairs, a third of an epoch in), then microseconds a batch, and what a loader process is handed.
"""

import argparse
import hashlib
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAIRS, PICTURES = 2048, 512  # of a shard
BATCHES = 200


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--old", type=Path, help="a checkout to compare with")
    parser.add_argument("--pairs", type=float, nargs="*", default=[1e6, 1e7, 1e8])
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    print("| pairs | build | start, CPU s | MiB | a batch, µs | handed to a worker, MiB |")
    print("|---|---|---|---|---|---|")
    for pairs in map(int, args.pairs):
        with tempfile.TemporaryDirectory() as folder:
            describe(Path(folder), -(-pairs // PAIRS))
            builds = {"old": args.old, "new": ROOT} if args.old else {"new": ROOT}
            figures: dict[str, list[list[float]]] = {name: [] for name in builds}
            for _ in range(args.rounds):
                for name, checkout in builds.items():
                    command = [sys.executable, __file__, "--child", folder]
                    env = os.environ | {"PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1"}
                    done = subprocess.run(command, env=env, cwd=checkout, check=True,
                                          stdout=subprocess.PIPE)  # fmt: skip
                    figures[name].append(json.loads(done.stdout))
            for name, rows in figures.items():
                start, memory, batch, handed = map(statistics.median, zip(*rows, strict=True))
                print(f"| {pairs:,} | {name} | {start:.2f} | {memory:,.0f} | {batch:.0f} | "
                      f"{handed:.1f} |")  # fmt: skip


def describe(folder: Path, shards: int) -> None:
    """The index and columns of so many shards."""
    from shards.index import ColumnIndex, ColumnShard, ShardIndex, ShardInfo

    def sha256(text: str) -> str:
        return hashlib.sha256(text.encode()).hexdigest()

    infos = [
        ShardInfo(f"train-{number:06d}.tar", PAIRS, PAIRS // 2, 10**7, sha256(f"tar {number}"),
                  PICTURES, sha256(f"rows {number}"))
        for number in range(shards)
    ]  # fmt: skip
    index = ShardIndex("train", tuple(infos), rows=shards * PAIRS, rejects=0, checksums=True)
    (folder / "index.json").write_text(json.dumps(index.to_dict()))
    for column in ("objects", "teacher"):
        parts = {info.stem: ColumnShard(PICTURES, sha256(f"{column} {info.name}"), info.sha256)
                 for info in infos}  # fmt: skip
        (folder / column).mkdir()
        described = ColumnIndex(column, True, parts, {}).to_dict()
        (folder / column / "column.json").write_text(json.dumps(described))


def child(folder: str) -> list[float]:
    """Start's CPU seconds and MiB, µs a batch, MiB handed to a worker, with this PYTHONPATH."""
    import pickle

    from shards.stream import CanonicalOrder, RankBatches, ShardReader

    def peak() -> float:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

    imported, since = peak(), time.process_time()
    reader = ShardReader(folder, columns=["objects", "teacher"])
    order = CanonicalOrder([shard.samples for shard in reader.index.shards], seed=0)
    third = 1024 * (len(order) // 3072)
    batches = iter(RankBatches(order, rank=0, world=8, micro_batch_size=128, start=third))
    next(batches)
    start, memory = time.process_time() - since, peak() - imported
    since = time.process_time()
    for _ in range(BATCHES):
        next(batches)
    batch = 1e6 * (time.process_time() - since) / BATCHES
    return [start, memory, batch, len(pickle.dumps(reader)) / 2**20]


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        print(json.dumps(child(sys.argv[2])))
    else:
        sys.path.insert(0, str(ROOT))
        main()
