"""A generative model's scores against its own loss; trained, saved, read again; refusals."""

import json
import shutil

import numpy as np
import pytest
import torch

from finetune.__main__ import main
from finetune.inputs.load import load_split
from finetune.inputs.split import InputOptions
from finetune.methods.base import Source
from finetune.methods.config import GenerativeConfig
from finetune.methods.generative import Generative, answers_of, same_start, types_of
from finetune.methods.speaker import Speaker, load_speaker
from finetune.predict.extractor import Extractor
from finetune.run.checkpoint import save_method
from finetune.run.results import Predictions
from finetune.tasks.mnre import Mnre
from finetune.tasks.twitter import TYPES, Twitter2017, bio_labels
from shards.files import InputError


def build(folder, captioner, tmp_path, **settings):
    task = Mnre(folder) if (folder / "txt").is_dir() else Twitter2017(folder)
    config = GenerativeConfig(**settings)
    method, tokenizer = Generative.build(config, task.info, Source(str(captioner)))
    options = InputOptions(images="required", max_length=60, cache=tmp_path / "cache")
    split = load_split(task, "val", tokenizer, method.eval(), options)
    return method, split


@torch.inference_mode()
def test_scores_are_the_models_own(mnre_folder, tiny_captioner, tmp_path):
    """Each logit is minus the mean loss of the model itself over the answer's tokens."""
    template = "a photo of {head} {tail} word3 of {text}"
    method, split = build(mnre_folder, tiny_captioner, tmp_path, template=template)
    method.answers = ["word1", "word2 word4", "photo"]
    batch = split.dataset.collate(np.arange(3))
    output = method(batch)
    processor, net = method.encoder.processor, method.encoder.net
    for row in range(3):
        text = " ".join(split.rows[row].tokens)
        head, tail = (
            " ".join(split.rows[row].tokens[slice(*span)])
            for span in (split.rows[row].head, split.rows[row].tail)
        )
        filled = template.format(text=text, head=head, tail=tail)
        assert method.questions(batch)[1][row] == filled
        for column, answer in enumerate(method.answers):
            asked = filled
            picture = batch.pixel_values[row].permute(1, 2, 0).numpy()
            inputs = processor(images=picture, text=f"{asked} {answer}", return_tensors="pt")
            length = processor.tokenizer(asked, return_tensors="pt")["input_ids"].shape[1] - 1
            labels = inputs["input_ids"].clone()
            logits = net(**inputs).logits[0, :-1].log_softmax(-1)
            expected = [
                float(logits[place - 1, labels[0, place]])
                for place in range(length, labels.shape[1])
            ]
            assert output.logits[row, column].item() == pytest.approx(np.mean(expected), abs=1e-4)


def test_its_words_are_those_of_tokenizer_json(tiny_captioner, tmp_path):
    """Also of a saved run's folder; the class that the settings name would build it anew."""
    from tokenizers import Tokenizer, pre_tokenizers

    folder = shutil.copytree(tiny_captioner, tmp_path / "model")
    file = Tokenizer.from_file(str(folder / "tokenizer.json"))
    file.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    file.save(str(folder / "tokenizer.json"))
    for path in (folder, tmp_path / "saved"):
        encoder, processor = load_speaker(Source(str(path)))
        assert processor.tokenizer.tokenize("a word1.") == ["a", "[UNK]"]
        Speaker(encoder, processor).save_pretrained(tmp_path / "saved")


@torch.inference_mode()
def test_fp32_is_fp32_whatever_was_published(mnre_folder, tiny_captioner, tmp_path):
    """The same logits as of the same numbers stored in float32; under bf16 nothing is widened."""
    method, split = build(mnre_folder, tiny_captioner, tmp_path)
    method.encoder.net.bfloat16()
    method.encoder.save_pretrained(tmp_path / "half")
    method.encoder.net.float()
    method.encoder.save_pretrained(tmp_path / "whole")
    batch, dtypes = split.dataset.collate(np.arange(2)), []
    logits = []
    for name in ("half", "whole"):
        method, _ = build(mnre_folder, tmp_path / name, tmp_path)
        dtypes.append(method.encoder.net.dtype)
        if name == "half":
            with torch.autocast("cpu", torch.bfloat16):
                assert method(batch).logits.isfinite().all()
            assert method.encoder.net.dtype == torch.bfloat16
        logits.append(method(batch).logits)
    assert dtypes == [torch.bfloat16, torch.float32] and torch.equal(*logits)


def test_no_two_relations_have_the_same_words():
    labels = ["None", "/per/per/alternate_names", "/org/org/alternate_names", "/per/org/member_of"]
    assert answers_of(labels) == [
        "none", "per per alternate names", "org org alternate names", "member of",
    ]  # fmt: skip


