"""Files that are whole or not there: how all three packages write, read, lock and replace them.

Whatever is written here appears under its name by one rename, with the mode that the umask asks
for. What a killed process leaves is named `.NAME.XXXXXXXX.tmp` and goes with the next `sweep`.
"""

import ctypes
import errno
import fcntl
import glob
import hashlib
import os
import re
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

LEFTOVERS = ".*.tmp"
"""Files and folders that a killed process leaves."""
_ASIDE = ".old.tmp"
_OLD = 24 * 3600.0  # seconds
_HERE, _EXCHANGE = -100, 2  # AT_FDCWD and RENAME_EXCHANGE of Linux's renameat2
DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG)
"""What a disk answers that takes no more."""


class InputError(ValueError):
    """Input or usage that a person must correct: shown as one line, exit status 2, no traceback.

    The message names the file and the row or key, what is wrong, and what to do.
    """


class CommonError(InputError):
    """An InputError that every process of a job raises alike: the main one tells it."""


def _beside(path: Path, suffix: str) -> Path:
    """A name beside `path` that no other process, thread or machine takes."""
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}{suffix}")


@contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary path beside `path` that replaces it on success and vanishes on failure.

    What killed processes have left of the same name goes.
    """
    path = Path(path)
    if path.is_dir():
        raise InputError(f"{path}: is a folder; name a file")
    path.parent.mkdir(parents=True, exist_ok=True)
    sweep(path.parent, f".{glob.escape(path.name)}.*.tmp")
    temporary, handle = _begin(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
    try:
        mode = os.fstat(handle).st_mode & 0o777  # the umask's, which nothing else tells safely
        with disk_errors(path):
            yield temporary
        if temporary.stat().st_mode & 0o777 != mode:  # safetensors writes for the owner alone
            temporary.chmod(mode)
        os.replace(temporary, path)
    finally:
        os.close(handle)
        temporary.unlink(missing_ok=True)


def refuse_foreign(path: Path, *beginnings: str, at: int = 0) -> None:
    """Before a file is replaced. Raises: InputError: it holds something that begins, from byte `at`
    on, otherwise than what this command writes."""
    if not path.is_file() or not path.stat().st_size:
        return
    ours = tuple(beginning.encode() for beginning in beginnings)
    with path.open("rb") as file:
        file.seek(at)
        start = file.read(max(map(len, ours)))
    if not start.startswith(ours):
        raise InputError(f"{path}: not written by this command; choose another place, or remove it")


@contextmanager
def replace_folder(folder: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary folder beside `folder` that replaces it on success and vanishes on failure.

    Both change places in one step where the file system can. Elsewhere the old one is renamed aside
    and the new one in; of a process killed in between, the next `replace_folder` or `sweep` of the
    parent gives the old one its name back. Then the old one is removed.
    """
    folder = Path(os.path.realpath(folder))
    folder.parent.mkdir(parents=True, exist_ok=True)
    sweep(folder.parent, f".{glob.escape(folder.name)}.*.tmp")
    temporary, handle = _begin(folder, os.O_DIRECTORY)
    try:
        mode = temporary.stat().st_mode & 0o666
        with disk_errors(folder):
            yield temporary
        for path in temporary.rglob("*"):
            if path.is_file() and not path.is_symlink() and path.stat().st_mode & 0o666 != mode:
                path.chmod(mode | path.stat().st_mode & 0o111)
        _swap(temporary, folder)
    finally:
        os.close(handle)
        shutil.rmtree(temporary, ignore_errors=True)


def _swap(new: Path, folder: Path) -> None:
    old, attempts = _beside(folder, _ASIDE), 10
    while not _exchange(new, folder):
        try:
            with suppress(FileNotFoundError):
                os.rename(folder, old)
            os.rename(new, folder)
            break
        except OSError as error:
            # Another process put its own folder there meanwhile: that one is replaced, too.
            attempts -= (taken := error.errno in (errno.ENOTEMPTY, errno.EEXIST))
            if old.exists() and not folder.exists():
                os.rename(old, folder)
            if not taken or not attempts:
                raise
    shutil.rmtree(old, ignore_errors=True)


def _exchange(first: Path, second: Path) -> bool:
    """Swap two names in one step; False where either is missing or the system cannot."""
    call = getattr(ctypes.CDLL(None), "renameat2", None)
    names = os.fsencode(first), os.fsencode(second)
    return call is not None and not call(_HERE, names[0], _HERE, names[1], _EXCHANGE)


def discard(folder: Path) -> None:
    """Remove a folder; what a kill, or a disk that fails, leaves of it goes with a `sweep`."""
    gone = _beside(folder, ".tmp")
    with suppress(FileNotFoundError):
        os.rename(folder, gone)
    shutil.rmtree(gone, ignore_errors=True)


@contextmanager
def disk_errors(path: str | os.PathLike[str]) -> Iterator[None]:
    """What safetensors, tokenizers and PyTorch raise on a full disk, as an `OSError` of `path`."""
    try:
        yield
    except OSError as error:
        if error.filename or error.errno not in (*DISK_FULL, errno.EIO):
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error
    except Exception as error:
        if system := re.search(r"\(os error (\d+)\)", str(error)):
            number = int(system[1])
            raise OSError(number, os.strerror(number), str(path)) from error
        if "inline_container.cc" not in str(error):
            raise
        raise OSError(errno.ENOSPC, "cannot be written; is the disk full?", str(path)) from error


def sweep(directory: Path, pattern: str = LEFTOVERS) -> None:
    """Remove what killed processes left in a folder; what a live one holds stays."""
    for path in directory.glob(pattern):
        try:
            handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        except OSError:  # gone, or another user's
            continue
        held = _hold(handle)  # until it is gone
        if held is None:  # nobody can tell whether it lives: what is young may
            held = time.time() - os.fstat(handle).st_mtime > _OLD
        if held:
            name, _, rest = path.name[1:].rpartition(_ASIDE)[0].rpartition(".")
            if name and rest and not (directory / name).exists():
                os.rename(path, directory / name)  # killed between both renames of `_swap`
            elif path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
        os.close(handle)


def _begin(path: Path, flags: int) -> tuple[Path, int]:
    """A new file or folder beside `path`, and the handle that keeps the sweeps of others off it."""
    while True:
        temporary = _beside(path, ".tmp")
        if flags & os.O_DIRECTORY:
            temporary.mkdir()
        with suppress(FileNotFoundError):  # swept before it was held
            handle = os.open(temporary, flags, 0o666)
            if _hold(handle) is not False and temporary.exists():
                return temporary, handle
            os.close(handle)


def _hold(handle: int) -> bool | None:
    """Lock it; False where another process has done so, None where there are no locks."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return False if error.errno in (errno.EAGAIN, errno.EACCES) else None
    return True


def digest(path: str | Path) -> str:
    """SHA-256 of a file; of its weights, the identity of a model directory."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def file_sha256(path: Path) -> str | None:
    """The same; None if there is no file."""
    try:
        return digest(path)
    except FileNotFoundError:
        return None
