"""The same model as one writes it without thinking of speed: Hugging Face BERT, timm ViT, masks.

A padding mask for every layer, PyTorch's attention, torch's AdamW as it comes, the loss read at
every step; losses and loader are ours, so that the rest is what differs.
"""

import timm
import torch
from torch import Tensor, nn
from transformers import BertConfig, BertModel

from pretrain.data.batch import PretrainBatch
from pretrain.model.config import FusionEncoderConfig


class PlainEncoder(nn.Module):
    """Answers like `FusionEncoder` what `Promu` asks. Shapes: see there."""

    def __init__(self, config: FusionEncoderConfig) -> None:
        super().__init__()
        self.config = config
        bert = BertConfig(
            vocab_size=config.vocab_size, hidden_size=config.hidden_size,
            num_hidden_layers=config.text_layers + config.fusion_layers,
            num_attention_heads=config.num_attention_heads,
            intermediate_size=config.intermediate_size, attn_implementation="sdpa",
            hidden_dropout_prob=config.hidden_dropout,
            attention_probs_dropout_prob=config.attention_dropout,
        )  # fmt: skip
        self.bert = BertModel(bert, add_pooling_layer=False)
        self.vit = timm.create_model(
            "vit_base_patch16_224", pretrained=False, num_classes=0, img_size=config.image_size,
            patch_size=config.patch_size, embed_dim=config.vision_hidden_size,
            depth=config.vision_layers, num_heads=config.vision_heads,
        )  # fmt: skip
        self.text_proj = nn.Linear(config.hidden_size, config.projection_size)
        self.vision_proj = nn.Linear(config.vision_hidden_size, config.projection_size)

    def encode_text(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        states = self.bert.embeddings(input_ids)
        return self._layers(states, attention_mask, slice(0, self.config.text_layers))

    def encode_image(self, pixels: Tensor, kept_patches: None = None) -> Tensor:
        return self.vit.forward_features((pixels.float() / 255 - 0.5) / 0.5)

    def fuse(self, text: Tensor, attention_mask: Tensor, vision: Tensor) -> Tensor:
        mask = torch.cat([attention_mask, attention_mask.new_ones(vision.shape[:2])], dim=1)
        joined = torch.cat([text, vision.to(text.dtype)], dim=1)
        return self._layers(joined, mask, slice(self.config.text_layers, None))

    def text_feat(self, text: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        return nn.functional.normalize(self.text_proj(text[:, 0]).float(), dim=-1)

    def image_feat(self, vision: Tensor) -> Tensor:
        return nn.functional.normalize(self.vision_proj(vision[:, 0]).float(), dim=-1)

    def _layers(self, states: Tensor, mask: Tensor, part: slice) -> Tensor:
        bias = torch.zeros_like(mask, dtype=states.dtype)
        bias = bias.masked_fill(mask == 0, torch.finfo(states.dtype).min)[:, None, None, :]
        for layer in self.bert.encoder.layer[part]:
            states = layer(states, attention_mask=bias)
            states = states[0] if isinstance(states, tuple) else states
        return states


class PlainEngine:
    """A training loop's lines: autocast, backward, clip, torch's AdamW with nothing said of how."""

    def __init__(self, module: nn.Module, device: torch.device) -> None:
        self.module, self.device = module.to(device).train(), device
        self.optimizer = torch.optim.AdamW(module.parameters(), lr=1e-4, weight_decay=1e-3)

    def __call__(self, batch: PretrainBatch) -> dict[str, Tensor]:
        with torch.autocast(self.device.type, torch.bfloat16):
            return self.module(batch)

    def backward(self, loss: Tensor) -> None:
        loss.backward()

    def step(self) -> None:
        nn.utils.clip_grad_norm_(self.module.parameters(), 2.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
