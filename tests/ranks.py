"""Tests that start ranks of their own."""

import os
import socket
import subprocess
from collections.abc import Callable
from types import ModuleType

import torch
from warm import CPU, ROOT, Interpreter


def spawn(python: Interpreter, main: Callable[..., None], *arguments: object, ranks: int) -> None:
    """`main(rank, *arguments)` in as many processes, whose imports are made; all must end well.

    Args:
        arguments: what `repr` shows as Python reads it.
    """
    environment = os.environ | CPU | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"}
    name, processes = main.__name__, []
    try:
        for rank in range(ranks):
            code = f"from {main.__module__} import {name}; {name}(*{(rank, *arguments)!r})"
            command = [python.path / "python", "-c", code]
            processes.append(subprocess.Popen(command, cwd=ROOT, env=environment))
        assert [process.wait(timeout=300) for process in processes] == [0] * ranks
    finally:
        for process in processes:
            process.kill()


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def start_engines(rank: int, world: int, port: int) -> ModuleType:
    """This process as one of `world` ranks on CPUs, one thread each; returns `pretrain.engine`."""
    os.environ |= {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world),
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "DS_ACCELERATOR": "cpu",
    }  # fmt: skip
    torch.set_num_threads(1)
    from pretrain import engine as engines

    engines.start("deepspeed")
    return engines
