"""Word pieces of a shard's captions, made once and kept beside the shard. N: pairs.

`pieces/<tokenizer's hash>/<shard>.safetensors` is made by whichever process opens the shard first,
by the same rule everywhere; where it cannot be written (a folder to read only, a remote one), each
process makes its own.
"""

import hashlib
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor

from shards.arrays import map_arrays, pack
from shards.files import InputError, atomic_path
from shards.stream import ShardReader

FOLDER = "pieces"
PAD_TO = 8  # word pieces; tensor cores want lengths that are multiples of it
OPEN = 96  # shards, as `ShardReader` holds open


class Pieces:
    """Captions of pairs as batches of word pieces."""

    def __init__(self, tokenizer: Tokenizer, pad_id: int) -> None:
        """tokenizer: set to cut, not to pad."""
        self.tokenizer, self.pad_id = tokenizer, pad_id
        self.hash = hashlib.sha256(tokenizer.to_str().encode()).hexdigest()[:16]
        self._shards: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_shards": {}}

    def batch(self, reader: ShardReader, addresses: list[tuple[int, int]]) -> tuple[Tensor, Tensor]:
        """(B, L) int64 ids and mask of pairs (shard, row); L is a multiple of `PAD_TO`."""
        rows = [self._of(reader, shard, row) for shard, row in addresses]
        longest = -(-max(map(len, rows)) // PAD_TO) * PAD_TO
        ids = np.full((len(rows), longest), self.pad_id, np.int64)
        mask = np.zeros((len(rows), longest), np.int64)
        for number, pieces in enumerate(rows):
            ids[number, : len(pieces)] = pieces
            mask[number, : len(pieces)] = 1
        return torch.from_numpy(ids), torch.from_numpy(mask)

    def _of(self, reader: ShardReader, shard: int, row: int) -> np.ndarray:
        if shard not in self._shards:
            if len(self._shards) >= OPEN:
                del self._shards[next(iter(self._shards))]
            self._shards[shard] = self._open(reader, shard)
        ids, ends = self._shards[shard]
        return ids[int(ends[row - 1]) if row else 0 : int(ends[row])]

    def _open(self, reader: ShardReader, shard: int) -> tuple[np.ndarray, np.ndarray]:
        """(all ids, where each caption's end) of a shard."""
        info = reader.index.shards[shard]
        path = Path(reader.location) / FOLDER / self.hash / f"{info.stem}.safetensors"
        if path.is_file():
            try:
                tensors, about = map_arrays(path)
                ids, ends = tensors["ids"], tensors["ends"]
                if about == [info.rows_sha256 or info.sha256, _crc(ids, ends)]:
                    return ids, ends
            except (InputError, KeyError):
                pass  # damaged: made again, to the same bytes
        encodings = self.tokenizer.encode_batch_fast(reader.captions(shard))
        rows = [encoding.ids for encoding in encodings]
        ids = np.array([piece for row in rows for piece in row], np.int32)
        ends = np.cumsum([len(row) for row in rows], dtype=np.int64)
        if Path(reader.location).is_dir():
            content = {"ids": ids, "ends": ends}
            try:
                with atomic_path(path) as temporary:
                    temporary.write_bytes(
                        pack(content, [info.rows_sha256 or info.sha256, _crc(ids, ends)])
                    )
            except OSError:
                pass  # to read only, or full: training can do without
        return ids, ends


def _crc(ids: np.ndarray, ends: np.ndarray) -> int:
    return zlib.crc32(ends.tobytes(), zlib.crc32(ids.tobytes()))
