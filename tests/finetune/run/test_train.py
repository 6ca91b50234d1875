"""The whole road on a tiny model: train, reload, resume, aggregate."""

import ast
import json
import shutil
from pathlib import Path

import fsspec
import pytest
import torch
import yaml

from finetune.__main__ import main
from finetune.protocols import fraction_rows
from finetune.run.train import SeedRun


def train(data: Path, out: Path, model: Path, *options: str, method: str = "promu") -> dict:
    places = f"--data {data} --out {out} --init {model}"
    main(
        f"train --task mnre --method {method} {places} --optim.epochs 2 --optim.lr 1e-3".split()
        + list(options)
    )
    return json.loads((out / "result.json").read_text())


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("method", ["mtb", "promu"])
def test_result_and_files(tmp_path, mnre_folder, tiny_model, method):
    """Two seeds: every file is there, the figures are those of the predictions."""
    result = train(mnre_folder, tmp_path / "run", tiny_model, "--seeds", "1,2", method=method)
    assert list(result) == [
        *("task", "method", "protocol", "leaky", "images", "views", "dev", "test"),
        *("per_seed", "provenance", "_crc32"),
    ]
    assert (result["task"], result["method"], result["leaky"]) == ("mnre", method, False)
    assert result["images"] == ("required" if method == "promu" else "none")
    assert [seed["seed"] for seed in result["per_seed"]] == [1, 2]
    for split, size in (("dev", 30), ("test", 30)):
        mean = sum(seed[split]["f1"] for seed in result["per_seed"]) / 2
        assert result[split]["f1"]["mean"] == pytest.approx(mean, abs=1e-4)
        predictions = lines(tmp_path / "run" / "seed-1" / f"pred_{split}.jsonl")
        assert [record["row"] for record in predictions] == list(range(size))
        assert all(sum(record["scores"]) == pytest.approx(1, abs=1e-3) for record in predictions)
        right = sum(record["gold"] == record["pred"] for record in predictions)
        assert result["per_seed"][0][split]["accuracy"] == pytest.approx(100 * right / size)
    model = {path.name for path in (tmp_path / "run" / "seed-1" / "model").iterdir()}
    assert {"config.json", "model.safetensors", "head.safetensors"} <= model
    assert {"method.json", "labels.json", "tokenizer.json", "README.md"} <= model
    assert not (tmp_path / "run" / "seed-1" / "resume").exists()


def test_a_run_at_a_url_arrives_whole(tmp_path, mnre_folder, tiny_model, monkeypatch):
    """The same figures as at a path; what is uploaded is the finished run."""
    monkeypatch.setenv("FUSION_MRE_CACHE", str(tmp_path / "cache"))
    plain = train(mnre_folder, tmp_path / "run", tiny_model, method="mtb")
    command = f"train --task mnre --method mtb --data {mnre_folder} --init {tiny_model}"
    options = "--optim.epochs 2 --optim.lr 1e-3 --out memory://bucket/run"
    main(f"{command} {options}".split())
    there = fsspec.filesystem("memory")
    sent = json.loads(there.cat("/bucket/run/result.json"))
    assert sent["test"] == plain["test"] and sent["dev"] == plain["dev"]
    assert there.size("/bucket/run/seed-1/model/model.safetensors") > 1000


def test_promu_sees_the_picture(tmp_path, mnre_folder, tiny_model):
    """Only the picture tells the relation: PROMU finds it, without pictures it cannot."""
    options = ("--optim.epochs", "12", "--optim.head_lr", "3e-3")
    seeing = train(mnre_folder, tmp_path / "seeing", tiny_model, *options)
    blind = train(mnre_folder, tmp_path / "blind", tiny_model, *options, "--images", "none")
    assert seeing["test"]["f1"]["mean"] > 90
    assert blind["test"]["f1"]["mean"] < 70
    assert seeing["per_seed"][0]["images"]["train"]["found"] == 120
    assert blind["images"] == "none"


def test_evaluate_repeats_the_figures(tmp_path, mnre_folder, tiny_model, capsys):
    result = train(mnre_folder, tmp_path / "run", tiny_model)
    before = (tmp_path / "run" / "seed-1" / "pred_test.jsonl").read_bytes()
    main(["evaluate", str(tmp_path / "run"), "--data", str(mnre_folder), "--split", "test"])
    again = json.loads((tmp_path / "run" / "evaluate_test.json").read_text())
    assert again["f1"] == result["test"]["f1"]
    assert (tmp_path / "run" / "seed-1" / "pred_test.jsonl").read_bytes() == before


