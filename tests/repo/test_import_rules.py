"""Imports go one way: shards <- pretrain <- finetune. Read from the syntax tree."""

import ast
from graphlib import CycleError, TopologicalSorter
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
        "shards.json_files",
        "shards.locks",
        "shards.redact",
        "shards.processes",
        "shards.progress",
        "shards.command",
        "shards.options",
        "shards.images",
        "shards.records",
        "shards.tables",
        "shards.objects",
        "shards.captions",
        "shards.processors",
        "shards.threads",
    ),
)
STAGES = {"tasks": 0, "inputs": 1, "methods": 2, "data": 2, "run": 3, "predict": 4, "report": 5}
"""Folder of `finetune/` -> its place on the way of data; each imports what lies before it."""
ROOT_MAY = {"registry": 0, "protocols": 0, "config": 2, "__init__": 4, "__main__": 5}
"""File of `finetune/` itself -> the last stage that it may import."""
BASES = {"camim": {"hvpnet", "tmr"}}
"""Paper -> the papers whose method it extends."""
PAPERS = {entry.place.split(".")[2].partition(":")[0] for entry in registry.METHODS.values()}
"""Files and folders of `finetune/methods/`; what else is there is for all of them."""


def imports(path: Path) -> set[str]:
    """Dotted names that a file imports, at any depth, `from x import y` as x.y."""
    return imports_of(ast.parse(path.read_text(encoding="utf-8")))


def imports_of(tree: ast.AST) -> set[str]:
    """The same of a syntax tree."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def module_of(path: Path) -> str:
    """`shards/files.py` -> shards.files"""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module_of(path) for path in FILES}


def imported_at_once(path: Path) -> set[str]:
    """Our modules that a file imports outside of functions; also for type checkers alone."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            node.body = []
    names = imports_of(tree)
    return {name if name in MODULES else name.rpartition(".")[0] for name in names} & MODULES


def within(name: str, parts: tuple[str, ...]) -> bool:
    return any(name == part or name.startswith(part + ".") for part in parts)


def is_later(path: Path, name: str) -> bool:
    """Whether a file of `finetune/` may not import `name`: of a later stage, or another paper's."""
    here, there = path.with_suffix("").parts[1:], name.split(".")[1:]
    if not name.startswith("finetune.") or there[0] not in STAGES:
        return False
    if here[0] not in STAGES:
        return STAGES[there[0]] > ROOT_MAY[here[0]]
    if here[0] != there[0]:
        return STAGES[there[0]] >= STAGES[here[0]]
    if here[0] != "methods" or len(there) == 1 or there[1] not in PAPERS:
        return False
    return there[1] != here[1] and there[1] not in BASES.get(here[1], ())


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
    if package == "finetune":
        bad |= {name for name in names if is_later(path, name)}
    return bad


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_one_way(path):
    path = path.relative_to(ROOT)
    assert not breaches(path.parts[0], path, imports(ROOT / path))


def test_no_circle():
    """Of imports that run when a file is imported, in all packages."""
    graph = {module_of(path): imported_at_once(path) for path in FILES}
    try:
        tuple(TopologicalSorter(graph).static_order())
    except CycleError as error:
        pytest.fail(" <- ".join(error.args[1]))


def test_finetunes_root_is_small():
    assert len(list((ROOT / "finetune").glob("*.py"))) <= 8
    assert {path.name for path in (ROOT / "finetune").iterdir() if path.is_dir()} - {
        "configs",
        "__pycache__",
    } == set(STAGES)


def test_the_rule_catches_a_breach():
    assert breaches("shards", Path("x.py"), {"pretrain.config"}) == {"pretrain.config"}
    assert breaches("finetune", Path("finetune/run/x.py"), {"shards.schema.InputError"})
    assert breaches("pretrain", Path("train.py"), {"deepspeed"}) == {"deepspeed"}
    assert not breaches("finetune", Path("finetune/run/x.py"), {"pretrain.model.promu.Promu"})


@pytest.mark.parametrize(
    ("file", "name", "forbidden"),
    [
        ("inputs/load.py", "finetune.methods.base.Method", True),
        ("inputs/load.py", "finetune.tasks.base.Row", False),
        ("tasks/base.py", "finetune.inputs.batch.Batch", True),
        ("data/audit.py", "finetune.methods.mtb.MTB", True),
        ("methods/mtb.py", "finetune.data.audit.main", True),
        ("report/command.py", "finetune.predict.extractor.Extractor", False),
        ("registry.py", "finetune.run.train.SeedRun", True),
        ("methods/mtb.py", "finetune.methods.promu.Promu", True),
        ("methods/mtb.py", "finetune.methods.tmr.inputs.look_up", True),
        ("methods/layers.py", "finetune.methods.tmr.inputs.look_up", True),
        ("methods/tmr/model.py", "finetune.methods.camim.caption_reading.read", True),
        ("methods/camim/model.py", "finetune.methods.tmr.model.Tmr", False),
        ("methods/tmr/model.py", "finetune.methods.towers.resnet.load_resnet", False),
    ],
)
def test_stages_are_told_apart(file, name, forbidden):
    assert is_later(Path("finetune") / file, name) == forbidden


def test_a_circle_is_found(tmp_path):
    path = tmp_path / "a.py"
    path.write_text("if 1:\n    import finetune.tasks.base\ndef f():\n    import shards\n")
    assert imported_at_once(path) == {"finetune.tasks.base"}
