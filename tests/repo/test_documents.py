"""What the product refers to is there: no document that a reader of the repository lacks."""

import re
from pathlib import Path

import pytest

from finetune import registry

ROOT = Path(__file__).resolve().parents[2]
PRODUCT = [
    path
    for folder in ("shards", "pretrain", "finetune", "launch")
    for path in sorted((ROOT / folder).rglob("*"))
    if path.suffix in (".py", ".yaml", ".md", ".sh", ".json") and path.is_file()
]
WRITTEN = re.compile(r"(work/)?report\.md|study\.md|_leaky\.md|\.md")
"""Documents that commands write, or write beside."""
FOREIGN = re.compile(r"\bDESIGN\b|\bspecs/|\b[Ss]pec(ification)? §|§\d[\d.]* of \w+\.md")


def lacking(path: Path) -> list[str]:
    """References of a file to documents that lie neither in the repository nor beside it."""
    text = path.read_text(encoding="utf-8")
    named = re.findall(r"[\w./-]*\.md\b", text)
    return FOREIGN.findall(text) + [
        name
        for name in named
        if not WRITTEN.fullmatch(name)
        and not any((folder / name).is_file() for folder in (ROOT, path.parent))
    ]


@pytest.mark.parametrize(
    "path", [*PRODUCT, ROOT / "README.md"], ids=lambda p: str(p.relative_to(ROOT))
)
def test_no_file_cites_what_the_repository_does_not_hold(path):
    assert lacking(path) == []


def test_the_rule_catches_what_it_should(tmp_path):
    for text in ("see hvpnet.md", "(DESIGN.md §4.4)", "`specs/promu.md` 1.1", "PROMU spec §1.5"):
        (tmp_path / "x.py").write_text(f'"""Cites {text}."""')
        assert lacking(tmp_path / "x.py")
    (tmp_path / "x.py").write_text('"""README.md, and what it writes: report.md."""')
    assert not lacking(tmp_path / "x.py")


def test_every_paper_has_its_page():
    """A method's folder holds a README.md of at most 60 lines, as its docstrings cite it."""
    modules = {entry.place.partition(":")[0] for entry in registry.METHODS.values()}
    folders = {ROOT.joinpath(*module.split(".")).parent for module in modules}
    folders.remove(ROOT / "finetune" / "methods")  # methods of one file
    assert len(folders) == 7
    for folder in folders:
        lines = (folder / "README.md").read_text(encoding="utf-8").splitlines()
        assert 20 <= len(lines) <= 60, folder
        assert {"__init__.py", "config.py", "model.py"} <= {p.name for p in folder.iterdir()}
        assert all(len(line) <= 110 for line in lines), folder
