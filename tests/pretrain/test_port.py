"""Jobs of DeepSpeed's launcher on one machine do not meet at its default port."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from pretrain.cluster import port

ROOT, BIN = Path(__file__).resolve().parents[2], Path(sys.executable).parent
JOB = f"""#!{BIN}/python
import os
import sys
from pretrain import distributed, engine
from shards.command import exit_on_input_error
from shards.processes import run

@exit_on_input_error
def main():
    engine.start("deepspeed")
    line = f"met {{distributed.all_objects(sys.argv[1])}}\\n"
    os.write(1, line.encode())  # at once: both ranks write into one pipe

run(main)
"""


@pytest.fixture
def start(tmp_path, interpreter):
    """Start two ranks that tell each other the job's name; the launcher's imports are made."""
    (tmp_path / "job.py").write_text(JOB)
    (tmp_path / "job.py").chmod(0o755)
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "DS_ACCELERATOR": "cpu",
        "TMPDIR": str(tmp_path),
        "OMP_NUM_THREADS": "1",
    }

    def starter(name: str, *options: str) -> subprocess.Popen:
        path = {"PATH": f"{interpreter.path}{os.pathsep}{os.environ['PATH']}"}
        command = ["deepspeed", "--no_local_rank", "--num_accelerators", "2", *options]
        return subprocess.Popen([*command, str(tmp_path / "job.py"), name], env=environment | path,
                                cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                                text=True)  # fmt: skip

    return starter


def test_two_jobs_at_once_meet_their_own_ranks(start, tmp_path):
    """Each rank is a child of its launcher, by whom it finds its port, and as cold as a user's."""
    jobs = {name: start(name, "--no_python") for name in ("one", "two")}
    for name, job in jobs.items():
        said = job.communicate(timeout=300)[0]
        assert job.returncode == 0, said
        assert said.count(f"met ['{name}', '{name}']") == 2, said
    assert not list((tmp_path / f"fusion-mre-{os.getuid()}").iterdir())


def test_a_named_port_that_is_taken_is_told_in_one_line(start):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        job = start("one", "--master_port", port)
        said = job.communicate(timeout=300)[0]
    assert job.returncode == 2, said
    assert said.count(f"error: port {port} of this machine is taken") == 1, said
    assert "Traceback" not in said


@pytest.mark.parametrize("rank", ["0", "1"])
def test_a_rank_that_fails_leaves_the_note_to_the_others(rank, tmp_path, monkeypatch):
    """The first rank alone takes it away, whoever fails before all have met."""
    for name, value in {**port._UNNAMED, "RANK": rank, "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    launcher = psutil.Process(os.getppid())
    folder = tmp_path / f"fusion-mre-{os.getuid()}"
    folder.mkdir(mode=0o700)
    (folder / f"port-{launcher.pid}-{launcher.create_time()}").write_text("29501")
    with pytest.raises(RuntimeError, match="of this rank"), port.own_port():
        assert (os.environ["MASTER_PORT"] == "29501") == (rank == "1")
        raise RuntimeError("of this rank")
    assert len(list(folder.iterdir())) == int(rank)
