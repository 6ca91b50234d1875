"""Every command on a terminal of 80 columns: its help has an example, bad usage is one line."""

import importlib

import pytest

from finetune.__main__ import COMMANDS, MODULES, USAGE, main

SUBCOMMANDS = {
    "data": ("check", "convert"),
    "view": ("align-noise", "aug-noise", "fraction", "kshot", "image-drop", "region-grid"),
    "regions": ("build", "recover", "import"),
    "generate": ("pictures", "scores"),
    "types": ("ner", "learned", "gold"),
    "figures": ("states", "look", "relations", "study"),
}
CALLS = [
    *([name] for name in (*COMMANDS, *MODULES)),
    *([name, sub] for name, subs in SUBCOMMANDS.items() for sub in subs),
]


@pytest.mark.parametrize("call", CALLS, ids=" ".join)
def test_help_fits_80_columns_and_has_an_example(call, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit) as stopped:
        main([*call, "--help"])
    shown = capsys.readouterr().out
    assert stopped.value.code == 0
    assert f"example: python -m finetune {call[0]}" in " ".join(shown.split())
    assert max(map(len, shown.splitlines())) <= 80


@pytest.mark.parametrize("call", CALLS, ids=" ".join)
def test_a_wrong_option_is_one_line(call, capsys):
    with pytest.raises(SystemExit) as stopped:
        main([*call, "--no-such-option"])
    captured = capsys.readouterr()
    assert stopped.value.code == 2 and captured.out == ""
    assert captured.err.startswith("error: ") and captured.err.count("\n") == 1


@pytest.mark.parametrize("module", ["shards.__main__", "pretrain.label", "pretrain.convert"])
def test_so_for_the_other_packages(module, capsys):
    with pytest.raises(SystemExit) as stopped:
        importlib.import_module(module).main(["--no-such-option"])
    captured = capsys.readouterr()
    assert stopped.value.code == 2
    assert captured.err.startswith("error: ") and captured.err.count("\n") == 1


def test_a_choice_is_named_in_plain_words(capsys):
    with pytest.raises(SystemExit):
        main(["evaluate", "run", "--data", "d", "--split", "tst"])
    assert "Expected one of 'train', 'dev', 'val', 'test'" in capsys.readouterr().err


def test_usage_lists_every_command():
    for name in (*COMMANDS, *MODULES):
        assert f"\n  {name} " in USAGE