@pytest.fixture
def tweets(tmp_path):
    """12 posts a split, of 1 to 4 words."""
    from PIL import Image

    folder = tmp_path / "tweets"
    (folder / "twitter2017_images").mkdir(parents=True)
    tagged = "word1\tB-PER\nword2\tI-PER\nword3\tO\nword4\tB-LOC\n".splitlines(keepends=True)
    for split in ("train", "valid", "test"):
        blocks = []
        for i in range(12):
            picture = folder / "twitter2017_images" / f"{split}{i}.jpg"
            Image.new("RGB", (8, 8), (20 * i, 0, 0)).save(picture)
            blocks.append(f"IMGID:{split}{i}\n{''.join(tagged[: 1 + i % 4])}\n")
        (folder / f"{split}.txt").write_text("".join(blocks))
    return folder


@torch.inference_mode()
def test_words_are_asked_one_by_one(tweets, tiny_captioner, tmp_path):
    """Each word's logits are the model's own mean loss over each answer behind the question; the
    likeliest become tags, of one entity where a type goes on."""
    template = "{text} of {word} a"
    method, split = build(tweets, tiny_captioner, tmp_path, word_template=template)
    method.answers = ["word9", "photo word5", "word6", "word7", "of"]
    batch = split.dataset.collate(np.arange(4))
    output = method(batch)
    assert output.logits.shape == (4, 4, 5)
    processor, net = method.encoder.processor, method.encoder.net
    losses = []
    for row in range(4):
        picture = batch.pixel_values[row].permute(1, 2, 0).numpy()
        words = split.rows[row].tokens
        for place, word in enumerate(words):
            asked = template.format(text=" ".join(words), word=word)
            length = processor.tokenizer(asked, return_tensors="pt")["input_ids"].shape[1] - 1
            scores = []
            for answer in method.answers:
                inputs = processor(images=picture, text=f"{asked} {answer}", return_tensors="pt")
                ids = inputs["input_ids"][0]
                likely = net(**inputs).logits[0, :-1].log_softmax(-1)
                scores.append(
                    np.mean([float(likely[p - 1, ids[p]]) for p in range(length, len(ids))])
                )
            np.testing.assert_allclose(output.logits[row, place], scores, atol=1e-4)
            right = ("B-PER", "I-PER", "O", "B-LOC")[place]
            number = 0 if right == "O" else 1 + TYPES.index(right[2:])
            losses.append(-torch.tensor(scores).log_softmax(0)[number])
    assert output.loss.item() == pytest.approx(float(torch.stack(losses).mean()), abs=1e-4)
    labels = Twitter2017(tweets).info.labels
    tags = [labels[label] for label in method.tags([1, 1, 2, 0, 2, 2, 1])]
    assert tags == ["B-MISC", "I-MISC", "B-PER", "O", "B-PER", "I-PER", "B-MISC"]
    assert [len(row) for row in method.decode(output, batch)] == [1, 2, 3, 4]


def test_words_of_types():
    words, answers = types_of(bio_labels(("PER", "MISC")))
    assert words == ["nothing", "a person", "something else with a name"]
    assert answers == [0, 1, 1, 2, 2]
    assert types_of(bio_labels(("MISC", "OTHER", "new_kind")))[0][1:] == [
        "misc",
        "other",
        "new kind",
    ]


def test_entities_zero_shot_read_again_and_asked(tweets, tiny_captioner, tmp_path, capsys):
    common = f"train --task twitter2017 --method generative --data {tweets} --init {tiny_captioner}"
    main(f"{common} --optim.epochs 1 --optim.head_lr 0 --out {tmp_path}/zero".split())
    before = Predictions.read(tmp_path / "zero/seed-1/pred_test.jsonl")
    assert [len(tags) for tags in before.answers] == [len(tags) for tags in before.gold]
    main(f"evaluate {tmp_path}/zero --data {tweets}".split())
    assert Predictions.read(tmp_path / "zero/seed-1/pred_test.jsonl").answers == before.answers
    capsys.readouterr()
    picture = next((tweets / "twitter2017_images").iterdir())
    main(["predict", f"{tmp_path}/zero", "--text", "word1 word3", "--image", str(picture)])
    assert "entities" in json.loads(capsys.readouterr().out)


def test_where_answers_begin():
    one = torch.tensor([5, 6, 7, 3])
    assert same_start(one, torch.tensor([5, 6, 3, 0])) == 2
    assert same_start(one, one) == 4


