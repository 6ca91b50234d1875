"""Shards -> pre-training batches: crop and flip with their box, word pieces, teacher features."""

import hashlib
import io
from collections.abc import Iterator, Sequence
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn.functional import interpolate
from torch.utils.data import DataLoader, Dataset
from transformers import PreTrainedTokenizerBase

from pretrain.config import MAX_LENGTH, DataConfig
from pretrain.data.batch import PretrainBatch
from pretrain.data.jpeg import decode_rows, reduction_for
from pretrain.model.patches import patch_coverage, view_box
from shards.files import InputError
from shards.schema import OBJECTS, TEACHER
from shards.stream import RankBatches, Sample, ShardReader

T = TypeVar("T")
PAD_TO = 8  # word pieces; tensor cores want lengths that are multiples of it
Address = tuple[int, int, int]  # (epoch, shard number, row in the shard)
Crop = tuple[float, float, float, float]  # (left, top, width, height), stored picture's pixels


class View(NamedTuple):
    """What is shown of a picture, and how it is changed."""

    crop: Crop
    flip: bool
    changes: tuple[int, ...]
    """Photometric ones, in this order: 0 none, 1 brightness, 2 sharpness."""


def decode(sample: Sample, min_side: int) -> Image.Image:
    """The whole picture as RGB; JPEG's own scaled decoding is used down to `min_side` pixels."""
    try:
        image = Image.open(io.BytesIO(sample.image))
        image.draft("RGB", (min_side, min_side))
        image.load()
    except (OSError, SyntaxError) as error:
        raise InputError(f"{sample.key}: undecodable image in shard ({error})") from error
    return image if image.mode == "RGB" else image.convert("RGB")


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
        teacher_size: int = 0,
    ) -> None:
        """teacher_size: pixels a side of the clean views that an online prompter wants; 0: none."""
        length = MAX_LENGTH if config.max_length is None else config.max_length
        if length % PAD_TO:
            raise InputError(f"data.max_length {length}: must be a multiple of {PAD_TO}")
        self.reader, self.config = reader, config
        self.image_size, self.patch_size = image_size, patch_size
        self.seed, self.augment, self.teacher_size = seed, augment, teacher_size
        self.tokenizer = batch_tokenizer(tokenizer, length)

    def __getitems__(self, addresses: Sequence[Address]) -> PretrainBatch:
        # Stage by stage, not picture by picture: a tenth faster, since code and tables stay cached.
        samples = [self.reader.read(shard, row) for _, shard, row in addresses]
        views = [self._view(*pair) for pair in zip(samples, addresses, strict=True)]
        cropped_views = [
            cropped(sample, view.crop, self.image_size)
            for sample, view in zip(samples, views, strict=True)
        ]
        pixels = torch.stack(
            [
                part.flip(-1) if view.flip else part
                for (part, _), view in zip(cropped_views, views, strict=True)
            ]
        )
        photometric(pixels.numpy(), views)
        tokens = self.tokenizer.encode_batch_fast([sample.meta.caption for sample in samples])
        ids = [(_hash(s.meta.caption_id), _hash(s.meta.image_id)) for s in samples]
        return PretrainBatch(
            pixel_values=pixels,
            input_ids=torch.tensor([pieces.ids for pieces in tokens]),
            attention_mask=torch.tensor([pieces.attention_mask for pieces in tokens]),
            matched=torch.tensor([sample.meta.matched for sample in samples]),
            ids=torch.tensor(ids, dtype=torch.int64),
            keys=tuple(sample.key for sample in samples),
            **self._seen_objects(
                samples, [crop for _, crop in cropped_views], [view.flip for view in views]
            ),
            **(clean_views(samples, self.teacher_size) if self.teacher_size else {}),
            **_teacher(samples),
        )

    def _view(self, sample: Sample, address: Address) -> View:
        if self.augment:
            random = np.random.default_rng([self.seed, *address])
            return random_view(random, sample.meta.size, self.config)
        return View((0.0, 0.0, *sample.meta.size), False, ())

    def _seen_objects(
        self, samples: Sequence[Sample], crops: Sequence[Crop], flips: Sequence[bool]
    ) -> dict[str, Tensor]:
        """(B, K) coverage of each best object, (B, 4) its box; zero where there is none."""
        boxes = [sample.objects[0].box if sample.objects else (0, 0, 0, 0) for sample in samples]
        seen = view_box(np.array(boxes), np.array(crops), np.array(flips), self.image_size)
        size, patch = self.image_size, self.patch_size
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


