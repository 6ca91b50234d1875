"""`python -m pretrain doctor`: does every machine have what the run needs, and the same?

One line a check; exit status 2 when one fails, and the line says what to do. Each machine is asked
once (`pretrain.cluster.probe`, over ssh) for its facts; then every pair that must talk is made to.
"""

import itertools
import os
import secrets
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import ClassVar

from pretrain.cluster import checks
from pretrain.cluster.nodes import (
    DEEPSPEED_ENV,
    LOCAL,
    Host,
    deepspeed_env,
    forwarded,
    read_hostfile,
    write_deepspeed_env,
)
from pretrain.cluster.probe import ROOT, ask, talk
from pretrain.config import PretrainConfig
from shards.command import exit_on_input_error, without_local_rank
from shards.files import InputError
from shards.options import parse_config

SHARED_MEMORY = 2**30
"""Bytes of /dev/shm: loader workers hand batches over in it; containers often have 64 MiB."""
SAME = (
    ("versions", "install docker/requirements.lock on all"),
    ("code", "copy one checkout to all, at the same path"),
)
"""Facts that all machines share, and what to do where they do not."""


@dataclass(frozen=True, kw_only=True)
class DoctorConfig:
    """Check the machines of a run before it starts. Behind `--` come the settings of the run;
    without them data, batch and disk are not checked."""

    REST: ClassVar = "settings"
    hostfile: str | None = None
    """Lines `NAME slots=N`; none: this machine alone."""
    master_port: int = 29500
    """Of the first machine."""
    write_env: bool = False
    """Write ./.deepspeed_env anew."""
    settings: tuple[str, ...] = ()
    """Behind `--`: those of `python -m pretrain`."""


@exit_on_input_error
def main(argv: Sequence[str] | None = None) -> None:
    """Run every check and print it."""
    prog = "python -m pretrain doctor"
    example = f"{prog} --hostfile launch/hostfile.example -- --config base --run_dir runs/base …"
    run(parse_config(DoctorConfig, without_local_rank(argv), prog=prog, example=example))


def run(config: DoctorConfig) -> None:
    """Every check, a line each.

    Raises:
        InputError: one failed.
    """
    doctor = Doctor(config)
    for name, check in doctor.checks():
        try:
            line, failed = check(), False
        except InputError as error:
            line, failed = str(error), True
        doctor.failures += failed
        print(f"{'FAIL' if failed else 'ok':4}  {name:11} {line}", flush=True)
    if doctor.failures:
        raise InputError(f"{doctor.failures} checks failed: see FAIL above")


