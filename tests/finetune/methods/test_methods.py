"""Every registered method on every kind of task it claims: the contract of `methods/base.py`."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
import torch
from tiny_mnre import write_mnre

from finetune import registry
from finetune.config import OptimConfig
from finetune.data.views import main as view_command
from finetune.inputs.load import load_split, read_views
from finetune.inputs.split import InputOptions
from finetune.methods.base import Source, layers_above
from finetune.methods.layers import entity_states
from finetune.run.checkpoint import load_method, save_method
from finetune.tasks.mnre import Mnre
from finetune.tasks.region_cache import Region, Regions, write_regions
from finetune.tasks.twitter import Twitter2017
from pretrain.checkpoint.hub import load_tokenizer
from shards.files import InputError

SETTINGS = {
    "mkgformer": {
        "vision": "random", "vision_patch": 8, "vg_size": 16, "od_size": 8, "fusion_layers": 1,
    },
    "hvpnet": {
        "vision": "resnet10t", "vision_random": True, "vision_width": 8, "image_size": 64,
        "prompt_width": 16,
    },
    "tmr": {
        "vision": "resnet10t", "vision_random": True, "vision_width": 8, "image_size": 64,
        "generated_boxes": "community", "scores": "txt",
    },
    "tmr entities": {
        "vision": "resnet10t", "vision_random": True, "vision_width": 8, "image_size": 64,
        "phrases": "community", "scores": ".",
    },
    "camim_tmr": {
        "vision": "resnet10t", "vision_random": True, "vision_width": 8, "image_size": 64,
        "generated_boxes": "community", "scores": "txt",
    },
    "camim_hvpnet": {
        "vision": "resnet10t", "vision_random": True, "vision_width": 8, "image_size": 64,
        "prompt_width": 16,
    },
}  # fmt: skip
"""Settings that make a method (of one kind of task) small enough for the tiny model, with all that
it can read; defaults otherwise."""
CASES = [
    (name, kind)
    for name in registry.METHODS
    if name != "generative"  # of another kind of folder: a test of its own
    for kind in sorted(registry.load("methods", name).kinds)
]


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    """One small task of each kind; nobody changes them."""
    folder = tmp_path_factory.mktemp("tasks")
    found = {
        "relation": Mnre(write_mnre(folder / "mnre", {"train": 40, "val": 30, "test": 30})),
        "entities": Twitter2017(write_twitter(folder / "twitter")),
    }
    for task in found.values():
        write_caches(task, task.folder)
    write_texts_and_generated(found["relation"])
    write_for_tweets(found["entities"])
    return found


def write_twitter(folder):
    """20 tweets a split, in the publisher's format; returns the folder."""
    from PIL import Image

    (folder / "twitter2017_images").mkdir(parents=True)
    for split in ("train", "valid", "test"):
        blocks = []
        for i in range(20):
            Image.new("RGB", (8, 8), (10 * i, 0, 0)).save(
                folder / "twitter2017_images" / f"{split}{i}.jpg"
            )
            words = "".join(f"{word}\t{tag}\n" for word, tag in zip(
                ("Ann", "and", "Bob", "tonight")[: 1 + i % 4],
                ("B-PER", "O", "B-PER", "I-PER"), strict=False))  # fmt: skip
            blocks.append(f"IMGID:{split}{i}\n{words}\n")
        (folder / f"{split}.txt").write_text("".join(blocks))
    return folder


def write_caches(task, folder, leaky=False):
    """Row r has r % 4 grounded regions, every picture one detected."""
    detected = {}
    for split in ("train", "val", "test"):
        rows = task.read(split)
        boxes = [
            tuple(Region((i, 0, i + 4, 6), 0.5, "x", "head") for i in range(row.row % 4))
            for row in rows
        ]
        grounded = {
            row.row: Regions(row.image_id, (8, 8), regions)
            for row, regions in zip(rows, boxes, strict=True)
        }
        write_regions(folder / f"regions_vg_{split}.jsonl", {"leaky": leaky}, grounded)
        whole = (Region((0, 0, 8, 8), 0.9, "x"),)
        detected |= {row.image_id: Regions(row.image_id, (8, 8), whole) for row in rows}
    write_regions(folder / "regions_od.jsonl", {"leaky": leaky}, detected)


