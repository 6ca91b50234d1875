"""Arrays in a safetensors file, memory-mapped: opened at once, read where they are used."""

import json
import mmap
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from shards.files import InputError

_DTYPES = {"I64": "<i8", "I32": "<i4", "U8": "u1", "BOOL": "?", "F64": "<f8", "F32": "<f4",
           "F16": "<f2", "U16": "<u2"}  # fmt: skip


class Arrays(NamedTuple):
    """What a file holds."""

    tensors: dict[str, np.ndarray]
    """Read-only views of the mapped file."""
    about: Any
    """What `pack` was given."""


def pack(tensors: Mapping[str, np.ndarray], about: Any = None) -> bytes:
    """The bytes of a safetensors file; `about`, JSON, stands in its metadata."""
    from safetensors.numpy import save

    metadata = None if about is None else {"about": json.dumps(about, ensure_ascii=False)}
    return save({name: np.ascontiguousarray(value) for name, value in tensors.items()}, metadata)


def map_arrays(path: Path) -> Arrays:
    """The tensors of a safetensors file, without reading them.

    `safetensors` itself copies a tensor, or reads a slice in 20 times an index's time.

    Raises:
        InputError: unreadable, or no such file.
    """
    try:
        with open(path, "rb") as file:
            if os.fstat(file.fileno()).st_size < 8:
                raise ValueError("cut")
            content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        start = 8 + int.from_bytes(content[:8], "little")
        header = json.loads(content[8:start])
        about = header.pop("__metadata__", {}).get("about")
        tensors = {}
        for name, entry in header.items():
            shape, (begin, end) = entry["shape"], entry["data_offsets"]
            dtype = np.dtype(_DTYPES[entry["dtype"]])
            count = int(np.prod(shape, dtype=np.int64))
            if min(shape, default=0) < 0 or count * dtype.itemsize != end - begin:
                raise ValueError(f"`{name}` has another size than its shape says")
            tensor = np.frombuffer(content, dtype, count, start + begin) if count else (
                np.empty(0, dtype)
            )  # fmt: skip
            tensors[name] = tensor.reshape(shape)
        return Arrays(tensors, None if about is None else json.loads(about))
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    except (
        ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError
    ) as error:  # fmt: skip
        raise InputError(f"{path}: damaged ({error})") from error
