"""Prediction on new posts: numbers of evaluation, places, bad rows, resuming, calibration."""

import hashlib
import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from finetune import registry
from finetune.__main__ import main
from finetune.inputs.load import load_split
from finetune.inputs.split import InputOptions
from finetune.methods.base import Source
from finetune.methods.bert_crf import BertCrf, BertCrfConfig
from finetune.methods.layers import TaggingHead
from finetune.methods.mkgformer.model import MKGformer, MKGformerConfig
from finetune.methods.promu import Promu, PromuConfig
from finetune.methods.tmr.config import TmrConfig
from finetune.methods.tmr.inputs import providers
from finetune.predict import pane
from finetune.predict.command import PredictConfig
from finetune.predict.extractor import Extractor
from finetune.predict.live_inputs import LiveInputs, check_needs
from finetune.run import calibration, evaluate
from finetune.run.checkpoint import save_method
from finetune.tasks.base import TaskInfo
from finetune.tasks.metrics import entities
from finetune.tasks.mnre import Mnre
from finetune.tasks.posts import APART, WHOLE_TAGS, parse_post
from finetune.tasks.region_cache import Region
from finetune.tasks.twitter import bio_labels, read_rows
from shards.files import InputError
from shards.locks import lock_file

ENTITIES = TaskInfo("twitter2017", "entities", bio_labels())


def save_run(directory, name, method_class, config, task, model, inputs=None):
    """A run of one seed with random weights: what `predict` reads of it."""
    torch.manual_seed(3)
    method, tokenizer = method_class.build(config, task, Source(str(model)))
    with torch.no_grad():  # at BERT's 0.02 every post would have about the same answer
        for parameter in method.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.25)
    inputs = {"images": "required", "max_length": 40} | (inputs or {})
    save_method(
        directory / "seed-1/model", method, tokenizer, name=name, config=config, task=task,
        inputs=inputs, card="# card\n",
    )  # fmt: skip
    (directory / "seed-1/result.json").write_text(json.dumps({"dev": {"f1": 1.0}}))
    return directory


@pytest.fixture
def run(tmp_path, mnre_folder, tiny_model):
    """PROMU on the tiny MNRE."""
    task = Mnre(mnre_folder).info
    return save_run(tmp_path / "run", "promu", Promu, PromuConfig(), task, tiny_model)


@pytest.fixture
def ner(tmp_path, tiny_model):
    """BERT-CRF on Twitter's labels."""
    return save_run(
        tmp_path / "ner", "bert_crf", BertCrf, BertCrfConfig(), ENTITIES, tiny_model,
        {"images": "none"},
    )  # fmt: skip


@pytest.fixture
def posts(mnre_folder):
    """The test rows in the schema of own data."""
    return [
        {
            "tokens": list(row.tokens),
            "head": list(row.head),
            "tail": list(row.tail),
            "image": f"img_org/test/{row.image_id}",
        }
        for row in Mnre(mnre_folder).read("test")
    ]


def write(path, records):
    path.write_text("".join(json.dumps(r) + "\n" if isinstance(r, dict) else r for r in records))
    return path


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


# ---------------------------------------------------------------------- the same as evaluation


def test_the_numbers_are_those_of_evaluation(tmp_path, run, mnre_folder, posts):
    """Through `load_split` of the data folder itself, and through the file of posts."""
    extractor = Extractor.from_pretrained(run)
    task, parts = Mnre(mnre_folder), extractor.run
    options = InputOptions(images="required", max_length=40, cache=tmp_path / "cache")
    split = load_split(task, "test", parts.tokenizer, parts.method, options)
    expected = evaluate.predict(parts.method, task, split, "fp32")
    source = write(mnre_folder / "posts.jsonl", posts)
    main(["predict", str(run), "--input", str(source), "--out", str(tmp_path / "o.jsonl"),
          "--top_k", "9"])  # fmt: skip
    answers = read(tmp_path / "o.jsonl")
    assert [answer["row"] for answer in answers] == list(range(30))
    assert [answer["relation"] for answer in answers] == expected.answers
    assert np.ptp(expected.probabilities, axis=0).max() > 0.005  # the posts differ
    for answer, shares in zip(answers, expected.probabilities, strict=True):
        found = {entry["relation"]: entry["probability"] for entry in answer["top"]}
        for label, share in zip(task.info.labels, shares, strict=True):
            assert found[label] == pytest.approx(share, abs=2e-4)
        assert answer["probability"] == answer["top"][0]["probability"]
        assert answer["related"] == (answer["relation"] != "None")


def test_text_tokens_and_python_agree(run, mnre_folder, posts):
    extractor = Extractor.from_pretrained(run)
    picture = mnre_folder / posts[0]["image"]
    by_tokens = extractor(posts[0]["tokens"], head=[3, 4], tail=[5, 6], image=picture)
    text = " ".join(posts[0]["tokens"])
    head, tail = by_tokens["head"]["text"], by_tokens["tail"]["text"]
    with Image.open(picture) as opened:
        by_text = extractor(text, head=head, tail=tail, image=opened.copy())
    assert by_text == by_tokens
    assert text[by_text["head"]["start"] : by_text["head"]["end"]] == head
    for span in ([by_text["tail"]["start"], by_text["tail"]["end"]], by_text["tail"]):
        assert extractor(text, head=head, tail=span, image=picture) == by_tokens
    without = extractor(text, head=head, tail=tail)
    assert without["probability"] != by_tokens["probability"]


