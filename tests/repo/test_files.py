"""The repository keeps what it promises: layout, launch files, configs."""

import ast
import subprocess
from pathlib import Path

import pytest
import yaml

from pretrain.config import PretrainConfig
from shards.options import parse_config

ROOT = Path(__file__).resolve().parents[2]
REQUIRED = ["--run_dir=x", "--data.train=y", "--prompter.source=p", "--prompter.entities=e"]


def tracked() -> list[str]:
    result = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return result.stdout.split()


def test_top_level_is_the_design_card():
    card = {
        "pyproject.toml",
        "README.md",
        "pretrain",
        "finetune",
        "shards",
        "launch",
        "tests",
        "docker",
    }
    tools = {"LICENSE", ".gitignore", ".ci", "findings"}
    assert {name.split("/")[0] for name in tracked()} <= card | tools


@pytest.mark.parametrize("name", ["pretrain.sh", "finetune.sh"])
def test_launch_files_are_shell_and_python(name):
    path = ROOT / "launch" / name
    subprocess.run(["bash", "-n", str(path)], check=True)
    ast.parse(path.read_text())


@pytest.mark.parametrize("name", ["quickstart.sh", "environment.sh", "pretrain.slurm"])
def test_shell_files_parse(name):
    subprocess.run(["bash", "-n", str(ROOT / "launch" / name)], check=True)


@pytest.mark.parametrize(
    "path", sorted((ROOT / "pretrain/configs").glob("*.yaml")), ids=lambda p: p.name
)
def test_every_pretraining_config_is_valid(path):
    config = parse_config(
        PretrainConfig, ["--config", str(path), *REQUIRED], prog="p", description="", example=""
    )
    written = yaml.safe_load(path.read_text())
    for section, content in written.items():
        for key, value in content.items():
            got = getattr(getattr(config, section), key)
            assert (list(got) if isinstance(got, tuple) else got) == value
