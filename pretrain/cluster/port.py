"""A port of this job's own where DeepSpeed's launcher was given none.

It then names 29500 to every job, and the second one on a machine ends, or waits for ranks that went
to the first. torchrun takes a free port by itself.
"""

import os
import socket
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
from torch.distributed import DistNetworkError

from pretrain import distributed
from shards.files import InputError, atomic_path

_UNNAMED = {"MASTER_PORT": "29500", "CROSS_SIZE": "1"}
"""What `deepspeed` tells its ranks on one machine, if it was told no port itself."""


@contextmanager
def own_port() -> Iterator[None]:
    """While the ranks meet: the port at which they do so is free.

    Raises:
        InputError: a port that was named, or that several machines must know, is taken.
    """
    note = None
    if _UNNAMED.items() <= os.environ.items():
        launcher = psutil.Process(os.getppid())
        note = _own_folder() / f"port-{launcher.pid}-{launcher.create_time()}"
        os.environ["MASTER_PORT"] = _agreed(note, launcher)
    try:
        yield
    except DistNetworkError as error:
        if "EADDRINUSE" not in str(error):
            raise
        raise InputError(
            f"port {os.environ['MASTER_PORT']} of this machine is taken, perhaps by another job; "
            "name one that is free: --master_port N before the script with deepspeed, or "
            "MASTER_PORT in the environment of ranks that no launcher starts"
        ) from None
    finally:
        # All have met, so all have read it. By the launcher's word: before they have, every rank
        # takes itself for the first, and one that fails would take the note from the others.
        if note and distributed.from_launcher("RANK", 0) == 0:
            note.unlink(missing_ok=True)


def _agreed(note: Path, launcher: psutil.Process) -> str:
    """The port that rank 0 finds free; it leaves the number for the others."""
    if distributed.from_launcher("RANK", 0) == 0:
        with socket.socket() as free:
            free.bind(("", 0))
            port = free.getsockname()[1]
        with atomic_path(note) as temporary:
            temporary.write_text(str(port), encoding="utf-8")
    while not note.exists():
        if not launcher.is_running():
            raise InputError("the launcher has ended; start the job again")
        time.sleep(0.05)
    return note.read_text(encoding="utf-8")


def _own_folder() -> Path:
    """For files that only this user's processes may write."""
    folder = Path(tempfile.gettempdir()) / f"fusion-mre-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.is_symlink() or folder.stat().st_uid != os.getuid():
        raise InputError(f"{folder} is another user's; set TMPDIR, or name a port: --master_port N")
    return folder