@pytest.mark.parametrize("top_k", [2.5, -5, 0])
def test_a_number_of_relations_that_is_none_is_refused(run, top_k):
    extractor = Extractor.from_pretrained(run)
    with pytest.raises(InputError, match=f"top_k {top_k}: must be a positive whole number"):
        extractor("Ann and Bob", head="Ann", tail="Bob", top_k=top_k)
    with pytest.raises(InputError, match="chunk 0"):
        next(extractor.stream([], chunk=0))


def test_a_call_reads_the_post_alone(run, mnre_folder, posts, monkeypatch, tmp_path):
    """No store on the disk, no search through installed packages: one post is milliseconds."""
    extractor = Extractor.from_pretrained(run)
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    monkeypatch.setattr("finetune.registry.entry_points", lambda **_: pytest.fail("searched"))
    before = (tmp_path / "temporary").stat().st_mtime_ns
    picture = mnre_folder / posts[0]["image"]
    assert extractor(posts[0]["tokens"], head=[3, 4], tail=[5, 6], image=picture)["top"]
    assert (tmp_path / "temporary").stat().st_mtime_ns == before
    with pytest.raises(InputError, match="unknown"):
        monkeypatch.setattr("finetune.registry.entry_points", lambda **_: ())
        registry.place_of("tasks", "no_such")


def test_one_post_on_the_command_line(run, mnre_folder, capsys):
    main(["predict", str(run), "--text", "Ann and Bob", "--head", "Ann", "--tail", "Bob",
          "--image", str(mnre_folder / "img_org/val/val0.jpg"), "--top_k", "2"])  # fmt: skip
    answer = json.loads(capsys.readouterr().out)
    assert len(answer["top"]) == 2 and answer["tail"] == {"text": "Bob", "start": 8, "end": 11}
    for wrong, message in (
        (["--head", "Cid", "--tail", "Bob"], "head 'Cid' does not occur in the text"),
        (["--head", "Ann"], "head and tail: give both"),
        ([], "no head and tail; give them, or --ner RUN"),
        (["--head", "Ann", "--tail", "Bob", "--image", "no.jpg"], "image no.jpg: no such file"),
        (["--head", "Ann", "--tail", "Bob", "--out", "x"], "out goes with --input"),
    ):
        with pytest.raises(SystemExit) as exit_:
            main(["predict", str(run), "--text", "Ann and Bob", *wrong])
        assert exit_.value.code == 2
        error = capsys.readouterr().err
        assert message in error and error.strip().count("\n") == 0


# ---------------------------------------------------------------------- entities


def test_entities_have_their_characters(ner):
    """Spans of words as conlleval reads the tags, at their places in the text."""
    extractor = Extractor.from_pretrained(ner)
    text = "RT @x: Ann and  Bob, tonight!"
    answer = extractor(text)
    post = parse_post({"text": text}, None, "twitter2017")
    assert post.tokens == ("RT", "@", "x", ":", "Ann", "and", "Bob", ",", "tonight", "!")
    ((tags, _, _),) = extractor.run.answers([(post, None, None)])
    covered = set()
    assert answer["entities"], "random weights of this seed find some"
    for entity in answer["entities"]:
        assert text[entity["start"] : entity["end"]] == entity["text"]
        first, end = entity["words"]
        assert tags[first][2:] == entity["type"] and tags[first] != "O"
        assert entity["start"] == post.places[first][0] and entity["end"] == post.places[end - 1][1]
        covered |= set(range(first, end))
    assert covered == {i for i, tag in enumerate(tags) if tag != "O"}


def test_entities_have_their_scores(tmp_path, ner, capsys):
    """Scores are the chain's posteriors of the batch itself: in Python, in bulk, on the page."""
    extractor = Extractor.from_pretrained(ner)
    text = "RT @x: Ann and  Bob, tonight!"
    answer = extractor(text)
    given = [entity["score"] for entity in answer["entities"]]
    assert len(set(given)) > 1 and all(0 < s < 1 and round(s, 4) == s for s in given)

    parts, post = extractor.run, parse_post({"text": text}, None, "twitter2017")
    batch = parts.tokenizer([list(post.tokens)], is_split_into_words=True, return_tensors="pt")
    starts = [batch.word_ids(0).index(word) for word in range(len(post.tokens))]
    method = parts.method.eval()
    with torch.no_grad():
        states = method.encoder(**batch).last_hidden_state[:, starts]
        emissions, mask = method.head.emission(states), torch.ones(1, len(starts)).bool()
        tags = method.head.crf.decode(emissions, mask)
        found = entities([ENTITIES.labels[tag] for tag in tags[0]])
        places = torch.arange(len(starts))[None]
        (exact,) = method.head.crf.entity_probabilities(emissions, mask, places, mask, [found])
    assert given == pytest.approx(exact, abs=1e-4)

    source = write(tmp_path / "p.jsonl", [{"text": "Ann"}, "x\n", {"text": text}])
    main(["predict", str(ner), "--input", str(source)])
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert "error" in lines[1]
    assert [e["score"] for e in lines[2]["entities"]] == pytest.approx(given, abs=2e-4)

    shown = pane.answer(extractor, text, "", "", None, False)
    labels = [label for _, label in shown.spans if label]
    assert labels == [f"{e['type']} {e['score']:.0%}" for e in answer["entities"]]
    assert "".join(piece for piece, _ in shown.spans) == text
    colors = {label.split()[0]: set() for label in labels}
    for label in labels:
        colors[label.split()[0]].add(shown.colors[label])
    assert all(len(some) == 1 for some in colors.values())
    assert len(set.union(*colors.values())) == len(colors)


