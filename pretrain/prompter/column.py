"""Teacher column: what the frozen prompter sees, once and for all.

With clean (un-augmented) views the prompter's features of a picture and of its best object are
constants, 1 KB a picture. Soft labels are formed from them on the fly, so that templates,
vocabularies, temperature and hard labels can change without a new pass.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import save

from pretrain.checkpoint import hub
from pretrain.data.pairs import decode, object_crop, squash
from pretrain.distributed import device as pick_device
from pretrain.engine import autocast
from pretrain.prompter.clip import Encoder
from pretrain.prompter.load import load_prompter
from shards.columns import write_column
from shards.files import InputError
from shards.progress import Progress
from shards.redact import without_secrets
from shards.schema import COLUMN_NAME, OBJECTS, TEACHER
from shards.stream import Sample, ShardReader


def write_teacher_column(
    shards: str, prompter: str, *, batch_size: int = 256, precision: str | None = None
) -> None:
    """Write the teacher column of a shard directory; resumes shard by shard."""
    reader = ShardReader(shards)
    if not reader.has_column(OBJECTS):
        raise InputError(
            f"{shards}: no objects column; run `python -m shards detect {shards}` first"
        )
    reader = ShardReader(shards, columns=[OBJECTS])
    directory = hub.resolve(prompter)
    encoder = load_prompter(directory).encoder
    device = pick_device()
    precision = precision or ("bf16" if device.type == "cuda" else "fp32")
    encoder.eval().to(device)

    parameters = sum(parameter.numel() for parameter in encoder.parameters())
    print(
        f"label: {reader.index.samples:,} pictures and their objects in "
        f"{len(reader.index.shards):,} shards; {parameters:,} parameters of "
        f"{without_secrets(prompter)}, "
        f"{device.type}, {precision}; writes {Path(shards) / TEACHER}",
        flush=True,
    )
    views: Progress[None] = Progress(unit="view", total=2 * reader.index.samples, desc="label")

    def compute(number: int) -> bytes:
        samples = list(reader.samples(number))
        return save(features(encoder, samples, batch_size, device, precision, views.advance))

    provenance = {
        "prompter": without_secrets(str(prompter)),
        "prompter_sha256": hub.digest(directory / hub.WEIGHTS_NAME),
        "objects_sha256": hub.digest(Path(shards) / OBJECTS / COLUMN_NAME),
        "image_size": encoder.config.image_size,
        "precision": precision,
    }
    write_column(
        Path(shards), TEACHER, ".safetensors", compute, provenance, desc="label", progress=views
    )


@torch.inference_mode()
def features(
    encoder: Encoder,
    samples: list[Sample],
    batch_size: int,
    device: torch.device,
    precision: str,
    advance: Callable[[int], None] = lambda count: None,
) -> dict[str, np.ndarray]:
    """The column of one shard: `image_feat`, `object_feat` (n, E) f16, `has_object` (n,) bool.

    Args:
        advance: takes how many of the 2 n views (picture and object) are done, time and again.
    """
    size = encoder.config.image_size
    pictures = [decode(sample, 2 * size) for sample in samples]
    whole = [squash(picture, size) for picture in pictures]
    has_object = np.array([bool(sample.objects) for sample in samples])
    crops = [
        squash(picture, size, object_crop(sample, picture.size))
        for sample, picture in zip(samples, pictures, strict=True)
        if sample.objects
    ]

    def encode(views: list[np.ndarray]) -> np.ndarray:
        parts = []
        for start in range(0, len(views), batch_size):
            pixels = torch.from_numpy(np.stack(views[start : start + batch_size])).to(device)
            with autocast(device, precision):
                feat = encoder.image_feat(encoder.encode_image(pixels))
            parts.append(feat.half().cpu().numpy())
            advance(len(pixels))
        return np.concatenate(parts) if parts else np.zeros((0, width), np.float16)

    width = encoder.config.projection_size
    object_feat = np.zeros((len(samples), width), np.float16)
    object_feat[has_object] = encode(crops)
    advance(len(samples) - len(crops))
    return {"image_feat": encode(whole), "object_feat": object_feat, "has_object": has_object}
