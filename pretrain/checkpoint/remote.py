"""Where model directories live besides a local disk: the Hugging Face hub, and any fsspec URL."""

import atexit
import functools
import hashlib
import os
import shutil
import tempfile
import time
from pathlib import Path, PurePosixPath

from shards.files import InputError

# Written last: a directory without it is not a model directory, so half an upload is not one.
_LAST = "config.json"
_PICKLED = "pytorch_model.bin"
_RELEASED = ("*.json", "*.safetensors", "*.txt", "*.md", "*.model", "*.codes")


def resolve(
    source: str | os.PathLike[str], *, revision: str | None = None, local_files_only: bool = False
) -> Path:
    """A local directory for `source`: itself, a copy of a URL's content, or a hub id's snapshot.

    Args:
        revision: branch, tag or commit of a hub id.
        local_files_only: look a hub id up in the local hub cache alone; so does HF_HUB_OFFLINE=1.
    """
    name = str(source)
    if is_remote(name):
        return fetch(name)
    path = Path(source)
    if path.is_dir():
        return path
    if path.exists() or name.startswith(("/", ".", "~")) or name.count("/") > 1:
        raise InputError(f"{name}: no such model directory (expected {_LAST} in it)")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    fetched = functools.partial(
        snapshot_download, name, revision=revision, local_files_only=local_files_only
    )
    try:
        folder = Path(fetched(allow_patterns=list(_RELEASED)))
        if not any(folder.glob("*.safetensors")):  # an old BERT or CLIP; read without its pickle
            of_open_clip = not (folder / _LAST).is_file()
            fetched(allow_patterns=["open_clip_" * of_open_clip + _PICKLED])
        return folder
    except (LocalEntryNotFoundError, HfHubHTTPError, HFValidationError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(
            f"{name}: neither a local model directory nor a hub model within reach ({reason})"
        ) from error


def push_to_hub(directory: Path, repo_id: str, *, private: bool = False) -> str:
    """Upload a model directory to the hub (token: `hf auth login` or HF_TOKEN); the commit's URL.

    Only what a release consists of is sent: never a pickle.

    Raises:
        InputError: not a model directory, no permission, or the hub is out of reach.
    """
    if not (directory / _LAST).is_file():
        raise InputError(f"{directory}: not a model directory: no {_LAST}")
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled

    api = HfApi()
    try:
        api.create_repo(repo_id, private=private, exist_ok=True)
        commit = api.upload_folder(
            repo_id=repo_id,
            folder_path=directory,
            allow_patterns=list(_RELEASED),
            commit_message="Upload model with fusion-mre",
        )
    except (HfHubHTTPError, HFValidationError, OfflineModeIsEnabled, OSError) as error:
        raise InputError(
            f"{repo_id}: upload failed ({str(error).strip().splitlines()[0]})"
        ) from error
    return str(commit)


def is_remote(location: str) -> bool:
    """Whether a location is a URL rather than a path."""
    return "://" in str(location)


@functools.cache
def fetch(url: str) -> Path:
    """A local copy of a remote file or directory, kept until this process ends.

    Raises:
        InputError: unknown scheme, nothing there, a name that leads out of the directory, more
            than the disk holds, or a download that differs in size from the original.
    """
    file_system, root = _open(url)
    folder = Path(tempfile.mkdtemp(prefix="fusion-mre-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    try:
        if file_system.isfile(root):
            names = {PurePosixPath(root).name: root}
        else:
            names = {_below(path, root): path for path in file_system.find(root)}
        sizes = {name: file_system.size(path) for name, path in names.items()}
        if not names:
            raise InputError(f"{url}: nothing there")
        if sum(sizes.values()) > shutil.disk_usage(folder).free:
            raise InputError(f"{url}: {sum(sizes.values())} bytes do not fit on {folder}'s disk")
        for name, path in names.items():
            # Names are the server's: one with `..` would be written anywhere.
            target = folder / name
            if not target.resolve().is_relative_to(folder.resolve()):
                raise InputError(f"{url}: file name {name!r} leads out of the directory")
            target.parent.mkdir(parents=True, exist_ok=True)
            file_system.get_file(path, str(target))
            if target.stat().st_size != sizes[name]:
                raise InputError(f"{url}: download of {name} was cut short; try again")
    except OSError as error:
        raise InputError(f"{url}: cannot be read ({error})") from error
    alone = PurePosixPath(root).name
    return folder / alone if names.keys() == {alone} else folder


def store(folder: Path, url: str, *, attempts: int = 3, pause: float = 2.0) -> None:
    """Upload a directory; every file is read back and compared, and sent again where it differs.

    Args:
        pause: seconds before the second attempt at a file; doubled before each further one.

    Raises:
        InputError: a file that did not arrive whole in `attempts` attempts.
    """
    file_system, root = _open(url)
    paths = sorted(
        (path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.name == _LAST
    )
    for path in paths:
        target = f"{root.rstrip('/')}/{path.relative_to(folder).as_posix()}"
        for attempt in range(attempts):
            try:
                file_system.makedirs(str(PurePosixPath(target).parent), exist_ok=True)
                file_system.put_file(str(path), target)
                file_system.invalidate_cache()  # else some answer from what they remember
                with file_system.open(target, "rb") as sent, path.open("rb") as ours:
                    if _sha256(sent) == _sha256(ours):
                        break
                reason = "what arrived differs from what was sent"
            except OSError as error:
                reason = str(error)
            if attempt + 1 < attempts:
                time.sleep(pause * 2**attempt)
        else:
            raise InputError(f"{url}: upload of {path.name} failed {attempts} times ({reason})")


def _open(url: str):
    import fsspec

    try:
        return fsspec.core.url_to_fs(url)
    except (ValueError, ImportError, OSError) as error:
        raise InputError(f"{url}: {error}") from error


def _below(path: str, root: str) -> str:
    return path.strip("/").removeprefix(root.strip("/")).lstrip("/")


def _sha256(file) -> str:
    # hashlib.file_digest wants a real file; what fsspec opens is not always one.
    digest = hashlib.sha256()
    while block := file.read(1 << 22):
        digest.update(block)
    return digest.hexdigest()