def test_killed_run_ends_like_an_uninterrupted_one(tmp_path, mnre_folder, tiny_model, monkeypatch):
    """Cut off in the third of four epochs; the second start resumes after the second epoch."""
    options = ("--optim.epochs", "4")
    whole = train(mnre_folder, tmp_path / "whole", tiny_model, *options)
    calm, calls = SeedRun.train_epoch, []

    def dying(self):
        calls.append(self.progress.epoch)
        if self.progress.epoch == 3:
            raise KeyboardInterrupt
        return calm(self)

    monkeypatch.setattr(SeedRun, "train_epoch", dying)
    with pytest.raises(SystemExit):
        train(mnre_folder, tmp_path / "cut", tiny_model, *options)
    monkeypatch.setattr(SeedRun, "train_epoch", calm)
    resumed = train(mnre_folder, tmp_path / "cut", tiny_model, *options)
    assert calls == [1, 2, 3]
    assert resumed["dev"] == whole["dev"] and resumed["test"] == whole["test"]
    for name in ("model.safetensors", "head.safetensors"):
        paths = [tmp_path / run / "seed-1" / "model" / name for run in ("whole", "cut")]
        assert paths[0].read_bytes() == paths[1].read_bytes()
    curves = [lines(tmp_path / run / "seed-1" / "metrics.jsonl") for run in ("whole", "cut")]
    assert curves[0] == curves[1]


def test_finished_seed_is_not_trained_again(tmp_path, mnre_folder, tiny_model, monkeypatch):
    first = train(mnre_folder, tmp_path / "run", tiny_model)
    monkeypatch.setattr(SeedRun, "train_epoch", lambda self: pytest.fail("trained again"))
    assert train(mnre_folder, tmp_path / "run", tiny_model)["per_seed"] == first["per_seed"]


def test_other_settings_need_another_directory(tmp_path, mnre_folder, tiny_model, capsys):
    train(mnre_folder, tmp_path / "run", tiny_model)
    with pytest.raises(SystemExit) as stopped:
        train(mnre_folder, tmp_path / "run", tiny_model, "--fraction", "0.5")
    assert stopped.value.code == 2
    assert "fraction 1.0 there, 0.5 now" in capsys.readouterr().err


def test_without_test_split(tmp_path, mnre_folder, tiny_model, caplog):
    (mnre_folder / "txt" / "ours_test.txt").unlink()
    with caplog.at_level("WARNING"):
        result = train(mnre_folder, tmp_path / "run", tiny_model, method="mtb")
    assert result["test"] is None
    assert "no test split" in caplog.text


def test_scratch_differs_from_init(tmp_path, mnre_folder, tiny_model):
    """--architecture takes sizes and tokenizer only."""
    from finetune.config import parse_train
    from finetune.run.build import build_method
    from finetune.tasks.mnre import Mnre

    common = ["--task", "mnre", "--method", "promu", "--data", str(mnre_folder), "--out", "x"]
    weights = []
    for option in ("--init", "--architecture"):
        config = parse_train([*common, option, str(tiny_model)])
        torch.manual_seed(5)
        weights.append(build_method(config, Mnre(mnre_folder))[0].encoder.state_dict())
    assert weights[0].keys() == weights[1].keys()
    key = "text.encoder.layer.0.intermediate.dense.weight"
    assert not torch.equal(weights[0][key], weights[1][key])


def test_missing_picture_is_fatal_or_counted(tmp_path, mnre_folder, tiny_model, capsys):
    (mnre_folder / "img_org" / "train" / "train3.jpg").unlink()
    (mnre_folder / "img_org" / "train" / "train4.jpg").write_bytes(b"not a picture")
    with pytest.raises(SystemExit) as stopped:
        train(mnre_folder, tmp_path / "strict", tiny_model)
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert stopped.value.code == 2
    assert "1 are missing and 1 undecodable" in message and "train3.jpg" in message
    result = train(mnre_folder, tmp_path / "loose", tiny_model, "--max_missing", "2")
    counted = result["per_seed"][0]["images"]["train"]
    assert counted == {"found": 118, "missing": 1, "undecodable": 1}


def test_nan_names_the_rows(tmp_path, mnre_folder, tiny_model, capsys):
    with pytest.raises(SystemExit) as stopped:
        train(mnre_folder, tmp_path / "run", tiny_model, "--optim.lr", "1e30", "--optim.clip", "0")
    assert stopped.value.code == 2
    assert "the loss is nan on rows [" in capsys.readouterr().err


def test_run_is_an_init_for_the_next(tmp_path, mnre_folder, tiny_model):
    train(mnre_folder, tmp_path / "first", tiny_model)
    second = train(mnre_folder, tmp_path / "second", tmp_path / "first" / "seed-1" / "model")
    assert second["test"]["f1"]["mean"] >= 0
    shutil.rmtree(tmp_path / "first")  # the second run stands alone
    main(["evaluate", str(tmp_path / "second"), "--data", str(mnre_folder)])


