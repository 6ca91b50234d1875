"""Prediction on one thread: single posts, pairs of one post, bulk, damaged rows; CPU seconds.

    python tests/bench/bench_predict.py [--old ../old] [--base] [--times 5] [--posts 640]

PROMUs with random weights (their answers mean nothing) read posts with photos of 500 x 375, 1.65
posts a photo as in MNRE. Beside them, in turn: another checkout (`--old`), and the same weights in
a `transformers.Pipeline` that Pillow, tokenizer and image processor feed; both of today's in bf16,
too. Medians; the largest difference of a probability to `new`; resident memory before and after
the bulk; whether every damaged row, and no other, is answered by an error. `--base`: 12 pairs of
one post at the size of BERT-base and ViT-B/16.
"""

import argparse
import json
import logging
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

HERE = Path(__file__).resolve()
NAMES = ("Ann", "Bob", "Cid", "Dora", "Eve")
DAMAGES = ("syntax", "span", "absent", "truncated", "key")
ONE = "one post, ms"
BULK = "bulk, posts a second"
PAIRS = "12 pairs of one post, s"


def make_run(folder: Path, base: bool) -> Path:
    """A run directory of one seed; of `base` size, or 128 wide with pictures of 64 pixels."""
    import torch

    from finetune.methods.base import Source
    from finetune.methods.promu import Promu, PromuConfig
    from finetune.run.checkpoint import save_method
    from finetune.tasks.base import TaskInfo
    from finetune.tasks.mnre import MARKERS
    from pretrain.checkpoint.hub import save_model_directory
    from pretrain.data.tokenizer import learn_tokenizer
    from pretrain.model.config import FusionEncoderConfig
    from pretrain.model.fusion_encoder import FusionEncoder

    torch.manual_seed(0)
    words = "RT @x : " + " and ".join(NAMES) + " tonight on the beach with friends [ ] / E1 E2"
    tokenizer = learn_tokenizer([words] * 3, 200)
    sizes: dict[str, Any] = {"vocab_size": len(tokenizer)}
    if not base:
        sizes |= {
            "hidden_size": 128, "num_attention_heads": 4, "intermediate_size": 512,
            "text_layers": 2, "fusion_layers": 2, "image_size": 64, "patch_size": 8,
            "vision_hidden_size": 128, "vision_layers": 3, "vision_heads": 4,
            "projection_size": 128,
        }  # fmt: skip
    encoder = FusionEncoder(FusionEncoderConfig(**sizes))
    save_model_directory(
        folder / "model", config=encoder.config.to_dict(), state=encoder.state_dict(),
        tokenizer=tokenizer, card="# tiny\n",
    )  # fmt: skip
    task = TaskInfo("mnre", "relation", ("None", "a", "b"), MARKERS)
    method, tokenizer = Promu.build(PromuConfig(), task, Source(str(folder / "model")))
    save_method(
        folder / "run/seed-1/model", method, tokenizer, name="promu", config=PromuConfig(),
        task=task, inputs={"images": "required", "max_length": 80}, card="# tiny\n",
    )  # fmt: skip
    (folder / "run/seed-1/result.json").write_text('{"dev": {"f1": 0}}')
    return folder / "run"


