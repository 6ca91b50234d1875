"""launch/pretrain.slurm under Debian's slurm-wlm: two nodes, preemption, requeue, resume.

`FUSION_MRE_APT=1` lets the test install what is missing (tests/launch/install.sh).
"""

import os
import re
import shutil
import subprocess
import time
from pathlib import Path

import pytest

CONFIGURATION = """
ClusterName=test
SlurmctldHost=switch(10.77.0.1)
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={home}/munge.socket,cred_expire=20
StateSaveLocation={home}/state
SlurmdSpoolDir={home}/spool-%n
SlurmctldPidFile={home}/slurmctld.pid
SlurmdPidFile={home}/slurmd-%n.pid
SlurmctldLogFile={home}/slurmctld.log
SlurmdLogFile={home}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/linear
ReturnToService=2
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
MessageTimeout=60
NodeName=node0 NodeAddr=10.77.0.11 CPUs=1
NodeName=node1 NodeAddr=10.77.0.12 CPUs=1
PartitionName=low Nodes=ALL Default=YES PriorityTier=1 PreemptMode=REQUEUE GraceTime=120
PartitionName=high Nodes=ALL PriorityTier=2 PreemptMode=OFF
"""
HERE = Path(__file__).parent
pytestmark = pytest.mark.slow


class Slurm:
    """A controller on the switch and a daemon on each host."""

    def __init__(self, hosts, home: Path, environment: dict[str, str]) -> None:
        self.hosts, self.home = hosts, home
        for folder in ("state", "spool-node0", "spool-node1"):
            (home / folder).mkdir()
        (home / "slurm.conf").write_text(CONFIGURATION.format(home=home))
        # The hosts have no cgroups of their own; version 1 is loaded without looking for any.
        (home / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n")
        self.environment = {**environment, "SLURM_CONF": str(home / "slurm.conf")}
        (home / "munge.key").write_bytes(os.urandom(128))
        (home / "munge.key").chmod(0o600)
        files = {"key-file": "munge.key", "socket": "munge.socket", "pid-file": "munge.pid",
                 "log-file": "munge.log", "seed-file": "munge.seed"}  # fmt: skip
        options = [f"--{option}={home / name}" for option, name in files.items()]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}  # they write logs
        self.daemons = [subprocess.Popen(["munged", "--foreground", "--force", *options], **quiet)]
        self.daemons += [hosts.popen(["slurmctld", "-D"], env=self.environment, **quiet)]
        for number, address in enumerate(hosts.addresses):
            daemon = f"SLURM_CONF={home}/slurm.conf exec slurmd -D -N node{number}"
            self.daemons.append(hosts.popen(["ssh", address, daemon], **quiet))

    def __call__(self, *command: str, check: bool = False) -> str:
        result = subprocess.run(
            self.hosts.wrap(list(command)), env=self.environment, capture_output=True, text=True
        )
        assert not check or result.returncode == 0, result.stderr
        return result.stdout

    def until(self, condition, seconds: float = 240) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            logs = "".join(path.read_text()[-1500:] for path in self.home.glob("*.log"))
            assert time.monotonic() < deadline, logs
            time.sleep(0.5)

    def submit(self, *parts: str) -> str:
        """The number of the new job."""
        output = self("sbatch", *parts, check=True)
        return re.search(r"Submitted batch job (\d+)", output)[1]

    def state(self, job: str) -> str:
        """JobState, in Slurm's words."""
        found = re.search(r"JobState=(\w+)", self("scontrol", "show", "job", job))
        return found[1] if found else ""

    def close(self) -> None:
        for number, address in enumerate(self.hosts.addresses):
            # Its ssh does not take a daemon along; the process number is that of its host.
            self("ssh", address, f"kill $(cat {self.home}/slurmd-node{number}.pid)")
        for daemon in reversed(self.daemons):
            daemon.terminate()
            daemon.wait()


@pytest.fixture
def slurm(hosts, bench, tmp_path):
    if not all(map(shutil.which, ("munged", "slurmctld", "slurmd", "sbatch"))):
        if not os.environ.get("FUSION_MRE_APT"):
            pytest.skip("no slurm-wlm: run `bash tests/launch/install.sh`, or set FUSION_MRE_APT=1")
        subprocess.run(["bash", str(HERE / "install.sh")], check=True)
    cluster = Slurm(hosts, tmp_path, bench.environment("eth0"))
    try:
        cluster.until(lambda: cluster("sinfo", "-h", "-o", "%T %D").split()[:2] == ["idle", "2"])
        yield cluster
    finally:
        cluster.close()


def test_preempted_requeued_resumed(slurm, bench, tmp_path):
    """A job of more weight takes both nodes in the middle; the losses are those of a quiet run."""
    steps = ["--optim.steps", "120", "--checkpoint.every", "20"]
    quiet, run_dir = tmp_path / "quiet", tmp_path / "run"
    bench.run([*bench.launcher(), *bench.arguments(quiet, *steps)], env=bench.environment())

    log = tmp_path / "job.log"
    options = ["--ntasks-per-node=1", "--cpus-per-task=1", "--gres=none", f"--output={log}"]
    options += [f"--chdir={bench.root}", str(bench.root / "launch/pretrain.slurm")]
    job = slurm.submit("--partition=low", *options, *bench.arguments(run_dir, *steps))
    slurm.until(lambda: len(bench.losses(run_dir)) >= 15)
    other = slurm.submit(
        "--partition=high", "--nodes=2", f"--output={tmp_path}/other.log", "--wrap", "srun hostname"
    )
    slurm.until(lambda: slurm.state(other) == "COMPLETED")
    assert not (run_dir / "model").exists()
    slurm.until(lambda: slurm.state(job) == "COMPLETED")
    text = log.read_text()
    assert "back into the queue" in text and "resuming after step" in text, text[-3000:]
    assert "Restarts=1" in slurm("scontrol", "show", "job", job)
    assert (run_dir / "model").is_dir()
    assert bench.losses(run_dir) == bench.losses(quiet)
    print(re.findall(r"slurm: .*|resuming after step \d+", text))


def test_bad_input_is_not_started_again(slurm, bench, tmp_path):
    log = tmp_path / "job.log"
    options = ["--ntasks-per-node=1", "--cpus-per-task=1", "--gres=none", f"--output={log}"]
    options += [f"--chdir={bench.root}", str(bench.root / "launch/pretrain.slurm")]
    job = slurm.submit(*options, *bench.arguments(tmp_path / "run", "--optim.lrr", "1"))
    slurm.until(lambda: slurm.state(job) in ("FAILED", "COMPLETED"))
    assert slurm.state(job) == "FAILED" and "did you mean optim.lr" in log.read_text()
    assert "Restarts=0" in slurm("scontrol", "show", "job", job)
