"""First weights of a run: the model directory that `--model.init` names decides the architecture.

What the configuration states is compared with it; what it does not state is taken from it.
"""

from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

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
            `image_size` (positions are resized), and one side may lack fusion layers.
            `vocab_size` is how many word pieces to learn: there is a tokenizer already.

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
        if key in (*_FREE, "image_size") or one_sided:
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
    state = imported.state
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
    for pool in ("text_pool", "vision_pool"):
        if (ours_pool := getattr(architecture, pool)) != (there := getattr(before, pool)):
            notes.append(f"{pool} {ours_pool} ({there} there)")
    return encoder, ", ".join([*notes, *imported.notes])
