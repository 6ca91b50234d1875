"""A wheel is enough: what the defaults name is found where nothing but the wheel is."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_engine_settings_are_in_the_wheel(tmp_path):
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-q"]
    names = ["pyproject.toml", "README.md", "LICENSE", "shards", "pretrain", "finetune", "launch"]
    for name in names:  # a copy: building leaves folders behind
        subprocess.run(["cp", "-r", str(ROOT / name), str(tmp_path)], check=True)
    built = subprocess.run(
        [*command, "-w", str(tmp_path / "out"), str(tmp_path)], capture_output=True, text=True
    )
    assert built.returncode == 0, built.stderr
    with zipfile.ZipFile(next((tmp_path / "out").glob("*.whl"))) as wheel:
        wheel.extractall(tmp_path / "site")
    (data,) = (tmp_path / "site").glob("*.data/data")
    names = {path.name for path in (ROOT / "launch").glob("zero*.json")}
    assert {path.name for path in (data / "share/fusion-mre/launch").iterdir()} == names
    program = (
        "import sys, sysconfig; sysconfig.get_path = lambda name: sys.argv[1]\n"
        "from pretrain.tuning import read_tuning\n"
        "from pretrain.config import EngineConfig\n"
        "import pretrain; print(pretrain.__file__)\n"
        "print(read_tuning(EngineConfig().deepspeed)['zero_optimization']['stage'])"
    )
    found = subprocess.run(
        [sys.executable, "-c", program, str(data)],
        cwd=tmp_path / "site", capture_output=True, text=True,
        env={"PYTHONPATH": str(tmp_path / "site"), "PATH": "/usr/bin:/bin"},
    )  # fmt: skip
    assert found.returncode == 0, found.stderr
    where, stage = found.stdout.split()
    assert where.startswith(str(tmp_path)) and stage == "1"
