"""The doctor: every check passes on what is right and names what is wrong, on which machine."""

import copy
import json
import socket
import subprocess
import sys

import pytest

import pretrain.cluster.doctor as doctor_module
from pretrain.__main__ import main as pretrain_command
from pretrain.cluster.nodes import Host
from pretrain.cluster.probe import ROOT, ask, code_hash, facts, talk

GOOD = {
    "versions": {"python": "3.11.7", "torch": "2.15.0"},
    "code": "c0de",
    "gpus": ["H200"] * 8,
    "shm": 2**34,
    "interfaces": ["lo", "ib0"],
    "token": True,
    "free": 10**13,
    "data": {"shards/train": {"samples": 100, "columns": ["objects", "teacher"], "shards": "5a"}},
}
SETTINGS = ["--data.train", "shards/train", "--loss.coe", "0", "--loss.cir", "0"]


@pytest.fixture
def visit(tmp_path, monkeypatch, capsys):
    """Run the doctor on two machines that answer what they are told to; (exit status, lines)."""
    (tmp_path / "hosts").write_text("node1 slots=8\nnode2 slots=8\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(doctor_module.shutil, "which", lambda name: f"/usr/bin/{name}")
    for variable in ("NCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME", "DS_ACCELERATOR"):
        monkeypatch.delenv(variable, raising=False)

    def run(change: dict | None = None, *settings: str, problem: str | None = None):
        second = copy.deepcopy(GOOD) | (change or {})
        monkeypatch.setattr(
            doctor_module, "ask", lambda host, order: GOOD if host.name == "node1" else second
        )
        monkeypatch.setattr(doctor_module, "talk", lambda source, target, port: problem)
        more = [*SETTINGS, "--run_dir", str(tmp_path / "run"), *settings]
        status = 0
        try:
            pretrain_command(["doctor", "--hostfile", "hosts", "--write_env", "--", *more])
        except SystemExit as end:
            status = end.code
        output = capsys.readouterr()
        assert not list((tmp_path / "run").glob(".doctor-*"))
        return status, output.out.splitlines()

    return run


def test_all_is_well(visit):
    status, lines = visit()
    assert status == 0 and all(line.startswith("ok ") for line in lines), lines
    names = [line.split()[1] for line in lines]
    assert names == [
        "settings",
        "machines",
        "versions",
        "code",
        "devices",
        "memory",
        "interface",
        "batch",
        "data",
        "run_dir",
        "disk",
        "ports",
        "launcher",
        "environment",
    ]
    assert "128 = 8 x 1 accumulated x 16 ranks" in lines[7] and "16 x H200" in lines[4]


@pytest.mark.parametrize(
    ("change", "check", "message"),
    [
        ({"error": "Connection refused"}, "machines", "node2 (Connection refused)"),
        (
            {"versions": {"python": "3.11.7", "torch": "2.14.0"}},
            "versions",
            "torch 2.15.0 against torch 2.14.0 of node2",
        ),
        ({"code": "0ld"}, "code", "node1 has c0de against 0ld of node2"),
        ({"gpus": ["H200"] * 7}, "devices", "node2: 7 GPUs, 8 slots"),
        ({"gpus": ["A100"] * 8}, "devices", "several kinds (A100, H200)"),
        ({"shm": 2**26}, "memory", "node2: 64 MiB free in /dev/shm"),
        ({"data": {"shards/train": {"error": "shards/train: no index.json"}}}, "data", "node2: sh"),
        (
            {"data": {"shards/train": {"samples": 99, "columns": [], "shards": "6b"}}},
            "data",
            "mount the same shards",
        ),
        ({"token": False}, "run_dir", "node2: "),
        ({"free": 10**9}, "disk", "need"),
    ],
)
def test_what_is_wrong_is_named(change, check, message, visit):
    status, lines = visit(change)
    failed = [line for line in lines if line.startswith("FAIL")]
    assert status == 2 and len(failed) == 1
    assert failed[0].split()[1] == check and message in failed[0]


def test_settings_of_the_run(visit):
    status, lines = visit(None, "--batch.global_size", "100")
    assert status == 2 and "batch.global_size 100 is no multiple of 16" in "".join(lines)
    status, lines = visit(None, "--optim.lrr", "1")
    assert status == 2 and lines[0].startswith("FAIL  settings") and "optim.lr" in lines[0]
    _, lines = visit(None, "--loss.coe", "1", "--prompter.source", "p", "--prompter.entities", "e")
    assert not any(line.startswith("FAIL") for line in lines)


def test_machines_that_cannot_talk(visit):
    status, lines = visit(problem="port 29500: timed out")
    assert status == 2
    assert "FAIL  ports       node2 -> node1: port 29500: timed out" in lines


def test_interface_that_one_machine_lacks(visit, monkeypatch):
    monkeypatch.setenv("NCCL_SOCKET_IFNAME", "ib")
    assert visit()[0] == 0
    status, lines = visit({"interfaces": ["lo", "eth0"]})
    assert status == 2 and any("node2: no interface ib (NCCL" in line for line in lines)


def test_connections_are_really_opened():
    """Between this machine and itself: a free port, a taken one, a name that does not resolve."""
    here = Host(name="localhost", slots=1)
    assert talk(here, here, 0) is None
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        assert "in use" in talk(here, here, taken.getsockname()[1])
        order = {"do": "connect", "host": "127.0.0.1", "port": taken.getsockname()[1]}
        assert ask(here, order) == {}
    assert "error" in ask(here, order)


def test_facts_of_this_machine(tmp_path, bench):
    (tmp_path / ".doctor-1").write_text("1")
    order = {"data": [str(bench.shards), str(tmp_path)], "run_dir": str(tmp_path), "token": "1"}
    found = facts(json.loads(json.dumps(order)))
    assert found["data"][str(bench.shards)]["samples"] == 160
    assert found["data"][str(bench.shards)]["columns"] == ["objects"]
    assert "index.json" in found["data"][str(tmp_path)]["error"]
    assert found["token"] is True and found["free"] > 0 and "lo" in found["interfaces"]
    assert found["versions"]["python"] == ".".join(map(str, sys.version_info[:3]))
    assert facts({**order, "token": "2"})["token"] is False


def test_one_byte_of_code_changes_its_hash(tmp_path):
    for name in ("shards/a.py", "pretrain/configs/b.yaml", "pretrain/notes.txt"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x")
    before = code_hash(tmp_path)
    (tmp_path / "pretrain/notes.txt").write_text("y")
    assert code_hash(tmp_path) == before
    (tmp_path / "pretrain/configs/b.yaml").write_text("y")
    assert code_hash(tmp_path) != before
    assert len(code_hash(ROOT)) == 32


@pytest.mark.slow
def test_on_two_machines(hosts, bench, tmp_path):
    """Over ssh: all is well; the master port is taken on one; one is cut off."""
    file = tmp_path / "hosts"
    file.write_text("".join(f"{address} slots=1\n" for address in hosts.addresses))
    command = [sys.executable, "-m", "pretrain", "doctor", "--hostfile", str(file), "--write_env"]
    command += ["--", *bench.arguments(tmp_path / "run")]
    environment = bench.environment("eth0", PYTHONPATH=str(bench.root))

    def visit() -> tuple[int, str]:
        result = subprocess.run(
            hosts.wrap(command), cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        print(result.stdout)
        return result.returncode, result.stdout

    status, output = visit()
    assert status == 0 and "FAIL" not in output and "ok    ports" in output
    taken = hosts.popen(
        [sys.executable, "-c", "import socket as s, time; x = s.create_server(('', 29500)); "
         "print(1, flush=True); time.sleep(600)"], 0, stdout=subprocess.PIPE,
    )  # fmt: skip
    taken.stdout.readline()
    status, output = visit()
    assert status == 2 and "FAIL  ports" in output and "29500" in output
    taken.kill()
    taken.wait()
    hosts.cut_off(1)
    status, output = visit()
    hosts.plug_in(1)
    assert status == 2 and "FAIL  machines" in output and hosts.addresses[1] in output
