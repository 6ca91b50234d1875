"""DGF-PT as a method: what learns, rows without picture, gates, switches."""

import numpy as np
import pytest
import torch
from parts_dgfpt import TOWER, batch_of, build

from finetune.inputs.batch import Batch
from finetune.inputs.load import load_split
from finetune.inputs.split import InputOptions
from finetune.inputs.types import TYPES
from finetune.inputs.view import Change, View
from finetune.methods.base import Source
from finetune.methods.dgfpt.config import DgfptConfig
from finetune.methods.dgfpt.fusion import (
    object_shares,
    relation_words,
    select_object,
    signature_penalties,
)
from finetune.methods.dgfpt.model import Dgfpt
from finetune.report.papers.dgfpt_gates import gates, summary
from finetune.tasks.base import TaskInfo
from finetune.tasks.mnre import MARKERS
from shards.files import InputError


@pytest.mark.parametrize("family", ["gpt2", "openai-gpt", "fusion"])
@pytest.mark.parametrize("plm", ["frozen", "full"])
def test_what_learns(language_models, task, tmp_path, family, plm):
    settings = TOWER | {"plm": plm, "dropout": 0.0}
    method, tokenizer = build(task, language_models[family], **settings)
    batch = batch_of(task, tmp_path, method.train(), tokenizer)
    method(batch).loss.backward()
    learns = {n for n, p in method.named_parameters() if p.grad is not None and p.grad.any()}
    head = {n for n, p in method.named_parameters() if not n.startswith("encoder.")}
    assert head <= learns
    assert {"prefixes.Po.words", "prefixes.Pe.words", "look.image.weight"} <= learns
    assert bool(learns - head) == (plm == "full")
    assert method.encoder.training == (plm == "full") or family == "fusion"


def test_fixed_prefixes_are_no_parameters(language_models, task):
    method, _ = build(task, language_models["gpt2"], prefix="fixed", vision="none")
    assert not [n for n, _ in method.named_parameters() if n.startswith("prefixes")]


@pytest.mark.parametrize("family", ["gpt2", "openai-gpt", "fusion"])
def test_rows_without_picture_ignore_features(language_models, task, tmp_path, family):
    """Row 0 has no picture, row 1 no object; nothing else in the batch may reach them."""
    method, tokenizer = build(task, language_models[family], **TOWER)
    method.eval()
    views = {"val": (View("val", {0: Change(no_image=True)}, {}),)}
    batch = batch_of(task, tmp_path, method, tokenizer, views=views)
    assert batch.image_mask.tolist() == [False, *[True] * 7]
    assert batch.region_mask.sum(1).tolist()[:4] == [0, 0, 1, 2]
    noise = torch.randn_like(batch.image_features.float()).half()
    changed = vars(batch) | {
        "image_features": torch.where(batch.image_mask[:, None], batch.image_features, noise),
        "region_features": torch.where(
            batch.region_mask[..., None], batch.region_features, noise[:, None]
        ),
    }
    with torch.inference_mode():
        found, other = method(batch), method(Batch(**changed))
    assert found.logits.isfinite().all() and found.loss.isfinite()
    torch.testing.assert_close(found.logits, other.logits)


def test_without_vision_it_is_the_same_row(language_models, task, tmp_path):
    """A row whose picture a view took away is answered like one of a run without pictures."""
    method, tokenizer = build(task, language_models["gpt2"], **TOWER)
    method.eval()
    views = {"val": (View("val", {row: Change(no_image=True) for row in range(10)}, {}),)}
    dropped = batch_of(task, tmp_path, method, tokenizer, views=views)
    off = batch_of(task, tmp_path, method, tokenizer, images="none")
    assert off.image_features is None
    with torch.inference_mode():
        torch.testing.assert_close(method(dropped).logits, method(off).logits)