def cropped(sample: Sample, crop: Crop, size: int) -> tuple[Tensor, Crop]:
    """A crop of a sample as (3, size, size) uint8, and the crop rounded to decoded pixels.

    PyTorch's antialiased resize gives Pillow's pixels (within 2 of 255) in a sixth of the time.

    Raises:
        InputError: the picture is damaged, or not of the size that its sample says.
    """
    reduction = reduction_for(crop[2], crop[3], size)
    left, top = round(crop[0] / reduction), round(crop[1] / reduction)
    right = round((crop[0] + crop[2]) / reduction)
    bottom = round((crop[1] + crop[3]) / reduction)
    try:
        pixels = decode_rows(sample.image, bottom * reduction, reduction)
    except ValueError as error:
        raise InputError(f"{sample.key}: undecodable image in shard ({error})") from error
    if pixels.shape[1] != -(-sample.meta.size[0] // reduction) or len(pixels) < bottom:
        raise InputError(f"{sample.key}: image in shard is not of size {sample.meta.size}")
    part = torch.from_numpy(pixels[top:bottom, left:right]).permute(2, 0, 1)
    view = interpolate(part[None], (size, size), mode="bicubic", antialias=True)[0]
    corner = float(left * reduction), float(top * reduction)
    return view, (*corner, float((right - left) * reduction), float((bottom - top) * reduction))


def random_view(random: np.random.Generator, size: tuple[int, int], config: DataConfig) -> View:
    """Crop, flip, and two draws of identity, brightness or sharpness, each applied by chance."""
    crop = random_crop(random, *size, config.crop_scale)
    flip, *draws = random.random(5)
    changes = [int(3 * kind) for kind, lot in (draws[:2], draws[2:]) if lot < config.photometric]
    return View(crop, bool(flip < config.flip), tuple(changes))


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


def photometric(pixels: np.ndarray, views: Sequence[View]) -> None:
    """Brightness and sharpness x 1.36 where a view says so, in place. (B, 3, H, W) uint8."""
    for picture, view in zip(pixels, views, strict=True):
        for change in view.changes:
            if change:
                picture[...] = (brighten if change == 1 else sharpen)(picture)


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


def object_crop(sample: Sample, picture: tuple[int, int]) -> tuple[float, float, float, float]:
    """The best object's box in pixels of the decoded picture, clipped, a pixel a side or more."""
    assert sample.objects  # callers ask
    zoom = np.array([picture[0] / sample.meta.size[0], picture[1] / sample.meta.size[1]] * 2)
    x1, y1, x2, y2 = np.array(sample.objects[0].box) * zoom
    x1, y1 = min(max(x1, 0), picture[0] - 1), min(max(y1, 0), picture[1] - 1)
    return x1, y1, min(max(x2, x1 + 1), picture[0]), min(max(y2, y1 + 1), picture[1])


def clean_views(samples: Sequence[Sample], size: int) -> dict[str, Tensor]:
    """`image_view` and `object_view` (B, 3, S, S) uint8, as the teacher column is made from."""
    pictures = [decode(sample, 2 * size) for sample in samples]
    crops = [
        squash(picture, size, object_crop(sample, picture.size))
        if sample.objects
        else np.zeros((3, size, size), np.uint8)
        for sample, picture in zip(samples, pictures, strict=True)
    ]
    whole = [squash(picture, size) for picture in pictures]
    return {
        "image_view": torch.from_numpy(np.stack(whole)),
        "object_view": torch.from_numpy(np.stack(crops)),
    }


def _teacher(samples: Sequence[Sample]) -> dict[str, torch.Tensor]:
    columns = [sample.teacher for sample in samples if sample.teacher is not None]
    if not columns:
        return {}
    return {
        name: torch.from_numpy(np.stack([column[name] for column in columns]))
        for name in ("image_feat", "object_feat")
    }


def _identity(batch: T) -> T:
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
