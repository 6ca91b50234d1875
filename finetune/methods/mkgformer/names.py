"""Names of MKGformer's tensors: the authors' (zjunlp/MKGformer, `MRE/`) and CLIP's -> ours."""

import re
from collections.abc import Mapping

from torch import Tensor

from pretrain.checkpoint.tables import Rules, rename
from shards.files import InputError

VISION_LAYER = r"(self_attn\..+|layer_norm[12]\..+|mlp\..+)"

CLIP: Rules = (
    (r"embeddings\.class_embedding", "class_embedding"),
    (r"embeddings\.patch_embedding\.weight", "patch_embedding.weight"),
    (r"embeddings\.position_embedding\.weight", "position_embedding"),
    (r"pre_layrnorm\.(weight|bias)", r"norm.\1"),
    (rf"encoder\.layers\.(\d+)\.{VISION_LAYER}", r"layer.\1.\2"),
    (r"post_layernorm\..+", None),  # MKGformer reads the layers themselves
    (r"embeddings\.position_ids", None),
)
"""`CLIPVisionModel` of transformers -> our `vision`; the positions are resized by the caller."""

AUTHORS: Rules = (
    (r"model\.text_embeddings\.position_ids", None),
    (r"model\.text_embeddings\.(.+)", r"encoder.embeddings.\1"),
    (r"model\.encoder\.text_layer\.(\d+)\.intermediate\.fusion_dense\.(.+)", r"fusion.\1.\2"),
    (r"model\.encoder\.text_layer\.(\d+)\.(.+)", r"encoder.encoder.layer.\1.\2"),
    (r"model\.text_pooler\..+", None),  # its output is never read
    (r"model\.vision_embeddings\.(aux_|rcnn_)?position_ids", None),
    (r"model\.vision_embeddings\.class_embedding", "vision.class_embedding"),
    (r"model\.vision_embeddings\.patch_embedding\.weight", "vision.patch_embedding.weight"),
    (r"model\.vision_embeddings\.aux_position_embedding\.weight", "vision.vg_position_embeddings"),
    (r"model\.vision_embeddings\.rcnn_position_embedding\.weight", "vision.od_position_embeddings"),
    (r"model\.vision_embeddings\.position_embedding\.weight", None),  # of the unread whole picture
    (r"model\.vision_pre_layrnorm\.(weight|bias)", r"vision.norm.\1"),
    (r"model\.vision_post_layernorm\..+", None),
    (rf"model\.encoder\.vision_layers\.(\d+)\.{VISION_LAYER}", r"vision.layer.\1.\2"),
    (r"classifier\.(weight|bias)", r"head.classifier.\1"),
)
"""The authors' relation model -> our `MKGformer`, but for the numbers of `fusion`."""


def convert_state(state: Mapping[str, Tensor], fusion_layers: int = 4) -> dict[str, Tensor]:
    """The authors' fine-tuned relation model (their `state_dict()`) under our names.

    They make the fusion layer of every text layer and use it in the last four; the others, which
    never had a gradient, are left out, as are the poolers and the whole picture's positions.

    Raises:
        InputError: unknown names, or no text layer among the tensors.
    """
    renamed = rename(state, AUTHORS, "MKGformer")
    numbers = [int(name.split(".")[3]) for name in renamed if name.startswith("encoder.encoder.")]
    if not numbers:
        raise InputError("MKGformer checkpoint: no text layer in it")
    first = max(numbers) + 1 - fusion_layers
    converted = {}
    for name, tensor in renamed.items():
        if match := re.fullmatch(r"fusion\.(\d+)\.(.+)", name):
            if int(match[1]) < first:
                continue
            name = f"fusion.{int(match[1]) - first}.{match[2]}"
        converted[name] = tensor
    return converted
