"""TMR for entities against the formulas of its spec, written out in loops; its side inputs."""

import dataclasses
import json
import math

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import BertConfig

from finetune.__main__ import main
from finetune.config import OptimConfig
from finetune.inputs.batch import Batch
from finetune.inputs.load import load_split
from finetune.inputs.split import InputOptions
from finetune.inputs.view import Change, View
from finetune.methods.base import Source
from finetune.methods.tmr.model import Tmr, TmrConfig
from finetune.methods.tmr.names import convert_state
from finetune.methods.towers.resnet import load_resnet
from finetune.run.checkpoint import load_method
from finetune.tasks.base import TaskInfo
from finetune.tasks.twitter import Twitter2015, Twitter2017, bio_labels
from pretrain import convert
from pretrain.data.tokenizer import learn_tokenizer
from pretrain.model.bert import Bert
from shards.files import InputError
from shards.sample.twitter import write_twitter

SIZE, SIDE = 16, 64
LENGTH = 70
"""Of tmr.md §3.7: `linear_extend_pic` is (70·D, D)."""
TINY = {"vision": "resnet10t", "vision_random": True, "vision_width": 4, "image_size": SIDE}
TASK = TaskInfo("twitter2017", "entities", bio_labels())


def tiny_bert():
    return Bert(
        BertConfig(
            vocab_size=50, hidden_size=SIZE, num_hidden_layers=2, num_attention_heads=2,
            intermediate_size=24, max_position_embeddings=128,
        )
    )  # fmt: skip


def tiny_method(**settings):
    torch.manual_seed(0)
    vision = load_resnet("resnet10t", random_weights=True, width=4)
    return Tmr(tiny_bert(), vision, TASK, TmrConfig(**TINY, **settings)).eval()


def random_batch(lengths=(9, 6, 4), longest=None, **changes):
    """Three tweets; the second lacks a region, the third its picture."""
    random = np.random.default_rng(0)
    rows, longest = len(lengths), longest or max(lengths)
    attended = torch.arange(longest) < torch.tensor(lengths)[:, None]
    ids = torch.from_numpy(random.integers(5, 50, (rows, longest))) * attended
    words = [length - 2 for length in lengths]
    word_mask = torch.arange(longest - 2) < torch.tensor(words)[:, None]

    def pixels(*lead):
        return torch.from_numpy(random.integers(0, 256, (*lead, 3, SIDE, SIDE), dtype=np.uint8))

    phrases = torch.from_numpy(random.integers(5, 50, (rows, 5)))
    fields = {
        "rows": torch.arange(rows),
        "input_ids": ids,
        "attention_mask": attended,
        "labels": torch.from_numpy(random.integers(0, 9, word_mask.shape)) * word_mask,
        "word_starts": torch.arange(1, longest - 1).expand_as(word_mask) * word_mask,
        "word_mask": word_mask,
        "pixel_values": pixels(rows),
        "image_mask": torch.tensor([True, True, False]),
        "region_pixels": pixels(rows, 3),
        "region_mask": torch.tensor([[1, 1, 1], [1, 1, 0], [0, 0, 0]], dtype=torch.bool),
        "phrase_ids": phrases,
        "phrase_mask": torch.tensor([[1] * 5, [1, 1, 1, 0, 0], [1, 1, 0, 0, 0]]).bool(),
        "generated_pixels": pixels(rows),
        "generated_mask": torch.ones(rows, dtype=torch.bool),
        "scores": torch.from_numpy(random.random((rows, 2, 2), dtype=np.float32)),
    }
    return Batch(**(fields | changes))


# --- the released network -------------------------------------------------------------------------


