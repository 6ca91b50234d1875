"""Imports go one way: shards <- pretrain <- finetune (DESIGN §2). Read from the syntax tree."""

import ast
from pathlib import Path

import pytest

from finetune import registry

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("shards", "pretrain", "finetune")
FILES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
FINETUNE_MAY = (
    *("pretrain.model", "pretrain.checkpoint", "pretrain.engine"),
    *("pretrain.optim", "pretrain.distributed", "pretrain.tracking"),
    *(
        "shards.files",
        "shards.command",
        "shards.options",
        "shards.images",
        "shards.objects",
        "shards.captions",
    ),
)
METHOD_FILES = {entry.place.partition(":")[0] for entry in registry.METHODS.values()}


def imports(path: Path) -> set[str]:
    """Dotted names that a file imports, at any depth, `from x import y` as x.y."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def within(name: str, parts: tuple[str, ...]) -> bool:
    return any(name == part or name.startswith(part + ".") for part in parts)


def breaches(package: str, path: Path, names: set[str]) -> set[str]:
    """Imports that the rules forbid to a file of `package`."""
    ours = {name for name in names if within(name, PACKAGES)}
    bad = {name for name in ours if within(name, ("finetune",)) and package != "finetune"}
    if package == "shards":
        bad |= {name for name in ours if within(name, ("pretrain",))}
    if package == "finetune":
        bad |= {name for name in ours if not within(name, ("finetune", *FINETUNE_MAY))}
    if path.name not in ("engine.py", "zero.py"):
        bad |= {name for name in names if within(name, ("deepspeed",))}
    if path.name != "options.py":
        bad |= {name for name in names if within(name, ("jsonargparse",))}
    if path.name != "yolo.py":
        bad |= {name for name in names if within(name, ("ultralytics",))}
    if path.parent.name == "methods":  # what is no method there is a layer, for all to share
        others = METHOD_FILES - {f"finetune.methods.{path.stem}"}
        if path.stem == "camim":
            others -= {"finetune.methods.hvpnet.model", "finetune.methods.tmr.model"}
        bad |= {name for name in ours if within(name, tuple(others))}
    return bad


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_one_way(path):
    package = path.relative_to(ROOT).parts[0]
    assert not breaches(package, path, imports(path))


def test_the_rule_catches_a_breach():
    assert breaches("shards", Path("x.py"), {"pretrain.config"}) == {"pretrain.config"}
    assert breaches("finetune", Path("x.py"), {"shards.schema.InputError"})
    assert breaches("pretrain", Path("train.py"), {"deepspeed"}) == {"deepspeed"}
    assert not breaches("finetune", Path("x.py"), {"pretrain.model.promu.Promu"})
    method = {"finetune.methods.promu.Promu"}
    assert breaches("finetune", Path("finetune/methods/mtb.py"), method) == method
    assert not breaches("finetune", Path("finetune/methods/promu.py"), method)
    assert not breaches(
        "finetune", Path("finetune/methods/mtb.py"), {"finetune.methods.focalmre.frames.draw"}
    )
