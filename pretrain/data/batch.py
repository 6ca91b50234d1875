"""What a pre-training batch holds. B: pairs on a rank, L: word pieces, K: patches, E: features."""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from shards.files import InputError


@dataclass
class PretrainBatch:
    """One micro-batch of pairs."""

    pixel_values: Tensor
    """(B, 3, H, W) uint8, augmented view."""
    input_ids: Tensor
    """(B, L) int64."""
    attention_mask: Tensor
    """(B, L) int64, 1 = real word piece."""
    matched: Tensor
    """(B,) bool: the caption belongs to the picture."""
    ids: Tensor
    """(B, 2) int64: hash of caption id and of image id."""
    patch_weights: Tensor
    """(B, K) float32: fraction of each patch covered by the best object; zero: none visible."""
    kept_patches: Tensor | None = None
    """(B, M) int64, ascending: the patches that the model sees; None: all."""
    box: Tensor | None = None
    """(B, 4) float32: x1, y1, x2, y2 of the best object in pixels of the view; all 0: none."""
    image_feat: Tensor | None = None
    """(B, E) float16: the prompter's view of the clean picture; None without teacher column."""
    object_feat: Tensor | None = None
    """(B, E) float16: the prompter's view of the best object's crop."""
    image_view: Tensor | None = None
    """(B, 3, H, W) uint8: the clean picture, where the prompter looks while training."""
    object_view: Tensor | None = None
    """(B, 3, H, W) uint8: the best object's crop; black: none."""
    keys: tuple[str, ...] = ()
    """Sample keys, for messages."""

    def __len__(self) -> int:
        return len(self.matched)

    @property
    def seen_weights(self) -> Tensor:
        """(B, M) `patch_weights` of the patches that the model sees."""
        patches = self.kept_patches
        return self.patch_weights if patches is None else self.patch_weights.gather(1, patches)

    def require(self, name: str) -> Tensor:
        """An optional field that this run cannot do without.

        Raises:
            InputError: the batch lacks it.
        """
        tensor = getattr(self, name)
        if tensor is None:
            raise InputError(f"a pre-training batch without {name}: no teacher column or objects?")
        return tensor

    def to(self, device: torch.device) -> "PretrainBatch":
        """Copy to a device, overlapped with computation where memory is pinned."""
        return self._each(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> "PretrainBatch":
        """Called by the data loader."""
        return self._each(Tensor.pin_memory)

    def _each(self, function: Callable[[Tensor], Tensor]) -> "PretrainBatch":
        changed: dict[str, Any] = {
            field.name: function(value)
            for field in fields(self)
            if isinstance(value := getattr(self, field.name), Tensor)
        }
        return replace(self, **changed)
