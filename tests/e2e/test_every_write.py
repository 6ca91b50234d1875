"""Killed at every write, rename and unlink, and on a disk that is full or fails there: the same
command then ends with the same bytes, and nothing is left over.
"""

import ast
import json
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from faults import KILLED, MODES, Server
from PIL import Image
from tiny_mnre import write_mnre

SHOWN = re.compile(r"^error: [^\n]+$", re.MULTILINE)
TIMES = re.compile(
    rb'("(?:seconds|samples_per_second|data_wait_percent|teraflops|memory_gib|mfu_percent)": )'
    rb"[-+.e0-9]+|\"_crc32\": \"\w+\"|\d+(?:\.\d+)? (?:s|seconds|samples/s)\b"
)
"""What no two runs share."""
STUDY = """
settings: {task: mnre, optim.epochs: 1}
runs:
  both: {method: promu, init: $model}
tables:
  Pictures:
    none: {}
    fewer: {tool: image-drop, keep: 0.5, scope: test}
    none at all: {tool: image-drop, keep: 0}
"""
LEFTOVER = re.compile(r"(^|/)\.[^/]+\.tmp(/|$)")
LOGS = ("tensorboard", "log.txt")
"""What tells of the interruption itself."""


@dataclass(frozen=True)
class Scenario:
    """A command that writes below one folder."""

    argv: Callable[[Path, Path], str]
    """(world, root) -> its words."""
    prepare: Callable[[Path, Path], object] = lambda world, root: None
    """What lies below `root` before."""


def train(world: Path, root: Path) -> str:
    return (
        f"train --task mnre --method promu --data {world}/mnre --init {world}/model "
        f"--out {root}/run --optim.epochs 2 --optim.global_batch_size 8"
    )


def study(world: Path, root: Path) -> str:
    places = f"--data {world}/mnre --model {world}/model --out {root}/s"
    return f"study {world}/study.yaml {places} --seeds 1"


def pretrain(world: Path, root: Path) -> str:
    return (
        f"pretrain --config tiny --run_dir {root}/run --data.train {world}/shards "
        "--model.vocab_size 60 --model.hidden_size 16 --model.num_attention_heads 2 "
        "--model.intermediate_size 16 --model.text_layers 1 --model.fusion_layers 1 "
        "--model.vision_hidden_size 16 --model.vision_layers 1 --model.vision_heads 2 "
        "--model.image_size 16 --model.projection_size 8 --loss.coe 0 --loss.cir 0 "
        "--batch.global_size 4 --optim.steps 3 --checkpoint.every 1 --checkpoint.keep 1 "
        "--log.every 1"
    )


def posts(world: Path, root: Path) -> str:
    return f"predict {world}/run --input {world}/posts.jsonl --out {root}/answers.jsonl"


SCENARIOS = {
    "train": Scenario(train),
    "study": Scenario(study),
    "convert": Scenario(lambda world, root: f"pretrain convert {world}/model {root}/out"),
    "convert over": Scenario(
        lambda world, root: f"pretrain convert {world}/model {root}/out",
        lambda world, root: shutil.copytree(world / "model", root / "out"),
    ),
    "predict": Scenario(posts),
    "view": Scenario(
        lambda world, root: f"view fraction --data {world}/mnre --out {root}/v --ratio 0.5"
    ),
    "regions": Scenario(
        lambda world, root: f"regions recover --data {world}/crops --out {root}/r --split val"
    ),
    "report": Scenario(
        lambda world, root: f"report {world}/run --out {root}/report.md --summary {root}/s.json"
    ),
    "shards": Scenario(
        lambda world, root: (
            f"shards build captions --images {world}/pictures "
            f"--captions {world}/pictures/captions.csv --out {root}/shards --shard-size 3 --jobs 1"
        )
    ),
    "detect": Scenario(
        lambda world, root: (
            f"shards detect {root}/shards --detector file --boxes {world}/boxes.jsonl"
        ),
        lambda world, root: shutil.copytree(
            world / "shards", root / "shards", ignore=shutil.ignore_patterns("objects")
        ),
    ),
    "pretrain": Scenario(pretrain),
}


# ---- the world ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Server:
    """A process that has imported everything."""
    warm = Server(tmp_path_factory.mktemp("server"))
    yield warm
    warm.close()


@pytest.fixture(scope="module")
def world(tmp_path_factory, server) -> Path:
    """What the commands read: tiny data, a model, a finished run, pictures, shards."""
    world = tmp_path_factory.mktemp("world")
    make_world(world, server)
    return world


