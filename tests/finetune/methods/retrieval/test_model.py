"""Retrieval: logits against a loop, relations that training never saw, files of descriptions."""

import json

import numpy as np
import pytest
import torch
from torch.nn import functional

from finetune.__main__ import main
from finetune.inputs.load import load_split
from finetune.inputs.split import InputOptions
from finetune.inputs.types import TYPES, types_of
from finetune.methods.base import Source
from finetune.methods.retrieval.config import RetrievalConfig
from finetune.methods.retrieval.descriptions import LENGTH, as_pieces, read_descriptions
from finetune.methods.retrieval.model import Retrieval
from finetune.tasks.mnre import Mnre
from shards.files import InputError
from shards.sample.world import CUES

TWO = {"/per/loc/born": "Ann at Bob", "my own": "on we go"}


@pytest.fixture
def loaded(mnre_folder, tiny_model, tmp_path):
    """(method, tokenizer, batch) of eight rows with pictures."""
    torch.manual_seed(0)
    task = Mnre(mnre_folder)
    method, tokenizer = Retrieval.build(RetrievalConfig(), task.info, Source(str(tiny_model)))
    options = InputOptions(images="required", max_length=40, cache=tmp_path / "cache")
    split = load_split(task, "val", tokenizer, method.eval(), options)
    return method, tokenizer, split.dataset.collate(np.arange(8))


@torch.inference_mode()
def test_logits_and_loss_against_a_loop(loaded):
    method, tokenizer, batch = loaded
    encoder = method.encoder
    output = method(batch)
    texts = read_descriptions("mnre")
    text = encoder.encode_text(batch.input_ids, batch.attention_mask)
    seen = encoder.encode_image(batch.pixel_values)
    fused = encoder.fuse(text, batch.attention_mask, seen, batch.image_mask)
    picture = encoder.image_feat(seen)
    losses = []
    for row in range(8):
        places = int(batch.head_start[row]), int(batch.tail_start[row])
        query = functional.normalize(
            method.query(torch.cat([fused[row, p] for p in places])), dim=0
        )
        scores, of_types = [], []
        for label in ("None", "/per/per/couple", "/per/org/member_of"):
            ids = tokenizer(texts[label], return_tensors="pt", truncation=True, max_length=LENGTH)
            states = encoder.encode_text(ids["input_ids"], ids["attention_mask"])
            description = encoder.text_feat(states)[0]
            typed = 0.0
            for axis, name in enumerate(types_of(label)):
                if name != "unknown":
                    likely = method.types[axis](text[row, places[axis]]).log_softmax(0)
                    typed += float(likely[TYPES.index(name) - 1])
            scores.append(float(description @ (query + picture[row])) / 0.07 + typed)
            of_types.append(typed)
        torch.testing.assert_close(output.logits[row], torch.tensor(scores), atol=1e-4, rtol=1e-4)
        gold = int(batch.labels[row])
        losses.append(-torch.tensor(scores).log_softmax(0)[gold] - of_types[gold])
    torch.testing.assert_close(output.loss, torch.stack(losses).mean(), atol=1e-4, rtol=1e-4)


@torch.inference_mode()
def test_other_relations_are_other_columns(loaded):
    """Known by their descriptions alone: the logits do not depend on which others there are."""
    method, tokenizer, batch = loaded
    method.answer_with(TWO, tokenizer)
    both = method(batch.__class__(**{**vars(batch), "labels": None})).logits
    assert both.shape == (8, 2)
    for column, name in enumerate(TWO):
        method.answer_with({name: TWO[name]}, tokenizer)
        alone = method(batch.__class__(**{**vars(batch), "labels": None})).logits
        torch.testing.assert_close(both[:, column : column + 1], alone, atol=1e-4, rtol=1e-4)


def test_pieces_end_where_the_text_does(loaded, caplog):
    _, tokenizer, _ = loaded
    ids = as_pieces(tokenizer, ["on we go", "Ann " * 60])
    (record,) = caplog.records
    assert record.message.startswith("1 of 2 descriptions are longer than 32 word pieces")
    assert ids.shape == (2, LENGTH) and (ids[0] < 0).sum() > 20 and (ids[1] >= 0).all()
    assert ids[1, -1] == tokenizer.sep_token_id