def released_weights(vision):
    """Random ones under the names, and in the shapes, of tmr.md §8, with D = 16."""
    torch.manual_seed(1)
    state = {f"bert.{name}": tensor for name, tensor in tiny_bert().state_dict().items()}
    for name, tensor in vision.net.state_dict().items():
        shift = name.endswith(("bias", "running_mean"))  # else zeros would show as zeros
        state[f"model_resnet50.{name}"] = 0.3 * torch.randn(tensor.shape) if shift else tensor
    state |= {
        "bert.embeddings.position_ids": torch.arange(128)[None],
        "bert.pooler.dense.weight": torch.zeros(SIZE, SIZE),
        "bert.pooler.dense.bias": torch.zeros(SIZE),
        "model_resnet50.fc.weight": torch.zeros(1000, vision.channels[-1]),
        "model_resnet50.fc.bias": torch.zeros(1000),
        "crf.start_transitions": torch.randn(13),
        "crf.end_transitions": torch.randn(13),
        "crf.transitions": torch.randn(13, 13),
    }
    shapes = {f"linear_{which}_{kind}": (SIZE, SIZE) for which in "qkv"
              for kind in ("fine", "coarse")}  # fmt: skip
    shapes |= {
        "linear_extend_pic": (LENGTH * SIZE, SIZE),
        "linear_pic": (SIZE, vision.channels[-1]),
        "combine_linear": (1000, 3 * SIZE),
        "fc": (13, 1000),
    }
    for name, (out, wide) in shapes.items():
        state[f"{name}.weight"] = torch.randn(out, wide) / math.sqrt(wide)
        state[f"{name}.bias"] = 0.3 * torch.randn(out)
    return state


@torch.inference_mode()
def released_emissions(weights, encoder, vision, batch):
    """§3.7 of tmr.md: a row, a source, a position at a time, in double precision."""
    mean, std = (255 * torch.tensor(x) for x in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))

    def layer(name, x):
        return weights[f"{name}.weight"].double() @ x + weights[f"{name}.bias"].double()

    def positions(pixels):
        """A picture, or None for zeros -> its positions, a list of vectors."""
        picture = torch.zeros(3, SIDE, SIDE)
        if pixels is not None:
            picture = (pixels - mean[:, None, None]) / std[:, None, None]
        found = vision(picture[None])[-1][0]  # (C, h, w)
        return [
            found[:, y, x].double() for y in range(found.shape[1]) for x in range(found.shape[2])
        ]

    def attended(kind, queries, text):
        total = torch.zeros(SIZE, dtype=torch.float64)
        for query in queries:
            asked = layer(f"linear_q_{kind}", query)
            scores = [float(asked @ layer(f"linear_k_{kind}", t)) / math.sqrt(SIZE) for t in text]
            parts = [math.exp(score) for score in scores]
            values = [layer(f"linear_v_{kind}", t) for t in text]
            row = sum(p / sum(parts) * v for p, v in zip(parts, values, strict=True))
            total += torch.tanh(row)
        return total

    rows = []
    for b in range(len(batch)):
        length = int(batch.attention_mask[b].sum())
        ids, mask = torch.zeros(1, LENGTH, dtype=torch.long), torch.zeros(1, LENGTH).long()
        ids[0, :length], mask[0, :length] = batch.input_ids[b, :length], 1
        text = encoder(input_ids=ids, attention_mask=mask).last_hidden_state[0].double()
        phrase, real = batch.phrase_ids[b : b + 1], batch.phrase_mask[b : b + 1].long()
        words = encoder(input_ids=phrase, attention_mask=real).last_hidden_state[0].double()
        own = [batch.region_pixels[b, r] if batch.region_mask[b, r] else None for r in range(3)]
        sources = [
            (batch.pixel_values[b] if batch.image_mask[b] else None, own),
            (batch.generated_pixels[b], [None] * 3),  # the released code never gets one of these
        ]
        told = []
        for k, (whole, regions) in enumerate(sources):
            weak, strong = batch.scores[b, k].double()
            rows_of_whole = [layer("linear_pic", place) for place in positions(whole)]
            objects = [layer("linear_pic", sum(positions(region))) for region in regions]
            fine = attended("fine", rows_of_whole, text) + sum(rows_of_whole)
            coarse = attended("coarse", objects, words) + sum(objects)
            told.append(torch.tanh(layer("linear_extend_pic", fine * strong + coarse * weak)))
        emissions = []
        for i in range(length):
            parts = [text[i], *(p[i * SIZE : (i + 1) * SIZE] for p in told)]
            hidden = torch.relu(layer("combine_linear", torch.cat(parts)))
            emissions.append(layer("fc", hidden))
        rows.append(torch.stack(emissions))
    return rows


