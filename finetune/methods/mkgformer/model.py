"""MKGformer: BERT and CLIP in lock-step, joined in their last layers (Chen et al., SIGIR 2022).

B: rows, L: word pieces, K: visual tokens, D: hidden size, C: labels; i: number of a layer.
README.md, Layers. In the last `fusion_layers` layers,

* prefix-guided interaction (PGI): vision layer i attends to the keys and values of text layer i-1,
  put before its own; of towers of different depth the last layers are joined;
* correlation-aware fusion (CAF): with C the heads of text layer i before their output projection
  and V the output of vision layer i, A = softmax(C Vᵀ) V, and the feed-forward layer becomes
  W2 GELU(W1 x + b1 + W3 A + b3).

The pictures are regions: grounded ones and detected ones. The whole picture, which the authors'
code loads, never enters their network; here it is not loaded. Relations: one linear layer on the
two opening-marker states. Entities: a CRF on first pieces; the code studied is that of
relations, so this head is ours.
"""

import logging
from collections.abc import Callable
from functools import partial
from itertools import islice
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import pad, scaled_dot_product_attention
from transformers import BertConfig, CLIPVisionConfig
from transformers.models.clip.modeling_clip import CLIPEncoderLayer

from finetune.inputs.batch import Batch
from finetune.methods.base import Method, MethodOutput, Source
from finetune.methods.layers import RelationHead, TaggingHead, TaskHead, load_text_encoder
from finetune.methods.mkgformer.config import MKGformerConfig
from finetune.methods.mkgformer.vision import Layout, VisionTower, side
from finetune.methods.mkgformer.weights import STORED, find_tower, saved_tower
from finetune.tasks.base import TaskInfo
from pretrain.model.bert import Bert
from pretrain.model.bert_layers import Layer
from shards.files import InputError

LOG = logging.getLogger(__name__)
KeysValues = tuple[Tensor, Tensor]
"""Two of (B, heads, L, D / heads)."""


