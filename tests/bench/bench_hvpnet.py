"""HVPNeT's training step against a re-creation of the released loop, on real MNRE rows:

    python tests/bench/bench_hvpnet.py BERT_DIR MNRE_DIR [--size base|small] [--batch 16]

BERT_DIR gives the tokenizer; weights are random, the same on both sides (base: BERT-base and
ResNet-50, small: four layers of width 256 and ResNet-18). Pictures are drawn: JPEGs of 800 × 600,
and as many PNG crops as the community's files name. Each side runs in a process of its own, on one
thread; seconds are the process's own, so that other load disturbs little; memory is its peak.

The released loop, from the specification: each row tokenised and padded to 80, its picture and
three crops decoded in the step; four calls of the ResNet in training mode, with gradients that
nobody uses; gates and prefixes in loops over layers, pictures and tokens; eager attention with its
maps kept; entity states gathered row by row; plain AdamW.
"""

import argparse
import itertools
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torchvision import transforms
from transformers import BertConfig, BertModel, DynamicCache

from finetune.config import OptimConfig
from finetune.inputs.load import load_split
from finetune.inputs.split import InputOptions
from finetune.methods.base import Source
from finetune.methods.hvpnet.model import Hvpnet, HvpnetConfig
from finetune.methods.hvpnet.prefix import encode_with_prefix
from finetune.methods.layers import entity_states
from finetune.tasks.mnre import HEAD_OPEN, TAIL_OPEN, Mnre, mark_entities
from finetune.tasks.side_files import read_crop_names
from pretrain.checkpoint.hub import load_tokenizer
from pretrain.optim import adamw

LENGTH, CROPS = 80, 3
SIZES = {
    "base": ({}, "resnet50"),
    "small": (
        {
            "hidden_size": 256,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "intermediate_size": 1024,
        },
        "resnet18",
    ),
}


def write_task(source: Path, folder: Path, rows: int) -> None:
    """The first training rows as a folder of MNRE's layout, pictures and crops drawn."""
    generator = np.random.default_rng(0)
    for part in ("txt", "img_org/train", "img_vg/train/crops"):
        (folder / part).mkdir(parents=True)
    lines = (source / "txt/ours_train.txt").read_text(encoding="utf-8").splitlines()[:rows]
    (folder / "txt/ours_train.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (folder / "ours_rel2id.json").write_bytes((source / "ours_rel2id.json").read_bytes())
    crops = read_crop_names(source / "txt/mre_train_dict.pth").values
    crops = {row: list(crops[row]) for row in range(rows)}
    torch.save(crops, folder / "txt/mre_train_dict.pth")

    def draw(path: Path, width: int, height: int) -> None:
        small = generator.integers(0, 256, (30, 40, 3), dtype=np.uint8)
        Image.fromarray(small).resize((width, height)).save(path, quality=90)

    for row in Mnre(folder).read("train"):
        draw(folder / "img_org/train" / row.image_id, 800, 600)
    for name in itertools.chain.from_iterable(crops.values()):
        draw(folder / "img_vg/train/crops" / name, *generator.integers(120, 480, 2))


def build(folder: Path, model: Path, vision: str) -> tuple[Mnre, Hvpnet, object]:
    """The same weights in every process."""
    task = Mnre(folder)
    torch.manual_seed(0)
    config = HvpnetConfig(vision=vision)
    return task, *Hvpnet.build(config, task.info, Source(str(model), random_weights=True))


Step = Callable[[], Tensor]


def ours(folder: Path, model: Path, vision: str, batch: int, result: dict) -> Iterator[Step]:
    """Steps as `finetune train` does them, pictures seen before."""
    task, method, tokenizer = build(folder, model, vision)
    options = InputOptions(
        images="required", regions="community", max_length=LENGTH, cache=folder / "cache"
    )
    started = time.process_time()
    data = load_split(task, "train", tokenizer, method, options).dataset
    result["once"] = time.process_time() - started
    optimizer = adamw(method.train().parameter_groups(OptimConfig()))
    rows = data.batches(batch, np.random.default_rng(0))
    while True:

        def step() -> Tensor:
            loss = method(next(rows)).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            return loss

        yield step


class Rows(torch.utils.data.Dataset):
    """A row as the released code makes it: text padded to 80, pictures decoded."""

    def __init__(self, task: Mnre, tokenizer: object) -> None:
        self.folder, self.tokenizer, self.task = task.folder, tokenizer, task
        self.rows = task.read("train")
        self.crops = read_crop_names(task.folder / "txt/mre_train_dict.pth").values
        self.transform = transforms.Compose(
            [
                transforms.Resize(256),
                transforms.CenterCrop(224),
                transforms.ToTensor(),
                transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
            ]
        )

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, number: int) -> tuple[Tensor, ...]:
        row = self.rows[number]
        text = " ".join(mark_entities(row.tokens, row.head, row.tail))
        encoded = self.tokenizer(text, padding="max_length", truncation=True, max_length=LENGTH)
        ids, mask = (torch.tensor(encoded[key]) for key in ("input_ids", "attention_mask"))
        picture = self.picture(self.folder / "img_org/train" / row.image_id)
        crops = [
            self.picture(self.folder / "img_vg/train/crops" / name)
            for name in self.crops[number][:CROPS]
        ]
        crops += [torch.zeros(3, 224, 224)] * (CROPS - len(crops))
        label = torch.tensor(self.task.relation2id[row.relation])
        return ids, mask, label, picture, torch.stack(crops)

    def picture(self, path: Path) -> Tensor:
        return self.transform(Image.open(path).convert("RGB"))


