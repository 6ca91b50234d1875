"""A server of commands, and the little world that they read."""

from pathlib import Path

import pytest
from faults import Server
from small_world import make_world


@pytest.fixture(scope="session")
def server(tmp_path_factory, interpreter) -> Server:
    """A process that forks a child for a command and the faults of its disk."""
    warm = Server(tmp_path_factory.mktemp("server"), interpreter.path / "python")
    yield warm
    warm.close()


@pytest.fixture(scope="session")
def world(tmp_path_factory, server) -> Path:
    """See `small_world`; nobody changes it."""
    world = tmp_path_factory.mktemp("world")
    make_world(world, server)
    return world