def test_a_method_without_a_chain_has_no_scores(ner, monkeypatch):
    """null, not a made-up figure."""
    monkeypatch.delattr(TaggingHead, "entity_scores")
    found = Extractor.from_pretrained(ner)("RT @x: Ann and  Bob, tonight!")["entities"]
    assert found and all(entity["score"] is None for entity in found)


def test_pairs_of_found_entities(run, ner, mnre_folder):
    """Every ordered pair, each as if it had been given."""
    pair = Extractor.from_pretrained(run, ner=ner)
    alone = Extractor.from_pretrained(run)
    text, picture = "RT @x : Ann and Bob tonight", mnre_folder / "img_org/val/val3.jpg"
    answer = pair(text, image=picture)
    spans = [tuple(entity["words"]) for entity in answer["entities"]]
    assert len(spans) >= 2
    expected = [(a, b) for a in spans for b in spans if a != b]
    assert len(answer["relations"]) == len(expected)
    tokens = list(parse_post({"text": text}, None, "twitter2017").tokens)
    for (head, tail), found in zip(expected, answer["relations"], strict=True):
        given = alone(tokens, head=list(head), tail=list(tail), image=picture)
        assert given["relation"] == found["relation"]
        assert given["probability"] == pytest.approx(found["probability"], abs=2e-4)
        assert text[found["head"]["start"] : found["head"]["end"]] == found["head"]["text"]
    with pytest.raises(InputError, match="that run finds relations, not entities"):
        Extractor.from_pretrained(run, ner=run)
    with pytest.raises(InputError, match="finds entities itself"):
        Extractor.from_pretrained(ner, ner=ner)


# ---------------------------------------------------------------------- bad rows, and going on


