"""Every command on a terminal of 80 columns: its help has an example, bad usage is one line."""

import importlib
import re

import pytest

from finetune.__main__ import COMMANDS, main
from finetune.registry import METHODS
from shards.options import parse_config

SUBCOMMANDS = {
    "data": ("check", "convert"),
    "view": ("align-noise", "aug-noise", "fraction", "kshot", "image-drop", "region-grid"),
    "regions": ("build", "recover", "import"),
    "generate": ("pictures", "scores"),
    "types": ("ner", "learned", "gold"),
    "figures": ("states", "look", "attention", "relations", "study"),
}
CALLS = [
    *([name] for name in COMMANDS),
    *([name, sub] for name, subs in SUBCOMMANDS.items() for sub in subs),
    *(["train", "--method", name] for name in METHODS),
]
SHARDS = [
    *([name] for name in ("sample", "build", "detect", "nouns", "captions", "verify")),
    *([name, sub] for name in ("build",) for sub in ("newsclippings", "captions")),
    *(["captions", sub] for sub in ("generate", "convert")),
]
OTHERS = [
    *(("shards", "shards.__main__", call) for call in ([], *SHARDS)),
    ("pretrain", "pretrain.__main__", []),
    ("pretrain", "pretrain.__main__", ["doctor"]),
    *(("pretrain", "pretrain.__main__", [name]) for name in ("label", "convert", "supervise")),
]
"""How it is called, the module of its `main`, the words before `--help`."""


def shown_help(module: str, call: list[str], capsys, monkeypatch) -> str:
    """What `--help` prints on a terminal of 80 columns."""
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit) as stopped:
        importlib.import_module(module).main([*call, "--help"])
    assert stopped.value.code == 0
    return capsys.readouterr().out


def check_help(shown: str, name: str) -> None:
    """It has an example of itself, fits, and speaks of nothing that a user does not have."""
    words = " ".join(shown.split())
    assert re.search(rf"\bexamples?: .*(python -m {re.escape(name)}\b|launch/pretrain\.sh)", words)
    assert max(map(len, shown.splitlines())) <= 80
    assert "specs/" not in shown and "§" not in shown
    assert not re.search(r"\b(?!report|study|README)\w+\.md\b", shown)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("study league --data d --out o --jobs 0", "--jobs 0: must be a positive"),
        ("study league --data d --out o --jobs -1", "--jobs -1: must be a positive"),
        ("study league --data d --out o --seeds=", "seeds '': expected numbers like 1,2,3"),
        ("study league --data d --out o --seeds 1,1", "seeds 1,1: one is repeated"),
        ("regions recover --data d --out o --workers 0", "--workers 0: must be a positive"),
        ("regions build --data d --out o --num-grounded -1", "--num_grounded -1: must not be"),
        ("evaluate r --data d --max-missing -1", "--max_missing -1: must not be negative"),
        ("generate pictures --data d --batch 0", "--batch 0: must be a positive"),
        ("predict r --text t --top-k -5", "--top_k -5: must be a positive"),
        (
            "train --task mnre --data d --init m --out o --method tmr --model.image_size 0",
            "model.image_size 0: must",
        ),
        (
            "train --task mnre --data d --init m --out o --method camim_tmr --model.image_size 0",
            "model.image_size 0: must",
        ),
    ],
)
def test_counts_that_count_nothing_are_refused(words, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(words.split())
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and message in error and error.count("\n") == 1


@pytest.mark.parametrize("call", CALLS, ids=" ".join)
def test_help_fits_80_columns_and_has_an_example(call, capsys, monkeypatch):
    shown = shown_help("finetune.__main__", call, capsys, monkeypatch)
    check_help(shown, f"finetune {call[0]}")


@pytest.mark.parametrize(
    ("name", "module", "call"), OTHERS, ids=[" ".join([name, *call]) for name, _, call in OTHERS]
)
def test_so_does_that_of_the_other_packages(name, module, call, capsys, monkeypatch):
    shown = shown_help(module, call, capsys, monkeypatch)
    check_help(shown, " ".join([name, *call[:1]]))


@pytest.mark.parametrize("call", CALLS, ids=" ".join)
def test_a_wrong_option_is_one_line(call, capsys):
    with pytest.raises(SystemExit) as stopped:
        main([*call, "--no-such-option"])
    captured = capsys.readouterr()
    assert stopped.value.code == 2 and captured.out == ""
    assert captured.err.startswith("error: ") and captured.err.count("\n") == 1


@pytest.mark.parametrize(
    ("name", "module", "call"), OTHERS, ids=[" ".join([name, *call]) for name, _, call in OTHERS]
)
def test_so_for_the_other_packages(name, module, call, capsys):
    with pytest.raises(SystemExit) as stopped:
        importlib.import_module(module).main([*call, "--no-such-option"])
    captured = capsys.readouterr()
    assert stopped.value.code == 2
    assert captured.err.startswith("error: ") and captured.err.count("\n") == 1


def test_a_choice_is_named_in_plain_words(capsys):
    with pytest.raises(SystemExit):
        main(["evaluate", "run", "--data", "d", "--split", "tst"])
    assert "Expected one of 'train', 'dev', 'val', 'test'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("line", "meant"),
    [
        ("train --task mnre --method mtb --data d --init m --out r --seed 1,2", "--seeds"),
        (
            "train --task mnre --method mtb --data d --init m --out r --optim.epoch 3",
            "--optim.epochs",
        ),
        ("predict run --tex Bob", "--text"),
        ("audit --data d --crop", "--crops"),
        ("view kshot --data d --k 2 --out f --see 1", "--seed"),
    ],
)
def test_names_are_given_in_full(line, meant, capsys):
    """A prefix is refused with the name, not taken for it."""
    with pytest.raises(SystemExit) as stopped:
        main(line.split())
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and error.count("\n") == 1
    assert f"(did you mean {meant}?)" in error


def test_options_are_taken_with_dashes_too():
    from finetune.predict.command import PredictConfig

    argv = ["--run", "r", "--text", "Bob", "--top-k=2", "--caption-model", "a-b"]
    config = parse_config(PredictConfig, argv, prog="p", description="d", example="e")
    assert (config.top_k, config.caption_model) == (2, "a-b")
