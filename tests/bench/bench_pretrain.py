"""A pre-training step, loader included, against the released path; weak scaling from 1 to 2 ranks.

    python tests/bench/bench_pretrain.py [--pairs 16] [--steps 4] [--size tiny|small|base]
    python tests/bench/bench_pretrain.py --scaling

The released path is re-created here as its specification describes it, sizes and device alike:
two whole trainable teachers that see the student's augmented pixels, every picture opened twice at
full resolution and carried through PIL once more inside the model, captions padded to 80, attention
in plain matrix products, an AdamW that loops over parameters, float32 throughout; ours computes in
bf16, its default (`--precision fp32` for the rest of the difference). Each side runs in a process
of its own, so that peaks of memory are its own. On a CPU, time is processor time of one thread,
which other programs hardly change; on a GPU it is wall time.
"""

import argparse
import importlib
import io
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageEnhance
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parents[2]
SIZES = {
    "tiny": {"hidden_size": 128, "num_attention_heads": 4, "intermediate_size": 512,
             "text_layers": 2, "fusion_layers": 2, "vision_hidden_size": 128, "vision_layers": 4,
             "vision_heads": 4, "projection_size": 64},
    "small": {"hidden_size": 256, "num_attention_heads": 4, "intermediate_size": 1024,
              "text_layers": 4, "fusion_layers": 4, "vision_hidden_size": 256, "vision_layers": 8,
              "vision_heads": 4},
    "base": {},
}  # fmt: skip
CLASSES, VOCABULARY, PICTURES = 1000, 30522, 64
WORDS = ["a", "man", "and", "the", "woman", "with", "dog", "on", "street", "red", "umbrella"]