@torch.inference_mode()
def test_released_network_and_names():
    """Weights by the released names, through the table of names: the formulas' emissions."""
    weights = released_weights(load_resnet("resnet10t", random_weights=True, width=4))
    method = tiny_method(profile="legacy", phrases="community")
    converted = convert_state(weights)
    unused = {name for name in weights if ".pooler." in name or "position_ids" in name}
    unused |= {name for name in weights if name.startswith("model_resnet50.fc.")}
    assert len(converted) == len(weights) - len(unused)
    assert method.load_state_dict(converted, strict=True)
    batch = random_batch()
    output = method(batch)
    assert output.logits.shape == (3, 9, 13) and output.loss.isfinite()
    expected = released_emissions(weights, method.encoder, method.vision, batch)
    for found, row in zip(output.logits, expected, strict=True):
        assert row.abs().max() > 0.5
        torch.testing.assert_close(found[: len(row)].double(), row, atol=1e-5, rtol=0)
    decoded = method.decode(output, batch)
    assert [len(tags) for tags in decoded] == batch.word_mask.sum(1).tolist()
    with pytest.raises(InputError, match=r"not a checkpoint of TMR: 1 unknown names: linear_new"):
        convert_state({**weights, "linear_new.weight": weights["fc.bias"]})


@pytest.mark.slow
def test_their_checkpoint_becomes_a_run(tmp_path, capsys):
    """With the ResNet-101 that they used; no list of labels is needed."""
    resnet = load_resnet("resnet101.a1h_in1k", random_weights=True)
    weights = released_weights(resnet)
    torch.save(weights, tmp_path / "best_model.pth")
    tokenizer = learn_tokenizer(["Ann and Bob tonight"] * 2, 50)
    tokenizer.save_pretrained(tmp_path / "bert")
    tiny_bert().config.save_pretrained(tmp_path / "bert")
    convert.main([str(tmp_path / "best_model.pth"), str(tmp_path / "run"), "--from", "tmr",
                  "--tokenizer", str(tmp_path / "bert")])  # fmt: skip
    assert "tmr on twitter2017" in capsys.readouterr().out
    method, _, description = load_method(tmp_path / "run")
    assert description.inputs == {
        "images": "required", "max_length": LENGTH, "regions": "community",
        "captions": None, "max_caption_length": 40,
    }  # fmt: skip
    assert description.config.phrases == "community"
    assert description.config.scores == "."
    ours = method.state_dict()
    for name, tensor in convert_state(weights).items():
        assert torch.equal(ours[name], tensor), name


# --- as a method ----------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", [{}, {"phrases": "community"}, {"pool": "mean"}], ids=str)
@torch.inference_mode()
def test_padding_changes_nothing(settings):
    """Nor does it where a text is longer than the released 70 pieces."""
    method = tiny_method(**settings)
    batch = random_batch()
    expected = method(batch).logits
    padded = random_batch(longest=100)
    ids = torch.zeros_like(padded.input_ids)
    ids[:, :9] = batch.input_ids
    found = method(dataclasses.replace(
        padded, input_ids=ids, pixel_values=batch.pixel_values, region_pixels=batch.region_pixels,
        generated_pixels=batch.generated_pixels, scores=batch.scores, phrase_ids=batch.phrase_ids,
    )).logits  # fmt: skip
    for b, words in enumerate(batch.word_mask.sum(1)):
        torch.testing.assert_close(found[b, :words], expected[b, :words], atol=1e-5, rtol=1e-4)


@torch.inference_mode()
def test_released_length_in_a_wider_batch():
    """On a GPU batches are padded to multiples of 8: 70 pieces stand in 72 places."""
    method = tiny_method(profile="legacy")
    batch = random_batch((LENGTH, 6, 4))
    wide = dataclasses.replace(
        batch,
        input_ids=torch.nn.functional.pad(batch.input_ids, (0, 2)),
        attention_mask=torch.nn.functional.pad(batch.attention_mask, (0, 2)),
    )
    found, expected = method(wide), method(batch)
    torch.testing.assert_close(found.logits[:, :LENGTH], expected.logits, atol=1e-5, rtol=1e-5)
    assert method.decode(found, wide) == method.decode(expected, batch)


