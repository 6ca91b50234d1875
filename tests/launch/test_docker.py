"""docker/: the Dockerfile calls docker/install.sh, whose steps also run without an engine."""

import importlib.metadata
import importlib.util
import os
import re
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
DOCKER = ROOT / "docker"


def instructions() -> list[tuple[str, str]]:
    lines = (DOCKER / "Dockerfile").read_text().replace("\\\n", " ").splitlines()
    return [
        tuple(line.split(maxsplit=1)) for line in lines if line.strip() and not line.startswith("#")
    ]


def pins() -> dict[str, str]:
    lines = (DOCKER / "requirements.lock").read_text().splitlines()
    matches = [re.fullmatch(r"([a-z0-9-]+)==(\S+)", line) for line in lines if line[0] != "#"]
    assert all(matches)
    return {match[1]: match[2] for match in matches}


def test_every_build_step_is_a_step_of_the_script():
    script = (DOCKER / "install.sh").read_text()
    steps = re.findall(r"^([a-z]+)\(\) \{", script, re.M)
    runs = [what for word, what in instructions() if word == "RUN"]
    assert [f"bash docker/install.sh {step}" for step in steps] == runs
    subprocess.run(["bash", "-n", str(DOCKER / "install.sh")], check=True)
    unknown = subprocess.run(
        ["bash", str(DOCKER / "install.sh"), "all"], capture_output=True, text=True
    )
    assert unknown.returncode == 2 and "install.sh python" in unknown.stderr


def test_what_is_copied_is_there_and_it_runs_as_a_user():
    words = instructions()
    for word, what in words:
        if word == "COPY":
            assert all((ROOT / source).exists() for source in what.split()[:-1]), what
    last = [what for word, what in words if word == "USER"][-1]
    assert last not in ("root", "0")


def test_the_lock_holds_all_that_is_needed():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    locked = pins()
    for text in project["dependencies"]:
        wanted = Requirement(text)
        assert wanted.specifier.contains(locked[canonicalize_name(wanted.name)]), text
    assert "ultralytics" not in locked  # AGPL: only through the extra


def test_the_lock_is_closed():
    """Where a pinned version is installed, all it requires is pinned too."""
    spec = importlib.util.spec_from_file_location("lock", DOCKER / "lock.py")
    lock = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(lock)
    locked = pins()
    for name, version in locked.items():
        try:
            same = importlib.metadata.version(name) == version
        except importlib.metadata.PackageNotFoundError:
            continue
        if same:
            assert lock.closure(name).keys() <= locked.keys(), name


def test_two_nodes():
    services = yaml.safe_load((DOCKER / "compose.yaml").read_text())["services"]
    assert len(services) == 2
    commands = [service["command"] for service in services.values()]
    assert [f"--node-rank {rank} " in command for rank, command in enumerate(commands)] == [
        True
    ] * 2
    assert commands[0].replace("--node-rank 0", "--node-rank 1") == commands[1]
    assert all("--master-addr ${MASTER:-node0}" in command for command in commands)
    assert [service["hostname"] for service in services.values()] == list(services)


@pytest.mark.slow
def test_steps_on_this_machine(tmp_path):
    """Those that need no root, into a folder: the lock installs, is consistent, and trains."""
    with_venv = {**os.environ, "VENV": str(tmp_path / "venv"), "CUDA_VISIBLE_DEVICES": ""}
    with_venv.pop("PYTHONPATH", None)
    copy = tmp_path / "checkout"
    files = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True).stdout
    for name in files.splitlines():
        if name.split("/")[0] not in ("tests", ".ci"):
            target = copy / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes((ROOT / name).read_bytes())
    for step in ("python", "project", "check"):
        result = subprocess.run(
            ["bash", str(copy / "docker/install.sh"), step],
            cwd=tmp_path, env=with_venv, capture_output=True, text=True, timeout=1800,
        )  # fmt: skip
        assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-4000:]
    assert "check passed" in result.stdout
