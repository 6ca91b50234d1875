"""The machines of a run: host files, commands over ssh, and the environment that goes along.

A host file has one line a machine, `NAME slots=N` (DeepSpeed's format), N ranks on each. All
machines see the same paths: this checkout, the Python environment, shards and run directory.
"""

import os
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from shards.command import exit_on_input_error
from shards.files import InputError
from shards.redact import has_secret

DEEPSPEED_ENV = ".deepspeed_env"
LOCAL = "localhost"
TIMEOUT_MINUTES = "30"
"""DEEPSPEED_TIMEOUT where none is set: its own 10 minutes are less than a slow first download."""

# DeepSpeed's launcher takes along MLFLOW*, PYTHON*, MV2*, UCX* and NCCL* alone. Here: names that
# say where things are and how to compute; of trackers and the hub never what signs one in.
_FORWARDED = re.compile(
    r"(OMP|MKL|KMP|TORCH|PYTORCH|TRITON|NCCL|GLOO|UCX|DS|DEEPSPEED|CUDA|FUSION_MRE|TOKENIZERS|"
    r"PYTHON)_?[A-Z0-9_]*|(https?|no|HTTPS?|NO)_(proxy|PROXY)|"
    r"(HF|HUGGINGFACE)_(HOME|ENDPOINT|HUB_[A-Z_]+|DATASETS_[A-Z_]+|XET_[A-Z_]+|ASSETS_CACHE)|"
    r"WANDB_(MODE|BASE_URL|DIR|PROJECT|ENTITY|NAME|RUN_GROUP|TAGS|CACHE_DIR|DATA_DIR|SILENT|DISABLED)|"
    r"XDG_CACHE_HOME|LD_LIBRARY_PATH|TMPDIR|MASTER_PORT"
)
# What is a machine's own, or a secret: command lines are readable by everybody on a machine.
_KEPT = re.compile(
    r"CUDA_VISIBLE_DEVICES|DS_ENV_FILE|PYTHONPATH|TORCHELASTIC.*|"
    r".*(TOKEN(?!IZERS)|SECRET|PASSW|CREDENTIAL|(^|_)(AUTH|KEY)(_|$)).*"
)
# DeepSpeed puts values between double quotes on a remote shell's command line, and pdsh replaces
# %h, %u and %n in it.
_UNQUOTABLE = re.compile(r"""["$`\\%\n]""")


@dataclass(frozen=True, kw_only=True)
class Host:
    """A machine and the number of ranks it takes."""

    name: str
    slots: int

    @property
    def address(self) -> str:
        """What others connect to: the name without the user that ssh logs in as."""
        return self.name.rpartition("@")[2]

    @property
    def local(self) -> bool:
        """This machine itself: reached without ssh."""
        return self.name == LOCAL


def read_hostfile(path: str | os.PathLike[str]) -> list[Host]:
    """Hosts in file order; the first one holds rank 0.

    Raises:
        InputError: unreadable, a line that is no `[USER@]NAME slots=N`, a name twice, or no host.
    """
    try:
        lines = Path(path).read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read as a host file ({error})") from error
    hosts: list[Host] = []
    for number, text in enumerate(lines, 1):
        line = text.split("#")[0].strip()
        if not line:
            continue
        match = re.fullmatch(r"((?:[\w.-]+@)?[\w.:-]+)\s+slots=([1-9]\d*)", line)
        if not match or match[1].startswith("-"):
            raise InputError(f"{path}, line {number}: {line!r} is no `NAME slots=N`")
        new = Host(name=match[1], slots=int(match[2]))
        if any(host.address == new.address for host in hosts):
            raise InputError(f"{path}, line {number}: {new.address} stands there twice")
        hosts.append(new)
    if not hosts:
        raise InputError(f"{path}: no host in it (expected lines `NAME slots=N`)")
    return hosts


def forwarded(environ: Mapping[str, str]) -> dict[str, str]:
    """The variables that a rank on another machine needs, without secrets.

    Tokens are left out: log in once with `hf auth login`, into an HF_HOME that all machines see.
    So is a proxy's URL with a password in it: set it in every machine's own profile.
    """
    variables = {
        name: value
        for name, value in sorted(environ.items())
        if _FORWARDED.fullmatch(name) and not _KEPT.fullmatch(name) and value.strip()
    }
    safe = {name: value for name, value in variables.items() if not has_secret(value)}
    if left := sorted(variables.keys() - safe.keys()):
        sys.stderr.write(
            f"not passed on to other machines, for it holds a secret: {', '.join(left)}\n"
        )
    return {"DEEPSPEED_TIMEOUT": TIMEOUT_MINUTES} | safe


def deepspeed_env(environ: Mapping[str, str]) -> str:
    """The content of `.deepspeed_env`: `KEY=VALUE` lines; DeepSpeed fails on a blank one.

    Raises:
        InputError: a value that DeepSpeed's way through the remote shell would change.
    """
    variables = forwarded(environ)
    for name, value in variables.items():
        if _UNQUOTABLE.search(value):
            raise InputError(
                f"{name}={value!r} cannot go through DeepSpeed's launcher unchanged; unset it, "
                "set it in every machine's own profile, or use `python -m pretrain.supervise`"
            )
    return "".join(f"{name}={value}\n" for name, value in variables.items())


def write_deepspeed_env(folder: Path, environ: Mapping[str, str]) -> Path:
    """Write `folder/.deepspeed_env`, which `deepspeed --hostfile` reads from where it starts; for
    its owner alone."""
    path, content = folder / DEEPSPEED_ENV, deepspeed_env(environ)
    path.unlink(missing_ok=True)  # its mode would stay
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        file.write(content)
    return path


@exit_on_input_error
def main() -> None:
    """`python -m pretrain.cluster.nodes HOSTFILE`; launch/pretrain.sh runs it before DeepSpeed."""
    if len(sys.argv) != 2:
        raise InputError(
            "usage: python -m pretrain.cluster.nodes HOSTFILE (writes ./.deepspeed_env)"
        )
    read_hostfile(sys.argv[1])
    print(f"environment for the other machines: {write_deepspeed_env(Path.cwd(), os.environ)}")


def on_host(host: Host, command: Sequence[str], *, folder: Path | None = None) -> list[str]:
    """The argument list that runs `command` there, in `folder` (default: this directory).

    ssh gives up on a machine that cannot be reached, or stops answering, after 15 seconds, and
    never asks for a password.
    """
    if host.local:
        return list(command)
    options = {
        "BatchMode": "yes",
        "ConnectTimeout": "15",
        "ServerAliveInterval": "5",
        "ServerAliveCountMax": "3",
    }
    flags = [flag for key, value in options.items() for flag in ("-o", f"{key}={value}")]
    place = shlex.quote(str((folder or Path.cwd()).absolute()))
    return ["ssh", *flags, host.name, f"cd {place} && exec {shlex.join(command)}"]


if __name__ == "__main__":
    main()
