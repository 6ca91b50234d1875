"""HVPNeT's checkpoints: names of theirs -> ours."""

import json
import math

import pytest
import torch
from parts_hvpnet import GOLDEN

from finetune.methods.hvpnet import names
from shards.files import InputError


@pytest.mark.parametrize(
    ("name", "entries", "parameters", "unused"),
    [("hvpnet_re", 550, 143_366_799, 5), ("hvpnet_ner", 553, None, 5)],
)
def test_names_of_the_checkpoints(name, entries, parameters, unused):
    """hvpnet.md §8: so many entries; all but the position counter, the pooler and ImageNet's
    classifier are ours, the gates of twelve layers as one."""
    weights = json.loads((GOLDEN / f"{name}.json").read_text())["weights"]
    assert len(weights) == entries
    buffers = ("running_mean", "running_var", "num_batches_tracked", "position_ids")
    total = sum(math.prod(shape) for key, shape, *_ in weights if not key.endswith(buffers))
    assert parameters is None or total == parameters
    converted = names.convert_state({key: torch.zeros(1, 1) for key, *_ in weights})
    assert len(converted) == entries - unused - 24 + 2
    assert {key.split(".")[0] for key in converted} == {"encoder", "vision", "prefix", "head"}


def test_foreign_names_are_listed():
    tensor = torch.zeros(1)
    with pytest.raises(InputError, match=r"2 unknown names: bertt\.x, head"):
        names.convert_state({"bertt.x": tensor, "head": tensor, "fc.bias": tensor})
    with pytest.raises(InputError, match=r"2 missing names: gates\.0\.weight, gates\.0\.bias"):
        names.convert_state({"gates.1.weight": tensor, "gates.1.bias": tensor})
    assert names.convert_state({"bert.pooler.dense.bias": tensor}) == {}
