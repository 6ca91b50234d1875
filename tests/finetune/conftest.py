"""A tiny task folder in MNRE's format and a tiny model directory, both made here."""

import json
import math
import zlib
from pathlib import Path

import numpy as np
import pytest
from tiny_mnre import write_mnre
from tiny_model import write_model


@pytest.fixture
def mnre_folder(tmp_path: Path) -> Path:
    """120 / 30 / 30 rows."""
    return write_mnre(tmp_path / "mnre", {"train": 120, "val": 30, "test": 30})


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fusion model directory of a few thousand random weights."""
    return write_model(tmp_path_factory.mktemp("model") / "tiny")


class Golden:
    """Numbers of an authors' module, and the rule by which its weights and inputs were drawn."""

    def __init__(self, name: str) -> None:
        path = Path(__file__).parent / "golden" / f"{name}.json"
        self.name, self.content = name, json.loads(path.read_text())

    def __getitem__(self, key: str):
        return self.content[key]

    def weights(self) -> dict:
        """The authors' state dict by their names."""
        entries = self["weights"]
        return {name: self.weight(name, shape, kind) for name, shape, kind, _ in entries
                if kind not in ("keep", "tied")}  # fmt: skip

    @staticmethod
    def weight(name: str, shape: list[int], kind: str):
        import torch

        generator = np.random.default_rng(zlib.crc32(name.encode()))
        x = np.asarray(generator.standard_normal(tuple(shape))).astype(np.float32)
        if kind == "scale":
            x = np.float32(1) + np.float32(0.02) * x
        elif kind == "var":
            x = np.float32(1) + np.float32(0.1) * np.abs(x)
        elif kind == "conv":
            x = np.float32(1 / math.sqrt(math.prod(shape[1:]))) * x
        else:
            x = np.float32(0.02 if kind == "std" else float(kind[4:])) * x
        return torch.from_numpy(x.reshape(tuple(shape)))

    def pictures(self, name: str, *lead: int, side: int = 224):
        """(*lead, 3, side, side) as fed to the network."""
        import torch

        generator = np.random.default_rng(zlib.crc32(f"{self.name}:{name}".encode()))
        offset = generator.standard_normal((*lead, 3, 1, 1))
        coarse = generator.standard_normal((*lead, 3, side // 32, side // 32))
        fine = generator.standard_normal((*lead, 3, side, side))
        coarse = coarse.repeat(32, -2).repeat(32, -1)
        return torch.from_numpy((offset + coarse + 0.5 * fine).astype(np.float32))

    def intermediate(self, name: str) -> dict:
        """The recorded tensor whose description begins so."""
        return next(x for x in self["intermediates"] if x["name"].startswith(name))


@pytest.fixture(scope="session")
def golden():
    """Golden file by name."""
    return Golden