def test_object_shares():
    generator = torch.Generator().manual_seed(0)
    text, objects = torch.randn(9, 4, generator=generator), torch.randn(9, 5, 4)
    mask = torch.rand(9, 5, generator=generator) > 0.4
    mask[0], mask[1] = False, True
    for form in ("shifted", "softmax"):
        shares = object_shares(text, objects, mask, form)
        assert (shares >= 0).all() and not shares[~mask].any()
        torch.testing.assert_close(shares.sum(1), mask.any(1).float())
    cosine = torch.cosine_similarity(text[1], objects[1], -1)
    raw = object_shares(text, objects, mask, "raw")
    torch.testing.assert_close(raw[1], cosine / cosine.sum(), atol=1e-5, rtol=1e-4)
    opposite = torch.stack([text[1], -text[1]])[None]
    assert object_shares(text[1:2], opposite, mask[1:2, :2], "raw").isfinite().all()


def test_gates_row_by_row(language_models, task, tmp_path):
    """Against the formulas on what the language model made, and the loss's own p before fusion."""
    method, tokenizer = build(task, language_models["gpt2"], **TOWER)
    options = {"images": "required", "max_length": 40, "regions": str(task.folder)}
    view = View("val", {3: Change(no_image=True)}, {"leaky": False})
    loaded = load_split(
        task, "val", tokenizer, method,
        InputOptions(cache=tmp_path / "cache", views={"val": [view]}, **options),
    )  # fmt: skip
    with torch.no_grad():  # what a training would do: gates that differ from row to row
        for gate in (method.fuse.object_gate, method.fuse.image_gate):
            gate.weight.mul_(8)
    records = gates(method, task.info, loaded, "fp32", rows_a_batch=4)
    assert [record["row"] for record in records] == list(range(10))
    seen = {}
    classify, fuse = method.classify, method.fuse.forward
    method.classify = lambda *given: seen.setdefault("p", classify(*given))
    method.fuse.forward = lambda *given: seen.setdefault("gates", given) and fuse(*given)
    batch = loaded.dataset.collate(np.arange(10))
    with torch.no_grad():
        method.eval()(batch)
    _, pooled, (objects, shown), (image, _) = seen["gates"]
    weight = method.fuse.object_gate.weight, method.fuse.object_gate.bias
    for number, record in enumerate(records):
        label = int(batch.labels[number])
        after, before = (logits[number].softmax(0)[label].item() for logits in seen["p"])
        assert record["before"] == pytest.approx(before, abs=2e-5)
        assert record["after"] == pytest.approx(after, abs=2e-5)
        assert record["change"] == pytest.approx(after - before, abs=4e-5)
        assert record["gold"] == task.info.labels[label]
        there = objects[number][shown[number]]
        cosine = [1 + torch.cosine_similarity(pooled[number], one, dim=0).item() for one in there]
        alpha = [value / sum(cosine) for value in cosine]
        assert record["alpha"] == pytest.approx(alpha, abs=2e-5)
        beta = sum(a * one for a, one in zip(alpha, there, strict=True))
        beta = (weight[0] @ beta + weight[1]).norm().item() if alpha else 0.0
        assert record["beta"] == pytest.approx(beta, rel=1e-3, abs=2e-5)
        gamma = torch.tanh(method.fuse.image_gate(image[number])).abs().mean().item()
        assert record["gamma"] == pytest.approx(1.0 if number == 3 else gamma, abs=2e-5)
    assert records[1]["alpha"] == records[3]["alpha"] == []  # no objects; no picture
    assert len({record["beta"] for record in records}) == 9
    means = summary(records, {"changed": {3}, "others": {0, 1, 2}, "none": set()})
    assert means["changed"]["gamma"] == 1.0 and means["others"]["rows"] == 3
    assert means["others"]["beta"] == pytest.approx(sum(r["beta"] for r in records[:3]) / 3)
    assert "none" not in means and method.fuse is not None
    method.fuse = None
    with pytest.raises(InputError, match="runs of dgfpt"):
        gates(method, task.info, loaded, "fp32")


