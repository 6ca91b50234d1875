"""What CAMIM adds to the method underneath: a second BERT that reads captions, a loss.

B: rows, W: words, D: hidden size.
"""

import copy
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from finetune.inputs.batch import Batch
from finetune.methods.camim.caption_aware import mutual_information, pool_sentence
from finetune.methods.camim.config import CamimSettings
from finetune.methods.layers import word_states
from pretrain.model.bert import Bert

Once = Callable[..., Tensor]
"""`Method.once`"""
Description = tuple[Tensor, Tensor, Tensor | None]
"""A text's sentence vector (B, D), words (B, W, D), and mask of the words (None: all count)."""
CAPTION_LENGTH = 40
"""Word pieces of a caption as released, and of a sentence that describes a generated picture."""


def caption_encoder(encoder: Bert, config: CamimSettings) -> Bert | None:
    """The second BERT, begun from the same weights; None where it is shared or unused."""
    if config.share_bert or not config.use_cam:
        return None
    return copy.deepcopy(encoder)


def read(
    encoder: Bert, ids: Tensor, mask: Tensor, config: CamimSettings, once: Once
) -> Description:
    """What describes pictures, from a text's ids and mask (B, W)."""
    if not config.mask_words:  # as released: exactly 40
        missing = max(0, CAPTION_LENGTH - ids.shape[1])
        ids = nn.functional.pad(ids, (0, missing), value=encoder.config.pad_token_id or 0)
        mask = nn.functional.pad(mask, (0, missing))
    words = once(partial(word_states, encoder), ids, mask, name="described")
    sentence = pool_sentence(words, mask, config.sentence or "mean_masked")
    return sentence, words, mask if config.mask_words else None


def read_caption(encoder: Bert, batch: Batch, config: CamimSettings, once: Once) -> Description:
    """The same of the batch's captions."""
    ids, mask = batch.require("caption_ids"), batch.require("caption_mask")
    return read(encoder, ids, mask, config, once)


def information_loss(
    loss: Tensor | None, config: CamimSettings, batch: Batch, anchor: Tensor, candidates: Tensor
) -> Tensor | None:
    """The loss with α · InfoNCE added (Eq. 23).

    Negatives come from all processes in training only, and not in an epoch's last batch where its
    pieces differ in size: elsewhere processes hold different numbers of rows, or of batches.
    """
    if loss is None or not config.use_mi:
        return loss
    equal = torch.is_grad_enabled() and batch.weight == 1
    information = mutual_information(
        anchor,
        candidates,
        config.mi_direction,
        config.mi_temperature,
        batch.image_ids if config.mi_mask_same_image else None,
        config.mi_gather and equal,
    )
    return loss + config.mi_alpha * information


def caption_needs(config: CamimSettings) -> set[str]:
    """Inputs beyond those of the method underneath."""
    needs = {"caption"} if config.use_cam else set()
    return needs | ({"image_ids"} if config.use_mi and config.mi_mask_same_image else set())
