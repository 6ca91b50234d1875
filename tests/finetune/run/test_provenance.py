"""A figure never stands beside the hash of something else: what changed under a run is named."""

import json
import os
import shutil

import pytest
from PIL import Image

from finetune.__main__ import main
from finetune.config import parse_train
from finetune.run.progress import Progress
from finetune.run.provenance import changes, kept_inputs, model_files
from finetune.run.train import SeedRun
from finetune.tasks.mnre import Mnre


def train(data, out, model, *options, method="mtb"):
    images = ("--images", "none") if method == "mtb" else ()
    places = f"--data {data} --out {out} --init {model}"
    command = f"train --task mnre --method {method} {places} --optim.epochs 2"
    main([*command.split(), *images, *options])
    return json.loads((out / "result.json").read_text())


def refused(capsys, run, *words):
    capsys.readouterr()
    with pytest.raises(SystemExit) as stopped:
        run()
    *_, last = capsys.readouterr().err.strip().splitlines()
    assert stopped.value.code == 2 and last.startswith("error: ")
    for word in words:
        assert word in last, last


@pytest.fixture
def model(tmp_path, tiny_model):
    return shutil.copytree(tiny_model, tmp_path / "model")


def cut(path):
    """The first twenty lines alone."""
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:20]))


@pytest.mark.parametrize("place", ("txt/ours_train.txt", "txt/ours_test.txt", "rel2id", "model"))
def test_finished_seeds(tmp_path, mnre_folder, model, capsys, place):
    """The same command names the file, for the finished seed as for a further one, and the old
    `result.json` stays as it is."""
    out = tmp_path / "run"
    before = train(mnre_folder, out, model)
    files = before["provenance"]["data"]
    assert {str(mnre_folder / "txt/ours_train.txt"), f"{model}/model.safetensors"} <= files.keys()
    if place == "rel2id":
        path = mnre_folder / "ours_rel2id.json"
        path.write_text(json.dumps(dict(reversed(json.loads(path.read_text()).items()))))
    elif place == "model":
        path = model / "tokenizer.json"
        path.write_text(path.read_text() + " ")
    else:
        path = mnre_folder / place
        cut(path)
    for seeds in ("1", "1,2"):
        run = lambda seeds=seeds: train(mnre_folder, out, model, "--seeds", seeds)  # noqa: E731
        refused(capsys, run, str(path), "changed since", "seed-1")
    assert json.loads((out / "result.json").read_text()) == before


def test_a_file_that_a_setting_names(tmp_path, mnre_folder, model, capsys):
    """Descriptions of relations: another seed would learn other ones."""
    texts = tmp_path / "mine.tsv"
    names = json.loads((mnre_folder / "ours_rel2id.json").read_text())
    texts.write_text("relation\tdescription\n" + "".join(f"{n}\tAnn\n" for n in names))
    options = ("--model.descriptions", str(texts), "--fraction", "0.2")
    train(mnre_folder, tmp_path / "run", model, *options, method="retrieval")
    texts.write_text(texts.read_text().replace("Ann", "Bob"))
    run = lambda: train(  # noqa: E731
        mnre_folder, tmp_path / "run", model, *options, "--seeds", "1,2", method="retrieval"
    )
    refused(capsys, run, str(texts), "changed since")


def test_a_setting_that_is_a_long_text(tmp_path, model):
    """A template of more letters than a file's name may have."""
    words = f"--task mnre --method generative --data x --init {model} --out {tmp_path}/run"
    config = parse_train([*words.split(), "--model.template", "{text} {head} {tail} word " * 40])
    assert {path.parent for path in model_files(config)} == {model}


