"""The command line: every command explains itself, usage errors are one line and status 2."""

import pytest

from finetune.__main__ import COMMANDS, main


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_an_example(command, capsys):
    with pytest.raises(SystemExit) as stopped:
        main([command, "--help"])
    assert stopped.value.code == 0
    assert f"python -m finetune {command}" in capsys.readouterr().out.split("xample", 1)[1]


def test_help_names_every_command(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["--local_rank=0", "--help"])  # as DeepSpeed's launcher calls us
    assert stopped.value.code == 0
    text = capsys.readouterr().out
    assert all(f"\n  {command} " in text for command in COMMANDS)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["trian"], "unknown command 'trian'"),
        (["train"], "required: task, method, data, out"),
        (["train", "--task", "mnre", "--method", "mtb", "--data", "/none", "--out", "o",
          "--init", "m"], "--data /none: no such folder"),
        (["evaluate", "/none", "--data", "d"], "no finished seed"),
        (["report", "/none"], "no result.json"),
    ],
)  # fmt: skip
def test_usage_errors(argv, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(argv)
    assert stopped.value.code == 2
    *_, last = capsys.readouterr().err.strip().splitlines()
    assert last.startswith("error: ") and message in last


def test_nothing_shows_the_usage(capsys):
    with pytest.raises(SystemExit) as stopped:
        main([])
    assert stopped.value.code == 2 and "usage" in capsys.readouterr().out
