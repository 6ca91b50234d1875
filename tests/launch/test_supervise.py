"""The supervised run: what is left of the machines, and machines that fail in the middle."""

import os
import signal
import subprocess
import sys
import threading

import pytest

from pretrain.cluster.agent import Agent
from pretrain.cluster.nodes import Host
from pretrain.config import BatchConfig
from pretrain.supervise import reachable, usable
from shards.files import InputError


def hosts_of(*slots: int) -> list[Host]:
    return [Host(name=f"node{n}", slots=count) for n, count in enumerate(slots)]


@pytest.mark.parametrize(
    ("slots", "batch", "expected"),
    [
        ((8, 8), {"global_size": 128}, [8, 8]),
        ((8, 8, 8), {"global_size": 128}, [8, 8]),  # 24 and 23 … 17 do not divide 128
        ((8, 8, 8), {"global_size": 96}, [8, 8, 8]),
        ((8, 4, 8), {"global_size": 120, "accumulation": 2}, [8, 4, 8]),  # 120 / (2 x 20) = 3
        ((3, 3), {"global_size": 16}, [3, 1]),  # 6 and 5 do not divide 16
        ((5,), {"global_size": 32, "micro_size": 8, "accumulation": None}, [4]),
    ],
)
def test_as_many_ranks_as_divide_the_batch(slots, batch, expected):
    assert [host.slots for host in usable(hosts_of(*slots), BatchConfig(**batch))] == expected


def test_a_batch_that_no_number_of_ranks_forms():
    batch = BatchConfig(global_size=10, micro_size=3, accumulation=None)
    with pytest.raises(InputError, match="no multiple"):
        usable(hosts_of(4), batch)


def test_a_host_that_is_not_there(tmp_path, monkeypatch):
    stand_in = tmp_path / "ssh"
    stand_in.write_text('#!/bin/sh\ncase "$*" in *" node1 "*) exit 0;; esac; exit 255\n')
    stand_in.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    hosts = [*hosts_of(1, 1), Host(name="localhost", slots=1)]
    assert reachable(hosts) == hosts[1:]


@pytest.fixture
def agent_of(tmp_path, monkeypatch):
    """An agent whose ranks run a short program in place of the training."""

    def make(program: str, ranks: int = 2) -> Agent:
        package = tmp_path / "pretrain"
        package.mkdir()
        (package / "__init__.py").touch()
        (package / "__main__.py").write_text("import os, signal, sys, time\n" + program)
        numbers = [{"RANK": str(n), "LOCAL_RANK": str(n)} for n in range(ranks)]
        monkeypatch.chdir(tmp_path)
        # The agent listens to its standard input: here one that stays open.
        read, write = os.pipe()
        monkeypatch.setattr(sys, "stdin", os.fdopen(read))
        made = Agent({"settings": [], "env": {"PYTHONPATH": str(tmp_path)}, "ranks": numbers})
        made.input = os.fdopen(write, "w", buffering=1)
        return made

    return make