def write_corpus(folder: Path) -> None:
    """Pictures of 640 x 480 with one box each, and captions of 10 to 24 words (news: 20 to 30
    word pieces), as shards and as loose files."""
    from shards.__main__ import main as shards_command
    from shards.corpora import captions
    from shards.write import build

    random, lines, boxes = np.random.default_rng(0), ["image,caption"], []
    for number in range(PICTURES):
        name = f"{number}.jpg"
        coarse = random.integers(0, 255, (24, 32, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((640, 480)).save(folder / name, quality=90)
        lines.append(f"{name},{' '.join(random.choice(WORDS, random.integers(10, 25)))} {number}")
        item = {"box": [100, 80, 400, 400], "score": 0.9, "label": "dog"}
        boxes.append({"image_id": name, "size": [640, 480], "objects": [item]})
    (folder / "captions.csv").write_text("\n".join(lines))
    (folder / "boxes.jsonl").write_text("\n".join(map(json.dumps, boxes)))
    build(captions(folder, folder / "captions.csv"), folder / "shards", shard_size=1)
    detector = ["--detector", "file", "--boxes", str(folder / "boxes.jsonl")]
    shards_command(["detect", str(folder / "shards"), *detector])


def measure(steps: int, one_step, device: torch.device) -> dict[str, float]:
    """Seconds a step after two of warm-up, and the peak of memory above what imports take."""
    cuda = device.type == "cuda"
    clock = time.perf_counter if cuda else time.process_time
    for step in range(steps + 2):
        if step == 2:
            if cuda:
                torch.cuda.synchronize()
            since = clock()
        one_step()
    if cuda:
        torch.cuda.synchronize()
    seconds = (clock() - since) / steps
    peak = torch.cuda.max_memory_allocated() if cuda else peak_rss() - BASELINE
    return {"seconds": seconds, "peak": peak}


def peak_rss() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def device_here() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


# ------------------------------------------------------------------ ours


def ours(
    folder: Path, size: str, pairs: int, steps: int, precision: str = "bf16"
) -> dict[str, float]:
    """This repository's loader, model and engine; teacher features come out of the column."""
    from pretrain.config import DataConfig
    from pretrain.data.pairs import PairDataset, open_reader, train_batches
    from pretrain.data.tokenizer import learn_tokenizer
    from pretrain.engine import SingleEngine
    from pretrain.model.config import FusionEncoderConfig
    from pretrain.model.fusion_encoder import FusionEncoder
    from pretrain.model.promu import HeadsConfig, Promu
    from pretrain.optim import adamw, linear_schedule, parameter_groups
    from pretrain.prompter.bank import PromptBank
    from shards.stream import CanonicalOrder, RankBatches

    reader = open_reader(str(folder / "shards"), teacher=False)
    tokenizer = learn_tokenizer((folder / "captions.csv").read_text().splitlines(), 500)
    config = FusionEncoderConfig(**{**SIZES[size], "vocab_size": VOCABULARY})
    data = DataConfig(train="", workers=0)
    sizes = {"image_size": config.image_size, "patch_size": config.patch_size}
    dataset = PairDataset(reader, tokenizer, data, **sizes, seed=0, augment=True)
    order = CanonicalOrder([shard.samples for shard in reader.index.shards], seed=0)
    batches = RankBatches(order, rank=0, world=1, micro_batch_size=pairs, accumulation=1, start=0)
    stream = train_batches(dataset, batches, workers=0, pin=False)
    model = Promu(FusionEncoder(config), HeadsConfig(num_entities=CLASSES, num_relations=CLASSES))

    def build(module):
        groups = parameter_groups(module.named_parameters(), lr=1e-4, weight_decay=1e-3)
        optimizer = adamw(groups, betas=(0.9, 0.98), eps=1e-6)
        return optimizer, linear_schedule(optimizer, 10, 1000)

    engine = SingleEngine(model, build, precision=precision, accumulation=1, clip=2.0)
    width, device = config.projection_size, engine.device
    unit = nn.functional.normalize(torch.randn(CLASSES, width, device=device), dim=-1)
    model.entity_bank = model.relation_bank = PromptBank(unit, 0.07)
    features = unit[:pairs].half().cpu()

    def one_step() -> None:
        batch = next(stream)
        batch.image_feat = batch.object_feat = features
        engine.backward(engine(batch.to(device))["loss"])
        engine.step()

    model.train()
    return measure(steps, one_step, engine.device)


# ------------------------------------------------------------------ the released path


GREY = (128, 128, 128)
CHANGES = (
    lambda image: ImageEnhance.Brightness(image).enhance(1.36),
    lambda image: ImageEnhance.Sharpness(image).enhance(1.36),
    lambda image: image.rotate(21, fillcolor=GREY),
    lambda image: image.transform(image.size, SHEAR, (1, 0.21, 0, 0, 1, 0), fillcolor=GREY),
)
SHEAR = Image.Transform.AFFINE


def released_sample(path: Path, box: tuple[int, int, int, int], random) -> tuple[np.ndarray, ...]:
    """Two full-size openings, each augmented by itself; float pixels, and the box erased."""
    views = []
    for _ in range(2):
        image = Image.open(io.BytesIO(path.read_bytes())).convert("RGB")
        w, h = image.size
        scale = np.sqrt(random.uniform(0.2, 1.0))
        left, top = random.uniform(0, w * (1 - scale)), random.uniform(0, h * (1 - scale))
        crop = (left, top, left + w * scale, top + h * scale)
        image = image.resize((256, 256), Image.Resampling.BICUBIC, box=crop)
        if random.random() < 0.5:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        for _ in range(2):
            if random.random() < 0.5:
                image = CHANGES[random.integers(len(CHANGES))](image)
        views.append(np.asarray(image, dtype=np.float32))
    x1, y1, x2, y2 = box
    context = views[0].copy()
    context[y1:y2, x1:x2] = 0
    return views[0], views[1], context


class ReleasedBlock(nn.Module):
    """ViT, a BERT cut in two, projections: the student, and each of the two teachers."""

    def __init__(self, size: dict) -> None:
        from transformers import BertConfig, BertModel, ViTConfig, ViTModel

        from pretrain.model.config import FusionEncoderConfig

        super().__init__()
        config = FusionEncoderConfig(**size)
        bert = BertConfig(
            vocab_size=VOCABULARY, hidden_size=config.hidden_size,
            num_hidden_layers=config.text_layers + config.fusion_layers,
            num_attention_heads=config.num_attention_heads,
            intermediate_size=config.intermediate_size, attn_implementation="eager",
        )  # fmt: skip
        vit = ViTConfig(
            hidden_size=config.vision_hidden_size, num_hidden_layers=config.vision_layers,
            num_attention_heads=config.vision_heads,
            intermediate_size=4 * config.vision_hidden_size, attn_implementation="eager",
        )  # fmt: skip
        self.cut, self.bert = config.text_layers, BertModel(bert, add_pooling_layer=False)
        self.vit = ViTModel(vit)
        self.vision_proj = nn.Linear(config.vision_hidden_size, config.projection_size)
        self.text_proj = nn.Linear(config.hidden_size, config.projection_size)
        self.itm = nn.Linear(config.hidden_size, 2)

    def image(self, pixels: Tensor) -> Tensor:
        """(B, 3, 256, 256) floats: back to the CPU, one by one through PIL, and up again."""
        processed = []
        for picture in pixels:
            array = (picture.permute(1, 2, 0) * 255).cpu().numpy().astype(np.uint8)
            resized = Image.fromarray(array).resize((224, 224), Image.Resampling.BILINEAR)
            scaled = (np.asarray(resized, dtype=np.float32) / 255 - 0.5) / 0.5
            processed.append(torch.from_numpy(scaled.transpose(2, 0, 1)))
        return self.vit(torch.stack(processed).to(pixels.device)).last_hidden_state

    def layers(self, states: Tensor, mask: Tensor, part: slice) -> Tensor:
        bias = (1.0 - mask[:, None, None, :].float()) * torch.finfo(torch.float32).min
        for layer in self.bert.encoder.layer[part]:
            states = layer(states, attention_mask=bias)
            states = states[0] if isinstance(states, tuple) else states
        return states

    def unit(self, projection: nn.Linear, states: Tensor) -> Tensor:
        return nn.functional.normalize(projection(states[:, 0]), dim=-1)


class Released(nn.Module):
    """Student and two teachers in one module, all of them in the optimizer."""

    def __init__(self, size: dict) -> None:
        super().__init__()
        self.student, self.of_image, self.of_object = (ReleasedBlock(size) for _ in range(3))
        width, e = self.student.itm.in_features, self.student.text_proj.out_features
        self.temp = nn.Parameter(torch.tensor(0.07))
        self.heads = nn.ModuleList(
            nn.Sequential(nn.Linear(width, 2 * width), nn.ReLU(), nn.Linear(2 * width, CLASSES))
            for _ in range(2)
        )
        for name in ("entities", "relations"):
            self.register_buffer(name, nn.functional.normalize(torch.randn(CLASSES, e), dim=-1))

    def forward(self, ids, mask, views, context, matched, weights) -> Tensor:
        student = self.student
        text = student.layers(student.bert.embeddings(ids), mask, slice(0, student.cut))
        vision = student.image(views)
        with torch.no_grad():
            labels = [
                (teacher.unit(teacher.vision_proj, teacher.image(context)) @ bank.T / self.temp)
                .softmax(-1)
                for teacher, bank in ((self.of_object, self.entities),
                                      (self.of_image, self.relations))
            ]  # fmt: skip
        image_feat = student.unit(student.vision_proj, vision)
        similarity = image_feat @ student.unit(student.text_proj, text).T / self.temp
        diagonal = similarity.log_softmax(1).diag() + similarity.log_softmax(0).diag()
        cit = -(diagonal * matched).mean() / 2
        joined = torch.cat([mask, mask.new_ones(vision.shape[:2])], dim=1)
        fused = student.layers(torch.cat([text, vision], 1), joined, slice(student.cut, None))
        itm = nn.functional.cross_entropy(student.itm(fused[:, 0]), matched.long())
        patches = fused[:, ids.shape[1] + 1 :]
        pooled = [(patches * weights[..., None]).sum(1) / weights.sum(1, keepdim=True),
                  patches.mean(1)]  # fmt: skip
        soft = [-(q * head(state).log_softmax(-1)).sum(-1).mean()
                for q, head, state in zip(labels, self.heads, pooled, strict=True)]  # fmt: skip
        return torch.stack([itm, cit, *soft])


class LoopAdamW:
    """AdamW as a loop over parameters; what has no gradient gets one of zeros."""

    def __init__(self, parameters) -> None:
        self.parameters = [p for p in parameters if p.requires_grad]
        self.state = [(torch.zeros_like(p), torch.zeros_like(p)) for p in self.parameters]
        self.steps = 0

    @torch.no_grad()
    def step(self) -> None:
        self.steps += 1
        for p in self.parameters:
            if p.grad is None:
                p.grad = torch.zeros_like(p)
        nn.utils.clip_grad_norm_(self.parameters, 2.0, foreach=False)
        rate = 1e-4 * np.sqrt(1 - 0.98**self.steps) / (1 - 0.9**self.steps)
        for p, (first, second) in zip(self.parameters, self.state, strict=True):
            first.mul_(0.9).add_(p.grad, alpha=0.1)
            second.mul_(0.98).addcmul_(p.grad, p.grad, value=0.02)
            p.addcdiv_(first, second.sqrt().add_(1e-6), value=-float(rate))
            p.grad = None


def released(folder: Path, size: str, pairs: int, steps: int) -> dict[str, float]:
    """The released path as published, its crashes repaired."""
    from pretrain.data.tokenizer import learn_tokenizer

    device, random = device_here(), np.random.default_rng(0)
    tokenizer = learn_tokenizer((folder / "captions.csv").read_text().splitlines(), 500)
    lines = (folder / "captions.csv").read_text().splitlines()[1:]
    texts = [line.partition(",")[2] for line in lines]
    model = Released(SIZES[size]).to(device).train()
    optimizer = LoopAdamW(model.parameters())
    weights = torch.zeros(14, 14)
    weights[3:9, 2:8] = 1

    def one_step() -> None:
        chosen = random.integers(PICTURES, size=pairs)
        samples = [released_sample(folder / f"{n}.jpg", (40, 40, 150, 150), random) for n in chosen]
        views, others, context = (
            torch.from_numpy(np.stack(part)).permute(0, 3, 1, 2).to(device) / 255
            for part in zip(*samples, strict=True)
        )
        tokens = tokenizer([texts[n] for n in chosen], padding="max_length", max_length=80,
                           truncation=True, return_tensors="pt").to(device)  # fmt: skip
        matched = (torch.arange(pairs, device=device) % 2 == 0).float()
        patch = weights.flatten().expand(pairs, -1).to(device)
        losses = model(
            tokens["input_ids"], tokens["attention_mask"], views, context, matched, patch
        )
        losses.sum().backward()
        optimizer.step()
        [loss.item() for loss in losses]  # logged every step
        del others  # made, sent, and looked at by nobody

    return measure(steps, one_step, device)


# ------------------------------------------------------------------ weak scaling


def rank_main(rank: int, world: int, port: int, size: str, pairs: int, steps: int, out: str):
    """`world` DeepSpeed ranks of `pairs` pairs each, one thread a rank, pictures made up."""
    os.environ |= {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world),
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "DS_ACCELERATOR": "cpu",
    }  # fmt: skip
    torch.set_num_threads(1)
    from pretrain import engine as engines
    from pretrain.data.batch import PretrainBatch
    from pretrain.model.config import FusionEncoderConfig
    from pretrain.model.fusion_encoder import FusionEncoder
    from pretrain.model.promu import HeadsConfig, LossConfig, Promu
    from pretrain.optim import adamw, linear_schedule, parameter_groups

    engines.start("deepspeed")
    config = FusionEncoderConfig(**{**SIZES[size], "vocab_size": VOCABULARY})
    model = Promu(FusionEncoder(config), HeadsConfig(), LossConfig(coe=0, cir=0))

    def build(module):
        groups = parameter_groups(module.named_parameters(), lr=1e-4, weight_decay=1e-3)
        optimizer = adamw(groups)
        return optimizer, linear_schedule(optimizer, 10, 1000)

    engine = engines.DeepSpeedEngine(
        model, build, precision="fp32", accumulation=1, clip=2.0, micro_batch_size=pairs,
        tuning="launch/zero1.json",
    )  # fmt: skip
    batch = PretrainBatch(
        pixel_values=torch.randint(0, 256, (pairs, 3, 224, 224), dtype=torch.uint8),
        input_ids=torch.randint(5, 500, (pairs, 32)),
        attention_mask=torch.ones(pairs, 32, dtype=torch.int64),
        matched=torch.arange(pairs) % 2 == 0,
        ids=torch.arange(2 * pairs).view(pairs, 2) + 1000 * rank,
        patch_weights=torch.zeros(pairs, 196),
    )
    since = None
    for step in range(steps + 2):
        if step == 2:
            torch.distributed.barrier()
            since = time.perf_counter()
        engine.backward(engine(batch)["loss"])
        engine.step()
    torch.distributed.barrier()
    if rank == 0:
        Path(out).write_text(json.dumps((time.perf_counter() - since) / steps))
    torch.distributed.destroy_process_group()


def weak_scaling(size: str, pairs: int, steps: int) -> None:
    """Seconds a step of 1 and of 2 ranks, each with its own core and the same pairs a rank."""
    import socket

    import torch.multiprocessing as mp

    seconds = {}
    for world in (1, 2):
        with socket.socket() as free, tempfile.NamedTemporaryFile() as out:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
            free.close()
            mp.spawn(rank_main, (world, port, size, pairs, steps, out.name), nprocs=world)
            seconds[world] = json.loads(Path(out.name).read_text())
    load = os.getloadavg()[0]
    print(
        f"weak scaling, {size}, {pairs} pairs a rank: 1 rank {seconds[1]:.2f} s a step, 2 ranks "
        f"{seconds[2]:.2f} s, efficiency {100 * seconds[1] / seconds[2]:.0f} % "
        f"({os.cpu_count()} cores, load {load:.1f} at the end)"
    )


def side(which: str, folder: str, args: argparse.Namespace) -> dict[str, float]:
    """One side in a process of its own."""
    command = [sys.executable, __file__, "--side", which, "--folder", folder]
    command += ["--size", args.size, "--pairs", str(args.pairs), "--steps", str(args.steps)]
    command += ["--precision", args.precision]
    threads = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | threads, stdout=subprocess.PIPE, text=True, check=True
    )
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--size", choices=SIZES, default="small", help="towers; pictures are 224")
    parser.add_argument("--pairs", type=int, default=16, help="pairs a step (and rank)")
    parser.add_argument("--steps", type=int, default=4, help="steps measured")
    parser.add_argument("--rounds", type=int, default=2, help="times that the sides take turns")
    parser.add_argument("--precision", choices=("bf16", "fp32"), default="bf16", help="of ours")
    parser.add_argument("--scaling", action="store_true", help="measure weak scaling alone")
    parser.add_argument("--side", choices=("ours", "released"), help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side:
        given = (Path(args.folder), args.size, args.pairs, args.steps)
        print(json.dumps(ours(*given, args.precision) if args.side == "ours" else released(*given)))
        return
    if args.scaling:
        weak_scaling(args.size, args.pairs, args.steps)
        return
    with tempfile.TemporaryDirectory() as folder:
        write_corpus(Path(folder))
        turns = [(side("released", folder, args), side("ours", folder, args))
                 for _ in range(args.rounds)]  # fmt: skip
    for name in ("seconds", "peak"):
        theirs, mine = (min(turn[n][name] for turn in turns) for n in (0, 1))
        scale, unit = (1, "s a step") if name == "seconds" else (2**20, "MiB")
        print(
            f"{args.size}, {args.pairs} pairs: released {theirs / scale:.2f}, ours "
            f"{mine / scale:.2f} {unit}: {theirs / mine:.2f} times as much"
        )


# What both sides import does not count.
sys.path.insert(0, str(ROOT))
for name in ("transformers", "shards.stream", "pretrain.engine", "pretrain.model.promu"):
    importlib.import_module(name)
BASELINE = peak_rss()

if __name__ == "__main__":
    main()