class Doctor:
    """Checks in order; each returns what it found, or raises InputError with what to do."""

    def __init__(self, options: DoctorConfig) -> None:
        self.options, self.failures = options, 0
        self.hosts = read_hostfile(options.hostfile) if options.hostfile else []
        self.facts: checks.Facts = {}
        self.config: PretrainConfig | None = None

    def checks(self) -> Iterator[tuple[str, Callable[[], str]]]:
        """(name, check); later ones rest on what earlier ones learned."""
        if self.options.settings:
            yield "settings", self.settings
        yield "machines", self.machines
        if not self.facts:
            return
        for fact, advice in SAME:
            yield fact, partial(checks.same, self.facts, fact, advice)
        yield "devices", self.devices
        yield "memory", self.shared_memory
        yield "interface", self.interface
        if config := self.config:
            yield "batch", lambda: checks.batch(self.hosts, config)
            yield "data", lambda: checks.data(self.facts, config)
            yield "run_dir", lambda: checks.run_dir(self.facts, config)
            yield "disk", lambda: checks.disk(self.facts, config)
        if len(self.hosts) > 1:
            yield "ports", self.ports
            yield "launcher", self.launcher
            yield "environment", self.environment

    def settings(self) -> str:
        """The run's configuration is valid."""
        self.config = parse_config(
            PretrainConfig, self.options.settings, prog="SETTINGS", example=""
        )
        return f"valid; run directory {self.config.run_dir}"

    def machines(self) -> str:
        """Every machine answers over ssh and runs this code with this Python."""
        if not self.hosts:
            self.hosts = [Host(name=LOCAL, slots=1)]
        order = {"do": "facts", "env": forwarded(os.environ)}
        if self.config:
            order["data"] = [p for p in (self.config.data.train, self.config.data.val) if p]
        with self._token() as paths, ThreadPoolExecutor(max_workers=64) as pool:
            answers = pool.map(lambda host: ask(host, {**order, **paths}), self.hosts)
            answered = {host.name: facts for host, facts in zip(self.hosts, answers, strict=True)}
        silent = [
            f"{name} ({facts['error']})" for name, facts in answered.items() if "error" in facts
        ]
        if silent:
            raise InputError(
                f"{'; '.join(silent)}: `ssh NAME true` must work without a password, and "
                f"{sys.executable} and {ROOT} must be there"
            )
        self.facts = answered
        return f"{len(answered)} answer: {', '.join(answered)}"

    def devices(self) -> str:
        """As many accelerators as the host file says, of one kind."""
        kinds = {kind for facts in self.facts.values() for kind in facts["gpus"]}
        if not kinds or os.environ.get("DS_ACCELERATOR") == "cpu":
            return "ranks compute on the CPU (no GPU, or DS_ACCELERATOR=cpu)"
        for host in self.hosts:
            gpus = len(self.facts[host.name]["gpus"])
            if gpus < host.slots:
                raise InputError(
                    f"{host.name}: {gpus} GPUs, {host.slots} slots: correct the host file"
                )
        if len(kinds) > 1:
            raise InputError(
                f"GPUs of several kinds ({', '.join(sorted(kinds))}): the slowest rules"
            )
        return f"{sum(len(facts['gpus']) for facts in self.facts.values())} x {kinds.pop()}"

    def shared_memory(self) -> str:
        """/dev/shm is large enough for loader workers."""
        least = min(facts["shm"] for facts in self.facts.values())
        if least < SHARED_MEMORY and (self.config is None or self.config.data.workers):
            small = [name for name, facts in self.facts.items() if facts["shm"] < SHARED_MEMORY]
            raise InputError(
                f"{', '.join(small)}: {least / 2**20:.0f} MiB free in /dev/shm, loader workers "
                "need 1 GiB: `docker run --shm-size 8g`, or --data.workers 0"
            )
        return f"/dev/shm has {least / 2**30:.1f} GiB or more"

    def interface(self) -> str:
        """The network interfaces that the environment names exist."""
        named = []
        for variable in ("NCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME"):
            value = os.environ.get(variable, "")
            # In NCCL's list `^` leaves an interface out; all else, but for a `=`, begins a name.
            prefixes = tuple(
                part.lstrip("=") for part in value.split(",") if part and part[0] != "^"
            )
            for name, facts in self.facts.items():
                if prefixes and not any(i.startswith(prefixes) for i in facts["interfaces"]):
                    raise InputError(
                        f"{name}: no interface {value} ({variable}); there are "
                        f"{', '.join(facts['interfaces'])}"
                    )
            named += [f"{variable}={value}"] * bool(value)
        if named or len(self.hosts) == 1:
            return ", ".join(named) or "one machine, any"
        return "chosen by NCCL or gloo (NCCL_SOCKET_IFNAME, GLOO_SOCKET_IFNAME decide)"

    def ports(self) -> str:
        """Everybody reaches the first machine's master port, and the next one any port."""
        first, port = self.hosts[0], self.options.master_port
        pairs = [(host, first, port) for host in self.hosts[1:]]
        for one, next_one in itertools.pairwise(self.hosts):
            pairs += [(one, next_one, 0), (next_one, one, 0)]
        for source, target, number in pairs:
            if problem := talk(source, target, number):
                raise InputError(f"{source.name} -> {target.name}: {problem}")
        return f"{first.name}:{port} reached by all; neighbours reach each other on any port"

    def launcher(self) -> str:
        """pdsh, which `deepspeed --hostfile` needs."""
        pdsh = shutil.which("pdsh")
        if not pdsh:
            raise InputError(
                "no pdsh, which `deepspeed --hostfile` needs: apt install pdsh; or start with "
                "`python -m pretrain supervise`, torchrun or `deepspeed --no_ssh`, which do not"
            )
        return pdsh

    def environment(self) -> str:
        """`.deepspeed_env` is there and says what this shell says."""
        path, content = Path(DEEPSPEED_ENV), deepspeed_env(os.environ)
        if self.options.write_env:
            write_deepspeed_env(Path.cwd(), os.environ)
        if not path.is_file() or path.read_text() != content:
            raise InputError(
                f"./{DEEPSPEED_ENV} {'differs from this shell' if path.is_file() else 'is missing'}"
                ": DeepSpeed takes along NCCL_* and PYTHON* alone; write it with --write_env"
            )
        return f"./{DEEPSPEED_ENV} takes {len(content.splitlines())} variables along"

    @contextmanager
    def _token(self) -> Iterator[dict]:
        """A file in the run directory that every machine must see while it is asked."""
        if not self.config:
            yield {}
            return
        folder, token = Path(self.config.run_dir), secrets.token_hex(8)
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f".doctor-{token}"
        path.write_text(token)
        try:
            yield {"run_dir": str(folder), "token": token}
        finally:
            path.unlink()


if __name__ == "__main__":
    main()