def test_select_object():
    entity, objects = torch.tensor([[2.0, 0.0]]), torch.tensor([[[1.0, 0.0], [0.0, 3.0]]])
    shown = torch.tensor([[True, True]])
    weights = torch.softmax(torch.tensor([2.0, 0.0]) / 2**0.5, 0)
    soft = select_object(entity, objects, shown, "soft")
    torch.testing.assert_close(soft[0], torch.stack([weights[0], 3 * weights[1]]))
    assert select_object(entity, objects, shown, "hard").tolist() == [[1.0, 0.0]]
    assert select_object(entity, objects, shown, "score", 1).tolist() == [[0.0, 3.0]]
    assert select_object(entity, objects[:, :1], shown[:, :1], "score", 1).tolist() == [[1.0, 0.0]]
    assert not select_object(entity, objects, ~shown, "score").any()
    assert not select_object(entity, objects, ~shown, "soft").any()
    assert not select_object(entity, objects, ~shown, "hard").any()


@pytest.mark.parametrize(
    "settings",
    [
        {"decoder": "continue"}, {"gates": False}, {"classify_on": "plain"}, {"pool": "entities"},
        {"pool": "last"}, {"entity_pool": "mean"}, {"type_mask": "soft"}, {"alpha": "raw"},
        {"object_select": "hard"}, {"object_select": "score"},
        {"consistency": "printed", "contrast": "printed"},
        {"consistency_weight": 0.0, "contrast_weight": 0.0}, {"segments": "without_prefixes"},
        {"positions": "restart_text"}, {"markers": True, "plm": "full"}, {"objects": 0},
    ],
    ids=lambda settings: next(iter(settings)),
)  # fmt: skip
def test_every_switch_runs(language_models, task, tmp_path, settings):
    method, tokenizer = build(task, language_models["gpt2"], **TOWER | settings)
    batch = batch_of(task, tmp_path, method, tokenizer)
    output = method(batch)
    assert output.logits.shape == (8, 3) and output.loss.isfinite()
    output.loss.backward()


def test_without_gates_nothing_is_compared(language_models, task, tmp_path):
    method, tokenizer = build(task, language_models["gpt2"], gates=False, **TOWER)
    batch = batch_of(task, tmp_path, method.eval(), tokenizer)
    output = method(batch)
    expected = 3 * torch.nn.functional.cross_entropy(output.logits, batch.labels)
    assert output.loss.item() == pytest.approx(expected.item(), abs=1e-6)


def test_type_mask():
    """person–organization: what connects others is out; None and nameless relations stay."""
    labels = ("None", "/per/org/member_of", "/per/per/peer", "/org/loc/locate_at", "mine")
    table = signature_penalties(labels, "hard")
    person, organization = TYPES.index("person"), TYPES.index("organization")
    assert (table[person, organization] < 0).tolist() == [False, False, True, True, False]
    assert (table[person, 0] < 0).tolist() == [False, False, False, True, False]
    assert not table[0, 0].any() and not signature_penalties(labels, "off").any()
    assert relation_words("/per/org/member_of") == "person organization member of"
    assert relation_words("None") == "none"


def test_what_is_refused(language_models, task, tmp_path):
    with pytest.raises(InputError, match="has no vision tower"):
        build(task, language_models["gpt2"], vision="init")
    with pytest.raises(InputError, match="timm cannot load it"):
        build(task, language_models["gpt2"], vision="no_such_net")
    with pytest.raises(ValueError, match="frozen language model cannot learn"):
        DgfptConfig(markers=True)
    (tmp_path / "t5").mkdir()
    (tmp_path / "t5" / "config.json").write_text('{"model_type": "t5"}')
    with pytest.raises(InputError, match="'t5'; DGF-PT reads text with one of gpt2"):
        build(task, tmp_path / "t5", vision="none")
    long = DgfptConfig(vision="none")
    method, _ = Dgfpt.build(
        long, TaskInfo("mnre", "relation", ("None",), MARKERS), Source(str(language_models["gpt2"]))
    )
    ids = torch.full((1, 128), 5)
    types = torch.zeros(1, 2, dtype=torch.long)
    batch = Batch(rows=types[0, :1], input_ids=ids, attention_mask=ids.bool(), entity_types=types)
    with pytest.raises(InputError, match="the language model has 128"):
        method(batch)
