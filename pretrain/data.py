"""Shards -> pre-training batches: crop and flip with their box, word pieces, teacher features."""

import hashlib
import io
import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate
from torch.utils.data import DataLoader, Dataset
from torchvision.io import ImageReadMode, decode_jpeg
from torchvision.transforms.functional import pil_to_tensor
from transformers import PreTrainedTokenizerBase

from pretrain.batch import PretrainBatch
from pretrain.config import DataConfig
from pretrain.model.patches import patch_coverage, view_box
from shards.schema import OBJECTS, TEACHER, InputError
from shards.stream import CanonicalOrder, RankBatches, Sample, ShardReader

PAD_TO = 8  # word pieces; tensor cores want lengths that are multiples of it
Address = tuple[int, int, int]  # (epoch, shard number, row in the shard)
Crop = tuple[float, float, float, float]  # (left, top, width, height), stored picture's pixels


def decode(sample: Sample, min_side: int) -> Image.Image:
    """RGB picture of a sample; JPEG's own scaled decoding is used down to `min_side` pixels."""
    try:
        image = Image.open(io.BytesIO(sample.image))
        image.draft("RGB", (min_side, min_side))
        image.load()
    except (OSError, SyntaxError) as error:
        raise InputError(f"{sample.key}: undecodable image in shard ({error})") from error
    return image if image.mode == "RGB" else image.convert("RGB")


