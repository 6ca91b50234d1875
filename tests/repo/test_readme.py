"""Every command of the README is one that there is, with options that it has."""

import importlib
import re
import shlex
from pathlib import Path

import pytest

README = Path(__file__).resolve().parents[2] / "README.md"
MODULES = {"shards", "finetune", "pretrain"}
TWO_WORDS = {"build", "captions", "data", "regions", "view", "types", "generate", "figures", "rows"}


def commands() -> list[list[str]]:
    """[module, word, …] of each command in the README's shell blocks."""
    blocks = re.findall(r"```bash\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    found = []
    for line in lines:
        for part in re.split(r";|\|", line):
            words = shlex.split(part, comments=True)
            words = words[words.index("do") + 1 :] if "do" in words else words
            if words[:2] == ["python", "-m"]:
                found.append(words[2:])
            elif words[:2] == ["deepspeed", "launch/pretrain.sh"]:
                found.append(["pretrain", *words[2:]])
    return found


def calls() -> dict[tuple[str, ...], set[str]]:
    """(module, subcommand, …) -> options that the README gives it."""
    found: dict[tuple[str, ...], set[str]] = {}
    for module, *words in commands():
        leading = 0
        if module in MODULES and words and not words[0].startswith("-"):
            leading = 2 if words[0] in TWO_WORDS and not words[1].startswith("-") else 1
        key = (module, *words[:leading])
        if key == ("finetune", "train"):  # a method brings options of its own
            key += ("--method", words[words.index("--method") + 1])
        options = {word.partition("=")[0] for word in words if word.startswith("--")}
        found.setdefault(key, set()).update(options)
    return found


CALLS = calls()


@pytest.mark.parametrize("call", CALLS, ids=" ".join)
def test_its_options_are_those_of_the_command(call, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    module, *words = call
    module = f"{module}.__main__" if module in MODULES else module
    with pytest.raises(SystemExit) as stopped:
        importlib.import_module(module).main([*words, "--help"])
    assert stopped.value.code == 0
    known = set(re.findall(r"--[\w.-]+", capsys.readouterr().out))
    assert CALLS[call] <= known


def test_commands_are_found():
    assert len(commands()) > 20
    assert ("shards", "build", "newsclippings") in CALLS and ("pretrain", "label") in CALLS
    assert "--model.crop_count" in CALLS["finetune", "train", "--method", "mtb"]


def test_it_is_short():
    assert README.read_text(encoding="utf-8").count("\n") < 250
