"""CAMIM's checkpoints (on TMR; none is published): their parameter names -> ours."""

from collections.abc import Mapping

from torch import Tensor

from finetune.methods.tmr import names as tmr_names
from finetune.methods.tmr.names import KIND, PREFIX
from pretrain.checkpoint.tables import Rules

RULES: Rules = (
    (PREFIX + r"bert2\.(?:embeddings\.position_ids|pooler\..+)", None),
    (PREFIX + r"bert2\.(.+)", r"caption_encoder.\1"),
    *(
        (PREFIX + rf"attention\.linear_{short}{number}\.0\." + KIND,
         rf"aware.attention.{of}{long}.0.\1")
        for short, long in tmr_names.ATTENTION.items()
        for number, of in (("", ""), ("2", "word_"))
    ),
    (PREFIX + r"attention\.merge_fr\.0\." + KIND, r"aware.attention.merge.\1"),
    (PREFIX + r"encoder_conv_sentence\.0\." + KIND, r"aware.sentence.\1"),
    (PREFIX + r"encoder_conv_(back|word)\.(0|2)\." + KIND, r"aware.\1.\2.\3"),
    (PREFIX + r"linear_x\." + KIND, None),
    *tmr_names.RULES,
)  # fmt: skip


def convert_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`{'state_dict': …}` of a checkpoint by the names of `CamimTmr`, `profile: legacy`.

    Raises:
        InputError: names that are not CAMIM's.
    """
    return tmr_names.convert_state(state, RULES, "CAMIM")