def make_posts(folder: Path, number: int, damaged: float = 0.01) -> None:
    """`posts.jsonl`; `bad.json`: the rows that cannot be read."""
    import numpy as np
    from PIL import Image

    generator = np.random.default_rng(0)
    pictures = round(number / 1.65)
    (folder / "pictures").mkdir()
    for i in range(pictures):
        small = generator.integers(0, 256, (15, 20, 3), dtype=np.uint8)
        picture = Image.fromarray(small).resize((500, 375), Image.Resampling.BICUBIC)
        picture.save(folder / f"pictures/{i}.jpg", quality=90)
    whole = (folder / "pictures/0.jpg").read_bytes()
    (folder / "pictures/cut.jpg").write_bytes(whole[: len(whole) // 2])
    bad = set(generator.permutation(np.arange(5, number))[: round(damaged * number)].tolist())
    lines = []
    for row in range(number):
        generator = np.random.default_rng(row * pictures // number)  # posts of a photo are alike
        head, tail = generator.permutation(NAMES)[:2].tolist()
        length = int(generator.integers(1, 12))
        text = f"RT @x : {head} and {tail}" + " on the beach" * length
        if row % 2:
            head, tail = tail, head
        post = {"text": text, "head": head, "tail": tail}
        post["image"] = f"pictures/{row * pictures // number}.jpg"
        kind = DAMAGES[row % len(DAMAGES)]
        if row in bad:
            post |= {
                "span": {"head": [3, 999]},
                "absent": {"image": "pictures/no.jpg"},
                "truncated": {"image": "pictures/cut.jpg"},
                "key": {"colour": 1},
            }.get(kind, {})
        line = json.dumps(post)
        lines.append(line[:-5] if row in bad and kind == "syntax" else line)
    (folder / "posts.jsonl").write_text("\n".join(lines) + "\n")
    (folder / "bad.json").write_text(json.dumps(sorted(bad)))


# ------------------------------------------------------------------ one build, in a process


def measure(folder: Path, who: str) -> dict[str, Any]:
    """What a child prints: figures, and probabilities of the first 64 posts' first labels."""
    import torch

    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    posts = [json.loads(line) for line in (folder / "clean.jsonl").read_text().splitlines()]
    for post in posts:
        post["image"] = str(folder / post["image"])
    result: dict[str, Any] = {}
    build, _, precision = who.partition(" ")
    if build == "plain":
        one, bulk = plain(folder / "tiny/run/seed-1/model", precision)
    else:
        one, bulk = product(folder, result, precision or "fp32")
    for post in posts[:5]:
        one(post)
    started = time.process_time()
    answers = [one(post) for post in posts[5:69]]
    result[ONE] = (time.process_time() - started) / 64 * 1e3
    bulk(posts[:8])
    memory, started = resident(), time.process_time()
    in_bulk = bulk(posts)
    result[BULK] = len(posts) / (time.process_time() - started)
    result["resident before and after, MiB"] = [round(memory), round(resident())]
    result["probabilities"] = [
        sorted((top["relation"], top["probability"]) for top in answer["top"])
        for answer in answers + in_bulk
    ]
    return result


def product(folder: Path, result: dict[str, Any], precision: str) -> tuple[Any, Any]:
    """The checkout that PYTHONPATH names."""
    try:
        from finetune.predict.extractor import Extractor
        from finetune.tasks.posts import parse_post
    except ImportError:  # before its files were sorted into folders
        from finetune.extractor import Extractor
        from finetune.posts import parse_post

    extract = Extractor.from_pretrained(folder / "tiny/run", precision=precision)

    def one(post: dict[str, Any]) -> dict[str, Any]:
        return extract(post["text"], **{k: post[k] for k in ("head", "tail", "image")})

    def bulk(posts: list[dict[str, Any]]) -> list[dict[str, Any]]:
        read = (parse_post(post, Path(), extract.task) for post in posts)
        return list(extract.stream(read))

    bad = []
    for row, line in enumerate((folder / "posts.jsonl").read_text().splitlines()):
        try:
            answers = extract.stream([parse_post(json.loads(line), folder, extract.task)])
            bad += [row] if "error" in next(answers) else []
        except ValueError:  # also InputError
            bad.append(row)
    result["damaged rows told apart"] = bad == json.loads((folder / "bad.json").read_text())
    post = {
        "text": "Ann and Bob on the beach with Cid and Dora",
        "image": f"{folder}/pictures/1.jpg",
    }
    for size in ("tiny", "base"):
        if (folder / size).is_dir():
            relations = Extractor.from_pretrained(folder / size / "run", precision=precision).run
            pairs = Extractor(relations, FourNames((0,)))
            try:
                pairs(**post)
            except ValueError:  # before posts were marked as cut
                pairs = Extractor(relations, FourNames(()))
                pairs(**post)
            times = []
            for _ in range(5 if size == "tiny" else 1):
                started = time.process_time()
                answer = pairs(**post)
                times.append(time.process_time() - started)
            result[f"{PAIRS}, {size}"] = statistics.median(times)
            result[f"{size} pairs"] = [pair["probability"] for pair in answer["relations"]]
    return one, bulk


class FourNames:
    """In the place of a run that finds entities: every name is one."""

    info = SimpleNamespace(name="mnre", kind="entities")

    def __init__(self, unread: tuple[int, ...]) -> None:
        self.unread = unread

    def answers(self, questions: list[Any]) -> list[Any]:
        """Tags, scores, and how many words are unread."""
        tags = [["B-PER" if w in NAMES else "O" for w in post.tokens] for post, _, _ in questions]
        return [(row, [1.0] * row.count("B-PER"), *self.unread) for row in tags]

    def say_cut(self) -> None:
        """It reads no captions."""


def plain(directory: Path, precision: str) -> tuple[Any, Any]:
    """The same weights in a pipeline of `transformers`."""
    import torch
    from PIL import Image
    from torch import nn
    from transformers import (
        AutoImageProcessor,
        AutoTokenizer,
        Pipeline,
        PretrainedConfig,
        PreTrainedModel,
    )

    import pretrain  # noqa: F401  # tells `transformers` of the directory's type
    from finetune.run.checkpoint import load_method

    method, *_ = load_method(directory)
    tokenizer = AutoTokenizer.from_pretrained(directory)
    markers = tokenizer.convert_tokens_to_ids(["[E1]", "[E2]"])

    class Model(PreTrainedModel):
        config_class = PretrainedConfig

        def __init__(self) -> None:
            super().__init__(PretrainedConfig())
            self.encoder: nn.Module = method.encoder
            self.classifier: nn.Module = method.head.classifier

        def forward(self, input_ids, attention_mask, pixel_values):
            seen = self.encoder(pixel_values, input_ids, attention_mask, normalized=True)
            rows = torch.arange(len(input_ids))
            states = [
                seen.fused_embeds[rows, (input_ids == marker).int().argmax(1)] for marker in markers
            ]
            return self.classifier(torch.cat(states, dim=-1))

    class Relations(Pipeline):
        def _sanitize_parameters(self, **options):
            return {}, {}, {}

        def preprocess(self, post):
            text = post["text"].replace(post["head"], f"[E1] {post['head']} [/E1]")
            text = text.replace(post["tail"], f"[E2] {post['tail']} [/E2]")
            picture = Image.open(post["image"]).convert("RGB")
            pixels = self.image_processor(picture, return_tensors="pt")
            return {**self.tokenizer(text, return_tensors="pt"), **pixels}

        def _forward(self, inputs):
            inputs.pop("token_type_ids", None)
            with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
                return {"logits": self.model(**inputs).float()}

        def postprocess(self, outputs):
            shares = outputs["logits"][0].softmax(-1).tolist()
            pairs = zip(("None", "a", "b"), shares, strict=True)
            return {"top": [{"relation": name, "probability": share} for name, share in pairs]}

    pipe = Relations(
        Model().eval(), tokenizer=tokenizer, device="cpu",
        image_processor=AutoImageProcessor.from_pretrained(directory),
    )  # fmt: skip
    return pipe, lambda posts: pipe(posts, batch_size=64)


def resident() -> float:
    """MiB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 2**20


# ------------------------------------------------------------------ all of them, in turn


def child(folder: Path, who: str, checkout: Path) -> dict[str, Any]:
    """`measure` in a process of its own."""
    environment = os.environ | {"PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(HERE), "--child", who, "--folder", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=checkout)
    if done.returncode:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def furthest(first: dict[str, Any], second: dict[str, Any], name: str) -> float:
    """The largest difference between two nested lists of numbers."""

    def flat(values: Any) -> list[float]:
        if isinstance(values, list):
            return [number for value in values for number in flat(value)]
        return [values] if isinstance(values, float) else []

    pairs = zip(flat(first[name]), flat(second[name]), strict=True)
    return max(abs(a - b) for a, b in pairs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--old", type=Path, help="another checkout")
    parser.add_argument("--base", action="store_true", help="also 12 pairs at base size")
    parser.add_argument("--times", type=int, default=5)
    parser.add_argument("--posts", type=int, default=640)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        print(json.dumps(measure(args.folder, args.child)))
        return
    new = HERE.parents[2]
    sys.path.insert(0, str(new))
    builds = {"new": new, "plain": new} | ({"old": args.old.resolve()} if args.old else {})
    builds |= {"new bf16": new, "plain bf16": new}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_posts(folder, args.posts)
        bad = set(json.loads((folder / "bad.json").read_text()))
        lines = (folder / "posts.jsonl").read_text().splitlines()
        clean = [line for row, line in enumerate(lines) if row not in bad]
        (folder / "clean.jsonl").write_text("\n".join(clean) + "\n")
        for size in ["tiny", *(["base"] if args.base else [])]:
            make_run(folder / size, size == "base")
        results: dict[str, list[dict[str, Any]]] = {who: [] for who in builds}
        for _ in range(args.times):
            for who, checkout in builds.items():
                results[who].append(child(folder, who, checkout))
    figures = [ONE, BULK, *(key for key in results["new"][0] if key.startswith(PAIRS))]
    print(f"{f'median of {args.times}':40}" + "".join(f"{who:>12}" for who in builds))
    for figure in figures:
        cells = [[run[figure] for run in runs if figure in run] for runs in results.values()]
        row = "".join(f"{statistics.median(c):12.2f}" if c else f"{'-':>12}" for c in cells)
        print(f"{figure:40}{row}")
    last = {who: runs[-1] for who, runs in results.items()}
    for who in list(builds)[1:]:
        print(f"largest difference of a probability, new and {who}:",
              f"{furthest(last['new'], last[who], 'probabilities'):.1e}")  # fmt: skip
        for key in last[who].keys() & {"tiny pairs", "base pairs"}:
            print(f"  {key}: {furthest(last['new'], last[who], key):.1e}")
    print("damaged rows, and no others, told apart:", last["new"]["damaged rows told apart"])
    print("resident before and after the bulk, MiB:", last["new"]["resident before and after, MiB"])


if __name__ == "__main__":
    main()
