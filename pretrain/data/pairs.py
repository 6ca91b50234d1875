"""Shards -> pre-training batches: views with their boxes, word pieces, teacher features."""

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from transformers import PreTrainedTokenizerBase

from pretrain.data.batch import PretrainBatch
from pretrain.data.clean import clean_views
from pretrain.data.config import MAX_LENGTH, DataConfig
from pretrain.data.pieces import PAD_TO, Pieces
from pretrain.data.views import Canvas, Part, View, decode_part, part_of, random_view
from pretrain.model.patches import patch_coverage, view_box
from shards.files import InputError
from shards.schema import OBJECTS, TEACHER
from shards.shard import PairPlace
from shards.stream import RankBatches, ShardReader
from shards.tars import open_shards

TOGETHER = 16  # pictures decoded before their views are drawn: code and tables stay cached
Address = tuple[int, int, int]  # (epoch, shard number, row in the shard)


class Shown(NamedTuple):
    """A pair of a block, and what is shown of its picture."""

    number: int
    """In the block."""
    pair: PairPlace
    view: View
    part: Part


class PairDataset(Dataset):
    """Addresses -> `PretrainBatch`; a view depends on (seed, address), not the worker."""

    def __init__(
        self,
        reader: ShardReader,
        tokenizer: PreTrainedTokenizerBase,
        config: DataConfig,
        *,
        image_size: int,
        patch_size: int,
        seed: int,
        augment: bool,
        teacher_size: int = 0,
    ) -> None:
        """teacher_size: pixels a side of the clean views that an online prompter wants; 0: none."""
        length = MAX_LENGTH if config.max_length is None else config.max_length
        if length % PAD_TO:
            raise InputError(f"data.max_length {length}: must be a multiple of {PAD_TO}")
        self.reader, self.config = reader, config
        self.image_size, self.patch_size = image_size, patch_size
        self.seed, self.augment, self.teacher_size = seed, augment, teacher_size
        fast = batch_tokenizer(tokenizer, length)
        fast.no_padding()
        assert tokenizer.pad_token_id is not None  # `batch_tokenizer` asks
        self.pieces = Pieces(fast, int(tokenizer.pad_token_id))
        self.canvas = Canvas(image_size)

    def __getitems__(self, addresses: Sequence[Address]) -> PretrainBatch:
        return self.block([addresses])[0]

    def block(self, batches: Sequence[Sequence[Address]]) -> list[PretrainBatch]:
        """Several batches at once: a picture that they share is decoded once."""
        addresses = [address for batch in batches for address in batch]
        shown = []
        for number, address in enumerate(addresses):
            pair = self.reader.shard(address[1]).place(address[2])
            view = self._view(pair, address)
            shown.append(Shown(number, pair, view, part_of(view.crop, self.image_size)))
        pixels = self._pixels(shown, [address[1] for address in addresses])
        ends = np.cumsum([len(batch) for batch in batches]).tolist()
        return [
            self._batch(addresses[end - len(batch) : end], shown[end - len(batch) : end],
                        pixels[end - len(batch) : end])
            for batch, end in zip(batches, ends, strict=True)
        ]  # fmt: skip

    def _pixels(self, shown: Sequence[Shown], shards: Sequence[int]) -> Tensor:
        """(N, 3, S, S) uint8: each picture is decoded once at each reduction, down to the lowest
        crop that shows it."""
        uses: dict[tuple[int, int, int], list[Shown]] = {}
        for one in shown:
            key = (shards[one.number], one.pair.picture, one.part.reduction)
            uses.setdefault(key, []).append(one)
        pixels = _new_pixels(len(shown), 3, self.image_size, self.image_size)
        planes = pixels.numpy()
        groups = list(uses.items())
        for start in range(0, len(groups), TOGETHER):
            decoded = []
            for (shard, picture, _), users in groups[start : start + TOGETHER]:
                lowest = max((one.part for one in users), key=lambda part: part.bottom)
                opened, pair = self.reader.shard(shard), users[0].pair
                decoded.append(decode_part(opened.image(picture), pair.key, pair.size, lowest))
            for rows, (_, users) in zip(decoded, groups[start:], strict=False):
                for one in users:
                    self.canvas.draw(rows, one.part, one.view, planes[one.number])
        return pixels

    def _batch(
        self, addresses: Sequence[Address], shown: Sequence[Shown], pixels: Tensor
    ) -> PretrainBatch:
        pairs = [one.pair for one in shown]
        ids, mask = self.pieces.batch(self.reader, [(shard, row) for _, shard, row in addresses])
        clean = {}
        if self.teacher_size:
            samples = [self.reader.read(shard, row) for _, shard, row in addresses]
            clean = clean_views(samples, self.teacher_size)
        return PretrainBatch(
            pixel_values=pixels,
            input_ids=ids,
            attention_mask=mask,
            matched=torch.tensor([pair.matched for pair in pairs]),
            ids=torch.tensor([pair.ids for pair in pairs], dtype=torch.int64),
            keys=tuple(pair.key for pair in pairs),
            kept_patches=self._kept_patches(addresses),
            **self._seen_objects(shown),
            **clean,
            **_teacher(pairs),
        )

    def _view(self, pair: PairPlace, address: Address) -> View:
        if self.augment and not self.config.fixed_views:
            return random_view(np.random.default_rng([self.seed, *address]), pair.size, self.config)
        return View((0.0, 0.0, float(pair.size[0]), float(pair.size[1])), False, ())

    def _kept_patches(self, addresses: Sequence[Address]) -> Tensor | None:
        """(B, M) int64, a function of seed and address alone."""
        patches, share = (self.image_size // self.patch_size) ** 2, self.config.keep_patches
        if not self.augment or share == 1:
            return None
        count = max(1, round(share * patches))
        orders = [
            np.random.default_rng([self.seed, *address, patches]).permutation(patches)[:count]
            for address in addresses
        ]
        return torch.from_numpy(np.sort(orders, axis=1))

    def _seen_objects(self, shown: Sequence[Shown]) -> dict[str, Tensor]:
        """(B, K) coverage of each best object, (B, 4) its box; zero where there is none."""
        boxes = np.array([one.pair.box for one in shown])
        crops = np.array([one.part.crop for one in shown])
        size, patch = self.image_size, self.patch_size
        seen = view_box(boxes, crops, np.array([one.view.flip for one in shown]), size)
        coverage = patch_coverage(seen, size, patch, self.config.min_visible)
        visible = seen.clip(0, size) * coverage.any(axis=1, keepdims=True)
        return {
            "patch_weights": torch.from_numpy(coverage),
            "box": torch.from_numpy(visible.astype(np.float32)),
        }


def batch_tokenizer(tokenizer: PreTrainedTokenizerBase, max_length: int) -> Tokenizer:
    """The Rust tokenizer inside, set once to cut and pad: half of a call went into setting it."""
    if tokenizer.pad_token_id is None:
        raise InputError(f"tokenizer {tokenizer.name_or_path}: has no padding token")
    fast = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    fast.enable_truncation(max_length)
    fast.enable_padding(
        pad_id=tokenizer.pad_token_id, pad_token=tokenizer.pad_token, pad_to_multiple_of=PAD_TO
    )
    return fast


def _new_pixels(*shape: int) -> Tensor:
    """uint8, to be filled."""
    if torch.utils.data.get_worker_info() is None:
        # NumPy asks for huge pages, PyTorch does not: a batch's first touch costs a tenth.
        return torch.from_numpy(np.empty(shape, np.uint8))
    # Where it would be copied to on its way to the trainer, as PyTorch's own collation does.
    storage = torch.UntypedStorage._new_shared(math.prod(shape), device="cpu")
    return torch.empty(0, dtype=torch.uint8).set_(storage).view(shape)


def _teacher(pairs: Sequence[PairPlace]) -> dict[str, Tensor]:
    columns = [pair.teacher for pair in pairs if pair.teacher is not None]
    if not columns:
        return {}
    return {
        name: torch.from_numpy(np.stack([column[name] for column in columns]))
        for name in ("image_feat", "object_feat")
    }


def open_reader(location: str, *, teacher: bool) -> ShardReader:
    """A shard reader with the objects column where there is one, and the teacher's if asked for."""
    columns = [TEACHER] if teacher else []
    if open_shards(location).has_column(OBJECTS):
        columns.append(OBJECTS)
    return open_shards(location, columns=columns)


def train_batches(
    dataset: PairDataset, batches: RankBatches, *, workers: int, pin: bool
) -> Iterator[PretrainBatch]:
    """Endless micro-batches of this rank."""
    loader = DataLoader(
        _Blocks(dataset),
        sampler=batches.blocks(),
        batch_size=None,
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=pin,
        prefetch_factor=max(4 // batches.order.together, 1) if workers else None,
    )
    return itertools.chain.from_iterable(loader)


class _Blocks(Dataset):
    """The items of a data set that a loader process makes in one go."""

    def __init__(self, dataset: PairDataset) -> None:
        self.dataset = dataset

    def __getitem__(self, block: Sequence[Sequence[Address]]) -> list[PretrainBatch]:
        return self.dataset.block(block)