def test_zero_shot_and_prior(mnre_folder, tiny_captioner, tmp_path, capsys):
    """head_lr 0 leaves everything as it was; else the prior alone learns; a run is read again."""
    common = f"train --task mnre --method generative --data {mnre_folder} --init {tiny_captioner}"
    common += " --optim.epochs 1 --fraction 0.4"
    main(f"{common} --optim.head_lr 0 --out {tmp_path}/zero".split())
    main(f"{common} --optim.head_lr 0.5 --out {tmp_path}/prior".split())
    from safetensors.torch import load_file

    zero, prior = (
        load_file(tmp_path / f"{name}/seed-1/model/head.safetensors")["prior"]
        for name in ("zero", "prior")
    )
    assert not zero.any() and prior.any()
    before = Predictions.read(tmp_path / "prior/seed-1/pred_test.jsonl")
    main(f"evaluate {tmp_path}/prior --data {mnre_folder}".split())
    after = Predictions.read(tmp_path / "prior/seed-1/pred_test.jsonl")
    assert before.answers == after.answers
    capsys.readouterr()
    picture = next((mnre_folder / "img_org" / "test").iterdir())
    post = ["--text", "Ann and Bob", "--head", "Ann", "--tail", "Bob", "--image", str(picture)]
    main(["predict", f"{tmp_path}/prior", *post])
    assert len(json.loads(capsys.readouterr().out)["top"]) == 3


def test_a_text_is_read_whole_and_not_said_to_be_cut(mnre_folder, tiny_captioner, tmp_path, caplog):
    task, config = Mnre(mnre_folder), GenerativeConfig()
    method, tokenizer = Generative.build(config, task.info, Source(str(tiny_captioner)))
    inputs = {"images": "required", "max_length": 12}
    load_split(task, "val", tokenizer, method, InputOptions(**inputs, cache=tmp_path / "cache"))
    save_method(
        tmp_path / "run/seed-1/model", method, tokenizer, name="generative", config=config,
        task=task.info, inputs=inputs, card="# card\n",
    )  # fmt: skip
    picture = next((mnre_folder / "img_org" / "test").iterdir())
    extract = Extractor.from_pretrained(tmp_path / "run/seed-1/model")
    text = "Ann and Bob " + "and so on " * 9
    assert "cut" not in extract(text, head="Ann", tail="Bob", image=picture)
    assert "longer" not in caplog.text


@pytest.mark.parametrize("kind", ["relation", "entities"])
def test_adapters_learn_and_are_merged(mnre_folder, tweets, kind, tiny_captioner, tmp_path):
    pytest.importorskip("peft")
    folder = mnre_folder if kind == "relation" else tweets
    method, split = build(folder, tiny_captioner, tmp_path, lora=2)
    before = {n: p.clone() for n, p in method.named_parameters() if p.requires_grad}
    assert any("lora_" in name for name in before)
    batch = split.dataset.collate(np.arange(4))
    optimizer = torch.optim.Adam([p for p in method.parameters() if p.requires_grad], lr=1e-2)
    method.train()
    losses = []
    for _ in range(8):
        torch.manual_seed(0)
        optimizer.zero_grad()
        loss = method(batch).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.05
    logits = method.eval()(batch).logits
    method.encoder.save_pretrained(tmp_path / "merged")
    again, _ = build(folder, tmp_path / "merged", tmp_path)
    torch.testing.assert_close(again(batch).logits, logits, atol=1e-4, rtol=1e-4)


def test_refusals(mnre_folder, tiny_captioner, tiny_model, tmp_path):
    task = Mnre(mnre_folder)
    with pytest.raises(InputError, match="no model that reads pictures and writes text"):
        Generative.build(GenerativeConfig(), task.info, Source(str(tiny_model)))
    with pytest.raises(ValueError, match=r"\{text\}, \{head\}, \{tail\} alone"):
        GenerativeConfig(template="{post}")
    with pytest.raises(ValueError, match=r"\{tail\} alone"):
        GenerativeConfig(template="{text.size}")
    for lacking in ("{head} and {tail} are", "{text} {head} is", "{text} {{head}} {tail}"):
        with pytest.raises(ValueError, match="must hold"):
            GenerativeConfig(template=lacking)
    with pytest.raises(ValueError, match=r"model.word_template must hold \{text\} and \{word\}"):
        GenerativeConfig(word_template="{text} is")
    method, split = build(mnre_folder, tiny_captioner, tmp_path)
    import dataclasses

    blind = dataclasses.replace(split.dataset.collate(np.arange(2)), pixel_values=None)
    with pytest.raises(InputError, match="--images none leaves it nothing"):
        method(blind)
