"""Every family of text encoders and every kind of picture backbone, from its publisher's directory
to predictions: converted, loaded, equal to its own library, pre-trained and fine-tuned."""

import json

import pytest
import timm
import torch
from families import TEXTS, VISIONS, diagonal, write_text, write_vision

from finetune import registry
from finetune.inputs.load import load_split
from finetune.inputs.split import InputOptions
from finetune.methods.base import Source
from finetune.methods.dgfpt.config import DgfptConfig
from finetune.methods.dgfpt.model import Dgfpt
from finetune.methods.towers.grid import GridPyramid
from finetune.predict.extractor import Extractor
from finetune.run.checkpoint import save_method
from finetune.tasks.mnre import Mnre
from finetune.tasks.twitter import Twitter2017
from pretrain.checkpoint.backbones import read_backbone
from pretrain.checkpoint.text import read_text
from pretrain.convert import main as convert
from pretrain.data.batch import PretrainBatch
from pretrain.model.config import BERT_KIN, HeadsConfig, LossConfig
from pretrain.model.fusion_encoder import FusionEncoder
from pretrain.model.library import READS_LAST, TEXT_FAMILIES, family_config, model_class
from pretrain.model.promu import Promu
from pretrain.prompter.bank import PromptBank
from shards.files import InputError

TEXT = ["Ann and Bob in Oslo , tonight", "the dog", "a café with two red crowns near the beach ."]
GRID = [(text, vision) for text in TEXTS for vision in VISIONS if (text, vision) not in diagonal()]


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """(family or kind) -> its directory, written once."""
    root, done = tmp_path_factory.mktemp("published"), {}

    def directory(name: str):
        if name not in done:
            write = write_text if name in TEXTS else write_vision
            done[name] = write(name, root / name)
        return done[name]

    return directory


@pytest.fixture
def tasks(tmp_path):
    """12 rows with relations, 6 tweets with entities, whose words are not all in a vocabulary."""
    from tiny_mnre import write_mnre

    mnre = write_mnre(tmp_path / "mnre", {"train": 12, "val": 4, "test": 4})
    tweets = tmp_path / "tweets"
    tweets.mkdir()
    words = [("Ann", "B-PER"), ("\u200d", "O"), ("don't", "O"), ("Oslo", "B-LOC"), ("café", "O")]
    block = "".join(f"{word}\t{tag}\n" for word, tag in words)
    for split in ("train", "valid", "test"):
        blocks = [f"IMGID:{number}\n{block}\n" for number in range(6)]
        (tweets / f"{split}.txt").write_text("".join(blocks), encoding="utf-8")
    return Mnre(mnre), Twitter2017(tweets)


def test_all_families_are_here():
    assert set(TEXTS) == {*BERT_KIN, *TEXT_FAMILIES}
    assert len(set(diagonal())) == len(TEXTS) == len(VISIONS)


