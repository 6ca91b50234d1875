"""MKGformer against the authors' numbers, and the names of their checkpoint."""

import json
import math
import re
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from parts_mkgformer import image
from transformers import (
    BertConfig,
    CLIPVisionConfig,
)

from finetune.methods.mkgformer import names
from finetune.methods.mkgformer.model import MKGformer, MKGformerConfig
from finetune.methods.mkgformer.vision import Layout, VisionTower
from finetune.tasks.base import TaskInfo
from finetune.tasks.mnre import MARKERS
from pretrain.model.bert import Bert
from shards.files import InputError

GOLDEN = Path(__file__).parents[2] / "golden/mkgformer.json"


def random_like(name: str, shape: list[int], kind: str) -> torch.Tensor:
    """A weight by the rule of the golden files: seeded by its name, in float32."""
    generator = np.random.default_rng(zlib.crc32(name.encode()))
    x = np.asarray(generator.standard_normal(tuple(shape))).astype(np.float32)
    f = np.float32
    if kind == "scale":
        x = f(1) + f(0.02) * x
    elif kind == "conv":
        x = f(1 / math.sqrt(math.prod(shape[1:]))) * x
    else:
        x = f(0.02 if kind == "std" else float(kind[4:])) * x
    return torch.from_numpy(x.reshape(tuple(shape)))


@pytest.fixture(scope="module")
def golden():
    return json.loads(GOLDEN.read_text())


@pytest.fixture(scope="module")
def authors(golden):
    """Profile `legacy` at full size, with the golden weights through the converter."""
    torch.manual_seed(0)
    with torch.device("meta"):
        encoder = Bert(BertConfig(vocab_size=30526))
    config = MKGformerConfig(profile="legacy")
    sizes = CLIPVisionConfig(
        hidden_size=768, num_hidden_layers=12, num_attention_heads=12, intermediate_size=3072,
        patch_size=32, image_size=224, pre_norm=True, image_mean=[0.5] * 3, image_std=[0.5] * 3,
    )  # fmt: skip
    task = TaskInfo("mnre", "relation", tuple(map(str, range(23))), MARKERS)
    with torch.device("meta"):
        tower = VisionTower(sizes, Layout(3, 128, 3, 64, False))
        method = MKGformer(encoder, tower, task, config)
    dead = re.compile(r"model\.encoder\.text_layer\.[0-7]\.intermediate\.fusion_dense\..+")
    state = {}
    for name, shape, kind, first in golden["weights"]:
        if kind == "keep" or dead.fullmatch(name):
            state[name] = torch.zeros(1)  # not used, so not drawn
            continue
        state[name] = random_like(name, shape, kind)
        assert state[name].flatten()[0].item() == pytest.approx(first, rel=1e-6)
    method.load_state_dict(names.convert_state(state), assign=True)  # strict: none left, none more
    encoder.embeddings.position_ids = torch.arange(512)[None]
    encoder.embeddings.token_type_ids = torch.zeros(1, 512, dtype=torch.long)
    return method.eval()


@pytest.fixture(scope="module")
def inputs(golden):
    """(ids, mask, vg, od) as the authors' run had them."""
    given = golden["inputs"]
    mask = torch.arange(given["L"]) < torch.tensor(given["lengths"])[:, None]
    vg, od = image("mkgformer:aux_imgs", (2, 3), 128), image("mkgformer:rcnn_imgs", (2, 3), 64)
    vg[0, 2] = 0
    od[1, 1:] = 0
    return torch.tensor(given["input_ids"]), mask, vg, od


def logits(method, ids, mask, vg, od):
    states = method.encode(ids, mask, method.see_alone(method.vision.embed(vg, od)))
    rows = torch.arange(len(ids))
    pair = [states[rows, (ids == marker).int().argmax(1)] for marker in (30522, 30524)]
    return method.head.classifier(torch.cat(pair, dim=-1))


def agrees(found: torch.Tensor, recorded: dict, tolerance: float) -> None:
    flat = found.flatten().double()
    assert list(found.shape) == recorded["shape"], recorded["name"]
    for value, name in (
        (flat[:8], "first8"),
        (flat[-8:], "last8"),
        (flat.mean(), "mean"),
        (flat.std(correction=0), "std"),
        (flat.abs().max(), "absmax"),
    ):
        expected = torch.tensor(recorded[name], dtype=torch.float64)
        torch.testing.assert_close(value, expected, atol=tolerance, rtol=1e-5)