def test_bad_rows_stand_in_their_places(tmp_path, run, mnre_folder, posts, capsys):
    """The others' answers are those of the undamaged file."""
    good = write(mnre_folder / "good.jsonl", posts)
    main(["predict", str(run), "--input", str(good), "--out", str(tmp_path / "good.jsonl")])
    whole = (mnre_folder / posts[4]["image"]).read_bytes()
    (mnre_folder / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (mnre_folder / "text.jpg").write_text("no picture")
    damaged = list(posts)
    damaged[0] = "{not json\n"
    damaged[3] = {**posts[3], "head": [4, 99]}
    damaged[4] = {**posts[4], "image": "cut.jpg"}
    damaged[7] = {**posts[7], "image": "text.jpg"}
    damaged[11] = {**posts[11], "image": "absent.jpg", "id": "eleven"}
    damaged[12] = {**posts[12], "tokens": [*posts[12]["tokens"], "[E1]"], "id": 12}
    damaged[20] = {**posts[20], "colour": "red"}
    damaged[25] = "\n"
    damaged[29] = '{"text": "' + "x" * 1_000_001 + '"}'
    source = write(mnre_folder / "damaged.jsonl", damaged)
    main(["predict", str(run), "--input", str(source), "--out", str(tmp_path / "bad.jsonl")])
    answers, expected = read(tmp_path / "bad.jsonl"), read(tmp_path / "good.jsonl")
    errors = {answer["row"]: answer["error"] for answer in answers if "error" in answer}
    assert {row: error[:22] for row, error in errors.items()} == {
        0: "not JSON",
        3: "head [4, 99) is empty ",
        4: errors[4][:22],
        7: errors[7][:22],
        11: errors[11][:22],
        12: "its text itself holds ",
        20: "unknown key 'colour'; ",
        25: "not JSON",
        29: "a line of more than 10",
    }
    assert "cut.jpg: damaged image" in errors[4]
    assert "text.jpg: not a JPEG" in errors[7]
    assert "absent.jpg: no such file" in errors[11] and answers[12]["id"] == 12
    for answer, other in zip(answers, expected, strict=True):
        if answer["row"] not in errors:
            assert answer["relation"] == other["relation"]
            assert answer["probability"] == pytest.approx(other["probability"], abs=2e-4)


def test_bf16_is_used_where_it_is_asked_for(tmp_path, run, mnre_folder, posts, caplog):
    """And said; `auto` is fp32 on a CPU. The answers are near."""
    source, answers = write(mnre_folder / "posts.jsonl", posts), []
    for precision in ("auto", "fp32", "bf16"):
        out = tmp_path / f"{precision}.jsonl"
        with caplog.at_level("INFO", "finetune.predict.command"):
            main(["predict", str(run), "--input", str(source), "--out", str(out),
                  "--precision", precision])  # fmt: skip
        answers.append(read(out))
    said = [line for line in caplog.messages if line.startswith("precision: ")]
    assert said[0].startswith("precision: fp32 (bf16 is faster")
    assert said[1:] == ["precision: fp32", "precision: bf16"]
    assert answers[0] == answers[1] != answers[2]
    for one, other in zip(*answers[1:], strict=True):
        assert one["probability"] == pytest.approx(other["probability"], abs=0.02)


def test_a_file_without_a_readable_row_ends_in_an_error_each_time(tmp_path, run, capsys):
    source, out = write(tmp_path / "p.jsonl", ["x\n", "y\n"]), tmp_path / "o"
    for why in ("the first: not JSON", f"{out} says why of each"):
        with pytest.raises(SystemExit) as ended:
            main(["predict", str(run), "--input", str(source), "--out", str(out)])
        assert ended.value.code == 2
        said = capsys.readouterr().err.splitlines()[-1]
        assert "none of its 2 rows can be read" in said and why in said
    assert ["error" in answer for answer in read(out)] == [True, True]


def test_an_interrupted_file_goes_on(tmp_path, run, mnre_folder, posts, monkeypatch):
    source, out = write(mnre_folder / "p.jsonl", [*posts[:20], "x\n", *posts[20:]]), tmp_path / "o"
    argv = ["predict", str(run), "--input", str(source), "--out", str(out)]
    main(argv)
    expected = out.read_bytes()
    lines = expected.splitlines(keepends=True)
    (tmp_path / "o.partial").write_bytes(b"".join(lines[:16]) + lines[16][:10])
    out.unlink()
    main(argv)
    assert out.read_bytes() == expected and not (tmp_path / "o.partial").exists()
    monkeypatch.setattr("finetune.predict.command.build", None)  # finished: nothing is loaded
    main(argv)
    assert out.read_bytes() == expected
    state = tmp_path / "o.settings.json"
    settings = json.loads(state.read_text())
    assert settings.pop("caption_model", "absent") is None  # begun before there was this option
    state.write_text(json.dumps(settings))
    main(argv)
    state.write_text(json.dumps(settings | {"caption_model": "blip"}))
    with pytest.raises(SystemExit):
        main(argv)
    state.write_text(json.dumps(settings))
    write(source, posts)
    with pytest.raises(SystemExit):
        main(argv)
    with pytest.raises(SystemExit):
        main([*argv, "--top_k", "1"])


@pytest.mark.parametrize("ending", ["jsonl", "csv"])
def test_pictures_that_changed_are_not_answered_already(tmp_path, run, mnre_folder, ending, capsys):
    """One that was missing has arrived, one was drawn anew; paths may be spelled otherwise."""
    folder = shutil.copytree(mnre_folder / "img_org/test", tmp_path / "posts/img")
    first, late, *_ = sorted(path.name for path in folder.iterdir())
    picture = (folder / late).read_bytes()
    (folder / late).unlink()
    source, out = tmp_path / f"posts/p.{ending}", tmp_path / "o"
    if ending == "csv":
        rows = "".join(f"a b,a,b,img/{name}\n" for name in (first, late))
        source.write_text(f"text,head,tail,image\n{rows}")
    else:
        post = {"text": "a b", "head": "a", "tail": "b"}
        write(source, [post | {"image": f"img/{name}"} for name in (first, late)])
    main(["predict", str(run), "--input", str(source), "--out", str(out)])
    assert "no such file" in out.read_text().splitlines()[1]
    argv = [
        "predict",
        f"{run}/",
        "--input",
        f"{tmp_path}/posts/../posts/p.{ending}",
        "--out",
        str(out),
    ]
    main(argv)  # the same: finished already
    (folder / late).write_bytes(picture)
    with pytest.raises(SystemExit):
        main(argv)
    assert "settings (pictures); give another --out, or remove it" in capsys.readouterr().err
    out.unlink()
    main(argv)
    assert "error" not in out.read_text()
    Image.new("RGB", (9, 9)).save(folder / first)
    with pytest.raises(SystemExit):
        main(argv)
    state = tmp_path / "o.settings.json"  # as older code wrote it, which looked at no picture
    settings = json.loads(state.read_text())
    state.write_text(json.dumps({k: v for k, v in settings.items() if k != "pictures"}))
    main(argv)


def test_a_text_that_is_none_is_refused_from_python(run):
    extract = Extractor.from_pretrained(run)
    for text in (None, 5, b"a b", {"a": 1}, np.array(["a", "b"])):
        with pytest.raises(InputError, match="text must be a string"):
            extract(text, head="a", tail="b")


def test_answers_are_utf8_in_any_locale(run):
    words = [
        "predict",
        str(run),
        "--text",
        "d\u00e9j\u00e0 \U0001f600 b",
        "--head",
        "b",
        "--tail",
        "d\u00e9j\u00e0",
    ]
    env = os.environ | {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    env |= {"PYTHONIOENCODING": "ascii", "PYTHONPATH": os.pathsep.join(sys.path)}
    code = f"from finetune.__main__ import main, run; run(lambda: main({words!a}))"
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.decode())["tail"]["text"] == "d\u00e9j\u00e0"


def test_answers_of_another_model_are_not_finished(tmp_path, run, mnre_folder, posts, capsys):
    """The run was trained again under its name; the input changed far behind its beginning."""
    own = shutil.copytree(run, tmp_path / "own")
    source, out = write(mnre_folder / "p.jsonl", posts), tmp_path / "o"
    argv = ["predict", str(own), "--input", str(source), "--out", str(out)]
    main(argv)
    before = out.read_bytes()
    for path in (*own.glob("seed-*/model/method.json"), *own.glob("seed-*/pred_dev.jsonl"), source):
        content = path.read_bytes()
        path.write_bytes(content + b" \n")
        capsys.readouterr()
        with pytest.raises(SystemExit):
            main(argv)
        assert "answers to another input, run or settings" in capsys.readouterr().err
        path.write_bytes(content)
    assert out.read_bytes() == before
    main(argv)


def test_weights_in_an_empty_folder_are_for_their_reader_to_refuse(tmp_path, run):
    folder, posts = tmp_path / "weights", tmp_path / "p.jsonl"
    folder.mkdir()
    posts.touch()
    config = PredictConfig(run=str(run), input=str(posts), out="o", grounder=str(folder))
    assert len(config.shaping()["grounder_sha256"]) == 64


def test_weights_are_known_by_what_is_read_of_them(tmp_path, run, monkeypatch):
    """Not by a checkout beside them or another form of them; of a hub id by the cached commit."""
    hub, posts = tmp_path / "hub/models--me--blip", tmp_path / "p.jsonl"
    folder = hub / "snapshots" / ("ab" * 20)
    for path in ("config.json", "model.safetensors", "pytorch_model.bin", ".git/lfs/model", "r.md"):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text("{}")
    (hub / "refs").mkdir()
    posts.touch()

    def shaping(model):
        config = PredictConfig(run=str(run), input=str(posts), out="o", caption_model=str(model))
        return config.shaping()

    before = shaping(folder)["caption_model_sha256"]
    for path, same in ((".git/lfs/model", True), ("pytorch_model.bin", True),
                       ("model.safetensors", False)):  # fmt: skip
        (folder / path).write_text("[]")
        assert (shaping(folder)["caption_model_sha256"] == before) is same, path
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    assert "caption_model_commit" not in shaping("me/blip")
    (hub / "refs/main").write_text("ab" * 20)
    assert shaping("me/blip")["caption_model_commit"] == "ab" * 20


def test_finished_answers_are_what_was_written(tmp_path, run, mnre_folder, posts, capsys):
    source, out = write(mnre_folder / "p.jsonl", posts[:4]), tmp_path / "o"
    argv = ["predict", str(run), "--input", str(source), "--out", str(out)]
    main(argv)
    content = out.read_bytes()
    out.write_bytes(content.replace(b'"probability": 0.', b'"probability": 1.', 1))
    with pytest.raises(SystemExit):
        main(argv)
    assert f"{out}: not what was written" in capsys.readouterr().err
    out.write_bytes(content)
    main(argv)
    state = tmp_path / "o.settings.json"  # as older code wrote it
    settings = json.loads(state.read_text())
    assert settings.pop("answers_sha256") == hashlib.sha256(content).hexdigest()
    state.write_text(json.dumps(settings))
    main(argv)


def test_two_processes_do_not_answer_into_one_file(tmp_path, run, mnre_folder, posts, capsys):
    source, out = write(mnre_folder / "p.jsonl", posts), tmp_path / "o"
    argv = ["predict", str(run), "--input", str(source), "--out", str(out)]
    with lock_file(out), pytest.raises(SystemExit):
        main(argv)
    assert f"pid {os.getpid()} on " in capsys.readouterr().err
    assert not any(tmp_path.glob("o*"))
    main(argv)
    assert len(out.read_text().splitlines()) == len(posts)


# ---------------------------------------------------------------------- calibration


def test_calibration_error_by_hand():
    """Confidence .6 twice (one right), .9 twice (both right): (|1.2-1| + |1.8-2|) / 4."""
    shares = np.array([[0.6, 0.4], [0.6, 0.4], [0.9, 0.1], [0.1, 0.9]])
    assert calibration.calibration_error(shares, np.array([0, 1, 0, 1])) == pytest.approx(10.0)
    assert calibration.negative_log_likelihood(shares, np.array([0, 1, 0, 1])) == pytest.approx(
        -np.log([0.6, 0.4, 0.9, 0.9]).mean()
    )


def test_temperature_is_found_again_and_agrees_with_a_gradient_descent():
    """Answers drawn from softmax(z), the model says softmax(3 z): T = 3, whatever the metric."""
    generator = np.random.default_rng(0)
    scores = generator.normal(size=(4000, 5))
    true = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
    gold = np.array([generator.choice(5, p=row) for row in true])
    said = calibration.sharpen(true, 1 / 3)
    found = calibration.calibrate(said, gold)
    logits, beta = torch.tensor(np.log(said)), torch.ones((), requires_grad=True)
    optimizer = torch.optim.LBFGS([beta], max_iter=50)

    def loss():
        optimizer.zero_grad()
        value = torch.nn.functional.cross_entropy(beta * logits, torch.tensor(gold))
        value.backward()
        return value

    optimizer.step(loss)
    assert found.temperature == pytest.approx(1 / beta.item(), rel=1e-3)
    assert found.temperature == pytest.approx(3, rel=0.1)
    assert found.ece_after < 3 < 15 < found.ece_before
    assert abs(found.ece_after_held_out - found.ece_after) < 2
    assert found.nll_after < found.nll_before


def test_a_run_is_calibrated_once(run, mnre_folder, posts):
    """From `pred_dev.jsonl`; kept beside it; fitted again when that file changes."""
    extractor = Extractor.from_pretrained(run)
    picture = mnre_folder / posts[0]["image"]
    plain = extractor(posts[0]["tokens"], head=[3, 4], tail=[5, 6], image=picture)
    assert extractor.run.temperature == 1.0 and not (run / "seed-1/calibration.json").exists()
    labels = extractor.run.info.labels
    records = [
        {"row": i, "gold": labels[i % 3], "pred": labels[0], "scores": [0.9, 0.07, 0.03]}
        for i in range(30)
    ]
    write(run / "seed-1/pred_dev.jsonl", records)
    warm = Extractor.from_pretrained(run)
    kept = json.loads((run / "seed-1/calibration.json").read_text())
    assert warm.run.temperature == kept["temperature"] == pytest.approx(20, rel=1e-3)  # hottest
    after = warm(posts[0]["tokens"], head=[3, 4], tail=[5, 6], image=picture)
    assert after["relation"] == plain["relation"]
    assert after["probability"] < plain["probability"]
    write(run / "seed-1/pred_dev.jsonl", [r | {"gold": labels[0]} for r in records])
    assert Extractor.from_pretrained(run).run.temperature < 0.1  # all are right
    (run / "seed-1/calibration.json").write_text("{}")
    with pytest.raises(InputError, match=r"calibration\.json: damaged"):
        Extractor.from_pretrained(run)


# ---------------------------------------------------------------------- what a run reads beside


def test_regions_are_made_for_a_post(tmp_path, mnre_folder, tiny_model, posts):
    """Of the kinds that the method has slots for; without weights a line, or none at all."""
    config = MKGformerConfig(
        vision="random", vision_patch=8, vg_size=16, od_size=8, fusion_layers=1, od=0
    )
    task = Mnre(mnre_folder).info
    run = save_run(
        tmp_path / "mkg", "mkgformer", MKGformer, config, task, tiny_model, {"regions": "community"}
    )
    with pytest.raises(InputError, match=r"--grounder nowhere: cannot be loaded.*--regions none"):
        Extractor.from_pretrained(run, live=LiveInputs(grounder="nowhere"))
    empty = Extractor.from_pretrained(run, live=LiveInputs(regions="none"))
    asked = []

    def ground(picture, keywords):
        asked.append((picture.size, keywords))
        return [Region((1, 1, 9, 9), 0.5, *keyword) for keyword in keywords]

    live = LiveInputs(tagger="none")
    live.__dict__["ground"] = ground
    grounded = Extractor.from_pretrained(run, live=live)
    post = {"head": [3, 4], "tail": [5, 6], "image": mnre_folder / posts[0]["image"]}
    first, second = (e(posts[0]["tokens"], **post) for e in (empty, grounded))
    assert first["probability"] != second["probability"]
    names = [posts[0]["tokens"][3], posts[0]["tokens"][5]]
    assert asked == [((20, 16), list(zip(names, ("head", "tail"), strict=True)))]
    # the same boxes from a cache of the data folder give the same answer
    from finetune.tasks.region_cache import Regions, write_regions

    rows = Mnre(mnre_folder).read("test")
    boxes = {
        row.row: Regions(row.image_id, (20, 16), (Region((1, 1, 9, 9), 0.5, "x", "head"),) * 2)
        for row in rows
    }
    write_regions(mnre_folder / "regions_vg_test.jsonl", {"leaky": False}, boxes)
    options = InputOptions(
        images="required", max_length=40, regions=str(mnre_folder), cache=tmp_path / "c"
    )
    parts = grounded.run
    split = load_split(Mnre(mnre_folder), "test", parts.tokenizer, parts.method, options)
    expected = evaluate.predict(parts.method, Mnre(mnre_folder), split, "fp32")
    assert second["relation"] == expected.answers[0]
    assert second["probability"] == pytest.approx(max(expected.probabilities[0]), abs=2e-4)


def reading_captions(run):
    """The run, as if it had been trained with captions."""
    path = run / "seed-1/model/method.json"
    description = json.loads(path.read_text())
    description["inputs"] |= {"captions": "caption", "max_caption_length": 8}
    path.write_text(json.dumps(description))
    path.with_name("checksums.json").unlink()
    return run


def test_captions_come_with_the_posts(run, mnre_folder, posts):
    extractor = Extractor.from_pretrained(reading_captions(run))
    post = {"head": [3, 4], "tail": [5, 6], "image": mnre_folder / posts[0]["image"]}
    one = extractor(posts[0]["tokens"], caption="Ann", **post)
    two = extractor(posts[0]["tokens"], caption="Bob", **post)
    assert one["probability"] != two["probability"]
    with pytest.raises(InputError, match=r"give --caption TEXT.*--caption-model DIR"):
        extractor(posts[0]["tokens"], **post)
    blind = post | {"image": None}
    texts = (None, "Ann", "Bob")  # a caption without a picture is read, too
    answers = [extractor(posts[0]["tokens"], caption=text, **blind) for text in texts]
    assert len({answer["probability"] for answer in answers}) == 3


def test_captions_that_are_cut_are_counted_once_a_call(run, mnre_folder, posts, caplog):
    """Whatever the chunks, and however often a chunk with a bad post is read."""
    extractor = Extractor.from_pretrained(reading_captions(run))
    long = "a b c d e f g h i"
    lines = [post | {"caption": long} for post in posts[:5]] + [posts[5] | {"caption": "Ann"}]
    lines.append(posts[6] | {"caption": long})
    parsed = [parse_post(line, mnre_folder, "mnre") for line in lines]
    parsed[-1].image.unlink()
    stream = extractor.stream([*parsed[:4], parsed[6], *parsed[4:6]], chunk=3)
    assert sum("error" in answer for answer in stream) == 1
    (said,) = [message for message in caplog.messages if "lose their end" in message]
    assert said.startswith("5 captions") and "longer than the 8 word pieces" in said
    caplog.clear()
    extractor(posts[0]["tokens"], head=[3, 4], tail=[5, 6], caption=long)
    assert [m.partition(" (")[0] for m in caplog.messages] == ["1 captions"]


def test_captions_are_written_by_a_captioner(
    tmp_path, run, mnre_folder, posts, tiny_captioner, capsys
):
    """Its words, as `shards captions` writes them; once a picture; a caption given is kept."""
    from shards.captions import Captioner

    own = Captioner(str(tiny_captioner), "a photo of", 60, "cpu")
    pictures = [mnre_folder / post["image"] for post in posts[:2]]
    with Image.open(pictures[0]) as first, Image.open(pictures[1]) as second:
        said = own.describe([first.convert("RGB"), second.convert("RGB")])
    (mnre_folder / "cut.jpg").write_bytes(pictures[0].read_bytes()[:300])
    lines = [posts[0], posts[1], posts[0], {**posts[0], "caption": "Bob"}]
    lines += [{**posts[0], "image": "cut.jpg"}, {**posts[0], "image": None}]
    run, blip = reading_captions(run), shutil.copytree(tiny_captioner, tmp_path / "blip")
    out = tmp_path / "o.jsonl"
    argv = ["predict", str(run), "--input", str(write(mnre_folder / "p.jsonl", lines)),
            "--out", str(out), "--caption-model", str(blip)]  # fmt: skip
    main(argv)
    answers = read(out)
    (blip / "model.safetensors").write_bytes(b"another")
    with pytest.raises(SystemExit):
        main(argv)
    assert "settings (caption_model_sha256); give another" in capsys.readouterr().err
    assert "cut.jpg: damaged image" in answers.pop(4)["error"]
    plain = Extractor.from_pretrained(run)
    texts = [said[0], said[1], said[0], "Bob", None]
    for line, text, answer in zip([*lines[:4], lines[5]], texts, answers, strict=True):
        image = line["image"] and mnre_folder / line["image"]
        given = plain(
            line["tokens"], head=line["head"], tail=line["tail"], image=image, caption=text
        )
        assert answer["probability"] == pytest.approx(given["probability"], abs=2e-4)
    with pytest.raises(SystemExit):
        main(["predict", str(run), "--text", "Ann and Bob", "--head", "Ann", "--tail", "Bob",
              "--caption-model", str(tmp_path / "none")])  # fmt: skip
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("error: --caption-model ") and "--caption TEXT" in last


def test_what_cannot_be_made_is_named(run, caplog):
    method = Extractor.from_pretrained(run).run.method
    inputs = {"images": "required", "max_length": 40, "regions": None, "types": "somewhere"}
    method.needs = frozenset({"image", "scores"})
    method.providers = providers(TmrConfig().settled("relation"))
    with pytest.raises(InputError, match="what new posts do not have: correlation scores"):
        check_needs(method, inputs, LiveInputs(), "run")
    assert check_needs(method, inputs | {"images": "none"}, LiveInputs(), "run")["types"] is None
    assert "those of new posts are unknown" in caplog.text
    method.needs = frozenset({"phrases", "image_ids"})
    method.providers = providers(TmrConfig(phrases="entities"))
    check_needs(method, inputs, LiveInputs(), "run")
    method.providers = providers(TmrConfig(phrases="community"))
    with pytest.raises(InputError, match="phrases that TMR's authors published"):
        check_needs(method, inputs, LiveInputs(), "run")


# ---------------------------------------------------------------------- posts


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ([], "not a JSON object"),
        ({}, "either text or tokens"),
        ({"text": "a", "tokens": ["a"]}, "either text or tokens"),
        ({"text": " "}, "not blank"),
        ({"text": "x" * 20_001}, "20001 characters"),
        ({"tokens": []}, "must not be empty"),
        ({"tokens": ["a", 1]}, "list of strings"),
        ({"text": "a b", "head": "a"}, "give both or neither"),
        ({"text": "a b a", "head": "a", "tail": "b"}, "occurs 2 times"),
        ({"text": "ab b", "head": "a", "tail": "b"}, "'a' does not occur"),
        ({"text": "a b", "head": [0, 1], "tail": [1, 2]}, "holds no word"),
        ({"text": "a b", "head": [0, 1], "tail": [2, 9]}, r"\[2, 9\) is empty or outside 3"),
        ({"tokens": ["a"], "head": "a", "tail": [0, 1]}, r"\[start, end\) in tokens"),
        ({"text": "a", "image": 3}, "image must be a path"),
        ({"text": "a", "caption": 3}, "caption must be a string"),
    ],
)
def test_posts_that_cannot_be_read(tmp_path, record, message):
    with pytest.raises(InputError, match=message):
        parse_post(record, tmp_path, "mnre")


