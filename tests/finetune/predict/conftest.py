"""An untrained run, and a picture, for tests of what prediction shows."""

import json
from pathlib import Path

import pytest
from PIL import Image

from finetune.methods.base import Source
from finetune.methods.promu import Promu, PromuConfig
from finetune.predict.extractor import Extractor
from finetune.tasks.mnre import Mnre


@pytest.fixture
def untrained(tmp_path, mnre_folder, tiny_model) -> Path:
    """A run directory: one seed of a PROMU that has learnt nothing."""
    from finetune.run.checkpoint import save_method

    task, directory = Mnre(mnre_folder), tmp_path / "run"
    method, tokenizer = Promu.build(PromuConfig(), task.info, Source(str(tiny_model)))
    save_method(
        directory / "seed-1/model", method, tokenizer, name="promu", config=PromuConfig(),
        task=task.info, inputs={"images": "required", "max_length": 40}, card="# card\n",
    )  # fmt: skip
    (directory / "seed-1/result.json").write_text(json.dumps({"dev": {"f1": 1.0}}))
    return directory


@pytest.fixture
def extract(untrained) -> Extractor:
    return Extractor.from_pretrained(untrained)


@pytest.fixture
def picture(tmp_path) -> str:
    path = tmp_path / "good.png"
    Image.new("RGB", (40, 30), (200, 10, 10)).save(path)
    return str(path)
