"""TMR's released checkpoints: their parameter names -> ours.

Relations: the upload of January 2024. Entities: another network, told by its CRF; what its
`model_resnet50` holds is a ResNet-101.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from pretrain.checkpoint.tables import Rules, rename

PREFIX = r"(?:module\.)?sentence_encoder\."
KIND = r"(weight|bias)"
ATTENTION = {"q": "query", "k": "key", "v": "value"}
RULES: Rules = (
    (PREFIX + r"bert\.(?:embeddings\.position_ids|pooler\..+)", None),
    (PREFIX + r"bert\.(.+)", r"encoder.\1"),
    (PREFIX + r"model_resnet50\.fc\..+", None),
    (PREFIX + r"model_resnet50\.(.+)", r"vision.net.\1"),
    (PREFIX + r"(?:linear|linear_weights)\." + KIND, None),
    (PREFIX + r"linear_pic\." + KIND, r"reduce.\1"),
    *(
        (PREFIX + rf"linear_{short}_(fine|coarse)\." + KIND, rf"head.\1.{long}.\2")
        for short, long in ATTENTION.items()
    ),
    (PREFIX + r"linear_extend_pic\." + KIND, r"head.extend.\1"),
    (PREFIX + r"linear_phrases\." + KIND, r"head.phrase.\1"),
    (PREFIX + r"linear_final\." + KIND, r"head.final.\1"),
    (r"(?:module\.)?linear\." + KIND, None),
    (r"(?:module\.)?fc\." + KIND, r"head.classifier.\1"),
)
ENTITY_RULES: Rules = (
    (r"bert\.(?:embeddings\.position_ids|pooler\..+)", None),
    (r"bert\.(.+)", r"encoder.\1"),
    (r"model_resnet50\.fc\..+", None),
    (r"model_resnet50\.(.+)", r"vision.net.\1"),
    (r"linear_pic\." + KIND, r"reduce.\1"),
    *(
        (rf"linear_{short}_(fine|coarse)\." + KIND, rf"head.\1.{long}.\2")
        for short, long in ATTENTION.items()
    ),
    (r"linear_extend_pic\." + KIND, r"head.extend.\1"),
    (r"combine_linear\." + KIND, r"head.combine.\1"),
    (r"fc\." + KIND, r"head.tags.emission.\1"),
    (r"crf\.((?:start_|end_|)transitions)", r"head.tags.crf.\1"),
)
ENTITY_SETTINGS = {
    "vision": "resnet101.a1h_in1k",
    "resize": "center_crop",
    "phrases": "community",
    "scores": ".",
}
"""What a checkpoint for entities was trained with, beside the profile `legacy`."""
RELATION_SETTINGS = {"phrases": "community", "generated_boxes": "community", "scores": "txt"}
"""The same of one for relations (CAMIM's too); its phrases and boxes tell the label.

Not reproduced: regions cut to their middle, OpenCV's way of shrinking whole pictures, and the
repeated words of nested entities."""
MARKERS = slice(1, 5)
"""Word rows of `[unused0]` to `[unused3]`: what we call `[E1] [/E1] [E2] [/E2]`."""
WORDS = "embeddings.word_embeddings.weight"


def convert_state(
    state: Mapping[str, Tensor], rules: Rules = RULES, source: str = "TMR"
) -> dict[str, Tensor]:
    """A checkpoint's tensors by the names of `Tmr`, `profile: legacy`.

    The four markers of relations are reserved words of BERT; they become our four added rows.

    Args:
        rules, source: of a method built on this one.

    Raises:
        InputError: names that are not `source`'s.
    """
    if "crf.transitions" in state:
        return rename(state, ENTITY_RULES, source)
    renamed = rename(state, rules, source)
    tables = {name: table for name, table in renamed.items() if name.endswith(WORDS)}
    return renamed | {name: torch.cat([table, table[MARKERS]]) for name, table in tables.items()}
