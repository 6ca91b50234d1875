"""States of pictures that a tower at rest sees alike each time: computed once, then kept."""

from collections.abc import Callable

import torch
from torch import Tensor


class VisionStore:
    """Picture id -> the vision tower's states of it, in host memory. S: states of a picture.

    On a GPU a step waits for the ids and copies its states there: the price of not computing them.
    """

    def __init__(self) -> None:
        self.states: dict[int, Tensor] = {}

    @torch.no_grad()
    def __call__(self, ids: Tensor, pixels: Tensor, encode: Callable[[Tensor], Tensor]) -> Tensor:
        """(B, S, Dv) on the device of `pixels`, a row a picture.

        Args:
            ids: (B,) int64. pixels: (B, 3, H, W). encode: computes those that are new here.
        """
        numbers = ids.tolist()
        new = {number: row for row, number in enumerate(numbers) if number not in self.states}
        if new:
            states = encode(pixels[list(new.values())]).cpu()
            self.states |= dict(zip(new, states.unbind(), strict=True))
        return torch.stack([self.states[number] for number in numbers]).to(pixels.device)