def write_texts_and_generated(task):
    """Captions, generated pictures, their boxes and scores, in the published formats."""
    (task.folder / "caption").mkdir()
    for split in ("train", "val", "test"):
        rows = task.read(split)
        captions = [{"img_id": row.image_id, "text": f"Ann at {row.row}"} for row in rows]
        lines = "\n".join(map(repr, captions))
        (task.folder / f"caption/caption_{split}.txt").write_text(lines)
        shutil.copytree(task.image_folder(split), task.folder / "diffusion_pic" / split)
        boxes = {row.row: [torch.tensor([i, 0.0, i + 4, 6]) for i in range(3)] for row in rows}
        torch.save(boxes, task.folder / f"txt/mre_dif_{split}_dict.pth")
        for name in ("", "dif_"):
            for strength, score in (("weak", 0.75), ("strong", 0.25)):
                lines = "".join(f"{row.image_id}\t{score}\n" for row in rows)
                (task.folder / f"txt/{name}{split}_weight_{strength}.txt").write_text(lines)


def write_for_tweets(task):
    """Generated pictures; TMR's phrases and scores, in the formats of its Twitter files."""
    for split in ("train", "val", "test"):
        rows = task.read(split)
        shutil.copytree(task.image_folder(split), task.folder / "diffusion_pic" / split)
        phrases = {row.image_id: "Ann Bob" for row in rows}
        (task.folder / f"ner17_grounding_text_{split}.json").write_text(json.dumps(phrases))
        for name in ("ner", "diff_ner"):
            for strength, score in (("weak", 0.25), ("strong", 0.05)):
                lines = "".join(f"{row.image_id}\t{score}\n" for row in rows)
                (task.folder / f"{name}_{split}_weight_{strength}.txt").write_text(lines)


def build(name, task, model):
    method_class = registry.load("methods", name)
    torch.manual_seed(0)
    settings = SETTINGS.get(f"{name} {task.info.kind}", SETTINGS.get(name, {}))
    config = method_class.Config(**settings)
    return method_class.build(config, task.info, Source(str(model))), config


