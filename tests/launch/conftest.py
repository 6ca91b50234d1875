"""`hosts`: machines as namespaces, with network, processes, name and sshd of their own.

They share the files of this machine, as nodes of a cluster share a file system. `shards`: what a
tiny run trains on; `TINY`, its settings, and `losses` of a run.
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from shards.__main__ import main as shards_command
from shards.sample.write import SampleConfig, write_sample

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
TINY = f"""
    --config {ROOT}/pretrain/configs/tiny.yaml
    --model.hidden_size 32 --model.num_attention_heads 2 --model.intermediate_size 64
    --model.text_layers 1 --model.fusion_layers 1 --model.vocab_size 300
    --model.image_size 32 --model.vision_hidden_size 32 --model.vision_heads 2
    --model.vision_layers 1 --model.projection_size 16
    --batch.global_size 16 --optim.steps 20 --log.every 1 --loss.coe 0 --loss.cir 0
""".split()
SSHD = """
Port 22
ListenAddress 0.0.0.0
HostKey {home}/host_key
AuthorizedKeysFile {home}/id.pub
StrictModes no
UsePAM no
PasswordAuthentication no
PermitRootLogin yes
PidFile none
"""
CLIENT = """
Host 10.77.0.* node*
    IdentityFile {home}/id
    StrictHostKeyChecking no
    UserKnownHostsFile /dev/null
    LogLevel ERROR
"""


def missing() -> str | None:
    """Why there can be no such hosts here, or None."""
    if os.geteuid():
        return "not root: network namespaces cannot be made"
    tools = [name for name in ("ip", "unshare", "sshd", "ssh", "ssh-keygen") if not which(name)]
    if tools:
        return f"no {', '.join(tools)} (Debian: iproute2 openssh-server openssh-client)"
    return None


def which(name: str) -> str | None:
    return shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin:/sbin")


def ip(*parts: str) -> None:
    subprocess.run([which("ip"), *parts], check=True, capture_output=True)


class Hosts:
    """Hosts `10.77.0.11`, `.12`, …, and a switch, 10.77.0.1, from which commands are given."""

    def __init__(self, home: Path, count: int = 2) -> None:
        self.home, self.prefix = home, f"fm{os.getpid() % 100000}"
        self.addresses = [f"10.77.0.{11 + number}" for number in range(count)]
        self.machines: list[subprocess.Popen | None] = []
        home.mkdir(parents=True, exist_ok=True)
        for name in ("id", "host_key"):
            subprocess.run(
                ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(home / name)], check=True
            )
        (home / "sshd_config").write_text(SSHD.format(home=home))
        (home / "config").write_text(CLIENT.format(home=home))
        names = {"127.0.0.1": "localhost", "10.77.0.1": "switch"}
        names |= {address: f"node{number}" for number, address in enumerate(self.addresses)}
        (home / "names").write_text("".join(f"{a} {name}\n" for a, name in names.items()))
        Path("/run/sshd").mkdir(exist_ok=True)  # its privilege separation directory
        self.switch = f"{self.prefix}s"
        ip("netns", "add", self.switch)
        ip("-n", self.switch, "link", "add", "br0", "type", "bridge")
        ip("-n", self.switch, "addr", "add", "10.77.0.1/24", "dev", "br0")
        ip("-n", self.switch, "link", "set", "br0", "up")
        ip("-n", self.switch, "link", "set", "lo", "up")
        for number in range(count):
            self._plug_in(number)
            self.machines.append(self._boot(number))
        for number in range(count):
            self._wait(number)

    def _plug_in(self, number: int) -> None:
        space, port = f"{self.prefix}h{number}", f"p{number}"
        ip("netns", "add", space)
        ip("-n", self.switch, "link", "add", port, "type", "veth", "peer", "name", "eth0",
           "netns", space)  # fmt: skip
        ip("-n", self.switch, "link", "set", port, "master", "br0", "up")
        ip("-n", space, "addr", "add", f"{self.addresses[number]}/24", "dev", "eth0")
        for device in ("lo", "eth0"):
            ip("-n", space, "link", "set", device, "up")

    def _boot(self, number: int) -> subprocess.Popen:
        """The first process of the host: when it dies, so does all that runs there."""
        daemon = f"{which('sshd')} -D -e -f {self.home}/sshd_config"
        script = f"hostname node{number}; {self._mounts()} exec {daemon}"
        log = (self.home / f"sshd-{number}.log").open("w")
        return subprocess.Popen(
            [which("ip"), "netns", "exec", f"{self.prefix}h{number}", which("unshare"), "--mount",
             "--uts", "--pid", "--mount-proc", "--fork", "--kill-child", "sh", "-c", script],
            stdout=log, stderr=log, stdin=subprocess.DEVNULL,
        )  # fmt: skip

    def _wait(self, number: int) -> None:
        for _ in range(100):
            probe = self.popen(["ssh", self.addresses[number], "true"], stderr=subprocess.DEVNULL)
            if probe.wait() == 0:
                return
            time.sleep(0.1)
        raise RuntimeError((self.home / f"sshd-{number}.log").read_text())

    def wrap(self, command: list[str], host: int | None = None) -> list[str]:
        """`command` as given on the switch, or on a host without ssh (sees its network alone)."""
        space = self.switch if host is None else f"{self.prefix}h{host}"
        name = "switch" if host is None else f"node{host}"
        script = f'hostname {name}; {self._mounts()} exec "$@"'
        return [which("ip"), "netns", "exec", space, which("unshare"), "--mount", "--uts",
                "sh", "-c", script, "sh", *command]  # fmt: skip

    def _mounts(self) -> str:
        """Shell commands, in a mount namespace: its own keys of ssh, its own names of hosts."""
        return (
            f"mkdir -p /root/.ssh; mount --bind {self.home} /root/.ssh; "
            f"mount --bind {self.home}/names /etc/hosts; "
        )

    def popen(self, command: list[str], host: int | None = None, **options) -> subprocess.Popen:
        return subprocess.Popen(self.wrap(command, host), **options)

    def cut_off(self, number: int) -> None:
        """The cable is pulled first, so that nobody hears a good-bye; then the power fails."""
        ip("-n", self.switch, "link", "set", f"p{number}", "down")
        machine = self.machines[number]
        machine.send_signal(signal.SIGKILL)  # unshare --kill-child takes the whole host along
        machine.wait()
        self.machines[number] = None

    def plug_in(self, number: int) -> None:
        """A host that was cut off is back, freshly started."""
        ip("-n", self.switch, "link", "set", f"p{number}", "up")
        self.machines[number] = self._boot(number)
        self._wait(number)

    def close(self) -> None:
        for machine in self.machines:
            if machine:
                machine.kill()
                machine.wait()
        for number in range(len(self.addresses)):
            ip("netns", "del", f"{self.prefix}h{number}")
        ip("netns", "del", self.switch)


class Bench:
    """What tests of launching need: settings, environment, runs on this machine or on hosts."""

    root, bin = ROOT, BIN

    def __init__(self, shards: Path) -> None:
        self.shards = shards

    def arguments(self, run_dir: Path, *more: str) -> list[str]:
        """A tiny run without a teacher: picture-text matching and contrast."""
        return [*TINY, "--data.train", str(self.shards), "--run_dir", str(run_dir), *more]

    def environment(self, interface: str = "lo", **more: str) -> dict[str, str]:
        """Ranks on the CPU, talking through one network interface."""
        cpu = {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        path = {"PATH": f"{BIN}:{os.environ['PATH']}", "GLOO_SOCKET_IFNAME": interface}
        return {**os.environ, **cpu, **path, **more}

    def port(self) -> str:
        """A free one: other jobs may run on this machine."""
        with socket.socket() as server:
            server.bind(("", 0))
            return str(server.getsockname()[1])

    def launcher(self) -> list[str]:
        """DeepSpeed's, two ranks on this machine."""
        ranks = ["--num_accelerators", "2", "--master_port", self.port()]
        return [str(BIN / "deepspeed"), *ranks, "launch/pretrain.sh"]

    def run(self, command: list[str], *, env: dict[str, str], cwd: Path = ROOT) -> str:
        """Output of a command that must succeed."""
        result = subprocess.run(
            command, cwd=cwd, env=env, capture_output=True, text=True, timeout=300
        )
        assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-4000:]
        return result.stdout + result.stderr

    def losses(self, run_dir: Path) -> list[float]:
        """One a step."""
        path = run_dir / "metrics.jsonl"
        lines = map(json.loads, path.read_text().splitlines() if path.exists() else ())
        return [line["loss"] for line in lines if "loss" in line]

    def wait_for_step(self, process: subprocess.Popen, run_dir: Path, step: int) -> None:
        """Until a run has logged so many steps."""
        deadline = time.monotonic() + 200
        while len(self.losses(run_dir)) < step:
            assert process.poll() is None and time.monotonic() < deadline, f"never at step {step}"
            time.sleep(0.1)


