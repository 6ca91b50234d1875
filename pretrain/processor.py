"""Texts and pictures -> an encoder's inputs, as validation while pre-training makes them."""

import os
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate
from transformers import BatchEncoding, PreTrainedTokenizerBase

from pretrain.data.pairs import batch_tokenizer
from pretrain.data.views import cropped
from pretrain.model.config import FusionEncoderConfig
from shards.files import InputError
from shards.images import SHORT_SIDE, stored_image, upright_rgb
from shards.schema import PairMeta
from shards.shard import Sample

Picture = str | os.PathLike[str] | Image.Image | Tensor


class FusionProcessor:
    """Tokenizer and picture size of one encoder. N: texts or pictures, L: word pieces, S: side."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, config: FusionEncoderConfig) -> None:
        self.tokenizer, self.image_size = tokenizer, config.image_size
        self.longest_text = config.max_position_embeddings
        self._pieces = batch_tokenizer(tokenizer, self.longest_text)

    @classmethod
    def from_pretrained(
        cls,
        source: str | os.PathLike[str],
        *,
        revision: str | None = None,
        local_files_only: bool = False,
        **options: Any,
    ) -> "FusionProcessor":
        """Of a model directory, hub id or fsspec URL.

        Args:
            options: what `AutoProcessor` passes on; nothing of it changes what is read here.

        Raises:
            InputError: with the list of what is wrong.
        """
        from pretrain.checkpoint.directory import ModelDirectory
        from pretrain.checkpoint.hub import fusion_architecture, load_tokenizer

        directory = ModelDirectory.open(
            source, revision=revision, local_files_only=local_files_only
        )
        return cls(load_tokenizer(directory), fusion_architecture(directory))

    def __call__(
        self,
        text: str | Iterable[str] | None = None,
        images: Picture | Iterable[Picture] | None = None,
        *,
        return_tensors: Literal["pt"] = "pt",
        padding: Literal[True] = True,
        truncation: Literal[True] = True,
    ) -> BatchEncoding:
        """`input_ids` and `attention_mask` of `texts`, `pixel_values` of `pixels`: what
        `FusionEncoder.forward` takes.

        Args:
            return_tensors, padding, truncation: as other processors take them; this one always
                gives tensors, pads to the longest text and cuts at the last position.

        Raises:
            InputError: another value of these than the only one there is.
        """
        if (return_tensors, padding, truncation) != ("pt", True, True):
            raise InputError(
                "the processor gives padded tensors, cut at the last position: only "
                "return_tensors='pt', padding=True, truncation=True are known to it"
            )
        inputs: dict[str, Tensor] = {}
        if images is not None:
            if isinstance(images, str | os.PathLike | Image.Image | Tensor):
                images = [images]
            inputs["pixel_values"] = self.pixels(images)
        if text is not None:
            tokens = self.texts([text] if isinstance(text, str) else text)
            inputs |= zip(("input_ids", "attention_mask"), tokens, strict=True)
        return BatchEncoding(inputs)

    def texts(self, texts: Iterable[str]) -> tuple[Tensor, Tensor]:
        """(N, L) word pieces and their mask; what is beyond the last position is cut, and a warning
        says of how many texts.

        Raises:
            InputError: one string instead of several, or an entry that is no valid text.
        """
        if isinstance(texts, str):
            raise InputError("texts: a list of texts is needed, not one text; put it in [ ]")
        texts = list(texts)
        for number, text in enumerate(texts):
            if not isinstance(text, str):
                raise InputError(f"text {number}: {type(text).__name__} is no text")
            if any("\ud800" <= letter <= "\udfff" for letter in text):
                raise InputError(f"text {number}: holds half of a surrogate pair: no valid Unicode")
        if not texts:
            empty = torch.zeros(0, 1, dtype=torch.int64)
            return empty, empty
        rows = self._pieces.encode_batch(texts)
        if cut := sum(bool(row.overflowing) for row in rows):
            warnings.warn(
                f"{cut} of {len(texts)} texts are longer than the model's {self.longest_text} "
                "positions: cut there",
                stacklevel=2,
            )
        ids = torch.tensor([row.ids for row in rows])
        mask = torch.tensor([row.attention_mask for row in rows])
        # Padded to a multiple of eight, which may lie beyond the last position.
        return ids[:, : self.longest_text], mask[:, : self.longest_text]

    def pixels(self, images: Iterable[Picture], first: int = 0) -> Tensor:
        """(N, 3, S, S) uint8, squashed to a square.

        A path goes the way of a picture into a shard and out of it, JPEG included. A PIL picture
        is turned upright and laid on white; a tensor is (3, H, W) uint8 RGB. Messages count the
        pictures from `first`.

        Raises:
            InputError: one picture instead of several, or the file or entry that is no picture.
        """
        self.check_several(images)
        views = [self._view(image, number) for number, image in enumerate(images, first)]
        size = self.image_size
        return torch.stack(views) if views else torch.zeros(0, 3, size, size, dtype=torch.uint8)

    @staticmethod
    def check_several(images: Any) -> None:
        """Raises: InputError where one picture stands in the place of several."""
        if isinstance(images, str | os.PathLike | Image.Image):
            raise InputError("images: a list of pictures is needed, not one; put it in [ ]")

    def _view(self, image: Picture, number: int) -> Tensor:
        if isinstance(image, str | os.PathLike):
            # As `shards build` stores it by default for views of 224 pixels; in proportion above.
            stored = stored_image(Path(image), max(SHORT_SIDE, self.image_size * 9 // 7))
            meta = PairMeta("", True, "", "", stored.size, "")
            whole = (0.0, 0.0, float(stored.size[0]), float(stored.size[1]))
            return cropped(Sample(str(image), stored.content, meta), whole, self.image_size)[0]
        if isinstance(image, Image.Image):
            try:
                image = torch.from_numpy(np.array(upright_rgb(image))).permute(2, 0, 1)
            except (OSError, ValueError, SyntaxError) as error:
                raise InputError(f"image {number}: damaged picture ({error})") from error
        if not isinstance(image, Tensor):
            kind = type(image).__name__
            raise InputError(f"image {number}: a path, PIL picture or tensor is needed, not {kind}")
        if image.dtype != torch.uint8 or image.ndim != 3 or len(image) != 3 or not image.numel():
            raise InputError(
                f"image {number}: a (3, H, W) uint8 tensor is needed, not {tuple(image.shape)} "
                f"{str(image.dtype).removeprefix('torch.')} (torchvision's PILToTensor gives one)"
            )
        size = (self.image_size, self.image_size)
        return interpolate(image[None].cpu(), size, mode="bicubic", antialias=True)[0]

    def save_pretrained(self, out: str | os.PathLike[str]) -> None:
        """The tokenizer's files; the pictures' are written with a model directory."""
        self.tokenizer.save_pretrained(out)
