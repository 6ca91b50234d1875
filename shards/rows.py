"""A shard's table: where its pictures lie, and which pairs it has. P: pictures, N: pairs.

Written beside the tar, from which it can be made again; an opened shard maps it and reads no JSON.
"""

import hashlib
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from shards.files import InputError
from shards.schema import PairMeta, PictureMeta


class Member(NamedTuple):
    """Where a picture and its JSON lie in their tar, in bytes."""

    key: str
    image_at: int
    image_size: int
    meta_at: int
    meta_size: int


class Rows(NamedTuple):
    """The table; rows are pairs, matched ones first, each kind in the order of the pictures."""

    places: np.ndarray
    """(P, 4) int64: the numbers of a `Member`."""
    keys: np.ndarray
    """(P, longest) uint8: keys of the pictures, filled up with zeros."""
    sizes: np.ndarray
    """(P, 2) int32: width and height."""
    image_ids: np.ndarray
    """(P,) int64: `id_hash`."""
    picture: np.ndarray
    """(N,) int32: number of the pair's picture."""
    pair: np.ndarray
    """(N,) int32: number of the pair among those of its picture."""
    numbers: np.ndarray
    """(N,) int64: raw row; -1: the pair is called as its picture."""
    caption_ids: np.ndarray
    """(N,) int64: `id_hash`."""
    caption_ends: np.ndarray
    """(N,) int64: where each caption ends in `captions`."""
    captions: np.ndarray
    """(bytes,) uint8: UTF-8."""

    def picture_key(self, picture: int) -> str:
        """Of a picture, by its number."""
        return self.keys[picture].tobytes().rstrip(b"\0").decode()

    def key(self, row: int) -> str:
        """Of a pair, unique among all shards."""
        key, number = self.picture_key(int(self.picture[row])), int(self.numbers[row])
        return key if number < 0 else pair_key(key, number)

    def caption(self, row: int) -> str:
        """Of a pair."""
        start = int(self.caption_ends[row - 1]) if row else 0
        return self.captions[start : int(self.caption_ends[row])].tobytes().decode()


def pair_key(picture_key: str, row: int) -> str:
    """`train_00000012`: the picture's key is that of its first pair."""
    return f"{picture_key.rpartition('_')[0]}_{row:08d}"


def id_hash(identifier: str) -> int:
    """Of a caption's or picture's id, as an int64."""
    digest = hashlib.blake2b(identifier.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)


def make_rows(pictures: Iterable[tuple[Member, PictureMeta]]) -> Rows:
    """The table of a tar, from its members in their order."""
    members, metas = [], []
    pairs: list[tuple[int, int, PairMeta]] = []
    for number, (member, meta) in enumerate(pictures):
        members.append(member)
        metas.append(meta)
        pairs += [(number, place, pair) for place, pair in enumerate(meta.pairs)]
    # A stable sort: matched pairs alone are then the first rows, their pictures still in order.
    pairs.sort(key=lambda entry: not entry[2].matched)
    keys = np.array([member.key.encode() for member in members])
    captions = [pair.caption.encode() for *_, pair in pairs]
    return Rows(
        places=np.array([member[1:] for member in members], np.int64).reshape(-1, 4),
        keys=keys.view(np.uint8).reshape(len(keys), keys.itemsize if len(keys) else 0),
        sizes=np.array([meta.size for meta in metas], np.int32).reshape(-1, 2),
        image_ids=np.array([id_hash(meta.image_id) for meta in metas], np.int64),
        picture=np.array([number for number, *_ in pairs], np.int32),
        pair=np.array([place for _, place, _ in pairs], np.int32),
        numbers=np.array([-1 if p.row is None else p.row for *_, p in pairs], np.int64),
        caption_ids=np.array([id_hash(pair.caption_id) for *_, pair in pairs], np.int64),
        caption_ends=np.cumsum([len(caption) for caption in captions], dtype=np.int64),
        captions=np.frombuffer(b"".join(captions), np.uint8),
    )


def check_rows(rows: dict[str, np.ndarray], name: str, pictures: int, pairs: int) -> Rows:
    """The table that a file holds.

    Raises:
        InputError: of another shard, or of none.
    """
    counts = {"places": pictures, "sizes": pictures, "picture": pairs, "caption_ends": pairs}
    if set(rows) != set(Rows._fields) or any(len(rows[key]) != n for key, n in counts.items()):
        raise InputError(f"{name}: no table of {pictures} pictures and {pairs} pairs")
    return Rows(**rows)