class MKGformer(Method):
    """Text tower (`encoder`), vision tower, fusion layers and head."""

    Config = MKGformerConfig
    needs = frozenset({"region_pixels"})
    kinds = frozenset({"relation", "entities"})
    towers = ("encoder.", "vision.")
    encoder: Bert
    vision: VisionTower
    head: TaskHead

    def __init__(
        self,
        encoder: Bert,
        vision: VisionTower,
        task: TaskInfo,
        config: MKGformerConfig,
        pad_id: int = 0,
    ) -> None:
        super().__init__()
        config = config.settled(task.kind)
        sizes = encoder.config
        check_towers(sizes, vision.config, config.fusion_layers)
        self.encoder, self.vision, self.config, self.pad_id = encoder, vision, config, pad_id
        setattr(encoder.config, STORED, vision.config.to_dict())  # for `saved_tower`
        self.first = sizes.num_hidden_layers - config.fusion_layers
        self.vision_first = vision.config.num_hidden_layers - config.fusion_layers
        self.caf_scale = 1.0 if config.caf_scale == "one" else sizes.hidden_size**-0.5
        self.fusion = nn.ModuleList(
            nn.Linear(sizes.hidden_size, sizes.intermediate_size)
            for _ in range(config.fusion_layers)
        )
        slots = {"vg": config.vg, "od": config.od}
        self.region_slots = {kind: number for kind, number in slots.items() if number}
        if config.use_full_image:
            self.needs = self.needs | {"image"}
        if task.kind == "relation":
            self.head = RelationHead(sizes.hidden_size, task, "linear")
            self.head.requires_grad_(bool(config.train_classifier))
        else:
            self.head = TaggingHead(sizes.hidden_size, task, config.dropout, config.mask_illegal)

    @classmethod
    def build(
        cls, config: MKGformerConfig, task: TaskInfo, source: Source
    ) -> tuple["MKGformer", Any]:
        """Text side of a fusion model or any BERT, and the vision tower that the settings name."""
        config = config.settled(task.kind)
        encoder, tokenizer = load_text_encoder(source, task, vision=config.vision == "init")
        longest = encoder.longest_text
        if (config.pad_to or 0) > longest:
            raise InputError(
                f"--model.pad_to {config.pad_to}: {source.path} has {longest} positions"
            )
        layout = Layout(
            config.vg, config.vg_size, config.od, config.od_size, config.use_full_image,
            rounded=config.vision == "init",
        )  # fmt: skip
        # A finished run's own tower goes before the one that its settings name.
        vision = None
        if not source.random_weights:
            vision = saved_tower(source.directory, layout, announce=not source.finished)
        if vision is None:
            sizes, state, line = find_tower(
                config.vision,
                config.vision_patch,
                source.directory,
                source.random_weights,
                encoder.config,
            )
            vision = VisionTower(sizes, layout)
            vision.load(state, config.positions or "clip", config.vision)
            LOG.info("mkgformer, %s", line)
            if (cut := vision.layout) != layout:
                LOG.info("mkgformer, regions are %d and %d pixels a side, whole patches of %d",
                         cut.vg_size, cut.od_size, vision.patch)  # fmt: skip
        return cls(encoder, vision, task, config, tokenizer.pad_token_id), tokenizer

    @property
    def image_size(self) -> int:
        """Side of the whole picture, where it is read."""
        return side(self.vision.config.image_size)

    @property
    def region_size(self) -> int:
        """All regions are cut at the grounded ones' size; detected ones are averaged down."""
        return self.vision.layout.vg_size

    def forward(self, batch: Batch) -> MethodOutput:
        """Logits (B, C) or (B, W, C); without pictures the text tower alone, a plain BERT."""
        ids, mask = batch.input_ids, batch.attention_mask
        if (missing := (self.config.pad_to or 0) - ids.shape[1]) > 0:
            ids, mask = pad(ids, (0, missing), value=self.pad_id), pad(mask, (0, missing))
        if batch.region_pixels is None:
            return self.head(self.encode(ids, mask), batch)
        image = None
        if self.config.use_full_image:
            mean, std = self.vision.pixel_statistics
            image = (batch.require("pixel_values").to(mean.dtype) - mean) / std
            image = image * batch.require("image_mask")[:, None, None, None]
        present = batch.require("region_mask")
        seen = self.vision.embed(*self.vision.inputs(batch.region_pixels, present), image)
        seen_mask = None
        if self.config.mask_slots:
            seen_mask = self.vision.token_mask(present, None if image is None else batch.image_mask)
        masks = [] if seen_mask is None else [seen_mask]
        seen = self.once(self.see_alone, seen, *masks)
        return self.head(self.encode(ids, mask, seen, seen_mask), batch)

    def see_alone(self, seen: Tensor, seen_mask: Tensor | None = None) -> Tensor:
        """The vision layers below those that read the text; arguments as of `encode`."""
        own_keys = None if seen_mask is None else seen_mask[:, None, None, :]
        for block in islice(self.vision.layers, self.vision_first):
            seen = vision_layer(block, seen, own_keys)
        return seen

    def encode(
        self, ids: Tensor, mask: Tensor, seen: Tensor | None = None, seen_mask: Tensor | None = None
    ) -> Tensor:
        """The text tower, and beside its last layers those of the vision tower, which go first.

        Args:
            ids: (B, L). mask: (B, L) bool, False = padding.
            seen: (B, K, D) as `see_alone` gives them; None: text alone.
            seen_mask: (B, K) bool, False = hidden; None: all are seen.

        Returns:
            Text states (B, L, D).
        """
        text = self.encoder.embeddings(input_ids=ids)
        text_keys = mask[:, None, None, :]
        if seen is None:
            for layer in self.encoder.encoder.layers:
                text, _ = text_layer(layer, text, text_keys)
            return text
        own_keys = None if seen_mask is None else seen_mask[:, None, None, :]
        # As released, the padding of texts takes part in PGI: results depend on its length.
        read = mask if self.config.mask_text_pad else torch.ones_like(mask)
        both_keys = own_keys
        if seen_mask is not None or self.config.mask_text_pad:
            own = read.new_ones(seen.shape[:2]) if seen_mask is None else seen_mask
            both_keys = torch.cat([read, own], dim=1)[:, None, None, :]
        prefix = None
        for layer in islice(self.encoder.encoder.layers, self.first):
            text, prefix = text_layer(layer, text, text_keys)
        joined = zip(
            islice(self.encoder.encoder.layers, self.first, None),
            islice(self.vision.layers, self.vision_first, None),
            self.fusion,
            strict=True,
        )
        for layer, block, fusion in joined:
            seen = vision_layer(block, seen, both_keys, prefix)
            extra = partial(self.correlate, cast(nn.Linear, fusion), seen, own_keys)
            text, prefix = text_layer(layer, text, text_keys, extra)
        return text

    def correlate(
        self, fusion: nn.Linear, seen: Tensor, keys: Tensor | None, heads: Tensor
    ) -> Tensor:
        """CAF: (B, L, D) text heads before their projection -> W3 A + b3, (B, L, intermediate)."""
        mask = None if keys is None else keys[:, 0]
        gathered = scaled_dot_product_attention(heads, seen, seen, mask, scale=self.caf_scale)
        return fusion(gathered)

    def parameter_groups(self, optim: Any) -> list[dict]:
        """As of every method; with `decay_all`, nothing is spared from weight decay."""
        groups = super().parameter_groups(optim)
        if self.config.decay_all:
            groups = [group | {"weight_decay": optim.weight_decay} for group in groups]
        return groups


