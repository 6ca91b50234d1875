"""Command line and YAML of `finetune train`; what is refused, and in which words."""

import json
from pathlib import Path

import pytest

from finetune import registry
from finetune.config import parse_train
from finetune.protocols import Protocol, aggregate, fraction_rows
from finetune.run.sweep import points, sweep
from shards.files import InputError

COMMON = ["--task", "mnre", "--method", "promu", "--data", "d", "--out", "runs/x"]
FOLDERS = Path(registry.__file__).parent / "configs"
CONFIGS = sorted(set(FOLDERS.glob("*/*.yaml")) - set(FOLDERS.glob("studies/*")))


def test_defaults():
    """promu.md §6.1."""
    config = parse_train([*COMMON, "--init", "m"])
    optim = config.optim
    assert (optim.lr, optim.head_lr, optim.weight_decay) == (3e-5, 1e-3, 1e-3)
    assert (optim.epochs, optim.warmup, optim.clip) == (15, 0.06, 1.0)
    assert (optim.global_batch_size, config.max_length) == (16, 80)
    assert (config.images, config.max_missing, config.seed_list) == ("required", 0, [1])
    assert config.model.classifier == "mlp"
    assert config.cache_dir == Path("runs/.cache").resolve()


def test_method_section_and_yaml(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(
        "method: mtb\ntask: mnre\noptim: {lr: 1e-4}\nseeds: 1,2,3\nmodel:\n  classifier: mlp"
    )
    config = parse_train(["--config", str(path), "--data", "d", "--out", "o", "--init", "m"])
    assert (config.method, config.optim.lr, config.model.classifier) == ("mtb", 1e-4, "mlp")
    assert config.seed_list == [1, 2, 3]
    config = parse_train(
        ["--config", str(path), "--data", "d", "--out", "o", "--init", "m", "--seeds", "4"]
    )
    assert config.seed_list == [4]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_shipped_configs(path):
    """Each parses, names its place, and its header says how to run it."""
    argv = ["--config", str(path), "--data", "d", "--out", "o", "--init", "m"]
    if path.parent.name == "sample":  # mnre.yaml is for any method
        config = parse_train([*argv, "--method", "promu"] if path.stem == "mnre" else argv)
        assert config.task == "mnre" and path.stem in ("mnre", config.method)
    else:
        config = parse_train(argv)
        assert (config.task, config.method) == (path.parent.name, path.stem)
    header = path.read_text()
    assert f"--config finetune/configs/{path.parent.name}/{path.name}" in header
    assert len(header.splitlines()) <= 40


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "exactly one of --init"),
        (["--init", "none"], "exactly one of --init"),
        (["--init", "a", "--architecture", "b"], "exactly one of --init"),
        (["--init", "m", "--optim.lrr", "1"], "did you mean --optim.lr?"),
        (["--init", "m", "--optim.lr", "fast"], "optim.lr"),
        (["--init", "m", "--optim.lr", "-1"], "optim.lr must not be negative"),
        (["--init", "m", "--optim.lr", "1e400"], "optim.lr must be finite"),
        (["--init", "m", "--seeds", "1,-1"], "0 to 4294967295"),
        (["--init", "m", "--seeds", "4294967296"], "0 to 4294967295"),
        (["--init", "m", "--optim.epochs", "0"], "optim.epochs must be at least 1"),
        (["--init", "m", "--optim.warmup", "1.5"], "optim.warmup"),
        (["--init", "m", "--optim.layer_decay", "0"], "optim.layer_decay"),
        (["--init", "m", "--optim.accumulation", "17"], "must not exceed"),
        (["--init", "m", "--engine.precision", "fp64"], "precision"),
        (["--init", "m", "--fraction", "0"], "fraction must be in (0, 1]"),
        (["--init", "m", "--fraction", "1.01"], "fraction must be in (0, 1]"),
        (["--init", "m", "--seeds", "1,a"], "expected numbers like 1,2,3"),
        (["--init", "m", "--seeds", "1,1"], "one is repeated"),
        (["--init", "m", "--images", "maybe"], "images"),
        (["--init", "m", "--max_length", "4"], "max_length"),
        (["--init", "m", "--protocol", "mine"], "there are standard"),
        (["--init", "m", "--model.classifier", "tree"], "model.classifier"),
        (["--init", "m", "--model.width", "3"], "model.width"),
        (["--init", "m", "--method", "promo"], "did you mean promu?"),
    ],
)
def test_refused(argv, message):
    with pytest.raises(InputError) as error:
        parse_train([*COMMON, *argv])
    assert message in str(error.value) and "\n" not in str(error.value)


