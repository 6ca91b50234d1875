"""One process at a time writes an output: locks that name their holder and end with it."""

import errno
import fcntl
import os
import re
import socket
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path

from shards.files import InputError

PATIENCE = 12.0
"""Seconds that a lock of a killed process is waited for: its workers hold what it held until they
notice that it is gone, PyTorch's after 5 s."""
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL, errno.EBADF)


@contextmanager
def lock(
    folder: str | os.PathLike[str], name: str = ".lock", *, wait: bool = False
) -> Iterator[None]:
    """Hold an output folder: a second process that wants it is told who holds it.

    The lock ends with the process, however it ends; the file goes with the lock.

    Args:
        folder: made if it is not there.
        name: of the lock's file, where a folder holds several outputs, `.OUT.lock` for instance.
        wait: until it is free, for what several processes share, such as a cache.

    Raises:
        InputError: another process holds it.
    """
    path = Path(folder) / name
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = _locked(path, wait)
    try:
        os.ftruncate(handle, 0)
        os.pwrite(handle, f"pid {os.getpid()} on {socket.gethostname()}".encode(), 0)
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(handle)


def lock_file(path: str | os.PathLike[str], *, wait: bool = False) -> AbstractContextManager[None]:
    """`lock` of an output that is one file, or a folder that is replaced as a whole: the lock's
    file lies beside it."""
    path = Path(path)
    return lock(path.parent, f".{path.name}.lock", wait=wait)


def _locked(path: Path, wait: bool) -> int:
    """An open, locked handle of the file that bears this name now."""
    deadline = time.monotonic() + PATIENCE
    while True:
        handle = os.open(path, os.O_CREAT | os.O_RDWR, 0o666)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in _NO_LOCKS:  # a file system without locks: as before there were any
                return handle
            holder = os.pread(handle, 200, 0).decode(errors="replace")
            os.close(handle)
            if wait or (_is_gone(holder) and time.monotonic() < deadline):
                time.sleep(0.2)
                continue
            raise InputError(
                f"{path.parent}: {holder or 'another process'} is writing here; wait until it "
                "ends, or choose another place"
            ) from error
        with suppress(FileNotFoundError):  # its holder may have removed it before we locked it
            if os.path.samestat(os.fstat(handle), os.stat(path)):
                return handle
        os.close(handle)


def _is_gone(holder: str) -> bool:
    """Whether a holder on this machine has ended, or has not yet written who it is."""
    named = re.fullmatch(r"pid (\d+) on (.+)", holder)
    if named is None or named[2] != socket.gethostname():
        return not holder
    try:
        os.kill(int(named[1]), 0)
    except ProcessLookupError:
        return True
    except PermissionError:  # it runs, as another user
        return False
    return False