@pytest.fixture(scope="session")
def bench(tmp_path_factory) -> Bench:
    """160 small pairs as shards."""
    folder = tmp_path_factory.mktemp("bench")
    corpora = folder / "corpora"
    write_sample(SampleConfig(out=corpora, pairs=160, rows=(8, 4, 4), size=32))
    sources = ["--news-clippings", str(corpora / "news_clippings")]
    sources += ["--visual-news", str(corpora / "visual_news"), "--split", "train"]
    shards = str(folder / "train")
    shards_command(["build", "newsclippings", *sources, "--out", shards])
    boxes = str(corpora / "visual_news/objects.jsonl")
    shards_command(["detect", shards, "--detector", "file", "--boxes", boxes])
    return Bench(folder / "train")


@pytest.fixture(scope="module")
def hosts(tmp_path_factory):
    """Two machines."""
    reason = missing()
    if reason:
        pytest.skip(reason)
    machines = Hosts(tmp_path_factory.mktemp("hosts"))
    yield machines
    machines.close()


@pytest.fixture(scope="session")
def one_host(bench, tmp_path_factory) -> Path:
    """The run that the others are compared with: one machine, two ranks, never interrupted."""
    run_dir = tmp_path_factory.mktemp("one") / "run"
    bench.run([*bench.launcher(), *bench.arguments(run_dir)], env=bench.environment())
    assert len(bench.losses(run_dir)) == 20
    return run_dir