def in_parts(model):
    """Weights as `save_pretrained` cuts large ones; the file that holds the first part."""
    from safetensors.torch import load_file, save_file

    state = load_file(model / "model.safetensors")
    names = sorted(state)
    parts = {f"model-0000{part}-of-00002.safetensors": names[part - 1 :: 2] for part in (1, 2)}
    for part, members in parts.items():
        save_file({name: state[name] for name in members}, model / part, metadata={"format": "pt"})
    index = {name: part for part, members in parts.items() for name in members}
    (model / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    (model / "model.safetensors").unlink()
    return model / "model-00001-of-00002.safetensors"


def as_pickle(model):
    import torch
    from safetensors.torch import load_file

    torch.save(load_file(model / "model.safetensors"), model / "pytorch_model.bin")
    (model / "model.safetensors").unlink()
    return model / "pytorch_model.bin"


@pytest.mark.parametrize("form", (in_parts, as_pickle, "preprocessor_config.json"))
def test_initial_weights_in_every_form(tmp_path, model, form):
    """What decides them is recorded, whatever the files are called."""
    path = model / form if isinstance(form, str) else form(model)
    config = parse_train(
        f"--task mnre --method mtb --data x --init {model} --out {tmp_path}/run".split()
    )
    assert path in model_files(config) and model / "README.md" not in model_files(config)


def test_nothing_changed(tmp_path, mnre_folder, model):
    """Touched and copied files are the same ones; weights that are gone contradict nothing."""
    out = tmp_path / "run"
    before = train(mnre_folder, out, model, method="promu")
    assert set(before["provenance"]["pictures"]) == {"train", "val", "test"}
    seed, elsewhere = kept_inputs(out / "seed-1"), tmp_path / "cache"
    assert not changes(seed, Mnre(mnre_folder), elsewhere) and not elsewhere.exists()  # none read
    for path in mnre_folder.rglob("*.*"):
        os.utime(path, (1, 1))
    (model / "model.safetensors").unlink()
    assert train(mnre_folder, out, model, method="promu") == before


def test_a_picture(tmp_path, mnre_folder, model, capsys):
    """Another picture of the same size under the old name; a run without pictures does not mind."""
    for method in ("promu", "mtb"):
        train(mnre_folder, tmp_path / method, model, method=method)
    Image.new("RGB", (20, 16), (1, 2, 3)).save(mnre_folder / "img_org/test/test3.jpg")
    run = lambda: train(mnre_folder, tmp_path / "promu", model, method="promu")  # noqa: E731
    refused(capsys, run, "img_org/test", "picture of test")
    train(mnre_folder, tmp_path / "mtb", model)


def test_a_seed_that_goes_on(tmp_path, mnre_folder, model, capsys, monkeypatch):
    """Its hashes are those of its start."""
    save = Progress.save

    def dying(self, *where):
        save(self, *where)
        raise KeyboardInterrupt

    monkeypatch.setattr(Progress, "save", dying)
    with pytest.raises(SystemExit):
        train(mnre_folder, tmp_path / "run", model)
    monkeypatch.setattr(Progress, "save", save)
    path = mnre_folder / "txt/ours_train.txt"
    content = path.read_text()
    cut(path)
    refused(capsys, lambda: train(mnre_folder, tmp_path / "run", model), str(path))
    path.write_text(content)
    result = train(mnre_folder, tmp_path / "run", model)
    files = kept_inputs(tmp_path / "run/seed-1").files
    assert result["provenance"]["data"] == files and result["per_seed"][0]["epochs"] == 2


def test_a_damaged_record(tmp_path, mnre_folder, model, capsys):
    train(mnre_folder, tmp_path / "run", model)
    (tmp_path / "run/seed-1/inputs.json").write_text('{"files": []}')
    run = lambda: train(mnre_folder, tmp_path / "run", model)  # noqa: E731
    refused(capsys, run, "inputs.json: damaged")


def test_the_same_data_from_another_folder(tmp_path, mnre_folder, model, monkeypatch):
    """A run whose paths were typed relative to where it was trained."""
    monkeypatch.chdir(mnre_folder.parent)
    train(mnre_folder.name, tmp_path / "run", model)
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "run/seed-1/pred_dev.jsonl"
    before = path.read_bytes()
    path.unlink()
    main(f"evaluate {tmp_path}/run --data {mnre_folder} --split dev".split())
    assert path.read_bytes() == before


def test_evaluate_on_other_data(tmp_path, mnre_folder, model):
    """Other data, other files: what the run itself answered stays to the byte."""
    run = tmp_path / "run"
    train(mnre_folder, run, model)

    def own():
        return {
            path.name: path.read_bytes()
            for path in [*run.glob("seed-1/pred_*.jsonl"), run / "result.json"]
        }

    before = own()
    assert set(before) == {"pred_dev.jsonl", "pred_test.jsonl", "result.json"}
    main(["evaluate", str(run), "--data", str(mnre_folder)])
    assert own() == before and (run / "evaluate_test.json").is_file()
    other = shutil.copytree(mnre_folder, tmp_path / "other")
    cut(other / "txt/ours_test.txt")
    for split in ("test", "dev"):
        main(["evaluate", str(run), "--data", str(other), "--split", split])
        (written,) = run.glob(f"seed-1/pred_{split}_data-other-*.jsonl")
        assert len(written.read_text().splitlines()) == {"test": 20, "dev": 30}[split]
        (scores,) = run.glob(f"evaluate_{split}_data-other-*.json")
        assert json.loads(scores.read_text())["data"] == str(other)
        written.unlink()
    assert own() == before
    cut(mnre_folder / "txt/ours_test.txt")  # the folder of the run, changed since
    main(["evaluate", str(run), "--data", str(mnre_folder)])
    (written,) = run.glob("seed-1/pred_test_data-mnre-*.jsonl")
    written.unlink()
    assert own() == before


def test_two_views_of_one_name(tmp_path, mnre_folder, model):
    """Folders that differ behind a dot, manifests that are all called `test.jsonl`: each has its
    own figures."""
    run = tmp_path / "run"
    train(mnre_folder, run, model)
    figures = {}
    for ratio in ("0.5", "0.25"):
        place = tmp_path / f"views/keep-{ratio}"
        main(
            f"view fraction --data {mnre_folder} --scope test --ratio {ratio} --out {place}".split()
        )
        for view in (place, place / "test.jsonl"):
            main(f"evaluate {run} --data {mnre_folder} --view {view}".split())
            (figures[view],) = set(run.glob("evaluate_test_*.json")) - set(figures.values())
    rows = {view: json.loads(path.read_text())["views"][0]["params"]["ratio"]
            for view, path in figures.items()}  # fmt: skip
    assert rows == {view: 0.5 if "0.5" in str(view) else 0.25 for view in figures}
    assert len(list((run / "seed-1").glob("pred_test_*.jsonl"))) == 4


def test_seeds_that_are_not_finished(tmp_path, mnre_folder, model, capsys, caplog):
    """They are left out aloud; alone they have no figure."""
    run = tmp_path / "run"
    train(mnre_folder, run, model)
    shutil.copytree(run / "seed-1", run / "seed-2")
    (run / "seed-2/result.json").unlink()
    evaluate = f"evaluate {run} --data {mnre_folder}"
    main(evaluate.split())
    assert "not finished, and left out: seed-2" in caplog.text
    (scores,) = json.loads((run / "evaluate_test.json").read_text())["per_seed"]
    assert scores["seed"] == "seed-1"
    for command in (evaluate, f"predict {run} --text a --head a --tail a"):
        words = [word.replace(str(run), f"{run}/seed-2") for word in command.split()]
        refused(capsys, lambda words=words: main(words), "seed-2: this seed is not finished")


def test_all_splits_are_opened_before_training(tmp_path, mnre_folder, model, capsys, monkeypatch):
    """What is wrong with test shows before the first step; the advised option is then accepted."""
    steps = []
    calm = SeedRun.train_epoch
    monkeypatch.setattr(SeedRun, "train_epoch", lambda self: steps.append(1) or calm(self))
    (mnre_folder / "img_org/test/test3.jpg").unlink()
    out = tmp_path / "run"
    run = lambda *more: train(mnre_folder, out, model, *more, method="promu")  # noqa: E731
    refused(capsys, run, "1 are missing", "--max_missing 1")
    assert not steps
    result = run("--max_missing", "1")
    assert len(steps) == 2 and result["per_seed"][0]["images"]["test"]["missing"] == 1
    assert run("--max_missing", "2")["test"] == result["test"] and len(steps) == 2
