"""What the commands of a few end-to-end tests read: tiny data, a model, a finished run, pictures,
shards; and the words of those commands.
"""

import ast
import json
import shutil
from pathlib import Path

import numpy as np
from faults import Server
from PIL import Image
from tiny_mnre import write_mnre

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


# ---- commands ----------------------------------------------------------------------------------


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


# ---- the world ---------------------------------------------------------------------------------


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