def test_bad_yaml(tmp_path):
    for content in ("method: [", "method: mtb\nunknown: 3\n"):
        path = tmp_path / "run.yaml"
        path.write_text(content)
        with pytest.raises(InputError):
            parse_train(["--config", str(path), *COMMON[:2], "--init", "m", "--data", "d"])
    with pytest.raises(InputError):
        parse_train(["--config", str(tmp_path / "none.yaml"), *COMMON, "--init", "m"])


def test_entry_points(monkeypatch):
    """A method of another package is found by name, ours win."""
    from importlib.metadata import EntryPoint

    theirs = [EntryPoint("mine", "finetune.methods.mtb:MTB", "fusion_mre.methods")]
    monkeypatch.setattr(registry, "entry_points", lambda group: theirs)
    assert registry.load("methods", "mine").__name__ == "MTB"


def test_fractions_are_nested_and_floored():
    """focalmre.md §4.3: the sizes that it lists."""
    sizes = {0.05: 612, 0.1: 1224, 0.2: 2449, 0.3: 3674, 0.4: 4898, 0.5: 6123, 1.0: 12247}
    previous: set[int] = set()
    for share, size in sizes.items():
        rows = fraction_rows(12_247, share, seed=1)
        assert len(rows) == size and previous < set(rows.tolist())
        previous = set(rows.tolist())
    assert len(fraction_rows(100, 0.29, 1)) == 29
    assert set(fraction_rows(100, 0.5, 1)) != set(fraction_rows(100, 0.5, 2))


def test_rows_drawn_with_replacement():
    """tmr.md §4: about 63.2 % of the rows are ever seen; the same ones for the same seed."""
    rows = fraction_rows(12_247, 1.0, 666, replacement=True)
    assert len(rows) == 12_247 and rows.min() >= 0 and rows.max() < 12_247
    shares = [len(set(fraction_rows(12_247, 1.0, s, True).tolist())) / 12_247 for s in range(20)]
    assert sum(shares) / 20 == pytest.approx(0.632, abs=0.003)
    assert rows.tolist() == fraction_rows(12_247, 1.0, 666, True).tolist()
    assert rows.tolist() != fraction_rows(12_247, 1.0, 667, True).tolist()
    assert len(fraction_rows(12_247, 0.1, 1, True)) == 1224


def test_selection():
    first, last = Protocol(source="a"), Protocol(source="b", ties="last")
    assert first.improves(0.0, None) and first.improves(2.0, 1.0)
    assert not first.improves(1.0, 1.0) and last.improves(1.0, 1.0)


def test_aggregate():
    one = {"f1": 1.0, "precision": 2.0, "recall": 3.0, "accuracy": 4.0}
    two = {name: value + 2 for name, value in one.items()}
    assert aggregate([one, two])["f1"] == {"mean": 2.0, "sd": 1.4142}
    assert aggregate([one])["f1"] == {"mean": 1.0, "sd": None}


def test_sweep_points():
    config = parse_train([*COMMON, "--init", "m", "--sweep", "optim.lr=1e-5,3e-5; seeds=4"])
    found = points(config)
    assert list(found) == ["optim.lr=1e-5,seeds=4", "optim.lr=3e-5,seeds=4"]
    first, second = found.values()
    assert (first.optim.lr, second.optim.lr, first.seed_list) == (1e-5, 3e-5, [4])
    assert first.out == "runs/x/optim.lr=1e-5,seeds=4" and first.sweep is None
    assert first.model == config.model and first.optim.head_lr == config.optim.head_lr


def test_a_sweep_says_which_points_are_leaky(tmp_path, caplog):
    argv = ["--init", "m", "--sweep", "regions=safe,community", "--out", str(tmp_path / "s")]
    (tmp_path / "s").mkdir()

    def run(point):
        leaky = point.regions == "community"
        return {"dev": {"f1": {"mean": 80.0 if leaky else 50.0}}, "test": None, "leaky": leaky}

    sweep(parse_train([*COMMON, *argv]), run)
    found = json.loads((tmp_path / "s" / "sweep.json").read_text())
    assert found["leaky"] == {"regions=safe": False, "regions=community": True}
    (said,) = caplog.messages
    assert "label: regions=community; the best on dev, regions=community, is one of them" in said


@pytest.mark.parametrize(
    "sweep",
    [
        "optim.lr",
        "=3",
        "optim.lrr=1",
        "optim.lr=fast",
        "optim.lr=-1",
        "optim=1",
        "task.x=1",
        "method=mtb,promu",
        "out=a,b",
        "sweep=x",
        "optim.lr=1e-3,0.001",
    ],
)
def test_bad_sweep(sweep):
    with pytest.raises(InputError, match="--sweep"):
        points(parse_train([*COMMON, "--init", "m", "--sweep", sweep]))
