"""Texts and picture files -> unit vectors: what a user of a finished encoder calls."""

from collections.abc import Callable, Iterable
from itertools import islice
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from pretrain.model.config import FusionEncoderConfig
from shards.files import InputError
from shards.options import positive

if TYPE_CHECKING:
    from pretrain.processor import FusionProcessor, Picture


class Embedder(nn.Module):
    """The part of `FusionEncoder` that reads with a processor. E: projection size."""

    processor: "FusionProcessor | None" = None
    """What texts and pictures are read with; `from_pretrained` sets it."""
    config: FusionEncoderConfig
    pixel_statistics: Tensor
    encode_text: Callable[..., Tensor]
    encode_image: Callable[..., Tensor]
    text_feat: Callable[..., Tensor]
    image_feat: Callable[[Tensor], Tensor]

    def embed_text(self, texts: Iterable[str], *, batch_size: int = 64) -> Tensor:
        """N texts -> (N, E) unit vectors, float32, on the encoder's device, without gradient."""
        positive("", batch_size=batch_size)
        ids, mask = self._reader().texts(texts)
        return self._embed(
            lambda *rows: self.text_feat(self.encode_text(*rows), rows[1]), (ids, mask), batch_size
        )

    def embed_images(self, images: "Iterable[Picture]", *, batch_size: int = 64) -> Tensor:
        """N paths, PIL pictures or (3, H, W) uint8 tensors -> (N, E) unit vectors, likewise; a
        batch of them is held at a time."""
        positive("", batch_size=batch_size)
        reader = self._reader()
        reader.check_several(images)
        rest = iter(images)
        rows: list[Tensor] = []
        while (batch := list(islice(rest, batch_size))) or not rows:
            pixels = reader.pixels(batch, first=len(rows) * batch_size)
            rows.append(
                self._embed(lambda x: self.image_feat(self.encode_image(x)), (pixels,), batch_size)
            )
        return torch.cat(rows)

    def similarity(self, texts: Iterable[str], images: "Iterable[Picture]") -> Tensor:
        """(T, I) cosines of every text with every picture."""
        return self.embed_text(texts) @ self.embed_images(images).T

    def _reader(self) -> "FusionProcessor":
        if self.processor is None:
            raise InputError(
                "this encoder has no processor: load it with FusionEncoder.from_pretrained, or set "
                "encoder.processor = FusionProcessor(tokenizer, encoder.config)"
            )
        return self.processor

    @torch.no_grad()
    def _embed(
        self, embed: Callable[..., Tensor], inputs: tuple[Tensor, ...], batch_size: int
    ) -> Tensor:
        """Chunk by chunk, without dropout; training goes on as it was."""
        device, training = self.pixel_statistics.device, self.training
        if not len(inputs[0]):
            return torch.zeros(0, self.config.projection_size, device=device)
        self.eval()
        try:
            chunks = zip(*(rows.split(batch_size) for rows in inputs), strict=True)
            return torch.cat([embed(*(rows.to(device) for rows in chunk)) for chunk in chunks])
        finally:
            self.train(training)


def refuse_raw(pixels: Tensor) -> None:
    """Raises: InputError where floats are no normalised pixels; waits for the device."""
    advice = "pass uint8 (torchvision's PILToTensor), or normalise them and say normalized=True"
    if not pixels.is_floating_point():
        kind = str(pixels.dtype).removeprefix("torch.")
        raise InputError(f"pixel_values are {kind}, neither uint8 nor float; {advice}")
    if pixels.is_meta or not pixels.numel() or torch.compiler.is_compiling():
        return
    low, high = (value.item() for value in pixels.detach().aminmax())
    if low >= 0 and (high <= 1 or high > 16):
        span = "0…1" if high <= 1 else "0…255"
        raise InputError(f"pixel_values are floats in {span}, not normalised; {advice}")