def text_layer(
    layer: Layer, states: Tensor, keys: Tensor, extra: Callable[[Tensor], Tensor] | None = None
) -> tuple[Tensor, KeysValues]:
    """One BERT layer; also returns its keys and values, for the next vision layer.

    Args:
        states: (B, L, D). keys: (B, 1, 1, L) bool.
        extra: heads (B, L, D) before the output projection -> what is added inside the feed-forward
            layer, before its activation.
    """
    attention = layer.attention.self
    heads = attention.num_attention_heads
    query, key, value = (
        split(projection(states), heads)
        for projection in (attention.query, attention.key, attention.value)
    )
    dropout = attention.dropout.p if layer.training else 0.0
    gathered = join(scaled_dot_product_attention(query, key, value, keys, dropout))
    states = layer.attention.output(gathered, states)
    inner = layer.intermediate.dense(states)
    if extra is not None:
        inner = inner + extra(gathered)
    return layer.output(layer.intermediate.intermediate_act_fn(inner), states), (key, value)


def vision_layer(
    layer: CLIPEncoderLayer, states: Tensor, keys: Tensor | None, prefix: KeysValues | None = None
) -> Tensor:
    """One CLIP block, (B, K, D); PGI: `prefix`, keys and values of text, stands before its own.

    Args:
        keys: (B, 1, 1, K or L + K) bool, or None: all are seen.
    """
    attention = layer.self_attn
    normed = layer.layer_norm1(states)
    query, key, value = (
        split(projection(normed), attention.num_heads)
        for projection in (attention.q_proj, attention.k_proj, attention.v_proj)
    )
    if prefix is not None:
        key, value = torch.cat([prefix[0], key], dim=2), torch.cat([prefix[1], value], dim=2)
    dropout = float(attention.dropout or 0) if layer.training else 0.0
    gathered = scaled_dot_product_attention(query, key, value, keys, dropout)
    states = states + attention.out_proj(join(gathered))
    return states + layer.mlp(layer.layer_norm2(states))


def split(states: Tensor, heads: int) -> Tensor:
    """(B, L, D) -> (B, heads, L, D / heads)."""
    return states.unflatten(-1, (heads, -1)).transpose(1, 2)


def join(states: Tensor) -> Tensor:
    """Inverse of `split`."""
    return states.transpose(1, 2).flatten(2)


def check_towers(text: BertConfig, vision: CLIPVisionConfig, fusion_layers: int) -> None:
    """Raises: InputError where layers cannot be joined pairwise."""
    for name in ("hidden_size", "num_attention_heads"):
        ours, theirs = getattr(text, name), getattr(vision, name)
        if ours != theirs:
            raise InputError(
                f"mkgformer joins towers layer by layer: {name} is {ours} in the text tower, "
                f"{theirs} in the vision tower; another --model.vision (or: random), or --init"
            )
    if fusion_layers >= text.num_hidden_layers:
        raise InputError(
            f"--model.fusion_layers {fusion_layers}: PGI reads the text layer below, and the text "
            f"tower has {text.num_hidden_layers} layers"
        )
    if fusion_layers > vision.num_hidden_layers:
        raise InputError(
            f"--model.fusion_layers {fusion_layers}: the vision tower has "
            f"{vision.num_hidden_layers} layers"
        )