def test_what_is_not_read_and_what_is_used_are_said(mnre_folder, tiny_model, tmp_path, caplog):
    path = tmp_path / "mine.tsv"
    path.write_text("relation\tdescription\tsource\nNone\tnothing\tme\n")
    caplog.set_level("INFO")
    assert read_descriptions(path) == {"None": "nothing"}
    with pytest.raises(InputError, match="no description of"):
        config = RetrievalConfig(descriptions=str(path))
        Retrieval.build(config, Mnre(mnre_folder).info, Source(str(tiny_model)))
    messages = [record.message for record in caplog.records]
    assert messages[0] == f"{path}: not read: column source"
    parts = "text, fusion layers, vision, bridge, projections"
    assert f"takes of --init {tiny_model}: {parts}" in messages


def test_shipped_descriptions(shared_data):
    mnre = json.loads((shared_data / "mnre/ours_rel2id.json").read_text())
    assert read_descriptions("mnre").keys() == mnre.keys()


def test_descriptions_of_the_sample():
    relations = {relation for cues in CUES.values() for relation, _ in cues.values()}
    assert read_descriptions("sample").keys() == relations | {"None"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("relation\tdescription\na\t\n", "line 2: relation or description is empty"),
        ("relation\tdescription\na\tx\na\ty\n", "line 3: a a second time"),
        ("relation\tdescription\n", "no row"),
        ("relation\ttext\na\tx\n", "description"),
    ],
)
def test_damaged_files(tmp_path, content, message):
    path = tmp_path / "mine.tsv"
    path.write_text(content)
    with pytest.raises(InputError, match=message):
        read_descriptions(path)
    with pytest.raises(InputError, match="no file of descriptions"):
        read_descriptions(tmp_path / "absent.tsv")


def test_a_relation_without_description_is_refused(mnre_folder, tiny_model, tmp_path):
    path = tmp_path / "few.tsv"
    path.write_text("relation\tdescription\nNone\tnothing\n")
    config = RetrievalConfig(descriptions=str(path))
    with pytest.raises(InputError, match="no description of /per/per/couple, /per/org/member_of"):
        Retrieval.build(config, Mnre(mnre_folder).info, Source(str(tiny_model)))


def test_predict_with_relations_of_mine(mnre_folder, tiny_model, tmp_path, capsys):
    common = f"train --task mnre --data {mnre_folder} --init {tiny_model} --optim.epochs 1"
    main(f"{common} --method retrieval --out {tmp_path}/run".split())
    main(f"{common} --method mtb --images none --out {tmp_path}/mtb".split())
    labels = tmp_path / "mine.tsv"
    labels.write_text("relation\tdescription\nfriends\tAnn and Bob\nfoes\tBob at last\n")
    picture = next((mnre_folder / "img_org" / "test").iterdir())
    capsys.readouterr()
    post = ["--text", "Ann and Bob", "--head", "Ann", "--tail", "Bob", "--image", str(picture)]
    main(["predict", f"{tmp_path}/run", *post, "--relations", str(labels)])
    answer = json.loads(capsys.readouterr().out)
    assert {entry["relation"] for entry in answer["top"]} == {"friends", "foes"}
    assert answer["relation"] == answer["top"][0]["relation"] and answer["related"]
    main(["predict", f"{tmp_path}/run", *post])
    assert json.loads(capsys.readouterr().out)["relation"] in {
        "None", "/per/per/couple", "/per/org/member_of",
    }  # fmt: skip
    with pytest.raises(SystemExit, match="2"):
        main(["predict", f"{tmp_path}/mtb", *post, "--relations", str(labels)])
    assert "MTB reads no descriptions of relations" in capsys.readouterr().err
    posts, out = mnre_folder / "p.jsonl", tmp_path / "answers"
    record = {"text": "Ann and Bob", "head": "Ann", "tail": "Bob", "image": str(picture)}
    posts.write_text(json.dumps(record))
    whole_file = ["predict", f"{tmp_path}/run", "--input", str(posts), "--out", str(out)]
    with pytest.raises(SystemExit, match="2"):
        main([*whole_file, "--relations", f"{tmp_path}/absent.tsv"])
    assert not list(tmp_path.glob("answers.*.json")) and not list(tmp_path.glob("answers.partial"))
    main([*whole_file, "--relations", str(labels)])  # the slip left nothing that contradicts
    assert json.loads(out.read_text())["relation"] == answer["relation"]