def test_a_picture_that_claims_too_much_is_refused(tmp_path, monkeypatch):
    Image.new("RGB", (40, 40)).save(tmp_path / "a.png")
    assert parse_post({"text": "a", "image": "a.png"}, tmp_path, "mnre").image
    monkeypatch.setattr("finetune.tasks.posts.POST_PIXELS", 1000)
    with pytest.raises(InputError, match=r"a\.png: absurd size 40x40, over 1,000 pixels"):
        parse_post({"text": "a", "image": "a.png"}, tmp_path, "mnre")


def test_entities_cut_words():
    """A span inside a word is a token of its own, so that its marker stands where it was asked."""
    post = parse_post({"text": "pre-Brexit Britain", "head": [4, 10], "tail": [11, 18]}, None, "")
    assert post.tokens == ("pre", "-", "Brexit", "Britain")
    assert post.mention(post.head) == {"text": "Brexit", "start": 4, "end": 10}
    assert post.tail == (3, 4)


@pytest.mark.parametrize(("year", "words"), [(2015, WHOLE_TAGS), (2017, APART)])
def test_words_are_those_of_the_published_tokens(year, words, shared_data):
    """Cut again, the published tweets keep their tokens: 97 % of them and more."""
    same = total = 0
    for row in read_rows(shared_data / f"twitter{year}/valid.txt"):
        found = {m.span() for m in words.finditer(" ".join(row.tokens))}
        places = parse_post({"tokens": list(row.tokens)}, None, "").places
        same, total = same + len(found & set(places)), total + len(places)
    assert same / total > 0.97


