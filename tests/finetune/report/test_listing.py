"""`python -m finetune list` names everything that can be asked for, within 80 columns."""

from pathlib import Path

import pytest

from finetune import registry
from finetune.__main__ import main
from finetune.data.views import TOOLS
from finetune.protocols import PROTOCOLS
from finetune.report.listing import CONFIGS


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


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*/*.yaml")), ids=lambda p: str(p.stem))
def test_every_configuration_begins_with_a_command(path: Path):
    """A comment, in it the command that uses the file."""
    head = path.read_text().split("\n\n")[0]
    assert head.startswith("# ") and "python -m finetune" in head
