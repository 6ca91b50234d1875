"""`python -m finetune list` names everything that can be asked for, within 80 columns."""

import csv
from pathlib import Path

import pytest

from finetune import registry
from finetune.__main__ import main
from finetune.config import TrainConfig, with_method
from finetune.data.views import TOOLS
from finetune.protocols import PROTOCOLS
from finetune.report.listing import CONFIGS, PAPERS
from shards.argv import fields_of


def test_everything_is_named(capsys):
    main(["list"])
    printed = capsys.readouterr().out
    assert all(len(line) <= 80 for line in printed.splitlines())
    names = [*registry.known("methods"), *registry.known("tasks"), *TOOLS, *PROTOCOLS]
    names += [path.stem for path in CONFIGS.glob("*/*.yaml")]
    lines = printed.splitlines()
    for name in names:
        assert any(name in line for line in lines), name


def test_one_section_and_none(capsys):
    main(["list", "views"])
    assert capsys.readouterr().out.startswith("views\n  align-noise ")
    with pytest.raises(SystemExit):
        main(["list", "vievs"])
    assert "there are methods, tasks" in capsys.readouterr().err


@pytest.mark.parametrize("method", registry.METHODS)
def test_settings_beside_the_papers(method, capsys):
    main(["list", "--settings", method])
    lines = capsys.readouterr().out.splitlines()
    assert all(len(line) <= 80 for line in lines)
    settings = {line.split()[0] for line in lines if not line.startswith(" ")}
    assert {"optim.lr", "max_length", "seeds"} <= settings
    if method == "promu":
        row = next(line.split() for line in lines if line.startswith("optim.lr "))
        assert row[1:4] == ["0.0001", "1e-4", "§5.1;"]


def test_settings_that_papers_state_are_settings():
    """Or are marked as none, by a blank in the name."""
    with PAPERS.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    for row in rows:
        if " " not in row["setting"]:
            names = dict(fields_of(with_method(TrainConfig, registry.load_config(row["method"]))))
            assert row["setting"] in names, row
        assert row["paper"] and row["source"]


def test_settings_of_an_unknown_method():
    with pytest.raises(SystemExit, match="2"):
        main(["list", "--settings", "promo"])


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*/*.yaml")), ids=lambda p: str(p.stem))
def test_every_configuration_begins_with_a_command(path: Path):
    """A comment, in it the command that uses the file."""
    head = path.read_text().split("\n\n")[0]
    assert head.startswith("# ") and "python -m finetune" in head
