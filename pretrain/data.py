"""Shards -> pre-training batches: crop and flip with their box, word pieces, teacher features."""

import hashlib
import io
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from PIL import Image, ImageEnhance
from torch.utils.data import DataLoader, Dataset
from transformers import PreTrainedTokenizerBase

from pretrain.batch import PretrainBatch
from pretrain.config import DataConfig
from pretrain.model.patches import patch_coverage, view_box
from shards.schema import OBJECTS, TEACHER, InputError
from shards.stream import CanonicalOrder, RankBatches, Sample, ShardReader

Address = tuple[int, int, int]  # (epoch, shard number, row in the shard)


def decode(sample: Sample, min_side: int) -> Image.Image:
    """RGB picture of a sample; JPEG's own scaled decoding is used down to `min_side` pixels."""
    try:
        image = Image.open(io.BytesIO(sample.image))
        image.draft("RGB", (min_side, min_side))
        return image.convert("RGB")
    except (OSError, SyntaxError) as error:
        raise InputError(f"{sample.key}: undecodable image in shard ({error})") from error


def squash(image: Image.Image, size: int, box: tuple | None = None) -> np.ndarray:
    """The whole picture, or `box` of it, as (3, size, size) uint8: the clean view."""
    resized = image.resize((size, size), Image.Resampling.BICUBIC, box=box)
    return np.asarray(resized).transpose(2, 0, 1)


class PairDataset(Dataset):
    """Addresses -> one `PretrainBatch`; a view depends on (seed, address) alone, not on the worker."""

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
    ) -> None:
        self.reader, self.tokenizer, self.config = reader, tokenizer, config
        self.image_size, self.patch_size = image_size, patch_size
        self.seed, self.augment = seed, augment

    def __getitems__(self, addresses: Sequence[Address]) -> PretrainBatch:
        samples = [self.reader.read(shard, row) for _, shard, row in addresses]
        views = [self._view(sample, address) for sample, address in zip(samples, addresses, strict=True)]
        tokens = self.tokenizer(
            [sample.meta.caption for sample in samples],
            padding=True,
            pad_to_multiple_of=8,
            truncation=True,
            max_length=self.config.max_length,
            return_tensors="pt",
            return_token_type_ids=False,
        )
        ids = [(_hash(s.meta.caption_id), _hash(s.meta.image_id)) for s in samples]
        return PretrainBatch(
            pixel_values=torch.from_numpy(np.stack([pixels for pixels, _ in views])),
            input_ids=tokens["input_ids"],
            attention_mask=tokens["attention_mask"],
            matched=torch.tensor([sample.meta.matched for sample in samples]),
            ids=torch.tensor(ids, dtype=torch.int64),
            patch_weights=torch.from_numpy(np.stack([weights for _, weights in views])),
            keys=tuple(sample.key for sample in samples),
            **_teacher(samples),
        )

    def _view(self, sample: Sample, address: Address) -> tuple[np.ndarray, np.ndarray]:
        """(3, S, S) uint8 pixels and (K,) coverage of the best object."""
        size = self.image_size
        width, height = sample.meta.size
        if self.augment:
            random = np.random.default_rng([self.seed, *address])
            crop = random_crop(random, width, height, self.config.crop_scale)
            flip = random.random() < self.config.flip
        else:
            crop, flip = (0.0, 0.0, float(width), float(height)), False
        # Decode no finer than the view needs: the crop, scaled to the view, sets the size.
        image = decode(sample, int(size * min(width / crop[2], height / crop[3])))
        zoom_x, zoom_y = image.width / width, image.height / height  # 1, or less after draft()
        left, top = crop[0] * zoom_x, crop[1] * zoom_y
        box = (left, top, left + crop[2] * zoom_x, top + crop[3] * zoom_y)
        view = image.resize((size, size), Image.Resampling.BICUBIC, box=box)
        if flip:
            view = view.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        if self.augment:
            view = photometric(random, view, self.config.photometric)
        pixels = np.asarray(view).transpose(2, 0, 1)
        objects = sample.objects or ()
        if not objects:
            return pixels, np.zeros((size // self.patch_size) ** 2, np.float32)
        seen = view_box(np.array(objects[0].box), crop, flip, size)
        return pixels, patch_coverage(seen, size, self.patch_size, self.config.min_visible)


def random_crop(
    random: np.random.Generator, width: int, height: int, scale: tuple[float, float]
) -> tuple[float, float, float, float]:
    """(left, top, width, height) of a random resized crop, aspect 3/4 … 4/3 (torchvision's rule)."""
    for _ in range(10):
        area = width * height * random.uniform(*scale)
        aspect = np.exp(random.uniform(np.log(3 / 4), np.log(4 / 3)))
        w, h = np.sqrt(area * aspect), np.sqrt(area / aspect)
        if w <= width and h <= height:
            return random.uniform(0, width - w), random.uniform(0, height - h), w, h
    side = min(width, height)
    return (width - side) / 2, (height - side) / 2, float(side), float(side)


def photometric(random: np.random.Generator, image: Image.Image, chance: float) -> Image.Image:
    """Two draws, each applied with `chance`, of identity, brightness or sharpness x 1.36."""
    for operation in random.choice(3, size=2):
        if random.random() < chance and operation:
            enhance = ImageEnhance.Brightness if operation == 1 else ImageEnhance.Sharpness
            image = enhance(image).enhance(1.36)
    return image


def _hash(identifier: str) -> int:
    digest = hashlib.blake2b(identifier.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)


def _teacher(samples: Sequence[Sample]) -> dict[str, torch.Tensor]:
    if samples[0].teacher is None:
        return {}
    return {
        name: torch.from_numpy(np.stack([sample.teacher[name] for sample in samples]))
        for name in ("image_feat", "object_feat")
    }


def _identity(batch: PretrainBatch) -> PretrainBatch:
    return batch


def open_reader(location: str, *, teacher: bool) -> ShardReader:
    """A shard reader with the objects column where there is one, and the teacher's if asked for."""
    columns = [TEACHER] if teacher else []
    probe = ShardReader(location)
    if probe.has_column(OBJECTS):
        columns.append(OBJECTS)
    return ShardReader(location, columns=columns)


def train_batches(
    dataset: PairDataset, batches: RankBatches, *, workers: int, pin: bool
) -> Iterator[PretrainBatch]:
    """Endless micro-batches of this rank."""
    loader = DataLoader(
        dataset,
        batch_sampler=batches,
        collate_fn=_identity,
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=pin,
        prefetch_factor=4 if workers else None,
    )
    return iter(loader)


def val_batches(
    dataset: PairDataset, pairs: int, *, rank: int, world: int, batch_size: int = 64
) -> Iterator[PretrainBatch]:
    """This rank's share of the first `pairs` of a fixed shuffled order, as clean views."""
    counts = [shard.samples for shard in dataset.reader.index.shards]
    order = CanonicalOrder(counts, seed=0).epoch(0)[rank:pairs:world]
    for start in range(0, len(order), batch_size):
        yield dataset.__getitems__([(0, *map(int, at)) for at in order[start : start + batch_size]])