@torch.inference_mode()
def test_golden(golden, authors, inputs):
    """Logits, loss and every recorded state, within the tolerances that came with the numbers."""
    ids, mask, vg, od = inputs
    for given, name in ((vg, "aux_imgs"), (od, "rcnn_imgs")):
        agrees(given, golden["inputs"][name], 1e-6)
    seen = {}

    def keep(name):
        return lambda module, args, output=None: seen.update({name: args[0]})

    hooks = [authors.vision.norm.register_forward_pre_hook(keep("vision embeddings before"))]
    hooks.append(authors.vision.layer[0].layer_norm1.register_forward_pre_hook(keep("after pre")))
    hooks.append(
        authors.encoder.encoder.layer[0].attention.self.query.register_forward_pre_hook(
            keep("text embeddings")
        )
    )
    for i in (0, 7, 8, 11):
        block, layer = authors.vision.layer[i], authors.encoder.encoder.layer[i]

        def visual(module, args, output, i=i):
            seen[f"vision layer {i}"] = seen[f"before mlp {i}"] + output

        def before(module, args, i=i):
            seen[f"before mlp {i}"] = args[0]

        def textual(module, args, output, i=i):
            seen[f"text layer {i}"] = output

        hooks += [
            block.layer_norm2.register_forward_pre_hook(before),
            block.mlp.register_forward_hook(visual),
            layer.output.register_forward_hook(textual),
        ]
        if i >= 8:
            hooks.append(
                authors.fusion[i - 8].register_forward_pre_hook(keep(f"CAF aggregate A, layer {i}"))
            )
    found = logits(authors, ids, mask, vg, od)
    for hook in hooks:
        hook.remove()
    torch.testing.assert_close(found, torch.tensor(golden["logits"]), atol=2e-4, rtol=0)
    loss = torch.nn.functional.cross_entropy(found, torch.tensor(golden["inputs"]["labels"]))
    assert loss.item() == pytest.approx(golden["loss"], abs=1e-4)
    checked = 0
    for recorded in golden["intermediates"]:
        name = recorded["name"].replace("A, text layer", "A, layer")
        key = next((key for key in seen if name.startswith(key)), None)
        if key is None:
            continue
        value, tolerance = seen[key], 2e-5
        if row := re.search(r"real tokens of row (\d) \((\d+),", name):
            value = value[int(row[1]), : int(row[2])]
        if layer := re.search(r"layer (\d+)", name):
            tolerance = 5e-4 if int(layer[1]) >= 8 else 2e-5
        agrees(value, recorded, tolerance)
        checked += 1
    assert checked == len(golden["intermediates"]) - 2, "all but the two marker states"


@torch.inference_mode()
def test_golden_padding(golden, authors, inputs):
    """Padding to 47 changes the legacy result as recorded; masked pads are the unpadded rows."""
    ids, mask, vg, od = inputs
    found = logits(authors, ids[:, :47], mask[:, :47], vg, od)
    expected = golden["alternatives"]["padded_to_47"]["logits"]
    torch.testing.assert_close(found, torch.tensor(expected), atol=2e-4, rtol=0)
    authors.config = MKGformerConfig(profile="legacy", mask_text_pad=True).settled()
    found = logits(authors, ids, mask, vg, od)
    authors.config = MKGformerConfig(profile="legacy").settled()
    expected = golden["alternatives"]["no_padding_each_row_alone"]["logits"]
    torch.testing.assert_close(found, torch.tensor(expected), atol=2e-4, rtol=0)


def test_foreign_names_are_refused():
    with pytest.raises(
        InputError,
        match=r"not a checkpoint of MKGformer: 1 unknown names: model\.encoder\.text_layers\.0\.x",
    ):
        names.convert_state({"model.encoder.text_layers.0.x": torch.zeros(1)})
    with pytest.raises(InputError, match="no text layer"):
        names.convert_state({"classifier.bias": torch.zeros(3)})
