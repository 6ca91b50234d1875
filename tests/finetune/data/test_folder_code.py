"""Code in a model's folder is never run, and nobody is asked whether it may."""

import ast
import io
import json
import shutil
import sys
import types
from contextlib import suppress
from pathlib import Path

import pytest

from finetune.data import generate, grounding
from pretrain.checkpoint.hub import load_tokenizer
from shards.captions import Captioner
from shards.files import InputError

ROOT = Path(__file__).resolve().parents[3]
CODE = """
from pathlib import Path
Path(__file__).with_name("ran").touch()
Path({marker!r}).touch()
class Own: ...
"""
AUTO = {
    "config.json": ("AutoConfig", "AutoModel", "AutoModelForImageTextToText"),
    "tokenizer_config.json": ("AutoTokenizer",),
    "processor_config.json": ("AutoProcessor",),
    "preprocessor_config.json": ("AutoProcessor", "AutoImageProcessor"),
}


@pytest.fixture
def hostile(tiny_captioner, tmp_path, monkeypatch):
    """A folder whose every part names its own code, a `y` on standard input, and the marker."""
    folder, marker = tmp_path / "model", tmp_path / "marker"
    shutil.copytree(tiny_captioner, folder)
    (folder / "own.py").write_text(CODE.format(marker=str(marker)))
    for name, classes in AUTO.items():
        path = folder / name
        content = json.loads(path.read_text()) if path.is_file() else {}
        own = {key: ["own.Own", None] if key == "AutoTokenizer" else "own.Own" for key in classes}
        path.write_text(json.dumps(content | {"model_type": "own", "auto_map": own}))
    answers = io.StringIO("y\n" * 9)
    monkeypatch.setattr(sys, "stdin", answers)
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    return folder, marker, answers


LOADERS = {
    "captioner": lambda folder: Captioner(str(folder), "a", 4, "cpu"),
    "grounder": lambda folder: grounding.Grounder(str(folder)),
    "clip": lambda folder: generate.Clip(str(folder), "cpu"),
    "tokenizer": load_tokenizer,
}


@pytest.mark.parametrize("kind", LOADERS)
def test_code_of_a_folder_is_not_run(hostile, kind, capsys):
    folder, marker, answers = hostile
    with suppress(InputError):  # or loaded by a class of the library's own
        LOADERS[kind](folder)
    assert not marker.exists() and answers.tell() == 0
    assert "[y/N]" not in capsys.readouterr().out


def test_a_pipeline_with_code_of_its_own(tmp_path, monkeypatch):
    """Either as a part or as the pipeline; refused before `diffusers` looks at the folder."""
    fake = types.ModuleType("diffusers")
    fake.EulerDiscreteScheduler = fake.StableDiffusionPipeline = None
    monkeypatch.setitem(sys.modules, "diffusers", fake)
    for name in ("unet", "_class_name"):
        content = {"_class_name": "StableDiffusionPipeline", "vae": ["diffusers", "AutoencoderKL"]}
        (tmp_path / "model_index.json").write_text(json.dumps(content | {name: ["own", "Own"]}))
        with pytest.raises(InputError, match=f"{name} is code of its own"):
            generate.stable_diffusion(str(tmp_path), 1, "cpu")


def test_every_auto_class_is_told():
    """Left out, `transformers` asks standard input."""
    silent = []
    for package in ("shards", "pretrain", "finetune"):
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
                    continue
                owner = ast.unparse(node.func.value)
                if node.func.attr == "from_pretrained" and "Auto" in owner:
                    told = any(k.arg in ("trust_remote_code", None) for k in node.keywords)
                    silent += [] if told else [f"{path}: line {node.lineno}"]
    assert not silent
