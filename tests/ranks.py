"""Tests that start DeepSpeed ranks of their own."""

import os
import socket
from types import ModuleType

import torch


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
