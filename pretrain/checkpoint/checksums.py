"""`checksums.json` of a model directory: the crc32 of each of its files, checked when one is read.

Directories without it, of earlier versions and of others, are taken as they are.
"""

import functools
import logging
import zlib
from pathlib import Path

from shards.files import InputError
from shards.json_files import read_json, write_json

LOG = logging.getLogger(__name__)
CHECKSUMS_NAME = "checksums.json"
_EDITABLE = (".json", ".txt")
"""Text that people change by hand: another checksum is said, no error; a card is not looked at."""


def write_checksums(folder: Path) -> None:
    """Of the files that lie in `folder` now."""
    paths = [path for path in sorted(folder.iterdir()) if path.is_file() and path.suffix != ".md"]
    checksums = {path.name: _crc32(path) for path in paths if path.name != CHECKSUMS_NAME}
    write_json(folder / CHECKSUMS_NAME, checksums)


def check_member(path: Path, *, strictly: bool = False) -> Path:
    """`path`, a file of a model directory, once its bytes are those that were written.

    Args:
        strictly: whether that holds for text, too.

    Raises:
        InputError: they are not; of text there is a warning. Or we may not read it.
    """
    require_readable(path)
    if (path.parent / CHECKSUMS_NAME).is_file() and path.is_file():
        stat = path.stat()
        if problem := _compare(path, stat.st_size, stat.st_mtime_ns):
            if strictly or path.suffix not in _EDITABLE:
                raise InputError(problem)
            _warn(problem)
    return path


def require_readable(path: Path) -> None:
    """What is not there is no concern of this: who needs it says so.

    Raises:
        InputError: it is, or its folder is closed to us.
    """
    try:
        path.open("rb").close()
    except PermissionError as error:
        raise InputError(
            f"{path}: cannot be read ({error.strerror}); ask its owner for `chmod -R a+rX` of the "
            "folder"
        ) from None
    except OSError:
        return


@functools.lru_cache(maxsize=64)
def _compare(path: Path, size: int, mtime_ns: int) -> str:
    """What is wrong with a file of this state, "" where nothing is."""
    stored = read_json(path.parent / CHECKSUMS_NAME, "remove it to read the files unchecked")
    if stored.get(path.name, "") in ("", _crc32(path)):
        return ""
    return (
        f"{path}: not what {CHECKSUMS_NAME} beside it says was written: damaged, or changed by "
        "hand; take a copy, or remove that file if the change is yours"
    )


@functools.lru_cache(maxsize=64)
def _warn(problem: str) -> None:
    LOG.warning("%s", problem)


def _crc32(path: Path) -> str:
    checksum = 0
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            checksum = zlib.crc32(block, checksum)
    return f"{checksum:08x}"