def test_a_partial_file_is_what_was_written(tmp_path, run, mnre_folder, posts, monkeypatch, capsys):
    """A bit that flips in a line, or in its checksum, is named; unequal ends are cut; a file of
    older code, without checksums, goes on."""
    source, out = write(mnre_folder / "p.jsonl", posts), tmp_path / "o"
    partial, sums = tmp_path / "o.partial", tmp_path / "o.partial.crc32"
    argv = ["predict", str(run), "--input", str(source), "--out", str(out)]

    def stop(self):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(SystemExit, match="130"):
        patch.setattr("finetune.predict.done.Done.finish", stop)
        main(argv)
    lines, checks = partial.read_bytes(), sums.read_bytes()
    for path, content, place in ((partial, lines, 300), (sums, checks, 20)):
        for bit in range(0, 8, 3):
            damaged = bytearray(content)
            damaged[place] ^= 1 << bit
            path.write_bytes(damaged)
            with pytest.raises(SystemExit, match="2"):
                main(argv)
            assert "o.partial: line " in capsys.readouterr().err
        path.write_bytes(content)
    main(argv)
    expected = out.read_bytes()
    assert expected == lines and sorted(tmp_path.glob("o*")) == [out, tmp_path / "o.settings.json"]
    for cut_lines, cut_sums in ((lines[:-40], checks), (lines, checks[:40]), (lines[:900], None)):
        out.unlink()
        partial.write_bytes(cut_lines)
        if cut_sums is not None:
            sums.write_bytes(cut_sums)
        main(argv)
        assert out.read_bytes() == expected and not sums.exists()