@pytest.fixture(autouse=True)
def signals_as_before():
    before = {number: signal.getsignal(number) for number in (15, 2, 10)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def test_agent_ends_with_its_ranks(agent_of):
    assert agent_of("").run() == 0


@pytest.mark.parametrize(
    ("program", "status"),
    [
        # Bad input: no restart mends it. The other rank ends later, as its peer is gone.
        ("sys.exit(2 if os.environ['RANK'] == '1' else time.sleep(2) or 1)", 2),
        ("os.kill(os.getpid(), 9) if os.environ['RANK'] == '1' else time.sleep(1)", 137),
    ],
)
def test_agent_tells_how_a_rank_failed(program, status, agent_of):
    assert agent_of(program).run() == status


def test_agent_passes_signals_on_to_all_ranks_at_once(agent_of):
    """Each rank ends well only if the signal reaches it before the other one has ended."""
    agent = agent_of(
        "def handler(*_):\n"
        "    open(os.environ['RANK'], 'w').close()\n"
        "    while len([n for n in '01' if os.path.exists(n)]) < 2: time.sleep(0.05)\n"
        "    sys.exit(0)\n"
        "signal.signal(signal.SIGUSR1, handler)\n"
        "open('ready' + os.environ['RANK'], 'w').close()\n"
        "time.sleep(60)\n"
    )

    def order() -> None:
        while not (os.path.exists("ready0") and os.path.exists("ready1")):
            threading.Event().wait(0.05)
        agent.input.write(f"signal {int(signal.SIGUSR1)}\n")

    threading.Thread(target=order).start()
    assert agent.run() == 0


def test_agent_without_supervisor_stops_its_ranks(agent_of):
    agent = agent_of("signal.signal(signal.SIGTERM, lambda *_: sys.exit(0)); time.sleep(60)", 1)
    threading.Timer(1, agent.input.close).start()
    assert agent.run() in (0, 143)


def test_agent_cut_off_from_its_supervisor_kills_its_ranks(agent_of, monkeypatch):
    monkeypatch.setattr("pretrain.cluster.agent.SILENCE", 1.0)
    assert agent_of("time.sleep(60)").run() == 137


def supervised(bench, *more: str) -> list[str]:
    return [str(bench.bin / "python"), "-m", "pretrain.supervise", *more]


@pytest.mark.slow
@pytest.mark.parametrize("lost", [1, 0], ids=["the second machine", "the machine of rank 0"])
def test_a_machine_cut_off_in_the_middle(lost, hosts, bench, one_host, tmp_path):
    """Cable, then power: the run goes on, on the other machine, and ends with the same losses."""
    file, run_dir = tmp_path / "hosts", tmp_path / "run"
    file.write_text("".join(f"{address} slots=1\n" for address in hosts.addresses))
    settings = bench.arguments(run_dir, "--checkpoint.every", "4")
    command = supervised(bench, "--hostfile", str(file), "--", *settings)
    output = (tmp_path / "output").open("w+")
    options = {"stdout": output, "stderr": subprocess.STDOUT, "cwd": bench.root}
    process = hosts.popen(command, env=bench.environment("eth0"), **options)
    try:
        bench.wait_for_step(process, run_dir, 9)
        hosts.cut_off(lost)
        assert process.wait(timeout=300) == 0
    finally:
        output.seek(0)
        text = output.read()
        hosts.plug_in(lost)
    left = hosts.addresses[1 - lost]
    assert f"{hosts.addresses[lost]} (lost)" in text, text[-4000:]
    assert f"attempt 2, after step 8: 1 rank on {left}" in text
    assert "finished after step 20" in text
    found, expected = bench.losses(run_dir), bench.losses(one_host)
    assert found == pytest.approx(expected, abs=2e-4)
    print(f"largest difference {max(abs(a - b) for a, b in zip(found, expected, strict=True)):.1e}")


@pytest.mark.slow
def test_a_killed_rank_is_started_again(bench, one_host, tmp_path):
    """kill -9 of one rank, on one machine: the same run at the same size, to the same losses."""
    import psutil

    run_dir = tmp_path / "run"
    settings = bench.arguments(run_dir, "--checkpoint.every", "4")
    command = supervised(bench, "--ranks", "2", "--master_port", bench.port(), "--", *settings)
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    process = subprocess.Popen(command, cwd=bench.root, env=bench.environment(), **options)
    bench.wait_for_step(process, run_dir, 9)
    family = psutil.Process(process.pid).children(recursive=True)
    victim = next(p for p in family if p.environ().get("RANK") == "1")
    victim.kill()
    text, _ = process.communicate(timeout=300)
    assert process.returncode == 0, text[-4000:]
    assert "SIGKILL" in text and "attempt 2, after step 8: 2 ranks" in text
    assert bench.losses(run_dir) == bench.losses(one_host)


@pytest.mark.slow
def test_a_signal_ends_it_with_a_checkpoint(bench, one_host, tmp_path):
    """SIGTERM to the supervisor alone: status 0, nothing lost, the same command finishes."""
    run_dir = tmp_path / "run"
    settings = bench.arguments(run_dir, "--checkpoint.every", "100")
    command = supervised(bench, "--ranks", "2", "--master_port", bench.port(), "--", *settings)
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    process = subprocess.Popen(command, cwd=bench.root, env=bench.environment(), **options)
    bench.wait_for_step(process, run_dir, 3)
    process.terminate()
    text, _ = process.communicate(timeout=300)
    steps = len(bench.losses(run_dir))
    assert process.returncode == 0, text[-4000:]
    assert steps < 20 and f"supervise: stopped after step {steps}" in text
    assert "supervise: finished after step 20" in bench.run(command, env=bench.environment())
    assert bench.losses(run_dir) == bench.losses(one_host)