def decode_pixels(sample: Sample, min_side: int) -> Tensor:
    """What `decode` gives, as (3, H, W) uint8; the picture itself where no scaling helps.

    Only Pillow can scale, only torchvision decodes into a tensor without a copy; both do it by
    libjpeg-turbo, to the same pixels.
    """
    if min(sample.meta.size) >= 2 * min_side:
        return pil_to_tensor(decode(sample, min_side))
    try:
        content = torch.frombuffer(bytearray(sample.image), dtype=torch.uint8)
        return decode_jpeg(content, ImageReadMode.RGB)
    except (RuntimeError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise InputError(f"{sample.key}: undecodable image in shard ({reason})") from error


def squash(image: Image.Image, size: int, box: tuple | None = None) -> np.ndarray:
    """The whole picture, or `box` of it, as (3, size, size) uint8: the clean view."""
    resized = image.resize((size, size), Image.Resampling.BICUBIC, box=box)
    return np.asarray(resized).transpose(2, 0, 1)


class PairDataset(Dataset):
    """Addresses -> one `PretrainBatch`; a view depends on (seed, address), not the worker."""

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
        if config.max_length % PAD_TO:
            raise InputError(f"data.max_length {config.max_length}: must be a multiple of {PAD_TO}")
        self.reader, self.tokenizer, self.config = reader, tokenizer, config
        self.image_size, self.patch_size = image_size, patch_size
        self.seed, self.augment = seed, augment

    def __getitems__(self, addresses: Sequence[Address]) -> PretrainBatch:
        samples = [self.reader.read(shard, row) for _, shard, row in addresses]
        views = [
            self._view(sample, address) for sample, address in zip(samples, addresses, strict=True)
        ]
        tokens = self.tokenizer(
            [sample.meta.caption for sample in samples],
            padding=True,
            pad_to_multiple_of=PAD_TO,
            truncation=True,
            max_length=self.config.max_length,
            return_tensors="pt",
            return_token_type_ids=False,
        )
        ids = [(_hash(s.meta.caption_id), _hash(s.meta.image_id)) for s in samples]
        return PretrainBatch(
            pixel_values=torch.stack([pixels for pixels, _ in views]),
            input_ids=tokens["input_ids"],
            attention_mask=tokens["attention_mask"],
            matched=torch.tensor([sample.meta.matched for sample in samples]),
            ids=torch.tensor(ids, dtype=torch.int64),
            patch_weights=torch.from_numpy(np.stack([weights for _, weights in views])),
            keys=tuple(sample.key for sample in samples),
            **_teacher(samples),
        )

    def _view(self, sample: Sample, address: Address) -> tuple[Tensor, np.ndarray]:
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
        pixels = decode_pixels(sample, math.ceil(size * max(width / crop[2], height / crop[3])))
        view, crop = resized_crop(pixels, crop, sample.meta.size, size)
        if flip:
            view = view.flip(-1)
        if self.augment:
            view = photometric(random, view, self.config.photometric)
        objects = sample.objects or ()
        if not objects:
            return view, np.zeros((size // self.patch_size) ** 2, np.float32)
        seen = view_box(np.array(objects[0].box), crop, flip, size)
        return view, patch_coverage(seen, size, self.patch_size, self.config.min_visible)


def resized_crop(
    pixels: Tensor, crop: Crop, stored: tuple[int, int], size: int
) -> tuple[Tensor, Crop]:
    """A crop as (3, size, size) uint8, and the crop after rounding to whole decoded pixels.

    PyTorch's antialiased resize gives Pillow's pixels (within 2 of 255) in a sixth of the time.

    Args:
        pixels: (3, H, W) uint8, the picture or a reduced decoding of it.
        crop: in pixels of the stored picture.
        stored: (width, height) of the stored picture.
    """
    zoom_x, zoom_y = pixels.shape[2] / stored[0], pixels.shape[1] / stored[1]
    left, top = round(crop[0] * zoom_x), round(crop[1] * zoom_y)
    right, bottom = round((crop[0] + crop[2]) * zoom_x), round((crop[1] + crop[3]) * zoom_y)
    cropped = pixels[None, :, top:bottom, left:right]
    view = interpolate(cropped, (size, size), mode="bicubic", antialias=True)[0]
    return view, (left / zoom_x, top / zoom_y, (right - left) / zoom_x, (bottom - top) / zoom_y)


def random_crop(
    random: np.random.Generator, width: int, height: int, scale: tuple[float, float]
) -> Crop:
    """A random resized crop, aspect 3/4 … 4/3 (torchvision's rule)."""
    for _ in range(10):
        area = width * height * random.uniform(*scale)
        aspect = np.exp(random.uniform(np.log(3 / 4), np.log(4 / 3)))
        w, h = np.sqrt(area * aspect), np.sqrt(area / aspect)
        if w <= width and h <= height:
            return random.uniform(0, width - w), random.uniform(0, height - h), w, h
    aspect = min(max(width / height, 3 / 4), 4 / 3)  # none fits: the largest one in the middle
    w, h = min(width, height * aspect), min(height, width / aspect)
    return (width - w) / 2, (height - h) / 2, w, h


def photometric(random: np.random.Generator, view: Tensor, chance: float) -> Tensor:
    """Two draws, each applied with `chance`, of identity, brightness or sharpness x 1.36."""
    pixels = view.numpy()
    for operation in random.choice(3, size=2):
        if random.random() < chance and operation:
            pixels = brighten(pixels) if operation == 1 else sharpen(pixels)
    return torch.from_numpy(pixels)


def brighten(pixels: np.ndarray) -> np.ndarray:
    """Pillow's `ImageEnhance.Brightness` by 1.36 = 34/25, to the bit. (3, H, W) uint8."""
    return np.minimum(pixels.astype(np.uint16) * 34 // 25, 255).astype(np.uint8)


def sharpen(pixels: np.ndarray) -> np.ndarray:
    """Pillow's `ImageEnhance.Sharpness` by 1.36 within 1 of 255, in a fifth of its time.

    x + 9/25 (x - smooth), smooth being the mean of 3 x 3 pixels with the centre counted five times;
    the border stays.
    """
    pixels = pixels.astype(np.int16)
    centre = pixels[:, 1:-1, 1:-1]
    rows = pixels[:, :-2] + pixels[:, 1:-1] + pixels[:, 2:]
    block = rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:]
    centre += (9 * centre - block) * 9 // (13 * 25)
    return pixels.clip(0, 255).astype(np.uint8)


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
