"""Memory-mapped safetensors: what is damaged is one line."""

import json

import numpy as np
import pytest

from shards.arrays import map_arrays, pack
from shards.files import InputError


def test_what_was_packed_is_mapped(tmp_path):
    tensors = {"a": np.arange(6).reshape(2, 3), "b": np.zeros((0, 4), np.float32)}
    (tmp_path / "t").write_bytes(pack(tensors, ["ü"]))
    mapped, about = map_arrays(tmp_path / "t")
    assert about == ["ü"] and {name: value.shape for name, value in mapped.items()} == {
        "a": (2, 3), "b": (0, 4),
    }  # fmt: skip
    assert (mapped["a"] == tensors["a"]).all()


@pytest.mark.parametrize(
    ("shape", "places"),
    [([2**70], [0, 8]), ([1], [10**30, 10**30 + 8]), ([-1], [8, 0]), ([-1, -1], [0, 8])],
)
def test_a_header_that_cannot_be_is_damage(tmp_path, shape, places):
    entry = {"dtype": "I64", "shape": shape, "data_offsets": places}
    header = json.dumps({"a": entry}).encode()
    (tmp_path / "t").write_bytes(len(header).to_bytes(8, "little") + header + bytes(64))
    with pytest.raises(InputError, match="damaged"):
        map_arrays(tmp_path / "t")
