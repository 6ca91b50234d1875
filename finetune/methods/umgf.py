"""UMGF: words and objects as one graph, with gates on its edges between them (Zhang et al., AAAI
2021).

Each layer first lets words read words and objects read objects, then passes messages over the edges
between the two, every edge gated for each number by both its ends. Every word is joined with every
object of the row: which phrase an object was grounded by would tell the label. README.md says what
stands in for what.
"""

from typing import Any

from torch import Tensor, nn

from finetune.methods.config import UmgfConfig
from finetune.methods.multimodal import CrossLayer, Multimodal, heads_of


class Across(nn.Module):
    """Messages from the nodes of one kind to those of the other."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.receiver, self.sender = nn.Linear(size, size), nn.Linear(size, size)
        self.feed = nn.Sequential(nn.Linear(size, size), nn.ReLU(), nn.Linear(size, size))
        self.norm = nn.LayerNorm(size)

    def forward(self, receivers: Tensor, senders: Tensor, mask: Tensor) -> Tensor:
        """(B, M, D), (B, N, D), (B, N) bool of the senders -> (B, M, D)."""
        gates = self.receiver(receivers)[:, :, None] + self.sender(senders)[:, None]
        gates = gates.sigmoid() * mask[:, None, :, None]  # (B, M, N, D)
        message = (gates * senders[:, None]).sum(2) / mask.sum(1).clamp(min=1)[:, None, None]
        return self.norm(receivers + self.feed(message) * mask.any(1)[:, None, None])


class Umgf(Multimodal):
    """Unified multimodal graph fusion."""

    Config = UmgfConfig
    sees = "objects"

    def make(self, config: Any) -> None:
        """As many layers as the settings say; nobody reads the objects after the last."""
        heads, count = heads_of(self.size), config.layers
        self.within_words = nn.ModuleList(CrossLayer(self.size, heads) for _ in range(count))
        self.within_objects = nn.ModuleList(CrossLayer(self.size, heads) for _ in range(count))
        self.to_words = nn.ModuleList(Across(self.size) for _ in range(count))
        self.to_objects = nn.ModuleList(Across(self.size) for _ in range(count - 1))

    def fuse(self, text: Tensor, mask: Tensor, visual: Tensor, seen: Tensor) -> Tensor:
        """The words' nodes after the last layer."""
        for number, to_words in enumerate(self.to_words):
            words = self.within_words[number](text, text, mask)
            objects = self.within_objects[number](visual, visual, seen)
            text = to_words(words, objects, seen)
            if number < len(self.to_objects):
                visual = self.to_objects[number](objects, words, mask)
        return text