@pytest.mark.parametrize(
    "settings",
    [{}, {"profile": "legacy"}, {"phrases": "community"}, {"generated": "none"}, {"regions": 0},
     {"tagging": "pieces"}, {"token_features": "positions"}, {"pool": "mean", "tag_dropout": 0.1}],
    ids=str,
)  # fmt: skip
def test_everything_new_learns(settings):
    method = tiny_method(**settings).train()
    changes = {"scores": None}
    if method.config.generated == "none":
        changes |= {"generated_pixels": None, "generated_mask": None}
    if not method.config.regions:
        changes |= {"region_pixels": None, "region_mask": None}
    method(random_batch(**changes)).loss.backward()
    still = [
        name
        for name, parameter in method.named_parameters()
        if not name.startswith(("encoder.", "vision."))
        and (parameter.grad is None or not parameter.grad.any())
    ]
    assert not still
    wide = LENGTH if method.config.token_features == "positions" else 1
    assert method.head.extend.out_features == wide * SIZE
    assert method.head.combine.in_features == (2 + (settings.get("generated") != "none")) * SIZE
    optim = OptimConfig(lr=1.0, head_lr=2.0, crf_lr=3.0)
    rates = {id(p): g["lr"] for g in method.parameter_groups(optim) for p in g["params"]}
    for name, parameter in method.named_parameters():
        tags = name.startswith("head.tags.")
        expected = 1.0 if name.startswith(("encoder.", "vision.")) else 3.0 if tags else 2.0
        assert rates[id(parameter)] == expected or name.startswith("vision."), name


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"phrases": "entities"}, "which words are entities is what this task asks"),
        ({"generated_boxes": "community"}, "two of the six published files hold words, not boxes"),
        ({"version": "v1"}, "relations only"),
    ],
    ids=str,
)
def test_what_entities_cannot_have(settings, message):
    with pytest.raises(InputError, match=f"^--model.{next(iter(settings))} .*{message}") as caught:
        TmrConfig(**settings).settled("entities")
    assert "\n" not in str(caught.value)
    assert TmrConfig(**settings).settled("relation")


# --- side inputs ----------------------------------------------------------------------------------


def write_tweets(folder, year, diffusion):
    """Three tweets a split, TMR's phrases, scores and generated pictures beside them."""
    folder.mkdir()
    (folder / f"{year}_images").mkdir()
    for split in ("train", "val", "test"):
        words = {"a": "Ann\tB-PER\nand\tO\n", "b": "Bob\tB-PER\n", "c": "tonight\tO\n" * 80}
        names = {f"{split}{name}": text for name, text in words.items()}
        blocks = "\n".join(f"IMGID:{name}\n{text}" for name, text in names.items())
        (folder / f"{split}.txt").write_text(blocks + "\n")
        (folder / "diffusion_pic" / split).mkdir(parents=True)
        for i, name in enumerate(names):
            for place in (folder / f"{year}_images", folder / "diffusion_pic" / split):
                Image.new("RGB", (12, 12), (80 * i, 9, 9)).save(place / f"{name}.jpg")
        phrases = {f"{name}.jpg": f"and {name[-1]}" for name in names}
        short = "ner15" if year == "twitter2015" else "ner17"
        (folder / f"{short}_grounding_text_{split}.json").write_text(json.dumps(phrases))
        for which, values in (("ner", (0.3, 0.01)), (diffusion, (0.2, 0.02))):
            for strength, value in zip(("weak", "strong"), values, strict=True):
                lines = "".join(f"{name}.jpg\t{value}\n" for name in names)
                (folder / f"{which}_{split}_weight_{strength}.txt").write_text(lines)


def load(folder, task_class, model, tmp_path, images="required", views=None, length=40, **settings):
    task = task_class(folder)
    torch.manual_seed(0)
    config = TmrConfig(**(TINY | settings))
    method, tokenizer = Tmr.build(config, task.info, Source(str(model)))
    options = InputOptions(
        images=images, max_length=length, regions="none", cache=tmp_path / "cache",
        views=views or {},
    )  # fmt: skip
    return method.eval(), load_split(task, "val", tokenizer, method, options)


