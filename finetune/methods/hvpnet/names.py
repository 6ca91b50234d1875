"""HVPNeT's released checkpoints: their parameter names -> ours."""

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from shards.files import InputError

IGNORED = re.compile(
    r"bert\.embeddings\.position_ids|bert\.pooler\.dense\.(weight|bias)"
    r"|image_model\.resnet\.fc\.(weight|bias)"
)
"""Not used by the model: a counter, the pooler, ImageNet's classifier."""
RENAMED = (
    (re.compile(r"bert\.(.+)"), r"encoder.\1"),
    (re.compile(r"image_model\.resnet\.(.+)"), r"vision.net.\1"),
    (re.compile(r"encoder_conv\.(0|2)\.(weight|bias)"), r"prefix.encode.\1.\2"),
    (re.compile(r"classifier\.(weight|bias)"), r"head.classifier.\1"),
    (re.compile(r"fc\.(weight|bias)"), r"head.emission.\1"),
    (re.compile(r"crf\.((?:start_|end_|)transitions)"), r"head.crf.\1"),
)
GATE = re.compile(r"gates\.(\d+)\.(weight|bias)")


def convert_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state of `best_model.pth` by our names: for `Hvpnet` with `tagging: pieces` (entities).

    The four added word rows are `<s> </s> <o> </o>` there and `[E1] [/E1] [E2] [/E2]` here, in the
    same order.

    Raises:
        InputError: with the list of names that are not HVPNeT's.
    """
    found: dict[str, Tensor] = {}
    gates: dict[str, dict[int, Tensor]] = {"weight": {}, "bias": {}}
    unknown = []
    for name, tensor in state.items():
        if IGNORED.fullmatch(name):
            continue
        if gate := GATE.fullmatch(name):
            gates[gate[2]][int(gate[1])] = tensor
            continue
        ours = next((p.sub(new, name) for p, new in RENAMED if p.fullmatch(name)), None)
        if ours is None:
            unknown.append(name)
        else:
            found[ours] = tensor
    layers = set(range(len(gates["weight"])))
    if set(gates["weight"]) != layers or set(gates["bias"]) != layers:
        unknown.append("gates.* (numbers are missing)")
    if unknown:
        raise InputError(
            f"not a checkpoint of HVPNeT: {len(unknown)} unknown names: {', '.join(unknown[:8])}"
        )
    for kind, by_layer in gates.items():
        if by_layer:
            found[f"prefix.gates.{kind}"] = torch.cat([by_layer[n] for n in sorted(by_layer)])
    return found
