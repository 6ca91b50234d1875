"""First weights of a run: the model directory that `--model.init` names decides the architecture.

What the configuration states is compared with it; what it does not state is taken from it.
"""

from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

import torch
from torch import Tensor

from pretrain.checkpoint.authors import Imported
from pretrain.checkpoint.directory import ModelDirectory
from pretrain.checkpoint.hub import fusion_architecture
from pretrain.checkpoint.strict import load_strictly, read_weights
from pretrain.model.config import MODEL_TYPE, FusionEncoderConfig
from pretrain.model.fusion_encoder import FusionEncoder
from shards.files import InputError

_FREE = ("hidden_dropout", "attention_dropout", "text_pool", "vision_pool")
"""No tensor depends on them: a run may state its own."""


def read_architecture(directory: ModelDirectory) -> FusionEncoderConfig:
    """What a model directory of ours says it is.

    Raises:
        InputError: of another kind (with the way to make one of ours), or damaged.
    """
    if directory.kind != MODEL_TYPE:
        raise InputError(
            f"model.init {directory}: model_type is {directory.kind!r}, not {MODEL_TYPE!r}; make "
            f"first weights of it: `python -m pretrain convert {directory} OUT --vision VIT`"
        )
    return fusion_architecture(directory)


def initial_architecture(
    directory: ModelDirectory, stated: Mapping[str, Any]
) -> FusionEncoderConfig:
    """The architecture of a run that starts from a model directory.

    Args:
        stated: fields that the user gave. Dropouts may differ from the directory's; so may
            `image_size` (positions are resized), one side may lack fusion layers, and the bridge
            may become `aligned`. `vocab_size` is how many word pieces to learn: there is a
            tokenizer already.

    Raises:
        InputError: a stated field that the directory's tensors or statistics contradict.
    """
    theirs = read_architecture(directory)
    before, changes = asdict(theirs), {}
    conflicts = []
    for key, value in stated.items():
        if key == "vocab_size" or value == before[key]:
            continue
        one_sided = key == "fusion_layers" and 0 in (value, before[key])
        aligns = (key, value) == ("bridge", "aligned")
        if key in (*_FREE, "image_size") or one_sided or aligns:
            changes[key] = value
        else:
            conflicts.append(f"model.{key} ({before[key]} there, {value} here)")
    if conflicts:
        raise InputError(f"{directory}: another architecture: {', '.join(conflicts)}")
    if not theirs.fusion_layers and "fusion_layers" not in stated:
        changes["fusion_layers"] = theirs.text_layers  # a prompter has none: half a BERT each
    return replace(theirs, **changes)


def initial_encoder(
    directory: ModelDirectory, architecture: FusionEncoderConfig
) -> tuple[FusionEncoder, str]:
    """An encoder of `initial_architecture` with the directory's tensors.

    Fusion layers missing at the source are drawn at random, those not wanted are left there.

    Returns:
        The encoder, and one line that says what was loaded, resized, drawn and left.
    """
    from pretrain.checkpoint.towers import resize_positions  # timm: only where it is needed

    tensors = read_weights(directory.path)
    state = {name: value for name, value in tensors.items() if not name.startswith("heads.")}
    before = read_architecture(directory)
    imported = resize_positions(Imported(before.to_dict(), state), architecture.image_size)
    state, aligned = imported.state, architecture.bridge != before.bridge
    if aligned:
        state = state | aligned_bridge(state)
    encoder = FusionEncoder(architecture)
    theirs = {name for name in state if name.startswith("fusion.")}
    ours = {
        name: value for name, value in encoder.state_dict().items() if name.startswith("fusion.")
    }
    drawn = {} if theirs else ours
    loaded = state if ours else {name: state[name] for name in state.keys() - theirs}
    load_strictly(encoder, loaded | drawn, str(directory))
    notes = [f"{len(loaded)} tensors loaded, {len(drawn)} fusion tensors drawn at random"]
    if len(loaded) < len(state):
        notes.append(f"{len(theirs)} left")
    if aligned:
        notes.append("bridge from both projections")
    for pool in ("text_pool", "vision_pool"):
        if (ours_pool := getattr(architecture, pool)) != (there := getattr(before, pool)):
            notes.append(f"{pool} {ours_pool} ({there} there)")
    return encoder, ", ".join([*notes, *imported.notes])


def aligned_bridge(state: Mapping[str, Tensor], damping: float = 0.1) -> dict[str, Tensor]:
    """The linear map B, with W_t·B(v) + b_t = W_v·v + b_v as nearly as a small B allows (ridge).

    A picture's state v then enters the fusion layers as the text's state that has its contrastive
    feature, so that ITM begins with what CIT has learned; ALBEF ("align before fuse") leaves that
    to the fusion layers.

    Args:
        state: tensors of a fusion encoder; its projections W_t: (E, D), W_v: (E, Dv) are read.
        damping: √λ of the ridge, as a share of the largest singular value of W_t.
    """
    names = (f"{tower}_proj.{end}" for end in ("weight", "bias") for tower in ("text", "vision"))
    text, vision, text_bias, vision_bias = (state[name].double() for name in names)
    gram = text @ text.T  # (E, E)
    ridge = damping**2 * torch.linalg.matrix_norm(text, ord=2) ** 2 * torch.eye(len(gram))
    inverse = torch.linalg.solve(gram + ridge, text).T  # (D, E)
    return {
        "bridge.weight": (inverse @ vision).float(),
        "bridge.bias": (inverse @ (vision_bias - text_bias)).float(),
    }
