"""Waiting threads sleep, and processes share the cores that there are, unless the user says
otherwise."""

import os
import subprocess
import sys

import pytest

from shards import threads
from shards.threads import COUNT, OURS, WAITING, account, cores, processes_here, set_threads


@pytest.fixture
def sixteen(monkeypatch):
    """A machine of so many cores."""
    monkeypatch.setattr(threads, "cores", lambda: 16)


@pytest.mark.parametrize("name", WAITING)
def test_a_setting_of_the_user_stands(name):
    environ = {name: "7", COUNT: "3"}
    set_threads(environ)
    assert environ == {name: "7", COUNT: "3"}
    assert account(environ) == "threads: 3 a process, as OMP_NUM_THREADS in the environment says"


@pytest.mark.parametrize(
    ("environ", "count"),
    [
        ({}, 16),
        ({COUNT: ""}, 16),
        ({"LOCAL_WORLD_SIZE": "4"}, 4),  # torchrun
        ({"LOCAL_SIZE": "8", "LOCAL_WORLD_SIZE": ""}, 2),  # deepspeed
        ({"OMPI_COMM_WORLD_LOCAL_SIZE": "64"}, 1),
        ({"LOCAL_WORLD_SIZE": "x", "WORLD_SIZE": "32"}, 16),  # ranks of other machines
    ],
)
def test_processes_share_the_cores(sixteen, environ, count):
    set_threads(environ)
    assert environ[COUNT] == environ[OURS] == str(count)
    assert account(environ).startswith(f"threads: {count} a process, of 16 cores")
    assert ("among" in account(environ)) == (processes_here(environ) > 1)


def test_ranks_that_a_launcher_of_ours_starts_count_anew(sixteen):
    launcher: dict[str, str] = {}
    set_threads(launcher)
    rank = launcher | {"LOCAL_WORLD_SIZE": "8"}
    set_threads(rank)
    assert (launcher[COUNT], rank[COUNT]) == ("16", "2")


def test_torchrun_is_named():
    assert "torchrun sets 1" in account({COUNT: "1", "TORCHELASTIC_RUN_ID": "x"})


def write(root, path, text):
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_text(text)


def test_quotas_of_containers(tmp_path, monkeypatch):
    """Eight threads of four cores, and what each version of cgroups leaves of them."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    assert cores(tmp_path) == 8  # nothing tells which are of one core
    for number in range(8):
        place = f"sys/devices/system/cpu/cpu{number}/topology/thread_siblings_list"
        write(tmp_path, place, f"{number % 4},{number % 4 + 4}\n")
    assert cores(tmp_path) == 4
    for quota, count in (("max 100000\n", 4), ("250000 100000\n", 2), ("50000 100000\n", 1)):
        write(tmp_path, "sys/fs/cgroup/cpu.max", quota)
        assert cores(tmp_path) == count
    write(tmp_path, "sys/fs/cgroup/cpu.max", "")
    for quota, count in (("-1", 4), ("300000", 3)):
        write(tmp_path, "sys/fs/cgroup/cpu/cpu.cfs_quota_us", quota)
        write(tmp_path, "sys/fs/cgroup/cpu/cpu.cfs_period_us", "100000")
        assert cores(tmp_path) == count


@pytest.mark.parametrize("package", ["pretrain", "finetune"])
def test_before_torch(package):
    """The packages set it, and have not loaded torch by then."""
    code = (
        f"import {package}, os, sys; print(os.environ['OMP_WAIT_POLICY'], "
        "os.environ['OMP_NUM_THREADS'], 'torch' in sys.modules)"
    )
    unset = (*WAITING, COUNT, OURS)
    environ = {name: value for name, value in os.environ.items() if name not in unset}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environ, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["PASSIVE", str(cores()), "False"]