def options(task, method, images="required"):
    captions = (
        {"captions": "caption", "max_caption_length": 16} if "caption" in method.needs else {}
    )
    return InputOptions(
        images=images,
        max_length=40,
        regions=str(task.folder),
        cache=task.folder / "cache",
        **captions,
    )


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_contract(tasks, tiny_model, name, kind):
    """Forward, backward, gradients everywhere but in what the task does not use, decode, groups."""
    task = tasks[kind]
    (method, tokenizer), _ = build(name, task, tiny_model)
    split = load_split(task, "train", tokenizer, method, options(task, method))
    batch = split.dataset.collate(np.arange(8))
    output = method(batch)
    assert output.logits.dtype == torch.float32 and output.logits.shape[0] == 8
    assert output.logits.shape[-1] == len(task.info.labels)
    output.loss.backward()
    trainable = {n: p for n, p in method.named_parameters() if p.requires_grad}
    without = {n for n, p in trainable.items() if p.grad is None or not p.grad.any()}
    # timm begins the last norm of each residual branch with 0: nothing reaches the rest of it yet.
    heads = {n for n in without if not n.startswith(("encoder.", "vision.", *method.towers))}
    assert not heads, "a head parameter without gradient"
    assert not {n for n in without if ".layer." in n and "key.bias" not in n}
    decoded = method.eval().decode(method(batch), batch)
    assert len(decoded) == 8
    if kind == "entities":
        assert list(map(len, decoded)) == batch.word_mask.sum(1).tolist()
    optim = OptimConfig()
    grouped = [p for group in method.parameter_groups(optim) for p in group["params"]]
    assert sorted(map(id, grouped)) == sorted(map(id, trainable.values()))
    assert method.needs <= {"image"} or method.needs
    assert dataclasses.is_dataclass(method.Config) and method.Config.__dataclass_params__.frozen


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_padding_and_company_change_nothing(tasks, tiny_model, name, kind):
    """A row's logits do not depend on the other rows of its batch."""
    task = tasks[kind]
    (method, tokenizer), _ = build(name, task, tiny_model)
    method.eval()
    split = load_split(task, "val", tokenizer, method, options(task, method))
    with torch.inference_mode():
        together = method(split.dataset.collate(np.arange(len(split)))).logits
        for row in range(0, len(split), 7):
            alone = method(split.dataset.collate(np.array([row]))).logits[0]
            if kind == "entities":
                alone = alone[: len(split.gold[row])]
            torch.testing.assert_close(together[row][: len(alone)], alone, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_what_rows_share_is_encoded_once(tasks, tiny_model, monkeypatch, name, kind):
    """Pictures, regions, captions, phrases: within a pass, what was there before is not encoded
    again, in other company neither; the logits are the same."""
    task = tasks[kind]
    monkeypatch.setitem(SETTINGS, "dgfpt", {"vision": "init", "caption_weight": 0.5})
    (method, tokenizer), _ = build(name, task, tiny_model)
    method.eval()
    method.needs -= {"visual_features"}  # those are computed once for all passes
    split = load_split(task, "val", tokenizer, method, options(task, method))
    first, later = (split.dataset.collate(np.array(rows)) for rows in ([0, 1, 2], [2, 0, 1, 2]))
    with torch.inference_mode():
        expected = method(first).logits, method(later).logits
        with method.one_pass():
            logits = (method(first).logits,)
            encoded = method.memory.encoded
            logits += (method(later).logits,)
            assert method.memory.encoded == encoded
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-5)
    assert method.memory is None
    assert (encoded > 0) == bool(method.needs), "nothing but texts with markers goes round `once`"


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_saved_and_loaded(tmp_path, tasks, tiny_model, name, kind):
    """The reloaded method gives the same logits; a foreign tensor is refused by name."""
    from safetensors.torch import load_file, save_file

    task = tasks[kind]
    (method, tokenizer), config = build(name, task, tiny_model)
    split = load_split(task, "val", tokenizer, method, options(task, method))
    directory = tmp_path / "model"
    save_method(
        directory, method, tokenizer, name=name, config=config, task=task.info,
        inputs={"images": "required", "max_length": 40}, card="# card\n",
    )  # fmt: skip
    loaded, again, description = load_method(directory)
    assert len(again) == len(tokenizer)
    assert description.inputs == {"images": "required", "max_length": 40}
    labels = json.loads((directory / "labels.json").read_text())
    assert tuple(labels) == task.info.labels
    batch = split.dataset.collate(np.arange(8))
    with torch.inference_mode():
        assert torch.equal(method.eval()(batch).logits, loaded(batch).logits)
    (directory / "checksums.json").unlink()  # the change below is ours
    head = load_file(directory / "head.safetensors")
    save_file(head | {"head.extra": torch.zeros(1)}, directory / "head.safetensors")
    with pytest.raises(InputError, match=r"foreign head\.extra"):
        load_method(directory)
    first, *others = head
    save_file({key: head[key] for key in others}, directory / "head.safetensors")
    with pytest.raises(InputError, match=f"missing {first}"):
        load_method(directory)
    (directory / "head.safetensors").write_bytes(b"damaged")
    with pytest.raises(InputError, match=r"head\.safetensors: damaged"):
        load_method(directory)
    (directory / "method.json").write_text('{"method": "mtb"')
    with pytest.raises(InputError, match=r"method\.json: damaged"):
        load_method(directory)


@pytest.mark.parametrize("name", ["hvpnet", "tmr", "camim_hvpnet", "camim_tmr"])
def test_the_vision_tower_of_init_stands_where_a_resnet_did(
    tmp_path, tasks, tiny_model, monkeypatch, caplog, name
):
    """Trained, saved and loaded; its own picture size; from a BERT it is refused."""
    small = {"vision": "init", "vision_random": False, "vision_width": 64}
    monkeypatch.setitem(SETTINGS, name, SETTINGS[name] | small)
    with caplog.at_level("INFO"):
        (method, _), config = build(name, tasks["relation"], tiny_model)
    assert caplog.messages == [
        f"takes of --init {tiny_model}: text and fusion layers; left: bridge, projections",
        f"takes of --init {tiny_model}: vision, without its pooled state",
    ]
    assert method.image_size == 16 and method.vision.channels == (16, 16, 16, 16)
    test_contract(tasks, tiny_model, name, "relation")
    test_saved_and_loaded(tmp_path, tasks, tiny_model, name, "relation")
    method.encoder.save_pretrained(tmp_path / "bert")
    load_tokenizer(tiny_model).save_pretrained(tmp_path / "bert")
    with pytest.raises(InputError, match=r"--model.vision init: .* is no fusion model directory"):
        type(method).build(config, tasks["relation"].info, Source(str(tmp_path / "bert")))


