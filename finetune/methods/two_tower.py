"""Two towers, late fusion: the picture's class token joins the states of the text at the end.

The plainest way to read a picture: what any closer meeting of words and patches has to beat.
"""

from torch import Tensor

from finetune.methods.multimodal import Multimodal


class TwoTower(Multimodal):
    """Text states plus the picture's one vector, and a head."""

    def fuse(self, text: Tensor, mask: Tensor, visual: Tensor, seen: Tensor) -> Tensor:
        """The same vector joins all positions of a row."""
        return text + visual[:, :1] * seen[:, :1, None]