def test_accumulation_gives_the_same_updates(tmp_path, mnre_folder, tiny_model):
    """Without dropout, 1 × 12 rows and 4 × 3 rows are the same step."""
    config = json.loads((tiny_model / "config.json").read_text())
    still = tmp_path / "still"
    shutil.copytree(tiny_model, still)
    config |= {"hidden_dropout": 0.0, "attention_dropout": 0.0}
    (still / "config.json").write_text(json.dumps(config))
    common = ("--optim.global_batch_size", "12", "--optim.accumulation")
    results = [train(mnre_folder, tmp_path / parts, still, *common, parts) for parts in ("1", "4")]
    assert results[0]["per_seed"][0]["steps"] == results[1]["per_seed"][0]["steps"] == 20
    curves = [lines(tmp_path / parts / "seed-1" / "metrics.jsonl") for parts in ("1", "4")]
    for one, four in zip(*curves, strict=True):
        assert one["train_loss"] == pytest.approx(four["train_loss"], abs=1e-4)


def test_sweep_takes_the_best_on_dev(tmp_path, mnre_folder, tiny_model):
    sweep = ("--optim.epochs", "8", "--sweep", "optim.lr=1e-9,1e-3;optim.warmup=0.1")
    places = f"--data {mnre_folder} --out {tmp_path}/sweep --init {tiny_model}"
    main([*f"train --task mnre --method promu --optim.head_lr 1e-9 {places}".split(), *sweep])
    found = json.loads((tmp_path / "sweep" / "sweep.json").read_text())
    assert found["best"] == "optim.lr=1e-3,optim.warmup=0.1"
    assert set(found["dev"]) == {found["best"], "optim.lr=1e-9,optim.warmup=0.1"}
    best = json.loads((tmp_path / "sweep" / found["best"] / "result.json").read_text())
    assert best["test"] == found["test"]


def test_dev_is_read_every_few_epochs(tmp_path, mnre_folder, tiny_model):
    options = ("--optim.epochs", "5", "--optim.evaluate_every", "2")
    train(mnre_folder, tmp_path / "run", tiny_model, *options)
    curve = lines(tmp_path / "run" / "seed-1" / "metrics.jsonl")
    assert ["dev_f1" in line for line in curve] == [False, True, False, True, True]


def test_what_a_log_file_and_the_metrics_say_inside_an_epoch(
    tmp_path, mnre_folder, tiny_model, monkeypatch, caplog
):
    monkeypatch.setattr("finetune.run.train.READ_LOSS_EVERY", 2)
    monkeypatch.setattr("shards.progress.EVERY_SECONDS", 0.0)
    monkeypatch.setattr("sys.stderr.isatty", lambda: False, raising=False)
    with caplog.at_level("INFO"):
        train(mnre_folder, tmp_path / "run", tiny_model, "--optim.global_batch_size", "12")
    curve = lines(tmp_path / "run" / "seed-1" / "metrics.jsonl")
    inside = [line for line in curve if "epoch" not in line]
    assert [line["step"] for line in inside] == [2, 4, 6, 8, 12, 14, 16, 18]
    whole = [line for line in curve if "epoch" in line]
    assert [line["step"] for line in whole] == [10, 20]
    # Means of two steps each; with those of the epoch's last two they make its mean.
    assert sum(line["loss"] for line in inside[:4]) < 5 * whole[0]["train_loss"]
    text = caplog.text
    assert "seed 1: 120 rows, 2 epochs, 20 steps of 12 rows; " in text
    assert "parameters, cpu, fp32; writes " in text
    assert "seed 1, epoch 1: step 3 of 20, " in text and " samples/s, " in text and " left" in text


def test_patience(tmp_path, mnre_folder, tiny_model):
    """Nothing is learned at rate 0: the first epoch stays the best, two more are allowed."""
    still = ("--optim.lr", "0", "--optim.head_lr", "0", "--optim.epochs", "9")
    result = train(mnre_folder, tmp_path / "run", tiny_model, *still, "--optim.patience", "2")
    seed = result["per_seed"][0]
    assert (seed["best_epoch"], seed["epochs"]) == (1, 3)


def test_protocol_decides_between_equal_epochs(tmp_path, mnre_folder, tiny_model):
    still = ("--optim.lr", "0", "--optim.head_lr", "0", "--optim.epochs", "4")
    best = {
        protocol: train(
            mnre_folder, tmp_path / protocol, tiny_model, *still, "--protocol", protocol
        )["per_seed"][0]["best_epoch"]
        for protocol in ("standard", "hvpnet", "hvpnet_ner", "camim")
    }
    assert best == {"standard": 1, "hvpnet": 4, "hvpnet_ner": 4, "camim": 4}