@pytest.mark.gpu
@pytest.mark.parametrize(("name", "kind"), CASES)
def test_a_step_on_an_accelerator(tasks, tiny_model, accelerator, name, kind):
    """Forward and backward in float32 give what the CPU gives: logits, loss, all gradients."""
    task = tasks[kind]
    (method, tokenizer), _ = build(name, task, tiny_model)
    split = load_split(task, "train", tokenizer, method, options(task, method))
    batch = split.dataset.collate(np.arange(8))
    method.train()
    for module in method.modules():  # dropout would fall differently
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        elif hasattr(module, "dropout_prob"):
            module.dropout_prob = 0.0
        elif isinstance(module, torch.nn.MultiheadAttention):
            module.dropout = 0.0

    def step(device):
        method.to(device).zero_grad()
        output = method(batch.to(device))
        output.loss.backward()
        grads = {n: p.grad.cpu() for n, p in method.named_parameters() if p.grad is not None}
        return output.logits.detach().cpu(), output.loss.detach().cpu(), grads

    close = {"atol": 2e-4, "rtol": 1e-3}
    torch.testing.assert_close(step(accelerator), step(torch.device("cpu")), **close)


def test_entity_states_against_a_loop():
    states = torch.randn(3, 5, 4)
    head, tail = torch.tensor([1, 0, 4]), torch.tensor([2, 3, 0])
    found = entity_states(states, head, tail)
    for row in range(3):
        assert torch.equal(found[row], torch.cat([states[row, head[row]], states[row, tail[row]]]))


def test_learning_rates(tasks, tiny_model):
    (method, _), _ = build("promu", tasks["entities"], tiny_model)
    optim = OptimConfig(lr=1.0, head_lr=2.0, crf_lr=3.0)
    rates = {id(p): g["lr"] for g in method.parameter_groups(optim) for p in g["params"]}
    for name, parameter in method.named_parameters():
        expected = 1.0 if name.startswith("encoder") else 3.0 if "crf" in name else 2.0
        assert rates[id(parameter)] == expected, name


def test_promu_makes_the_states_that_it_reads(tasks, tiny_model):
    """At evaluation those of the two markers alone: the logits are those of all states, and tell
    head from tail."""
    task = tasks["relation"]
    (method, tokenizer), _ = build("promu", task, tiny_model)
    split = load_split(task, "val", tokenizer, method, options(task, method))
    batch, encoder = split.dataset.collate(np.arange(len(split))), method.eval().encoder
    swapped = dataclasses.replace(batch, head_start=batch.tail_start, tail_start=batch.head_start)
    with torch.inference_mode():
        text = encoder.encode_text(batch.input_ids, batch.attention_mask)
        picture = encoder.encode_image(batch.pixel_values)
        states = encoder.fuse(text, batch.attention_mask, picture, batch.image_mask)
        for asked in (batch, swapped):
            expected = method.head(states, asked).logits
            torch.testing.assert_close(method(asked).logits, expected, atol=1e-5, rtol=0)
        assert (method(batch).logits - method(swapped).logits).abs().max() > 1e-3


def test_promu_tags_pieces_too(tasks, tiny_model):
    """`x_label`: one tag a word comes out, whichever chain the CRF runs over; both are trained."""
    task = tasks["entities"]
    method_class = registry.load("methods", "promu")
    config = method_class.Config(tagging="pieces")
    method, tokenizer = method_class.build(config, task.info, Source(str(tiny_model)))
    split = load_split(task, "val", tokenizer, method, options(task, method))
    batch = split.dataset.collate(np.arange(6))
    output = method(batch)
    output.loss.backward()
    assert output.logits.shape == (*batch.input_ids.shape, len(task.info.labels) + 4)
    assert method.head.emission.weight.grad.abs().sum() > 0
    decoded = method.decode(output, batch)
    assert [len(tags) for tags in decoded] == batch.word_mask.sum(1).tolist()


