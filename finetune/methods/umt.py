"""UMT: words that read patches, patches that words read, and a gate between (Yu et al., ACL 2020).

Three cross-modal layers and a visual gate as in §3.2 of the paper; for entities its auxiliary task,
the spans without their types, with the conversion that leads from these to the emissions. Relations
have no spans to find. README.md says what stands in for what.
"""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from finetune.inputs.batch import Batch
from finetune.methods.base import MethodOutput
from finetune.methods.config import UmtConfig
from finetune.methods.crf import LinearChainCRF
from finetune.methods.layers import TaggingHead
from finetune.methods.multimodal import CrossLayer, Multimodal, heads_of
from finetune.methods.towers.pair import Towers
from finetune.tasks.base import TaskInfo

SPANS = ("O", "B", "I")


class Umt(Multimodal):
    """Unified multimodal transformer."""

    Config = UmtConfig
    widening = 2

    def __init__(self, encoder: Towers, task: TaskInfo, config: UmtConfig) -> None:
        super().__init__(encoder, task, config)
        self.spans = None
        if isinstance(self.head, TaggingHead):
            self.spans = nn.Linear(self.size, len(SPANS))
            self.span_crf = LinearChainCRF(SPANS)
            # Row: a span's tag; column: a tag with type. Begins where the two agree.
            agree = [[float(tag[0] == span) for tag in task.labels] for span in SPANS]
            self.conversion = nn.Parameter(torch.tensor(agree))
            of_tag = torch.tensor([SPANS.index(tag[0]) for tag in task.labels])
            self.register_buffer("span_of_tag", of_tag, persistent=False)

    def make(self, config: Any) -> None:
        """One layer each way, and the way back."""
        heads = heads_of(self.size)
        self.picture_reads_text = CrossLayer(self.size, heads)
        self.text_reads_that = CrossLayer(self.size, heads)
        self.text_reads_picture = CrossLayer(self.size, heads)
        self.gate = nn.Linear(2 * self.size, self.size)

    def fuse(self, text: Tensor, mask: Tensor, visual: Tensor, seen: Tensor) -> Tensor:
        """[image-aware words ; gated word-aware picture]: (B, L, 2D)."""
        words = self.text_reads_that(text, self.picture_reads_text(visual, text, mask), seen)
        picture = self.text_reads_picture(text, visual, seen)
        gate = self.gate(torch.cat([words, picture], dim=-1)).sigmoid()
        return torch.cat([words, gate * picture * seen.any(1)[:, None, None]], dim=-1)

    def learning_rate(self, name: str, optim: Any, above: int) -> float:
        """As everywhere; the spans' chain learns like that of the types."""
        if name.startswith("span_crf."):
            return optim.crf_lr
        return super().learning_rate(name, optim, above)

    def forward(self, batch: Batch) -> MethodOutput:
        """Relations as everywhere; entities with the spans of the text alone beside them."""
        if self.spans is None or not isinstance(self.head, TaggingHead):
            return super().forward(batch)
        visual, seen = self.visual_tokens(batch)
        text = self.read_text(batch, visual, seen)
        states = self.fuse(text, batch.attention_mask.bool(), visual, seen)
        # Without labels: the chain is asked once, about the emissions that it decodes.
        output = self.head(states, replace(batch, labels=None))
        starts, words = batch.require("word_starts"), batch.require("word_mask")
        at_words = text.gather(1, starts[:, :, None].expand(-1, -1, self.size))
        spans = self.spans(at_words).float()  # (B, W, 3)
        logits = output.logits + spans.softmax(dim=-1) @ self.conversion
        if batch.labels is None:
            return MethodOutput(logits, None)
        likely = self.head.crf.log_likelihood(logits, batch.labels, words).mean()
        tags: Any = self.span_of_tag
        span_likelihood = self.span_crf.log_likelihood(spans, tags[batch.labels], words).mean()
        return MethodOutput(logits, -(likely + self.config.span_weight * span_likelihood))
