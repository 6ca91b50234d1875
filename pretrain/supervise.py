"""`python -m pretrain supervise`: a run that outlives its machines.

The supervisor starts an agent on every machine (over ssh; here without) and the agent its ranks.
When a rank, a machine or the network to it fails, all ranks are ended, the machines are asked who
is there, and the run goes on from its last complete checkpoint on those: same global batch, as
many ranks as divide it. SIGTERM, SIGINT and SIGUSR1 reach every rank at once: they agree on a
checkpoint, and all ends with status 0.

    supervisor ── ssh: orders and a beat on stdin ──► agent ── environment, signals ──► ranks
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from pretrain.cluster.agent import BAD_INPUT, GRACE, STOP, STOPS, Agent
from pretrain.cluster.nodes import LOCAL, Host, forwarded, on_host, read_hostfile
from pretrain.config import PretrainConfig
from shards.command import exit_on_input_error, without_local_rank
from shards.files import InputError
from shards.options import parse_config, positive

BEAT = 2.0
"""Seconds between signs of life from the supervisor to its agents."""
FRUITLESS = 3
"""Failures in a row without a new checkpoint after which the supervisor gives up."""
_SSH_FAILED = 255
_ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True, kw_only=True)
class SuperviseConfig:
    """Pre-train, and go on from the last complete checkpoint when a rank or a machine is lost, on
    what is left. Behind `--` come the settings of `python -m pretrain`."""

    REST: ClassVar = "settings"
    hostfile: str | None = None
    """Lines `NAME slots=N`; none: this machine alone."""
    ranks: int | None = None
    """Ranks on this machine; none: one a GPU."""
    master_port: int | None = None
    """And the ten after it; none: 29500, without a host file one that is free."""
    finished: bool = False
    """Only tell, by exit status 0 or 1, if the run is."""
    settings: tuple[str, ...] = ()
    """Behind `--`: those of `python -m pretrain`."""

    def __post_init__(self) -> None:
        positive(ranks=self.ranks)


@exit_on_input_error
def main(argv: Sequence[str] | None = None) -> None:
    """Supervise one run to its end."""
    words = without_local_rank(argv)
    if words == ["--agent"]:
        sys.exit(Agent(json.loads(sys.stdin.readline())).run())
    prog = "python -m pretrain supervise"
    example = f"{prog} --hostfile launch/hostfile.example -- --config base --run_dir runs/base …"
    sys.exit(supervise(parse_config(SuperviseConfig, words, prog=prog, example=example)))


def supervise(config: SuperviseConfig) -> int:
    """Exit status of the whole; with `finished`: 0 if the run is."""
    if config.hostfile:
        hosts = read_hostfile(config.hostfile)
        if len(hosts) > 1 and any(host.local for host in hosts):
            raise InputError(f"{config.hostfile}: {LOCAL} means another machine on every machine")
    else:
        hosts = [Host(name=LOCAL, slots=config.ranks or (1 if config.finished else _gpus()))]
    port = config.master_port or (29500 if config.hostfile else _free_port())
    supervisor = Supervisor(hosts, list(config.settings), port)
    return int(not supervisor.finished()) if config.finished else supervisor.run()


class Supervisor:
    """Attempts, one after another, at finishing one run."""

    def __init__(self, hosts: list[Host], settings: list[str], port: int) -> None:
        example = "python -m pretrain supervise --hostfile HOSTS -- --config FILE --run_dir RUN"
        self.config = parse_config(PretrainConfig, settings, prog="SETTINGS", example=example)
        self.hosts, self.settings, self.port = hosts, settings, port
        self.stop = 0

    def run(self) -> int:
        """Exit status: 0 finished or stopped by a signal, 2 bad input, 1 given up."""
        if self.config.batch.global_size is None:
            raise InputError(
                "batch.global_size must be given: it stays, whatever number of ranks is left"
            )
        for number in STOPS:
            signal.signal(number, self._on_signal)
        hosts = reachable(self.hosts)
        if missing := [host.name for host in self.hosts if host not in hosts]:
            raise InputError(
                f"not reachable: {', '.join(missing)}; see `python -m pretrain doctor --hostfile …`"
            )
        attempt = fruitless = 0
        while True:
            # Ranks may be fewer than before; the global batch stays, and so does the run.
            attempt, step = attempt + 1, self._last_step()
            chosen = usable(hosts, self.config.batch)
            self._say(f"attempt {attempt}, after step {step}: {_names(chosen)}")
            ended = self._attempt(chosen, self.port + attempt % 10)
            if not any(ended.values()) and self.finished():
                self._say(f"finished after step {self._last_step()}")
                return 0
            if self.stop:
                # A rank that had not begun dies of the signal: nothing is lost by that either.
                clean = set(ended.values()) <= {0, 128 + self.stop}
                state = "stopped" if clean else "stopped without a checkpoint of its own,"
                self._say(f"{state} after step {self._last_step()}; the same command goes on")
                return 0 if clean else 1
            if BAD_INPUT in ended.values():  # no restart mends it
                return BAD_INPUT
            failed = [f"{host} ({_meaning(status)})" for host, status in ended.items() if status]
            self._say(f"failed: {', '.join(failed) or 'ended before the last step'}")
            fruitless = 0 if self._last_step() > step else fruitless + 1
            if fruitless == FRUITLESS:
                self._say(f"gives up: {fruitless} failures in a row without a new checkpoint")
                return 1
            hosts = reachable(self.hosts)
            if not hosts:
                self._say("gives up: no machine can be reached")
                return 1

    def _attempt(self, hosts: list[Host], port: int) -> dict[str, int]:
        """Exit status of every host's agent, when all have ended."""
        orders = self._orders(hosts, port)
        command = [sys.executable, "-u", "-m", "pretrain.supervise", "--agent"]
        agents = {
            host.name: subprocess.Popen(
                # A group of its own: Ctrl-C on a terminal reaches the ranks through us, once.
                on_host(host, ["env", f"PYTHONPATH={_ROOT}", *command]),
                stdin=subprocess.PIPE, text=True, start_new_session=True,
            )
            for host in hosts
        }  # fmt: skip
        for name, agent in agents.items():
            _send(agent, json.dumps(orders[name]))
        deadline, signalled, beat = None, False, 0.0
        while any(agent.poll() is None for agent in agents.values()):
            time.sleep(0.1)
            now = time.monotonic()
            words = []
            if now - beat > BEAT:
                words, beat = ["beat"], now
            if self.stop and not signalled:
                self._say(f"{signal.Signals(self.stop).name}: all ranks checkpoint and end")
                words, signalled, deadline = [*words, f"signal {self.stop}"], True, now + STOP
            if deadline is None and any(agent.poll() for agent in agents.values()):
                deadline = now + GRACE
            if deadline is not None and now > deadline:
                words = [*words, "kill"]
            for agent in agents.values():
                for word in words:
                    _send(agent, word)
                if deadline is not None and now > deadline + GRACE:
                    agent.kill()  # ssh to a machine that does not answer
        return {name: agent.returncode for name, agent in agents.items()}

    def _orders(self, hosts: list[Host], port: int) -> dict[str, dict]:
        """What each agent is told: settings, environment, and its ranks."""
        world, first = sum(host.slots for host in hosts), hosts[0]
        common = {
            **forwarded(os.environ),
            "MASTER_ADDR": "127.0.0.1" if first.local else first.address,
            "MASTER_PORT": str(port),
            "WORLD_SIZE": str(world),
            "PYTHONPATH": str(_ROOT),
        }
        orders, rank = {}, 0
        for host in hosts:
            ranks = [{"RANK": str(rank + n), "LOCAL_RANK": str(n)} for n in range(host.slots)]
            rank += host.slots
            environment = {**common, "LOCAL_WORLD_SIZE": str(host.slots)}
            orders[host.name] = {"settings": self.settings, "env": environment, "ranks": ranks}
        return orders

    def _last_step(self) -> int:
        from pretrain.checkpoint.run import RunCheckpoints

        run_dir = Path(self.config.run_dir)
        steps = RunCheckpoints(run_dir, keep=self.config.checkpoint.keep).complete_steps()
        return steps[-1] if steps else 0

    def finished(self) -> bool:
        """The last step is checkpointed and the model directory there."""
        model = Path(self.config.run_dir) / "model"
        return self._last_step() == self.config.optim.steps and model.is_dir()

    def _on_signal(self, number: int, frame: object) -> None:
        self.stop = self.stop or number

    def _say(self, words: str) -> None:
        print(f"supervise: {words}", flush=True)


