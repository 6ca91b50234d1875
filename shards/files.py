"""Files that are whole or not there: how all three packages write, read, lock and replace them.

Whatever is written here appears under its name by one rename, with the mode that the umask asks
for. What a killed process leaves is named `.NAME.XXXXXXXX.tmp` and goes with the next `sweep`.
"""

import errno
import fcntl
import glob
import hashlib
import json
import math
import os
import secrets
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

LEFTOVERS = ".*.tmp"
"""Files and folders that a killed process leaves."""
_ASIDE = ".old.tmp"
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL, errno.EBADF)


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
    """A temporary path beside `path` that replaces it on success and vanishes on failure."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _beside(path, ".tmp")
    handle = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
    try:
        mode = os.fstat(handle).st_mode & 0o777  # the umask's, which nothing else tells safely
        with suppress(OSError):  # held: a sweep of another process leaves it alone
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield temporary
        if temporary.stat().st_mode & 0o777 != mode:  # safetensors writes for the owner alone
            temporary.chmod(mode)
        os.replace(temporary, path)
    finally:
        os.close(handle)
        temporary.unlink(missing_ok=True)


@contextmanager
def replace_folder(folder: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary folder beside `folder` that replaces it on success and vanishes on failure.

    The old one is renamed aside, the new one in, then the old one removed: at every moment one of
    them is whole. A process killed between both renames leaves the old one aside; the next
    `replace_folder` or `sweep` of the parent gives it its name back.
    """
    folder = Path(os.path.abspath(folder))
    folder.parent.mkdir(parents=True, exist_ok=True)
    sweep(folder.parent, f".{glob.escape(folder.name)}.*.tmp")
    temporary = _beside(folder, ".tmp")
    temporary.mkdir()
    handle = os.open(temporary, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        mode = temporary.stat().st_mode & 0o666
        yield temporary
        for path in temporary.rglob("*"):
            if path.is_file() and not path.is_symlink() and path.stat().st_mode & 0o666 != mode:
                path.chmod(mode | path.stat().st_mode & 0o111)
        _swap(temporary, folder)
    finally:
        os.close(handle)
        shutil.rmtree(temporary, ignore_errors=True)


def _swap(new: Path, folder: Path) -> None:
    for attempt in range(10):
        old = _beside(folder, _ASIDE)
        try:
            with suppress(FileNotFoundError):
                os.rename(folder, old)
            os.rename(new, folder)
        except OSError as error:
            # Another process put its own folder there meanwhile: that one is replaced, too.
            taken = error.errno in (errno.ENOTEMPTY, errno.EEXIST) and folder.exists()
            if old.exists() and not folder.exists():
                os.rename(old, folder)
            if not taken or attempt == 9:
                raise
            continue
        finally:
            if folder.exists():
                shutil.rmtree(old, ignore_errors=True)
        return


def write_json(path: str | os.PathLike[str], content: Any) -> None:
    """Write JSON atomically."""
    with atomic_path(path) as temporary:
        text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
        temporary.write_text(text, encoding="utf-8")


def sweep(directory: Path, pattern: str = LEFTOVERS) -> None:
    """Remove what killed processes left in a folder; what a live one holds stays."""
    for path in directory.glob(pattern):
        if _held(path):
            continue
        name, _, rest = path.name[1:].rpartition(_ASIDE)[0].rpartition(".")
        if name and rest and not (directory / name).exists():
            os.rename(path, directory / name)  # killed between both renames of `replace_folder`
        elif path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _held(path: Path) -> bool:
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except OSError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno in (errno.EAGAIN, errno.EACCES)
    finally:
        os.close(handle)
    return False


@contextmanager
def lock(folder: str | os.PathLike[str], name: str = ".lock") -> Iterator[None]:
    """Hold an output folder: a second process that wants it is told who holds it.

    The lock ends with the process, however it ends; the file goes with the lock.

    Args:
        folder: made if it is not there.
        name: of the lock's file, where a folder holds several outputs, `.OUT.lock` for instance.

    Raises:
        InputError: another process holds it.
    """
    path = Path(folder) / name
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = _locked(path)
    try:
        os.ftruncate(handle, 0)
        os.pwrite(handle, f"pid {os.getpid()} on {socket.gethostname()}".encode(), 0)
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(handle)


def _locked(path: Path) -> int:
    """An open, locked handle of the file that bears this name now."""
    while True:
        handle = os.open(path, os.O_CREAT | os.O_RDWR, 0o666)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in _NO_LOCKS:  # a file system without locks: as before there were any
                return handle
            holder = os.pread(handle, 200, 0).decode(errors="replace") or "another process"
            os.close(handle)
            raise InputError(
                f"{path.parent}: {holder} is writing here; wait until it ends, or choose another "
                "place"
            ) from error
        with suppress(FileNotFoundError):  # its holder may have removed it before we locked it
            if os.path.samestat(os.fstat(handle), os.stat(path)):
                return handle
        os.close(handle)


def file_sha256(path: Path) -> str | None:
    """Checksum of a file; None if there is none."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        return None


def is_number(value: Any) -> bool:
    """A finite JSON number; `true` and `false` are none."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def parse_object(content: bytes | str, name: str, advice: str = "") -> dict[str, Any]:
    """A JSON object, or an `InputError` that says where it is not one and what to do."""
    ending = f"; {advice}" if advice else ""
    try:
        fields = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{name}: not valid JSON ({error}){ending}") from error
    if not isinstance(fields, dict):
        raise InputError(f"{name}: not a JSON object{ending}")
    return fields


def read_json(path: str | os.PathLike[str], advice: str = "") -> dict[str, Any]:
    """The JSON object that a file holds.

    Args:
        advice: what a person does about a damaged file, for example "delete it and run again".

    Raises:
        InputError: missing, unreadable, damaged, or no object: one line that names the file.
    """
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        ending = f"; {advice}" if advice else ""
        raise InputError(f"{path}: cannot be read ({error.strerror}){ending}") from error
    return parse_object(content, str(path), advice)


def read_lines(path: str | os.PathLike[str], advice: str = "") -> Iterator[tuple[int, str]]:
    """(number, line without its end) of a UTF-8 text file, from 1; a byte order mark is cut.

    Only \\n and \\r\\n end a line: U+2028 and its like, which `str.splitlines` cuts at, may stand
    inside a JSON text.

    Raises:
        InputError: unreadable, or a byte that is no UTF-8: names file, line and byte.
    """
    ending = f"; {advice}" if advice else ""
    try:
        with open(path, "rb") as file:
            for number, line in enumerate(file, start=1):
                content = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
                yield number, content.removesuffix(b"\n").removesuffix(b"\r").decode()
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path}: line {number}: byte 0x{error.object[error.start]:02x} at position "
            f"{error.start} is no UTF-8{ending}"
        ) from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}){ending}") from error


def read_json_lines(
    path: str | os.PathLike[str], advice: str = ""
) -> Iterator[tuple[int, dict[str, Any]]]:
    """(number, object) of a file of one JSON object a line; empty lines are passed over.

    Raises:
        InputError: as `read_lines`, or a line that is no JSON object: names file and line.
    """
    for number, line in read_lines(path, advice):
        if line.strip():
            yield number, parse_object(line, f"{path}: line {number}", advice)
