"""HVPNeT's released checkpoints: their parameter names -> ours."""

from collections.abc import Mapping

from torch import Tensor

from pretrain.checkpoint.tables import Rules, rename

RULES: Rules = (
    # Not used by the model: a counter, the pooler, ImageNet's classifier.
    (r"bert\.(embeddings\.position_ids|pooler\.dense\.(weight|bias))", None),
    (r"image_model\.resnet\.fc\.(weight|bias)", None),
    (r"bert\.(.+)", r"encoder.\1"),
    (r"image_model\.resnet\.(.+)", r"vision.net.\1"),
    (r"encoder_conv\.(0|2)\.(weight|bias)", r"prefix.encode.\1.\2"),
    (r"gates\.\d+\.(weight|bias)", r"prefix.gates.\1"),  # one layer each: stacked
    (r"classifier\.(weight|bias)", r"head.classifier.\1"),
    (r"fc\.(weight|bias)", r"head.emission.\1"),
    (r"crf\.((?:start_|end_|)transitions)", r"head.crf.\1"),
)


def convert_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state of `best_model.pth` by our names: for `Hvpnet` with `tagging: pieces` (entities).

    The four added word rows are `<s> </s> <o> </o>` there and `[E1] [/E1] [E2] [/E2]` here, in the
    same order.

    Raises:
        InputError: names that are not HVPNeT's, or the gates of a layer are missing.
    """
    layers = sum(name.startswith("gates.") and name.endswith(".weight") for name in state)
    gates = [f"gates.{layer}.{kind}" for layer in range(layers) for kind in ("weight", "bias")]
    return rename(state, RULES, "HVPNeT", required=gates)
