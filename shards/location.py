"""Where shards live: a local directory, or a remote one through fsspec with a local cache.

Remote files are kept under their sha256, which the indexes name: a cached file is never stale, is
shared by all runs on the machine, and a damaged download is noticed.
"""

import fcntl
import hashlib
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from shards.files import InputError, atomic_path

# `pipe:` and chained URLs would run commands or unpack archives that a manifest names.
PROTOCOLS = ("file", "memory", "http", "https", "s3", "gs", "gcs", "az", "abfs", "hf")
ATTEMPTS = 5
FIRST_WAIT = 1.0
"""Seconds before the second attempt; doubles with each further one."""
CACHE_BYTES = 200 * 2**30


class Location(Protocol):
    """A directory to read from."""

    def content(self, name: str) -> bytes | None:
        """A small file's bytes, None if there is no such file."""
        ...

    def path(self, name: str, sha256: str, size: int | None = None) -> Path:
        """A local path of a file, which for a remote one is fetched and checked first."""
        ...


def open_location(location: str | os.PathLike[str], cache: Path | None = None) -> Location:
    """A local directory, or a URL such as `s3://bucket/train`.

    Args:
        cache: folder for fetched files; None: `cache_folder`.
    """
    text = os.fspath(location)
    protocol, separator, _ = text.partition("://")
    if not separator:
        return LocalDirectory(Path(text))
    if protocol not in PROTOCOLS or "::" in text:
        raise InputError(f"{text}: reads only from {', '.join(PROTOCOLS)}")
    return RemoteDirectory(text, cache or cache_folder())


def names_tars(location: str | os.PathLike[str]) -> bool:
    """Whether a location is other people's tars (`DIR/{00000..00099}.tar`), no shard directory."""
    return os.fspath(location).endswith(".tar")


def cache_folder() -> Path:
    """`$FUSION_MRE_CACHE`, else `~/.cache/fusion-mre/shards`."""
    return Path(os.environ.get("FUSION_MRE_CACHE", "~/.cache/fusion-mre/shards")).expanduser()


class LocalDirectory:
    """A directory of this machine."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def content(self, name: str) -> bytes | None:
        """See `Location`."""
        path = self.directory / name
        try:
            return path.read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise InputError(f"{path}: cannot be read ({error.strerror})") from error

    def path(self, name: str, sha256: str, size: int | None = None) -> Path:
        """See `Location`; the checksum is left to `verify`, which has the time for it."""
        path = self.directory / name
        try:
            actual = path.stat().st_size
        except OSError as error:
            raise InputError(f"{path}: missing; {mend(self.directory)}") from error
        if size is not None and actual != size:
            raise InputError(
                f"{path}: {actual} bytes, the index says {size}; {mend(self.directory)}"
            )
        return path


class RemoteDirectory:
    """A directory behind a URL; big files are fetched once into a cache of limited size."""

    def __init__(self, url: str, cache: Path, cache_bytes: int = CACHE_BYTES) -> None:
        self.url, self.cache, self.cache_bytes = url.rstrip("/"), cache, cache_bytes

    def content(self, name: str) -> bytes | None:
        """See `Location`."""
        return self._retry(name, lambda file: file.read())

    def path(self, name: str, sha256: str, size: int | None = None) -> Path:
        """See `Location`."""
        self.cache.mkdir(parents=True, exist_ok=True)
        path = self.cache / f"{sha256}{Path(name).suffix}"
        # One process per machine fetches a file; the others wait for it.
        with open(self.cache / f"{path.name}.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if path.exists():
                os.utime(path)  # marks it as recently used
            elif self._retry(name, lambda file: _fetch(file, path, sha256, size)) is None:
                raise InputError(f"{self.url}/{name}: missing; upload the shards again")
        self._shrink(keep=path)
        return path

    def _retry(self, name: str, use: Callable[[Any], Any]) -> Any:
        """`use(open file)`; None if there is no such file. Other failures are tried again."""
        import fsspec

        url = f"{self.url}/{name}"
        for attempt in range(ATTEMPTS):
            try:
                with fsspec.open(url, "rb") as file:
                    return use(file)
            except FileNotFoundError:
                return None
            except ImportError as error:
                hint = "pip install 'fusion-mre[remote]'"
                raise InputError(f"{url}: {error}; {hint} brings http, s3 and gs") from error
            except Exception as error:  # each backend brings exceptions of its own
                if attempt + 1 == ATTEMPTS:
                    raise InputError(
                        f"{url}: still failing after {ATTEMPTS} attempts ({error!r})"
                    ) from error
                time.sleep(FIRST_WAIT * 2**attempt)
        return None

    def _shrink(self, keep: Path) -> None:
        """Remove the longest unused files while the cache is too large."""
        files = []
        for path in self.cache.iterdir():
            try:
                files.append((path.stat().st_mtime, path.stat().st_size, path))
            except FileNotFoundError:
                continue  # removed by another process
        excess = sum(size for _, size, _ in files) - self.cache_bytes
        for _, size, path in sorted(files):
            if excess <= 0:
                return
            if path != keep and path.suffix != ".lock":
                # Whoever has it open keeps reading: the file lives until it is closed.
                path.unlink(missing_ok=True)
                excess -= size


def _fetch(source: Any, path: Path, sha256: str, size: int | None) -> Path:
    digest, length = hashlib.sha256(), 0
    with atomic_path(path) as temporary:
        with open(temporary, "wb") as target:
            while block := source.read(1 << 20):
                target.write(block)
                digest.update(block)
                length += len(block)
        if digest.hexdigest() != sha256:
            expected = "" if size is None else f" of {size}"
            raise OSError(f"{length}{expected} bytes arrived, with another checksum")
    return path


def mend(location: str | os.PathLike[str]) -> str:
    """The end of a message about damaged shards."""
    return f"run `python -m shards verify {location}` to see what to rebuild"