@pytest.mark.parametrize(("text", "vision"), diagonal())
def test_from_published_weights_to_predictions(text, vision, published, tasks, tmp_path):
    whole_way(text, vision, published, tasks, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(("text", "vision"), GRID)
def test_the_rest_of_the_grid(text, vision, published, tasks, tmp_path):
    whole_way(text, vision, published, tasks, tmp_path)


def whole_way(text, vision, published, tasks, tmp_path):
    """What the title of this file says, of one pair."""
    model = tmp_path / "model"
    new = [] if text in BERT_KIN else ["--fusion-layers", "1"]
    convert([str(published(text)), str(model), "--vision", str(published(vision)), *new])
    encoder = FusionEncoder.from_pretrained(model)
    version = json.loads((model / "config.json").read_text())["format_version"]
    assert version == (1 if (text, vision) == ("bert", "plain") else 2)
    states_are_those_of_the_libraries(encoder, published(text), published(vision))
    pretrained(encoder)
    mnre, twitter = tasks
    for name, task, source in (
        ("mtb", mnre, published(text)),
        ("mtb", mnre, model),
        ("bert_crf", twitter, published(text)),
        ("promu", mnre, model),
        ("promu", twitter, model),
        *[("dgfpt", mnre, model)] * (text not in (*READS_LAST, "electra")),
    ):
        finetuned(name, task, source, tmp_path / f"{name}-{task.info.name}-{source.name}")


@torch.no_grad()
def states_are_those_of_the_libraries(encoder, text, vision):
    pixels = torch.randint(0, 256, (2, 3, 40, 50), dtype=torch.uint8)
    inputs = encoder.processor(TEXT, [*pixels, pixels[0]])
    config = json.loads((text / "config.json").read_text())
    if config["model_type"] in BERT_KIN:
        from transformers import AutoModel

        theirs = AutoModel.from_pretrained(text).eval()
    else:
        theirs = model_class(family_config(config)).from_pretrained(text).eval()
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    assert not mask.all() and (ids[mask == 0] == encoder.processor.tokenizer.pad_token_id).all()
    expected = theirs(ids, attention_mask=mask).last_hidden_state
    if config["model_type"] == "siglip_text_model":  # padded to its end, where it is read
        pad = encoder.processor.tokenizer.pad_token_id
        padding = ids.new_full(
            (len(ids), theirs.config.max_position_embeddings - ids.shape[1]), pad
        )
        expected = theirs(torch.cat([ids, padding], dim=1)).last_hidden_state
        expected[torch.arange(len(ids)), mask.sum(dim=1) - 1] = expected[:, -1]
        expected = expected[:, : ids.shape[1]]
    ours = encoder.encode_text(ids, mask)
    if encoder.config.is_cut:
        ours = encoder.fuse(ours, mask, None)
    torch.testing.assert_close(ours[mask == 1], expected[mask == 1], rtol=1e-5, atol=1e-5)
    net = timm.create_model(f"local-dir:{vision}", pretrained=True).eval()
    mean, std = (
        255 * torch.tensor(net.pretrained_cfg[key]).view(3, 1, 1) for key in ("mean", "std")
    )
    states = net.forward_features((inputs["pixel_values"] - mean) / std)
    patches = encoder.config.grid**2
    states = states.flatten(2).mT if states.dim() == 4 else states[:, -patches:]
    ours = encoder.encode_image(inputs["pixel_values"])
    assert ours.shape[1] == 1 + patches
    torch.testing.assert_close(ours[:, 1:], states, rtol=1e-5, atol=1e-5)


def pretrained(encoder):
    """Three steps of ITM, CIT and COE, in which every tower learns."""
    config = encoder.config
    model = Promu(encoder, HeadsConfig(num_entities=3), LossConfig(cir=0.0)).train()
    features = torch.nn.functional.normalize(torch.randn(3, 4), dim=-1)
    model.entity_bank = PromptBank(features, 0.1)
    size, patches = config.image_size, config.grid**2
    pictures = list(torch.randint(0, 256, (4, 3, size, size), dtype=torch.uint8))
    inputs = encoder.processor(TEXT + TEXT[:1], pictures)
    batch = PretrainBatch(
        **inputs, matched=torch.tensor([True, True, False, True]),
        ids=torch.arange(8).view(4, 2), patch_weights=torch.rand(4, patches),
        object_feat=torch.randn(4, 4).half(),
    )  # fmt: skip
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    before = {name: value.clone() for name, value in model.named_parameters()}
    for step in range(3):
        losses = model(batch)
        assert all(torch.isfinite(loss).all() for loss in losses.values())
        if step == 1 and config.text_config.get("model_type") != "mpnet":
            encoder.checkpoint_activations()
        losses["loss"].backward()
        optimizer.step()
        optimizer.zero_grad()
    changed = [n for n, value in model.named_parameters() if not torch.equal(value, before[n])]
    towers = ("text", "vision", "fusion")
    assert all(any(n.startswith(f"encoder.{tower}.") for n in changed) for tower in towers)
    encoder.eval()


def finetuned(name, task, source, out):
    """Two steps on a few rows, saved, and asked for one row again."""
    method_class = registry.load("methods", name)
    settings = {"segments": "I T", "image_blocks": 1, "objects": 0} if name == "dgfpt" else {}
    config = method_class.Config(**settings)
    method, tokenizer = method_class.build(config, task.info, Source(str(source)))
    sees = name in ("promu", "dgfpt") and task.info.kind == "relation"
    images = "required" if sees else "none"
    options = InputOptions(images=images, max_length=24, cache=out / "cache")
    split = load_split(task, "train", tokenizer, method, options)
    batch = split.dataset.collate(split.dataset.rows[:4])
    optimizer = torch.optim.AdamW(method.parameters(), lr=1e-3)
    for _ in range(2):
        loss = method.train()(batch).loss
        assert torch.isfinite(loss)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    save_method(
        out / "seed-1/model", method, tokenizer, name=name, config=config, task=task.info,
        inputs={"images": options.images, "max_length": 24}, card="# card\n",
    )  # fmt: skip
    (out / "seed-1/result.json").write_text(json.dumps({"dev": {"f1": 1.0}}))
    extract = Extractor.from_pretrained(out)
    if task.info.kind == "relation":
        from PIL import Image

        picture = Image.new("RGB", (30, 20), (200, 10, 10)) if sees else None
        answer = extract("Ann met Bob .", head="Ann", tail="Bob", image=picture)
        assert 0 < answer["probability"] <= 1
    else:
        answer = extract(["Ann", "\u200d", "in", "Oslo"])
        assert isinstance(answer["entities"], list)


@pytest.mark.parametrize("method", ["hvpnet", "tmr", "mkgformer", "camim_hvpnet"])
def test_methods_that_work_inside_bert_refuse_the_rest(method, published, tasks):
    settings = {"vision": "random"} if method == "mkgformer" else {}
    method_class = registry.load("methods", method)
    with pytest.raises(InputError, match="deberta-v2") as told:
        source = Source(str(published("deberta-v2")))
        method_class.build(method_class.Config(**settings), tasks[0].info, source)
    assert "\n" not in str(told.value)


@torch.no_grad()
@pytest.mark.parametrize("family", ["bert", "deberta-v2", "modernbert", "mpnet", "distilbert"])
def test_dgfpt_reads_vectors_as_the_family_reads_words(family, published, tasks):
    """Masked places, wherever they stand, change nothing."""
    config = DgfptConfig(vision="none")
    method, tokenizer = Dgfpt.build(config, tasks[0].info, Source(str(published(family))))
    encoder = method.eval().encoder
    given = tokenizer(TEXT[:2], padding=True, return_tensors="pt")
    ids, mask = given["input_ids"], given["attention_mask"].bool()
    expected = encoder(input_ids=ids, attention_mask=mask).last_hidden_state
    found = method.read_alone(ids, mask)
    torch.testing.assert_close(found[mask], expected[mask], atol=1e-5, rtol=1e-5)
    gap = ids.new_full((2, 3), 5)  # behind the first word
    spread = torch.cat([mask[:, :1], gap == 0, mask[:, 1:]], dim=1)
    found = method.read_alone(torch.cat([ids[:, :1], gap, ids[:, 1:]], dim=1), spread)
    torch.testing.assert_close(found[spread], expected[mask], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("family", "settings", "message"),
    [
        ("clip_text_model", {}, "a clip_text_model, which reads word pieces alone"),
        ("siglip_text_model", {}, "a siglip_text_model, which reads word pieces alone"),
        ("electra", {}, "its words are 16 wide and its states 32"),
        ("modernbert", {"positions": "restart_text"}, "a modernbert counts positions for itself"),
    ],
)
def test_dgfpt_refuses_what_it_cannot_give_vectors(family, settings, message, published, tasks):
    with pytest.raises(InputError, match=message) as told:
        config = DgfptConfig(vision="none", **settings)
        Dgfpt.build(config, tasks[0].info, Source(str(published(family))))
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("method", ["visualbert", "ifaformer"])
def test_pictures_inside_bert_refuse_the_rest(method, published, tasks, tmp_path):
    """They read a picture tower, too: of a fusion model."""
    model = tmp_path / "model"
    words = [str(published("deberta-v2")), str(model), "--vision", str(published("plain"))]
    convert([*words, "--fusion-layers", "1"])
    method_class = registry.load("methods", method)
    with pytest.raises(InputError, match="its text encoder is a deberta-v2; this method works"):
        method_class.build(method_class.Config(), tasks[0].info, Source(str(model)))


@pytest.mark.parametrize("vision", VISIONS)
def test_maps_of_a_vision_tower(vision, published, tmp_path):
    """Of a ViT four layers, the last of which is, normed, what the encoder sees; of a net with
    stages these, the last one as it is."""
    model = tmp_path / "model"
    convert([str(published("bert")), str(model), "--vision", str(published(vision))])
    encoder = FusionEncoder.from_pretrained(model)
    pyramid = GridPyramid(encoder.vision, encoder.config).eval()
    size = encoder.config.image_size
    pixels = torch.randint(0, 256, (2, 3, size, size), dtype=torch.uint8)
    with torch.no_grad():
        maps = pyramid(pyramid.normalise(pixels))
        expected = encoder.encode_image(pixels)[:, 1:]
    last = maps[-1].flatten(2).transpose(1, 2)
    assert tuple(stage.shape[1] for stage in maps) == pyramid.channels and len(maps) == 4
    if vision not in ("resnet", "convnext", "efficientnet"):
        assert len({stage.shape for stage in maps}) == 1
        norm = encoder.vision.norm if vision == "plain" else encoder.vision.net.norm
        last = norm(last)
    if vision != "efficientnet":  # a last convolution widens its map
        torch.testing.assert_close(last, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("method", "line"),
    [
        ("mtb", "text and fusion layers; left: vision, bridge, projections"),
        ("promu", "text, fusion layers, vision, bridge; left: projections"),
    ],
)
def test_a_method_says_what_it_takes(method, line, tiny_model, tasks, caplog):
    method_class = registry.load("methods", method)
    for random in (False, True):
        caplog.clear()
        with caplog.at_level("INFO"):
            source = Source(str(tiny_model), random_weights=random)
            method_class.build(method_class.Config(), tasks[0].info, source)
        told = f"takes of --init {tiny_model}: {line}" + ", drawn at random" * random
        assert [record.message for record in caplog.records] == [told]


def test_what_is_not_known_is_refused_in_one_line(published, tmp_path):
    import shutil

    def copy(family, **changes):
        folder = shutil.copytree(published(family), tmp_path / f"{family}{len(changes)}",
                                 dirs_exist_ok=True)  # fmt: skip
        content = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(content | changes))
        return folder

    remote = {"AutoModel": "modeling.Model"}
    for folder, message in (
        (copy("modernbert", auto_map=remote), "trust_remote_code"),
        (copy("roberta", auto_map=remote), "auto_map"),
        (
            copy("mpnet", model_type="t5", vocab_size=9),
            "model_type is 't5'; text encoders are",
        ),
    ):
        with pytest.raises(InputError, match=message) as told:
            read_text(folder)
        assert "\n" not in str(told.value)
    with pytest.raises(InputError, match="--vision no-such-backbone: timm cannot") as told:
        read_backbone("no-such-backbone")
    assert "\n" not in str(told.value)
    with pytest.raises(InputError, match="no multiple of the patch size 8"):
        read_backbone(str(published("layerscale")), 30)