def usable(hosts: list[Host], batch) -> list[Host]:
    """Hosts, the last one perhaps in part: the most ranks that `batch.global_size` allows.

    Raises:
        InputError: not even one rank can form the batch.
    """
    for world in range(sum(host.slots for host in hosts), 0, -1):
        try:
            batch.resolve(world)
        except ValueError as error:
            reason = error
            continue
        chosen = []
        for host in hosts:
            taken = min(host.slots, world)
            world -= taken
            chosen += [Host(name=host.name, slots=taken)] if taken else []
        return chosen
    raise InputError(str(reason))


def reachable(hosts: list[Host]) -> list[Host]:
    """Those that answer within half a minute."""

    def answers(host: Host) -> bool:
        probe = on_host(host, ["true"], folder=Path("/"))
        try:
            null = subprocess.DEVNULL
            return not subprocess.call(probe, timeout=30, stdin=null, stdout=null, stderr=null)
        except subprocess.TimeoutExpired:
            return False

    with ThreadPoolExecutor(max_workers=64) as pool:
        return [h for h, answered in zip(hosts, pool.map(answers, hosts), strict=True) if answered]


def _send(agent: subprocess.Popen[str], line: str) -> None:
    assert agent.stdin  # a pipe: we speak to it
    try:
        agent.stdin.write(line + "\n")
        agent.stdin.flush()
    except (BrokenPipeError, ValueError):  # it ended; its status tells
        return


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("", 0))
        return listener.getsockname()[1]


def _gpus() -> int:
    import torch

    return max(1, torch.cuda.device_count())


def _names(hosts: list[Host]) -> str:
    world = sum(host.slots for host in hosts)
    return f"{world} rank{'s' * (world > 1)} on {', '.join(host.name for host in hosts)}"


def _meaning(status: int) -> str:
    if status == _SSH_FAILED or status < 0:
        return "lost"
    return f"exit status {status}" if status < 128 else signal.Signals(status - 128).name


if __name__ == "__main__":
    main()