class Released(nn.Module):
    """The released forward pass, on our parameters."""

    def __init__(self, method: Hvpnet, markers: list[int]) -> None:
        super().__init__()
        self.resnet, self.markers = method.vision.net, markers
        self.bert = BertModel(method.encoder.config, add_pooling_layer=False)
        self.bert.load_state_dict(method.encoder.state_dict(), assign=True)
        self.bert.set_attn_implementation("eager")
        self.resnet.requires_grad_(True)
        self.encoder_conv, self.classifier = method.prefix.encode, method.head.classifier
        layers = method.prefix.layers
        self.gates = nn.ModuleList(
            nn.Linear(method.prefix.gates.in_features, 4) for _ in range(layers)
        )
        for number, gate in enumerate(self.gates):
            rows = slice(4 * number, 4 * number + 4)
            gate.weight.data.copy_(method.prefix.gates.weight[rows])
            gate.bias.data.copy_(method.prefix.gates.bias[rows])

    def tokens(self, pictures: Tensor) -> Tensor:
        pooled = []
        for stage in self.resnet(pictures):
            side = stage.shape[-1] // 2
            pooled.append(nn.functional.avg_pool2d(stage, side, side))
        return torch.cat(pooled, dim=1).view(len(pictures), 4, -1)

    def forward(self, ids: Tensor, mask: Tensor, label: Tensor, picture: Tensor, crops: Tensor):
        batch, width = len(ids), self.bert.config.hidden_size
        seen = [self.encoder_conv(self.tokens(picture))]
        seen += [self.encoder_conv(self.tokens(crops[:, i])) for i in range(CROPS)]
        heads = self.bert.config.num_attention_heads
        cache = []
        for gate in self.gates:
            parts = []
            for numbers in seen:
                slices = numbers.split(2 * width, dim=-1)
                mean = torch.stack(slices).sum(0).view(batch, -1) / 4
                weights = nn.functional.softmax(nn.functional.leaky_relu(gate(mean)), dim=-1)
                mixed = torch.zeros_like(slices[0])
                for i in range(4):
                    mixed = mixed + torch.einsum("b,bpl->bpl", weights[:, i].view(-1), slices[i])
                parts.append(mixed)
            key, value = torch.cat(parts, dim=1).split(width, dim=-1)
            shape = (batch, heads, 4 * len(seen), width // heads)
            cache.append((key.reshape(shape), value.reshape(shape)))
        whole = torch.cat([torch.ones(batch, 4 * len(seen)), mask], dim=1)
        states = self.bert(
            input_ids=ids,
            attention_mask=whole,
            past_key_values=DynamicCache(cache),
            position_ids=torch.arange(ids.shape[1])[None],
            output_attentions=True,
        ).last_hidden_state
        pairs = torch.zeros(batch, 2 * width)
        for row in range(batch):
            places = [ids[row].eq(marker).nonzero().item() for marker in self.markers]
            pairs[row] = torch.cat([states[row, place] for place in places])
        logits = self.classifier(pairs)
        return nn.functional.cross_entropy(logits, label), logits


def released(folder: Path, model: Path, vision: str, batch: int, result: dict) -> Iterator[Step]:
    """Steps of the released loop."""
    task, method, tokenizer = build(folder, model, vision)
    network = Released(method, tokenizer.convert_tokens_to_ids([HEAD_OPEN, TAIL_OPEN])).train()
    # The ResNet and the classifier are in no group, as released.
    groups = [{"params": module.parameters()} for module in (network.bert, network.encoder_conv)]
    groups.append({"params": network.gates.parameters()})
    optimizer = torch.optim.AdamW(groups, lr=3e-5, weight_decay=0.01)
    rows = iter(torch.utils.data.DataLoader(Rows(task, tokenizer), batch_size=batch, shuffle=True))
    result["once"] = 0.0
    while True:

        def step() -> Tensor:
            loss, _ = network(*next(rows))
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            return loss

        yield step


def agree(folder: Path, model: Path, vision: str) -> float:
    """Largest difference of the logits of both sides, evaluated on the same four rows."""
    task, method, tokenizer = build(folder, model, vision)
    network = Released(method, tokenizer.convert_tokens_to_ids([HEAD_OPEN, TAIL_OPEN])).eval()
    data = Rows(task, tokenizer)
    ids, mask, label, picture, crops = map(
        torch.stack, zip(*(data[i] for i in range(4)), strict=True)
    )
    with torch.inference_mode():
        _, logits = network(ids, mask, label, picture, crops)
        method.prefix.absent = "attend"
        pictures = torch.cat([picture[:, None], crops], dim=1)
        tokens = method.eval()._tokens(pictures.flatten(0, 1)).unflatten(0, (4, 1 + CROPS))
        prefix = method.prefix(tokens, torch.ones(4, 1 + CROPS, dtype=torch.bool))
        states = encode_with_prefix(method.encoder, ids, mask, prefix)
        places = [ids.eq(marker).int().argmax(1) for marker in network.markers]
        return (method.head.classifier(entity_states(states, *places)) - logits).abs().max().item()


def run_side(side: str, options: argparse.Namespace) -> None:
    """One process: time every step but the first; print one JSON line."""
    torch.set_num_threads(1)
    folder, model, vision = Path(options.mnre), Path(options.bert), SIZES[options.size][1]
    if side == "agree":
        print(json.dumps({"difference": agree(folder, model, vision)}))
        return
    result: dict = {}
    make = ours if side == "ours" else released
    seconds = []
    for step in itertools.islice(make(folder, model, vision, options.batch, result), options.steps):
        started = time.process_time()
        step()
        seconds.append(time.process_time() - started)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(json.dumps(result | {"step": statistics.median(seconds[1:]), "peak": peak}))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("bert")
    parser.add_argument("mnre")
    parser.add_argument("--size", choices=SIZES, default="base")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--side", choices=("ours", "released", "agree"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        run_side(options.side, options)
        return
    with tempfile.TemporaryDirectory() as work:
        folder, model = Path(work) / "mnre", Path(work) / "bert"
        write_task(Path(options.mnre), folder, options.batch * options.steps)
        sizes = SIZES[options.size][0]
        BertConfig(**sizes).save_pretrained(model)
        load_tokenizer(Path(options.bert)).save_pretrained(model)
        found = {}
        for side in ("agree", "ours", "released"):
            command = [sys.executable, __file__, str(model), str(folder), "--side", side]
            command += ["--size", options.size]
            command += ["--batch", str(options.batch), "--steps", str(options.steps)]
            output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
            found[side] = json.loads(output.splitlines()[-1])
    print(f"largest difference of logits, same four rows: {found['agree']['difference']:.1e}")
    for side in ("ours", "released"):
        print(
            f"{side:>9}: {found[side]['step']:7.2f} s a step of {options.batch} rows, "
            f"peak {found[side]['peak']:5.2f} GiB, once {found[side]['once']:.1f} s"
        )
    ratio = found["released"]["step"] / found["ours"]["step"]
    memory = found["ours"]["peak"] / found["released"]["peak"]
    print(f"    ratio: {ratio:7.2f} x the speed, {memory:.2f} x the memory")


if __name__ == "__main__":
    main()