def test_bootstrap_and_bertadam(tmp_path, mnre_folder, tiny_model):
    """120 draws, fewer rows, said so; the other optimizer learns something else."""
    results = [
        train(mnre_folder, tmp_path / name, tiny_model, "--bootstrap", "true",
              "--optim.optimizer", name, method="mtb")["per_seed"][0]
        for name in ("adamw", "bertadam")
    ]  # fmt: skip
    for seed in results:
        distinct = len(set(fraction_rows(120, 1.0, 1, replacement=True).tolist()))
        assert (seed["train_draws"], seed["train_rows"]) == (120, distinct)
        assert 60 < distinct < 90 and sum(seed["train_counts"].values()) == 120
    losses = [lines(tmp_path / name / "seed-1/metrics.jsonl")[-1]["train_loss"]
              for name in ("adamw", "bertadam")]  # fmt: skip
    assert losses[0] != losses[1]
    card = (tmp_path / "adamw/seed-1/model/README.md").read_text()
    assert "100% of the training rows, drawn with replacement" in card


def test_a_run_from_before_an_option_goes_on(tmp_path, mnre_folder, tiny_model, monkeypatch):
    """An option that its config.yaml lacks had what is now the default."""
    first = train(mnre_folder, tmp_path / "run", tiny_model, method="mtb")
    path = tmp_path / "run/config.yaml"
    content = yaml.safe_load(path.read_text())
    del content["bootstrap"], content["optim"]["optimizer"]
    path.write_text(yaml.safe_dump(content))
    monkeypatch.setattr(SeedRun, "train_epoch", lambda self: pytest.fail("trained again"))
    again = train(mnre_folder, tmp_path / "run", tiny_model, method="mtb")
    assert again["per_seed"] == first["per_seed"]
    with pytest.raises(SystemExit):
        train(mnre_folder, tmp_path / "run", tiny_model, "--bootstrap", "true", method="mtb")


def test_few_labels_get_enough_steps(tmp_path, mnre_folder, tiny_model):
    """12 rows are one batch an epoch: 7 steps need 7 epochs."""
    options = ("--fraction", "0.1", "--optim.min_steps", "7")
    seed = train(mnre_folder, tmp_path / "run", tiny_model, *options)["per_seed"][0]
    assert (seed["train_rows"], seed["steps"], seed["epochs"]) == (12, 7, 7)
    assert sum(seed["train_counts"].values()) == 12


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("config.yaml", "config.yaml: damaged"),
        ("seed-1/result.json", "result.json: damaged"),
        ("seed-1/resume/progress.json", "cannot go on from there"),
        ("seed-1/resume/epoch-1/state.pt", "cannot go on from there"),
    ],
)
def test_damaged_run_directory(
    tmp_path, mnre_folder, tiny_model, monkeypatch, capsys, name, message
):
    calm = SeedRun.train_epoch

    def dying(self):
        if self.progress.epoch == 2:
            raise KeyboardInterrupt
        return calm(self)

    out = tmp_path / "run"
    if "resume" in name:
        monkeypatch.setattr(SeedRun, "train_epoch", dying)
        with pytest.raises(SystemExit):
            train(mnre_folder, out, tiny_model)
        monkeypatch.setattr(SeedRun, "train_epoch", calm)
    else:
        train(mnre_folder, out, tiny_model)
    (out / name).write_bytes(b"{")
    capsys.readouterr()
    with pytest.raises(SystemExit) as stopped:
        train(mnre_folder, out, tiny_model)
    *_, last = capsys.readouterr().err.strip().splitlines()
    assert stopped.value.code == 2 and last.startswith("error: ") and message in last


def test_text_longer_than_the_model(tmp_path, mnre_folder, tiny_model, capsys):
    short = tmp_path / "short"
    shutil.copytree(tiny_model, short)
    content = json.loads((short / "config.json").read_text()) | {"max_position_embeddings": 8}
    (short / "config.json").write_text(json.dumps(content))
    places = f"--data {mnre_folder} --out {tmp_path}/run --architecture {short}"
    with pytest.raises(SystemExit):
        main(f"train --task mnre --method promu {places}".split())
    assert "the model has 8 positions; lower --max_length" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("split", "line"), [("train", "all training rows say 'None'"), ("val", "dev has no relations")]
)
def test_labels_that_leave_nothing_are_said(tmp_path, mnre_folder, tiny_model, caplog, split, line):
    """Nothing to learn, or no epoch to choose by."""
    path = mnre_folder / f"txt/ours_{split}.txt"
    rows = [ast.literal_eval(text) for text in path.read_text().splitlines()]
    path.write_text("".join(f"{ {**row, 'relation': 'None'} }\n" for row in rows))
    train(mnre_folder, tmp_path / "run", tiny_model, method="mtb")
    assert caplog.text.count(line) == 1
