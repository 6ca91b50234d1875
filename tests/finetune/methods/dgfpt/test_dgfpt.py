"""DGF-PT: acceptance tests of dgfpt.md §7 on random tiny language models."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers import ByteLevelBPETokenizer
from transformers import (
    DynamicCache,
    GPT2Config,
    GPT2Model,
    GPT2TokenizerFast,
    OpenAIGPTConfig,
    OpenAIGPTModel,
)

from finetune.inputs.batch import Batch
from finetune.inputs.load import InputOptions, load_split
from finetune.inputs.types import TYPES
from finetune.inputs.view import Change, View
from finetune.methods.base import Source
from finetune.methods.dgfpt.config import ORDERS, DgfptConfig
from finetune.methods.dgfpt.fusion import (
    object_shares,
    relation_words,
    select_object,
    signature_penalties,
)
from finetune.methods.dgfpt.losses import consistency, contrast, same_posts
from finetune.methods.dgfpt.model import Dgfpt
from finetune.methods.dgfpt.text import Unmarker, lay_out, load_plm, read
from finetune.report.papers.dgfpt import gates, summary
from finetune.tasks.base import TaskInfo
from finetune.tasks.mnre import MARKERS, Mnre, RelationRow
from finetune.tasks.region_cache import Region, Regions, write_regions
from shards.files import InputError

WORDS = "RT @x : Ann and Bob met Dora Finn tonight in Oslo. Consider, predict relation. None none"
TOWER = {"vision": "test_resnet", "vision_random": True, "image_size": 32, "objects": 3}


@pytest.fixture(scope="session")
def language_models(tmp_path_factory, tiny_model):
    """Directories of a GPT-2, a GPT and a fusion model of some thousand random weights."""
    folder = tmp_path_factory.mktemp("plm")
    learned = ByteLevelBPETokenizer(add_prefix_space=True)
    learned.train_from_iterator([WORDS] * 3, vocab_size=300, special_tokens=["<|endoftext|>"])
    torch.manual_seed(0)
    found = {"fusion": tiny_model}
    sizes = {"vocab_size": 300, "n_embd": 16, "n_layer": 3, "n_head": 2, "n_positions": 128}
    for name, model in (
        ("gpt2", GPT2Model(GPT2Config(**sizes))),
        ("openai-gpt", OpenAIGPTModel(OpenAIGPTConfig(**sizes))),
    ):
        found[name] = folder / name
        model.save_pretrained(found[name])
        learned.save_model(str(found[name]))
        GPT2TokenizerFast(
            vocab=str(found[name] / "vocab.json"), merges=str(found[name] / "merges.txt")
        ).save_pretrained(found[name])
    return found


@pytest.fixture(scope="session")
def task(tmp_path_factory):
    """Ten posts. Picture 1 has no detected object, the others one or two."""
    folder, detected, lines = tmp_path_factory.mktemp("mnre"), {}, []
    (folder / "txt").mkdir()
    (folder / "img_org" / "val").mkdir(parents=True)
    relations = ("None", "/per/per/couple", "/per/org/member_of")
    (folder / "ours_rel2id.json").write_text(
        json.dumps({name: i for i, name in enumerate(relations)})
    )
    for row in range(10):
        tokens = ["RT", "@x", ":", "Ann", "and", "Bob", *["tonight"] * (row % 3)]
        head, tail = {"name": "Ann", "pos": [3, 4]}, {"name": "Bob", "pos": [5, 6]}
        name = f"val{row}.jpg"
        line = {
            "token": tokens,
            "h": head,
            "t": tail,
            "img_id": name,
            "relation": relations[row % 3],
        }
        lines.append(repr(line))
        Image.new("RGB", (20, 16), (25 * row, 90, 200)).save(folder / "img_org" / "val" / name)
        some = (Region((0, 0, 8, 8), 0.9, "x"), Region((4, 4, 12, 12), 0.8, "y"))
        detected[name] = Regions(name, (20, 16), some[: 0 if row == 1 else 1 + row % 2])
    (folder / "txt" / "ours_val.txt").write_text("\n".join(lines))
    write_regions(folder / "regions_od.jsonl", {"leaky": False}, detected)
    return Mnre(folder)


def build(task, source, **settings):
    torch.manual_seed(0)
    method, tokenizer = Dgfpt.build(DgfptConfig(**settings), task.info, Source(str(source)))
    return method, tokenizer


def batch_of(task, tmp_path, method, tokenizer, rows=8, **changes):
    options = {"images": "required", "max_length": 40, "regions": str(task.folder)} | changes
    split = load_split(
        task, "val", tokenizer, method, InputOptions(cache=tmp_path / "cache", **options)
    )
    return split.dataset.collate(np.arange(rows))


# ---- 1–3: one pass, causality, orders ------------------------------------------------------------


def parts_of(order, size, rows=3):
    """Random segments; objects partly masked, the second row without picture, text padded."""
    generator = torch.Generator().manual_seed(1)
    lengths = {"begin": 1, "Po": 5, "Pe": 6, "O": 4, "I": 2, "T": 7}
    parts = {}
    for name in ("begin", *order):
        length = lengths[name]
        mask = torch.ones(rows, length, dtype=torch.bool)
        if name == "O":
            mask[0, 2:], mask[1] = False, False
        if name == "I":
            mask[1] = False
        if name == "T":
            mask[2, 5:] = False
        parts[name] = torch.randn(rows, length, size, generator=generator), mask
    return parts


@pytest.mark.parametrize("order", sorted(ORDERS))
def test_one_pass_is_the_staged_run(language_models, order):
    """Oracle: segment after segment through the key/value cache of every layer."""
    model = GPT2Model.from_pretrained(language_models["gpt2"]).eval()
    layout = lay_out(parts_of(ORDERS[order].split(), 16), "continue")
    with torch.inference_mode():
        whole = read(model, layout.embeds, layout.mask, layout.positions)
        cache, staged = DynamicCache(config=model.config), []
        for place in layout.places.values():
            stage = model(
                inputs_embeds=layout.embeds[:, place],
                attention_mask=layout.mask[:, : place.stop],
                position_ids=layout.positions[:, place],
                past_key_values=cache,
                use_cache=True,
            )
            staged.append(stage.last_hidden_state)
    shown = layout.mask
    torch.testing.assert_close(torch.cat(staged, 1)[shown], whole[shown], atol=1e-5, rtol=1e-5)


def test_positions():
    layout = lay_out(parts_of(ORDERS["o_i_t"].split(), 4), "continue")
    counted = torch.stack([row.cumsum(0) - 1 for row in layout.mask.long()]).clamp(min=0)
    assert torch.equal(layout.positions, counted)
    again = lay_out(parts_of(ORDERS["t_o_i"].split(), 4), "restart_text")
    text = again.places["T"]
    assert again.positions[0, text].tolist() == list(range(1, 8))
    assert torch.equal(again.positions[:, : text.start], layout.positions[:, : text.start])


@pytest.mark.parametrize(("order", "moves"), [("t_o_i", False), ("t_i_o", False), ("o_i_t", True)])
def test_text_reads_what_lies_before_it(language_models, task, tmp_path, order, moves):
    """And a text that comes first knows nothing of the picture but through the object prefix."""
    segments = ORDERS[order].replace("Po ", "")
    method, tokenizer = build(task, language_models["gpt2"], segments=segments, **TOWER)
    batch = batch_of(task, tmp_path, method.eval(), tokenizer)
    other = Batch(**vars(batch) | {"image_features": batch.image_features.flip(0), "weight": 1.0})
    texts = []
    for one in (batch, other):
        text, seen = method.unmark(one.input_ids, one.attention_mask), method.see(one)
        layout = method.lay_out(text, seen, method.questions(one.entity_types))
        states = read(method.encoder, layout.embeds, layout.mask, layout.positions)
        texts.append(states[:, layout.places["T"]][text.mask])
    assert torch.equal(*texts) != moves


def test_orders_are_those_of_tables_2_and_4():
    """The table of dgfpt.md §2.3, typed in once more."""
    listed = {
        "o_i_t": "Po Pe O I T", "o_t_i": "Po Pe O T I", "i_o_t": "Po Pe I O T",
        "i_t_o": "Po Pe I T O", "t_o_i": "Po Pe T O I", "t_i_o": "Po Pe T I O",
        "without_prefixes": "O I T", "without_entity_prefix": "Po O I T",
        "without_object_prefix": "Pe O I T",
        "prefixes_in_s2": "O Po Pe I T", "prefixes_in_s3": "O I Po Pe T",
        "entity_prefix_in_s2": "Po O Pe I T", "entity_prefix_in_s3": "Po O I Pe T",
        "object_prefix_in_s2": "Pe O Po I T", "object_prefix_in_s3": "Pe O I Po T",
        "entity_prefix_in_s2_object_prefix_in_s3": "O Pe I Po T",
        "entity_prefix_in_s3_object_prefix_in_s2": "O Po I Pe T",
    }  # fmt: skip
    assert listed == ORDERS
    for wrong in ("", "Po Pe O I", "T T", "T X"):
        with pytest.raises(ValueError, match="segments"):
            DgfptConfig(segments=wrong)


@pytest.mark.parametrize("order", ["prefixes_in_s3", "entity_prefix_in_s3_object_prefix_in_s2"])
def test_the_method_lays_out_what_the_table_says(language_models, task, tmp_path, order):
    method, tokenizer = build(task, language_models["gpt2"], segments=order, **TOWER)
    batch = batch_of(task, tmp_path, method, tokenizer)
    text, seen = method.unmark(batch.input_ids, batch.attention_mask), method.see(batch)
    layout = method.lay_out(text, seen, method.questions(batch.entity_types))
    assert list(layout.places) == ["begin", *ORDERS[order].split()]


# ---- 4: what learns ------------------------------------------------------------------------------


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


# ---- 5, 6: losses --------------------------------------------------------------------------------


def test_consistency_is_the_divergence():
    generator = torch.Generator().manual_seed(0)
    fused, plain = torch.randn(2, 50, 7, generator=generator)
    oracle = torch.nn.functional.kl_div(
        plain.log_softmax(-1), fused.log_softmax(-1), log_target=True, reduction="batchmean"
    )
    assert consistency(fused, plain) == pytest.approx(oracle.item(), abs=1e-6) and oracle > 0
    assert consistency(plain, plain).item() == pytest.approx(0, abs=1e-7)
    printed = (fused.softmax(-1) * plain.log_softmax(-1)).sum(-1).mean()
    assert consistency(fused, plain, "printed") == pytest.approx(printed.item(), abs=1e-6)
    assert consistency(fused, plain, "ce") == pytest.approx(-printed.item(), abs=1e-6)
    for detach, side in (("pre", 1), ("post", 0)):
        sides = [fused.clone().requires_grad_(), plain.clone().requires_grad_()]
        consistency(*sides, detach=detach).backward()
        assert [s.grad is None or not s.grad.any() for s in sides] == [side == 0, side == 1]


def contrast_by_hand(plain, fused, same, form="corrected", margin=0.2):
    total = 0.0
    for i in range(len(plain)):
        s = [[torch.cosine_similarity(a, b, 0).item() for b in fused] for a in plain]
        others = [j for j in range(len(plain)) if not same[i][j]]
        if not others:
            continue
        for hardest in (max(s[j][i] for j in others), max(s[i][j] for j in others)):
            gap = margin + hardest - s[i][i] if form == "corrected" else s[i][i] - hardest
            total += max(gap, 0)
    return total / len(plain)


@pytest.mark.parametrize("form", ["corrected", "printed"])
def test_contrast_against_loops(form):
    plain, fused = torch.randn(2, 6, 3, generator=torch.Generator().manual_seed(3))
    same = torch.eye(6, dtype=torch.bool)
    same[0, 1] = same[1, 0] = True
    same[5] = same[:, 5] = True
    same[5, 5] = True
    found = contrast(plain, fused, same, form)
    assert found.item() == pytest.approx(contrast_by_hand(plain, fused, same, form), abs=1e-6)


def test_contrast_wants_pairs_alike():
    axes, none = torch.eye(4), torch.eye(4, dtype=torch.bool)
    assert contrast(axes, axes, none) == 0
    assert contrast(axes, axes.roll(1, 0), none).item() == pytest.approx(2 * 1.2)
    assert contrast(axes, axes, torch.ones(4, 4, dtype=torch.bool)) == 0  # no negative is left
    plain = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    fused = torch.randn(5, 4, generator=torch.Generator().manual_seed(1)).requires_grad_()
    alike = torch.cosine_similarity(plain, fused, -1).sum()
    contrast(plain, fused, torch.eye(5, dtype=torch.bool)).backward()
    step = fused.detach() - 0.1 * fused.grad
    assert torch.cosine_similarity(plain, step, -1).sum() > alike


def test_same_posts():
    ids = torch.tensor([[5, 6, 0], [5, 6, 9], [5, 7, 0]])
    mask = torch.tensor([[1, 1, 0], [1, 1, 0], [1, 1, 0]]).bool()
    assert same_posts(ids, mask).tolist() == [
        [True, True, False], [True, True, False], [False, False, True],
    ]  # fmt: skip


# ---- 7, 8: rows without picture, shares ----------------------------------------------------------


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


# ---- 9: spans ------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["gpt2", "openai-gpt", "fusion"])
@pytest.mark.parametrize(
    ("head", "tail"),
    [((3, 4), (5, 6)), ((5, 6), (3, 4)), ((0, 2), (2, 3)), ((7, 9), (1, 9)), ((2, 6), (4, 9)),
     ((3, 3 + 6), (3, 4))],
)  # fmt: skip
def test_spans_map_back_to_entities(language_models, task, family, head, tail):
    """Apart, adjacent, nested, overlapping, at the end; its pieces decode to its words."""
    words = ("RT", "@x", ":", "Ann", "and", "Bob", "at", "Dora", "Finn")
    row = RelationRow(row=0, image_id=None, tokens=words, head=head, tail=tail, relation="None")
    other = RelationRow(
        row=1, image_id=None, tokens=words[:4], head=(0, 1), tail=(3, 4), relation="None"
    )
    _, tokenizer = load_plm(Source(str(language_models[family])), task.info)
    columns = task.encode([row, other], tokenizer, 60)
    width = max(map(len, columns["input_ids"]))
    ids = torch.zeros(2, width, dtype=torch.long)
    mask = torch.zeros(2, width, dtype=torch.bool)
    for i, pieces in enumerate(columns["input_ids"]):
        ids[i, : len(pieces)], mask[i, : len(pieces)] = torch.from_numpy(pieces), True
    for keep in (False, True):
        text = Unmarker(tokenizer, task.info, keep)(ids, mask)
        for span, (first, end) in ((text.head, head), (text.tail, tail)):
            decoded = tokenizer.decode(text.ids[0][span[0]].tolist())
            assert "".join(decoded.split()).lower() == "".join(words[first:end]).lower()
        whole = tokenizer.decode(text.ids[0][text.mask[0]].tolist())
        markers = [marker for marker in MARKERS if marker in whole]
        assert markers == (list(MARKERS) if keep else [])
        if not keep:
            assert "".join(whole.split()).lower() == "".join(words).lower()
        assert not text.ids[~text.mask].any()


def test_an_entity_without_pieces_takes_the_next(task):
    """A tokenizer may drop a character altogether; the entity is then where it would stand."""
    tokenizer = SimpleNamespace(
        cls_token_id=101, sep_token_id=102,
        convert_tokens_to_ids=lambda names: [1, 2, 3, 4],
    )  # fmt: skip
    ids = torch.tensor([[101, 7, 1, 2, 8, 3, 9, 4, 102], [101, 7, 3, 8, 4, 9, 1, 2, 102]])
    text = Unmarker(tokenizer, task.info, False)(ids, torch.ones_like(ids).bool())
    assert text.ids.tolist() == [[7, 8, 9], [7, 8, 9]]
    assert text.head.tolist() == [[False, True, False], [False, False, True]]
    assert text.tail.tolist() == [[False, False, True], [False, True, False]]


# ---- Captions, types, switches -------------------------------------------------------------------


@pytest.mark.parametrize("family", ["gpt2", "fusion"])
def test_caption_is_weighed_and_may_be_absent(language_models, task, tmp_path, family):
    texts = ["", *["Ann and Bob at last"] * 9]
    lines = [repr({"img_id": f"val{i}.jpg", "text": text}) for i, text in enumerate(texts)]
    (tmp_path / "mine_val.txt").write_text("\n".join(lines))
    settings = {"vision": "none", "caption_weight": 0.4}
    method, tokenizer = build(task, language_models[family], **settings)
    options = {
        "images": "none",
        "captions": str(tmp_path / "mine_{split}.txt"),
        "max_caption_length": 32,
    }
    batch = batch_of(task, tmp_path, method.eval(), tokenizer, **options)
    term = method.caption_term(batch)
    assert term.shape == (8, 1, method.caption.in_features)
    assert not term[0].any() and term[1].any()
    torch.testing.assert_close(term[1], term[7])  # the same words, whatever the padding
    method.train()
    method(batch).loss.backward()
    assert method.caption.weight.grad.any()


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
