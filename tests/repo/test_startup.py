"""What is imported before the options are in order, and what the console command finds."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from finetune import registry
from finetune.__main__ import COMMANDS

ROOT = Path(__file__).resolve().parents[2]
HEAVY = ("torch", "deepspeed", "spacy", "timm", "transformers", "matplotlib", "scipy", "sklearn")
PROGRAM = """
import contextlib, importlib, io, json, sys
heavy = json.loads(sys.argv[1])
for module, *words in json.loads(sys.argv[2]):
    said = io.StringIO()
    status = 0
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        try:
            importlib.import_module(module).main(words)
        except SystemExit as stopped:
            status = stopped.code or 0
    found = [name for name in sys.modules if name in heavy]
    print(json.dumps([status, found, said.getvalue()]))
"""
TOOLS = {
    "data": ("check", "convert"),
    "view": ("align-noise",),
    "regions": ("build", "recover", "import"),
    "generate": ("pictures", "scores"),
    "types": ("ner", "learned", "gold"),
    "figures": ("states", "study"),
    "rows": ("tweets", "gates"),
}


def started(calls: list[list[str]], cwd: Path, **environment: str) -> list[tuple]:
    """Of `main`s, one after another in a new process: (status, heavy imports so far, output)."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps(HEAVY), json.dumps(calls)],
        cwd=cwd, capture_output=True, text=True, check=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)} | environment,
    )  # fmt: skip
    return [tuple(json.loads(line)) for line in done.stdout.splitlines()]


CALLS = [
    *(["shards.__main__", name] for name in ("sample", "build", "detect", "nouns", "verify")),
    *(["pretrain.__main__", name] for name in ("train", "label", "convert", "supervise", "doctor")),
    *(["finetune.__main__", name] for name in COMMANDS),
    *(["finetune.__main__", name, tool] for name, tools in TOOLS.items() for tool in tools),
    *(["finetune.__main__", "train", "--method", name] for name in registry.METHODS),
]


@pytest.mark.parametrize(("option", "status"), [("--help", 0), ("--no-such-option", 2)])
def test_help_and_errors_import_nothing_heavy(option, status, tmp_path):
    answers = started([[*call, option] for call in CALLS], tmp_path)
    for call, (code, heavy, said) in zip(CALLS, answers, strict=True):
        assert (code, heavy) == (status, []), (call, said)
        assert said.startswith("error: ") is bool(status), call


def test_nor_does_what_only_looks(tmp_path):
    calls = [
        ["finetune.__main__", "list"],
        ["finetune.console"],
        ["pretrain.__main__", "--config", "tiny"],
        ["finetune.__main__", "train", "--config", "mnre/hvpnet"],
        *([f"{name}.__main__", "--version"] for name in ("shards", "pretrain", "finetune")),
        ["finetune.console", "--version"],
    ]
    answers = started(calls, tmp_path)
    assert not any(heavy for _, heavy, _ in answers)
    assert all(said.startswith("fusion-mre ") for _, _, said in answers[-4:])


def test_a_post_needs_no_modelling_code_of_others():
    """What answers a post: the imports of `predict`, and of the methods that most runs are of.
    Behind these names stand torch's compiler, scipy and torchvision: three seconds."""
    heavy = ("transformers.modeling_utils", "transformers.masking_utils", "timm", "torchvision",
             "torch._dynamo", "scipy", "sklearn", "deepspeed", "spacy", "matplotlib")  # fmt: skip
    lines = ["from finetune import registry", "import finetune.predict.serve"]
    methods = ("mtb", "bert_crf", "promu", "focalmre")
    lines += [f"registry.load('methods', {name!r})" for name in methods]
    lines.append(f"import sys; print(sorted(sys.modules.keys() & set({heavy!r})))")
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True, check=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.stdout == "[]\n"


def test_the_settings_of_a_method_are_those_of_its_class():
    for name, entry in registry.METHODS.items():
        method = registry.load("methods", name)
        assert method.Config is registry.load_config(name)
        assert set(entry.kinds) == method.kinds


def test_a_broken_entry_point_is_named_and_the_rest_listed(tmp_path):
    about = tmp_path / "theirs-1.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: theirs\nVersion: 1\n")
    (about / "entry_points.txt").write_text("[fusion_mre.methods]\nmine = no_such_module:Mine\n")
    paths = f"{ROOT}{os.pathsep}{tmp_path}"
    words = ["train", "--method=mine", "--task=mnre", "--data=d", "--out=o", "--init=m"]
    calls = [["finetune.__main__", "list", "methods"], ["finetune.__main__", *words]]
    (listed, _, shown), (status, _, error) = started(calls, tmp_path, PYTHONPATH=paths)
    assert listed == 0 and "BROKEN" in shown and "no_such_module" in shown and "  promu " in shown
    assert status == 2 and "no_such_module" in error and error.count("\n") == 1


def test_the_console_command_does_not_run_a_file_of_the_working_folder(tmp_path):
    """As pip writes the script: its own folder, not the working one, is searched for modules."""
    (tmp_path / "finetune.py").write_text("print('theirs')\n")
    script = tmp_path / "bin" / "fusion-mre"
    script.parent.mkdir()
    script.write_text("import sys\nfrom finetune.console import script\nsys.exit(script())\n")
    done = subprocess.run(
        [sys.executable, str(script), "train", "--config", "mnre/promu", "--out", "o"],
        cwd=tmp_path, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 2 and "theirs" not in done.stdout
    assert "required: data" in done.stderr


def test_shipped_names_from_another_folder(tmp_path):
    study = ["study", "leage", "--data", "d", "--out", "o"]
    calls = [
        ["finetune.__main__", *study],
        ["pretrain.__main__", "--config", "tyni", "--run_dir", "r"],
        ["pretrain.__main__", "--config", "tiny", "--config", "legacy", "--run_dir", "r"],
    ]
    told = [said for _, _, said in started(calls, tmp_path)]
    assert "did you mean league?" in told[0] and "did you mean tiny?" in told[1]
    assert "required: data.train" in told[2]
    assert not list(tmp_path.iterdir())
