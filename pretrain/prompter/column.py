"""Teacher column: what the frozen prompter sees, once and for all.

With clean (un-augmented) views the prompter's features of a picture and of its best object are
constants, 1 KB a picture. Soft labels are formed from them on the fly, so that templates,
vocabularies, temperature and hard labels can change without a new pass.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from pretrain import distributed
from pretrain.checkpoint.remote import resolve
from pretrain.checkpoint.strict import WEIGHTS_NAME
from pretrain.data.clean import decode, object_crop
from pretrain.engine import autocast
from pretrain.prompter.clip import Encoder
from pretrain.prompter.load import load_prompter
from shards.arrays import pack
from shards.columns import write_column
from shards.files import CommonError, digest
from shards.images import squash
from shards.progress import Progress
from shards.redact import without_secrets
from shards.schema import COLUMN_NAME, OBJECTS, TEACHER
from shards.stream import ShardReader


def write_teacher_column(
    shards: str,
    prompter: str,
    *,
    batch_size: int = 256,
    precision: str | None = None,
    workers: int = 0,
) -> None:
    """Write the teacher column of a shard directory; resumes shard by shard.

    Several ranks share the shards out. Collective.

    Args:
        batch_size: pictures and crops per forward pass.
        workers: processes that decode; 0: this one does.
    """
    reader = ShardReader(shards)
    if not reader.has_column(OBJECTS):
        raise CommonError(
            f"{shards}: no objects column; run `python -m shards detect {shards}` first"
        )
    reader = ShardReader(shards, columns=[OBJECTS])
    directory = resolve(prompter)
    encoder = load_prompter(directory).encoder
    device = distributed.device()
    precision = precision or ("bf16" if device.type == "cuda" else "fp32")
    encoder.eval().to(device)
    index, world = reader.index, distributed.world_size()
    if distributed.is_main():
        parameters = sum(parameter.numel() for parameter in encoder.parameters())
        print(
            f"label: {index.pictures:,} pictures of {index.samples:,} pairs and their objects in "
            f"{len(index.shards):,} shards; {parameters:,} parameters of "
            f"{without_secrets(prompter)}, {device.type}, {precision}, "
            f"{world} x {workers} loader processes; writes {Path(shards) / TEACHER}",
            flush=True,
        )
    # Two views a picture: the whole, and the crop of its object.
    total = 2 * sum(shard.pictures for shard in index.shards[distributed.rank() :: world])
    progress: Progress[None] = Progress(
        unit="view", total=total, desc="label", silent=not distributed.is_main()
    )

    def compute(numbers: Sequence[int]) -> Iterator[tuple[int, bytes]]:
        views = ShardViews(reader, encoder.config.image_size, numbers, batch_size)
        loader = DataLoader(
            views, batch_size=None, num_workers=workers, prefetch_factor=2 if workers else None
        )
        yield from labelled(encoder, loader, device, str(precision), progress)

    provenance = {
        "prompter": without_secrets(str(prompter)),
        "prompter_sha256": digest(directory / WEIGHTS_NAME),
        "objects_sha256": digest(Path(shards) / OBJECTS / COLUMN_NAME),
        "image_size": encoder.config.image_size,
        "precision": precision,
    }
    write_column(
        Path(shards), TEACHER, compute, provenance, desc="label", progress=progress,
        part=(distributed.rank(), world), wait=distributed.barrier,
    )  # fmt: skip


class Chunk(NamedTuple):
    """Clean views of some pictures of a shard. n: pictures, m: those with an object."""

    shard: int
    last: bool
    """Whether the shard ends here."""
    whole: Tensor
    """(n, 3, S, S) uint8."""
    crops: Tensor
    """(m, 3, S, S) uint8."""
    has_object: Tensor
    """(n,) bool."""


class ShardViews(Dataset):
    """Every picture of some shards once, in chunks of at most `batch_size`."""

    def __init__(
        self, reader: ShardReader, size: int, numbers: Sequence[int], batch_size: int
    ) -> None:
        self.reader, self.size = reader, size
        self.chunks = [
            (number, range(pictures)[start : start + batch_size])
            for number in numbers
            for pictures in [reader.index.shards[number].pictures]
            for start in range(0, pictures, batch_size)
        ]

    def __len__(self) -> int:
        return len(self.chunks)

    def __getitem__(self, chunk: int) -> Chunk:
        number, places = self.chunks[chunk]
        shard, size = self.reader.shard(number), self.size
        whole = torch.empty(len(places), 3, size, size, dtype=torch.uint8)
        crops = []
        for place, view in zip(places, whole.numpy(), strict=True):
            picture = shard.picture(place)
            pixels = decode(picture, 2 * size)
            view[...] = squash(pixels, size)
            crop = object_crop(picture, pixels) if picture.objects else None
            crops.append(None if crop is None else squash(crop, size))
        views = np.array([crop for crop in crops if crop is not None], np.uint8)
        return Chunk(
            shard=number,
            last=places.stop == self.reader.index.shards[number].pictures,
            whole=whole,
            crops=torch.from_numpy(views.reshape(-1, 3, size, size)),
            has_object=torch.tensor([crop is not None for crop in crops]),
        )


@torch.inference_mode()
def labelled(
    encoder: Encoder,
    chunks: "DataLoader[Chunk]",
    device: torch.device,
    precision: str,
    progress: Progress[None],
) -> Iterator[tuple[int, bytes]]:
    """(shard, file): `image_feat`, `object_feat` (P, E) f16, `has_object` (P,) bool."""
    parts: list[dict[str, Tensor]] = []
    for chunk in chunks:
        # A shard's pictures and crops in forward passes of their own: what is encoded together
        # does not depend on workers, ranks, or where a killed run stopped.
        feats = []
        for views in (chunk.whole, chunk.crops):
            with autocast(device, precision):
                states = encoder.encode_image(views.to(device))
                feats.append(encoder.image_feat(states).half().cpu())
        object_feat = torch.zeros_like(feats[0])
        object_feat[chunk.has_object] = feats[1]
        parts.append(
            {"image_feat": feats[0], "object_feat": object_feat, "has_object": chunk.has_object}
        )
        progress.advance(2 * len(chunk.whole))
        if chunk.last:
            columns = {name: torch.cat([part[name] for part in parts]).numpy() for name in parts[0]}
            parts = []
            yield chunk.shard, pack(columns)