@pytest.mark.parametrize(
    ("task_class", "diffusion"), [(Twitter2015, "ner_diff"), (Twitter2017, "diff_ner")]
)
def test_published_side_inputs(tmp_path, tiny_model, task_class, diffusion):
    """Both years' names are found; what came with a text stays where a view swaps pictures."""
    folder = tmp_path / "tweets"
    write_tweets(folder, task_class.NAME, diffusion)
    given = {"phrases": "community", "scores": "."}
    method, plain = load(folder, task_class, tiny_model, tmp_path, **given)
    assert not plain.leaky and method.needs >= {"phrases", "scores", "generated"}
    batch = plain.dataset.collate(np.arange(3))
    pixels = batch.generated_pixels
    expected = torch.tensor([[0.3, 0.01], [0.2, 0.02]]).expand(3, 2, 2).clone()
    torch.testing.assert_close(batch.scores, expected)
    view = View("val", {0: Change(image_id="valb.jpg")})
    changed = load(folder, task_class, tiny_model, tmp_path, views={"val": [view]}, **given)[1]
    after = changed.dataset.collate(np.arange(3))
    expected[0, 0] = 0.5
    torch.testing.assert_close(after.scores, expected)
    assert torch.equal(after.phrase_ids, batch.phrase_ids)
    assert torch.equal(after.generated_pixels, batch.generated_pixels)
    assert torch.equal(after.pixel_values[0], batch.pixel_values[1])
    theirs, drawn = folder / "theirs", folder / "diffusion_pic" / "val"
    flat = task_class is Twitter2017
    (theirs if flat else theirs / "val").mkdir(parents=True)
    for name, end in (("vala", ""), ("valb", "\n"), ("valc", "")):
        place = theirs if flat else theirs / "val"
        (drawn / f"{name}.jpg").rename(place / f"IMGID:{name}{end}.png")
    given |= {"generated": "theirs"}
    legacy = load(folder, task_class, tiny_model, tmp_path, profile="legacy", **given)[1]
    assert torch.equal(legacy.dataset.collate(np.arange(3)).generated_pixels, pixels)
    batch = legacy.dataset.collate(np.arange(3))
    assert batch.phrase_ids.shape == (3, 5) and batch.phrase_mask.dtype == torch.bool


@torch.inference_mode()
def test_without_pictures(tmp_path, tiny_model):
    """`--images none`: the text alone, and no side input is asked for."""
    folder = tmp_path / "tweets"
    write_tweets(folder, "twitter2017", "other")
    for settings in ({}, {"vision": "none"}, {"profile": "legacy"}):
        method, split = load(folder, Twitter2017, tiny_model, tmp_path, "none", **settings)
        batch = split.dataset.collate(np.arange(3))
        assert batch.pixel_values is None and batch.generated_pixels is None
        assert batch.phrase_ids is None
        assert method(batch).loss.isfinite()


def test_what_is_missing_is_named(tmp_path, tiny_model):
    folder = tmp_path / "tweets"
    write_tweets(folder, "twitter2017", "diff_ner")
    with pytest.raises(InputError, match="82 word pieces, but the model takes 70; lower --max_len"):
        load(folder, Twitter2017, tiny_model, tmp_path, length=90, token_features="positions")
    (folder / "ner_val_weight_strong.txt").unlink()
    with pytest.raises(InputError, match=r"none of val_weight_strong.*`python -m finetune g"):
        load(folder, Twitter2017, tiny_model, tmp_path, scores=".")
    (folder / "ner17_grounding_text_val.json").unlink()
    with pytest.raises(InputError, match=r"none of ner15_.*; TMR's grounding phrases are in"):
        load(folder, Twitter2017, tiny_model, tmp_path, phrases="community")


# --- the whole road -------------------------------------------------------------------------------


def test_pictures_tell_the_types(tmp_path, monkeypatch):
    """Of the sample's made-up names nothing but the picture tells the type: five epochs, seen and
    unseen, on the test split."""
    monkeypatch.setenv("FUSION_MRE_CACHE", str(tmp_path / "cache"))
    write_twitter(tmp_path, 64, 0, 1)
    data, bert = tmp_path / "twitter2017", tmp_path / "bert"
    texts = [" ".join(row.tokens) for row in Twitter2017(data).read("train")]
    tokenizer = learn_tokenizer(texts * 2, 300)
    tokenizer.save_pretrained(bert)
    BertConfig(
        vocab_size=len(tokenizer), hidden_size=48, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=96, max_position_embeddings=64,
    ).save_pretrained(bert)  # fmt: skip
    command = (
        f"train --task twitter2017 --method tmr --data {data} --architecture {bert} --regions none "
        "--max_length 40 --model.vision resnet10t --model.vision_random true "
        "--model.vision_width 8 --model.image_size 64 --model.generated none --model.pool mean "
        "--optim.lr 2e-3 --optim.head_lr 2e-3 --optim.crf_lr 1e-2 --optim.global_batch_size 32 "
        "--optim.epochs 5 --optim.evaluate_every 5"
    )
    f1 = {}
    for images in ("required", "none"):
        out = tmp_path / images
        main([*command.split(), "--out", str(out), "--images", images])
        f1[images] = json.loads((out / "result.json").read_text())["test"]["f1"]["mean"]
    assert f1["required"] > f1["none"] + 15