def make_world(world: Path, server: Server) -> None:
    """Everything below `world`."""
    write_mnre(world / "mnre", {"train": 16, "val": 8, "test": 8})
    (world / "study.yaml").write_text(STUDY)
    random, lines, boxes = np.random.default_rng(0), ["image,caption"], []
    (world / "pictures").mkdir()
    for number in range(6):
        coarse = random.integers(0, 255, (6, 8, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((64, 48)).save(world / f"pictures/{number}.jpg")
        lines.append(f"{number}.jpg,a dog number {number} sees the cat")
        item = {"box": [number, 5, 40 + number, 40], "score": 0.9, "label": "dog"}
        boxes.append({"image_id": f"{number}.jpg", "objects": [item]})
    (world / "pictures/captions.csv").write_text("\n".join(lines))
    (world / "boxes.jsonl").write_text("\n".join(map(json.dumps, boxes)))
    rows = (world / "mnre/txt/ours_test.txt").read_text().splitlines()
    with (world / "posts.jsonl").open("w") as file:
        for row in map(ast.literal_eval, rows):
            text = " ".join(row["token"])
            post = {"text": text, "head": row["h"]["name"], "tail": row["t"]["name"]}
            post["image"] = f"mnre/img_org/test/{row['img_id']}"
            file.write(json.dumps(post) + "\n")
    crops = world / "crops/img_vg/val/crops"
    crops.mkdir(parents=True)
    shutil.copytree(world / "mnre/img_org", world / "crops/img_org")
    (world / "crops/txt").mkdir()
    shutil.copy(world / "mnre/ours_rel2id.json", world / "crops")
    rows = (world / "mnre/txt/ours_val.txt").read_text().splitlines(keepends=True)
    (world / "crops/txt/ours_val.txt").write_text("".join(rows[:3]))
    for row in range(3):
        noise = Image.fromarray(random.integers(0, 255, (64, 64, 3), dtype=np.uint8))
        noise.save(world / f"crops/img_org/val/val{row}.jpg", quality=95)
        with Image.open(world / f"crops/img_org/val/val{row}.jpg") as picture:
            picture.crop((8, 8, 40, 40)).save(crops / f"{row}_pred_yolo_crop_0.png")
    for argv in (
        f"shards build captions --images {world}/pictures --captions {world}/pictures/captions.csv "
        f"--out {world}/shards --shard-size 2 --jobs 1",
        f"shards detect {world}/shards --detector file --boxes {world}/boxes.jsonl",
        pretrain(world, world).replace(f"{world}/run", f"{world}/pretraining"),
        f"train --task mnre --method promu --data {world}/mnre --init {world}/pretraining/model "
        f"--out {world}/run --optim.epochs 1",
    ):
        status, output = server.run(argv.split(), world)
        assert status == 0, output
    shutil.copytree(world / "pretraining/model", world / "model")


# ---- one point after the other -----------------------------------------------------------------


def snapshot(root: Path) -> dict[str, bytes]:
    """Path -> content without times."""
    return {
        str(path.relative_to(root)): TIMES.sub(b"TIME", path.read_bytes())
        for path in sorted(root.rglob("*"))
        if path.is_file() and not set(path.relative_to(root).parts) & set(LOGS)
    }


def differences(expected: dict[str, bytes], found: dict[str, bytes]) -> list[str]:
    """What is lost, left over, or another."""
    lost = [f"lost {name}" for name in expected if name not in found]
    over = [f"left over {name}" for name in found if name not in expected]
    other = [f"differs {n}" for n in expected if n in found and found[n] != expected[n]]
    return lost + over + other


class Trial:
    """A scenario in a folder of its own, and what an undisturbed run of it leaves."""

    def __init__(self, scenario: Scenario, world: Path, root: Path, server: Server) -> None:
        self.scenario, self.world, self.root, self.server = scenario, world, root, server
        self.argv = scenario.argv(world, root).split()
        self.clear()
        status, output = server.run(self.argv, root)
        assert status == 0, output
        self.operations, self.expected = server.operations(), snapshot(root)

    def clear(self) -> None:
        """As before the first run."""
        shutil.rmtree(self.root, ignore_errors=True)
        self.root.mkdir()
        self.scenario.prepare(self.world, self.root)

    def attempt(self, point: int, mode: str) -> list[str]:
        """What is wrong after a fault at one operation and the same command again."""
        self.clear()
        status, output = self.server.run(self.argv, self.root, point, mode)
        problems = []
        if mode == "kill" and status != KILLED:
            problems.append(f"not killed ({status})")
        if mode != "kill" and status == 0:
            # What could not be removed may wait for the next start.
            kept = {n: c for n, c in snapshot(self.root).items() if not LEFTOVER.search(n)}
            problems += differences(self.expected, kept)
        elif mode != "kill" and (len(SHOWN.findall(output)) != 1 or "Traceback" in output):
            problems.append(f"status {status}: {output.strip()[-600:]}")
        status, output = self.server.run(self.argv, self.root)
        if status:
            return [*problems, f"again: status {status}: {output.strip()[-600:]}"]
        return problems + differences(self.expected, snapshot(self.root))


def survey(trial: Trial, points: list[int], modes: tuple[str, ...]) -> dict[str, list[str]]:
    """`mode at operation` -> what was wrong; empty where nothing was."""
    return {
        f"{mode} at {point} ({trial.operations[point - 1]})": trial.attempt(point, mode)
        for point in points
        for mode in modes
    }


@pytest.mark.slow
@pytest.mark.parametrize("name", SCENARIOS)
def test_every_operation(name, world, server, tmp_path):
    trial = Trial(SCENARIOS[name], world, tmp_path / "root", server)
    found = survey(trial, list(range(1, len(trial.operations) + 1)), MODES)
    wrong = {place: problems for place, problems in found.items() if problems}
    print(f"{name}: {len(found)} points, {len(found) - len(wrong)} passed")
    assert not wrong, "\n".join(f"{place}: {problems}" for place, problems in wrong.items())


@pytest.mark.parametrize("name", ["convert over", "shards", "detect", "view", "regions", "report"])
def test_some_operations(name, world, server, tmp_path):
    """One operation of each kind, in turns killed at and failing."""
    trial = Trial(SCENARIOS[name], world, tmp_path / "root", server)
    kinds = {operation.split()[0]: n for n, operation in enumerate(trial.operations, start=1)}
    for number, point in enumerate(kinds.values()):
        assert not trial.attempt(point, MODES[number % len(MODES)]), trial.operations[point - 1]
