"""Pickled checkpoints of other people: read as tensors and plain containers, or refused."""

import pickle
import re
import tarfile
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from torch import Tensor

from shards.files import InputError

Allowed = tuple[type, str]
"""What stands in for a class of that full name; the class itself is never imported."""


def load_pickle(path: Path, allowed: Sequence[Allowed] = ()) -> Any:
    """The content of a `torch.save` file; tensors stay on disk until they are used.

    No code of the file runs: its pickle may name tensors, plain containers, and `allowed`.

    Raises:
        InputError: missing or damaged, it needs code of its own to load, it unpacks to more than
            its size, or it holds members or tensors that reach outside it.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    zipped = zipfile.is_zipfile(path)
    if zipped:
        _check_archive(path)
    elif tarfile.is_tarfile(path):
        raise InputError(
            f"{path}: a tar archive, not a checkpoint; unpack it and name the file in it"
        )
    try:
        with torch.serialization.safe_globals(list(allowed)):
            # Files of before PyTorch 1.6 are no zip archives, and cannot be mapped.
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except pickle.UnpicklingError as error:
        raise InputError(f"{path}: {_refusal(str(error))}") from None
    except (RuntimeError, EOFError, KeyError, ValueError, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"{path}: damaged or no PyTorch checkpoint ({reason})") from None
    for name, tensor in tensors_in(content):
        # Strides of 0 make a tensor of any size of a few bytes: a copy of it would fill the memory.
        if tensor.numel() * tensor.itemsize > tensor.untyped_storage().nbytes():
            raise InputError(
                f"{path}: tensor {name} claims {tuple(tensor.shape)}, more than the file stores"
            )
    return content


def tensors_in(content: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """Every tensor inside nested containers, with its path."""
    if isinstance(content, Tensor):
        yield name, content
    elif isinstance(content, dict):
        for key, value in content.items():
            yield from tensors_in(value, f"{name}.{key}".lstrip("."))
    elif isinstance(content, list | tuple):
        for index, value in enumerate(content):
            yield from tensors_in(value, f"{name}[{index}]")


def _check_archive(path: Path) -> None:
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError) as error:
        raise InputError(f"{path}: damaged zip archive ({error})") from None
    for member in members:
        name = PurePosixPath(member.filename)
        if name.is_absolute() or ".." in name.parts:
            raise InputError(f"{path}: member {member.filename!r} leads out of the archive")
        if member.compress_type != zipfile.ZIP_STORED:
            raise InputError(
                f"{path}: member {member.filename!r} is compressed, which PyTorch never does "
                f"({member.compress_size} bytes would unpack to {member.file_size})"
            )
    if sum(member.file_size for member in members) > path.stat().st_size:
        raise InputError(f"{path}: its members overlap; together they exceed the file's size")


def _refusal(message: str) -> str:
    named = re.search(r"GLOBAL ([\w.]+)", message)
    if not named:
        return "damaged or no PyTorch checkpoint (or one that needs its own code to load)"
    return (
        f"refused: loading it would run `{named[1]}`; only tensors and plain containers are "
        "read. Ask for a safetensors file, or save its state dict alone where you trust it"
    )
