"""What a run cannot read of a post is said beside its answer."""

import json

import pytest

from finetune.__main__ import main
from finetune.methods.base import Source
from finetune.methods.bert_crf import BertCrf, BertCrfConfig
from finetune.methods.mtb import MTB, MTBConfig
from finetune.predict import finished_run, pane
from finetune.predict.done import with_end
from finetune.predict.extractor import Extractor
from finetune.run.checkpoint import save_method
from finetune.tasks.base import TaskInfo
from finetune.tasks.mnre import Mnre
from finetune.tasks.posts import parse_post
from finetune.tasks.twitter import bio_labels

LONG = "RT @x : " + "Ann and Bob tonight " * 10


@pytest.fixture
def short_sighted(tmp_path, tiny_model):
    """It reads twelve word pieces."""
    info = TaskInfo("twitter2017", "entities", bio_labels())
    method, tokenizer = BertCrf.build(BertCrfConfig(), info, Source(str(tiny_model)))
    save_method(
        tmp_path / "ner/seed-1/model", method, tokenizer, name="bert_crf", config=BertCrfConfig(),
        task=info, inputs={"images": "none", "max_length": 12}, card="# card\n",
    )  # fmt: skip
    (tmp_path / "ner/seed-1/result.json").write_text(json.dumps({"dev": {"f1": 1.0}}))
    return tmp_path / "ner"


def test_words_beyond_max_length_are_counted(short_sighted, tmp_path, capsys):
    extract = Extractor.from_pretrained(short_sighted)
    tokens = parse_post({"text": LONG}, None, "twitter2017").tokens
    # Ten pieces stand between [CLS] and [SEP].
    pieces = [len(extract.run.tokenizer.tokenize(token)) for token in tokens]
    read = sum(sum(pieces[: i + 1]) <= 10 for i in range(len(tokens)))
    assert 0 < read < len(tokens)
    answer = extract(LONG)
    assert answer["cut"] is True and answer["words_not_read"] == len(tokens) - read
    assert extract("RT Ann").keys() == {"entities"}
    note = pane.answer(extract, LONG, "", "", None, False).note
    assert note.endswith(f"; the last {len(tokens) - read} words are beyond what this run reads")

    (tmp_path / "posts.jsonl").write_text(json.dumps({"text": LONG, "id": 7}) + "\n")
    main(["predict", str(short_sighted), "--input", str(tmp_path / "posts.jsonl")])
    line = json.loads(capsys.readouterr().out)
    assert (line["id"], line["cut"], line["words_not_read"]) == (7, True, len(tokens) - read)


def test_a_task_of_another_package_need_not_count_them(monkeypatch):
    class Theirs:
        def encode(self, rows, tokenizer, max_length):
            return {"input_ids": [[1] for _ in rows], "labels": [0 for _ in rows]}

    monkeypatch.setattr(finished_run.registry, "load", lambda kind, name: Theirs)
    task = finished_run.posts_task(TaskInfo("theirs", "relation", ("None", "a")))([])
    assert task.encode([1, 2], None, 8) == {"input_ids": [[1], [1]]} and task.unread == [0, 0]


def test_a_relation_of_a_long_post_is_marked(tmp_path, mnre_folder, tiny_model, caplog):
    """It reads twenty word pieces; posts that were cut are counted, an earlier call's, too."""
    info = Mnre(mnre_folder).info
    method, tokenizer = MTB.build(MTBConfig(), info, Source(str(tiny_model)))
    save_method(
        tmp_path / "run/seed-1/model", method, tokenizer, name="mtb", config=MTBConfig(),
        task=info, inputs={"images": "none", "max_length": 20}, card="# card\n",
    )  # fmt: skip
    (tmp_path / "run/seed-1/result.json").write_text(json.dumps({"dev": {"f1": 1.0}}))
    long = "Ann and Bob tonight " + "and so on " * 9
    posts = [{"text": text, "head": [0, 3], "tail": [8, 11]}
             for text in (long, "Ann and Bob", 'Ann and Bob "cut": true', "Ann", long)]  # fmt: skip
    source, out = tmp_path / "posts.jsonl", tmp_path / "out.jsonl"
    source.write_text("".join(json.dumps(post) + "\n" for post in posts))
    predict = ["predict", str(tmp_path / "run"), "--input", str(source), "--out", str(out)]
    caplog.set_level("INFO")
    main(predict)
    answers = [json.loads(line) for line in out.read_text().splitlines()]
    assert [answer.get("cut") for answer in answers] == [True, None, None, None, True]
    said = "5 posts, 1 of them could not be read, 2 are longer than the run reads (cut)"
    assert caplog.messages[-1] == said
    content = out.read_bytes()
    with_end(out, ".partial").write_bytes(content[: content.index(b"\n") + 1])
    out.unlink()
    main(predict)
    assert out.read_bytes() == content and caplog.messages[-1] == said


def test_half_a_character_is_refused_in_its_place(short_sighted, tmp_path, capsys):
    """JSON can write a lone surrogate; no tokenizer and no file can."""
    posts = [{"text": "Ann \ud83d"}, {"text": "Ann"}, {"tokens": ["Ann", "\udc00"]}]
    posts += [{"text": "Ann", "id": "\ud83d"}, {"text": "Ann", "image": "\ud83d.jpg"}]
    source = tmp_path / "posts.jsonl"
    source.write_text("".join(json.dumps(post) + "\n" for post in posts))
    main(["predict", str(short_sighted), "--input", str(source), "--out", str(tmp_path / "out")])
    answers = [json.loads(line) for line in (tmp_path / "out").read_text().splitlines()]
    assert [answer["row"] for answer in answers] == [0, 1, 2, 3, 4]
    refused = [answer.get("error", "").partition(" ")[0] for answer in answers]
    assert refused == ["text", "", "tokens", "id", "image"]
