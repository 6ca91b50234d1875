"""Clean views: the whole picture and its best object, as a prompter sees them."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from shards.files import InputError
from shards.images import cut, squash
from shards.jpeg import decode_rows, reduction_for
from shards.shard import Picture, Sample


def decode(sample: Sample | Picture, min_side: int) -> np.ndarray:
    """(H, W, 3) uint8, whole; JPEG's own scaled decoding is used down to `min_side` pixels."""
    width, height = sample.meta.size
    try:
        return decode_rows(sample.image, height, reduction_for(width, height, min_side))
    except ValueError as error:
        raise InputError(f"{sample.key}: undecodable image in shard ({error})") from error


def object_crop(sample: Sample | Picture, picture: np.ndarray) -> np.ndarray:
    """What the best object's box shows of the decoded picture (H, W, 3), a pixel a side or more."""
    assert sample.objects  # callers ask
    zoom = np.divide(picture.shape[1::-1], sample.meta.size)
    return cut(picture, (np.reshape(sample.objects[0].box, (2, 2)) * zoom).ravel().tolist())


def clean_views(samples: Sequence[Sample], size: int) -> dict[str, Tensor]:
    """`image_view` and `object_view` (B, 3, S, S) uint8, as the teacher column is made from."""
    pictures = [decode(sample, 2 * size) for sample in samples]
    crops = [
        squash(object_crop(sample, picture), size)
        if sample.objects
        else np.zeros((3, size, size), np.uint8)
        for sample, picture in zip(samples, pictures, strict=True)
    ]
    whole = [squash(picture, size) for picture in pictures]
    return {
        "image_view": torch.from_numpy(np.stack(whole)),
        "object_view": torch.from_numpy(np.stack(crops)),
    }