def test_layer_decay(tasks, tiny_model):
    """Two stacks of one layer under one fusion layer: halved once, twice, three times."""
    (method, _), _ = build("promu", tasks["relation"], tiny_model)
    optim = OptimConfig(lr=1.0, head_lr=5.0, layer_decay=0.5)
    rates = {id(p): g["lr"] for g in method.parameter_groups(optim) for p in g["params"]}
    expected = {
        "head.classifier.0.weight": 5.0,
        "encoder.fusion.layer.0.output.dense.weight": 1.0,
        "encoder.text.encoder.layer.0.output.dense.weight": 0.5,
        "encoder.vision.blocks.0.mlp.fc1.weight": 0.5,
        "encoder.text.embeddings.word_embeddings.weight": 0.25,
        "encoder.vision.patch_embed.proj.weight": 0.25,
        "encoder.vision.norm.weight": 1.0,
    }
    named = dict(method.named_parameters())
    assert {name: rates[id(named[name])] for name in expected} == expected


def test_layers_above_in_a_plain_bert(tasks, tiny_model):
    (method, _), _ = build("mtb", tasks["relation"], tiny_model)
    above = layers_above(name for name, _ in method.named_parameters())
    assert above["encoder.encoder.layer.1.output.dense.weight"] == 0
    assert above["encoder.encoder.layer.0.output.dense.weight"] == 1
    assert above["encoder.embeddings.word_embeddings.weight"] == 2


def test_pictures_switched_off(tmp_path, tasks, tiny_model):
    task = tasks["relation"]
    (method, tokenizer), _ = build("promu", task, tiny_model)
    given = dataclasses.replace(options(task, method, "none"), cache=tmp_path / "cache")
    split = load_split(task, "val", tokenizer, method, given)
    assert split.images is None and not (tmp_path / "cache").exists()
    batch = next(split.dataset.batches(4))
    assert batch.pixel_values is None and batch.image_mask is None
    assert method(batch).loss.isfinite()


VIEWS = {
    "align-noise": "--ratio 0.5 --regions {data}",
    "aug-noise": "--ratio 0.5 --regions {data} --scope all",
    "fraction": "--ratio 0.5",
    "kshot": "--k 5",
    "image-drop": "--keep 0.5",
    "region-grid": "--regions {data} --num-grounded 1 --num-detected 0",
}


@pytest.fixture(scope="module")
def views(tasks, tmp_path_factory):
    """(kind of task, whether its regions tell the label) -> folder of the regions and every view;
    nobody changes them."""
    folders = {
        (kind, leaky): tmp_path_factory.mktemp("views") for kind in tasks for leaky in (False, True)
    }
    for (kind, leaky), folder in folders.items():
        task = tasks[kind]
        write_caches(task, folder / "regions", leaky)
        for tool, words in VIEWS.items():
            if tool == "kshot" and kind == "entities":
                continue
            words = f"--data {task.folder} --out {folder / tool} {words}"
            words = words.format(data=folder / "regions")
            view_command([tool, "--task", task.info.name, *words.split()])
    return folders


@pytest.mark.parametrize("leaky", [False, True], ids=["leak-safe", "community"])
@pytest.mark.parametrize(("name", "kind"), CASES)
def test_every_view_under_both_protocols(tasks, views, tiny_model, monkeypatch, name, kind, leaky):
    """Each loads, has a finite loss, and says whether its regions, recovered from the community's
    crops or built anew, tell the label."""
    task, folder = tasks[kind], views[kind, leaky]
    if kind == "relation" and "generated_boxes" in SETTINGS.get(name, {}):  # leak by themselves
        monkeypatch.setitem(SETTINGS, name, SETTINGS[name] | {"generated_boxes": "none"})
    (method, tokenizer), _ = build(name, task, tiny_model)
    given = dataclasses.replace(options(task, method), regions=str(folder / "regions"))
    for tool in VIEWS:
        if tool == "kshot" and kind == "entities":  # needs one label a row
            continue
        split = "train" if (folder / tool / "train.jsonl").is_file() else "test"
        drawn = dataclasses.replace(given, views=read_views([folder / tool / f"{split}.jsonl"]))
        loaded = load_split(task, split, tokenizer, method, drawn)
        assert loaded.leaky == (leaky and bool(method.region_slots)), tool
        with torch.no_grad():
            loss = method(loaded.dataset.collate(np.arange(4))).loss
        assert torch.isfinite(loss), tool
