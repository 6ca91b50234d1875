"""Processors of `transformers`: texts are split as tokenizer.json says, a hub id has its commit."""

import json
import shutil

import pytest

from shards.captions import Captioner
from shards.processors import commit_of, load_processor

pytest.importorskip("transformers")
COMMIT = "0123456789" * 4
TEXT = "a photo of @word3"


@pytest.fixture
def folder(tmp_path, tiny_captioner):
    """Its tokenizer.json reads `@` and what follows as a word that there is."""
    folder = shutil.copytree(tiny_captioner, tmp_path / "hub/models--me--blip/snapshots" / COMMIT)
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text())
    handles = {"type": "Replace", "pattern": {"Regex": r"@\w+"}, "content": "word7"}
    content["normalizer"] = {
        "type": "Sequence", "normalizers": [handles, content["normalizer"]]
    }  # fmt: skip
    path.write_text(json.dumps(content))
    return folder


def test_texts_are_split_as_the_file_says(folder, tmp_path):
    """When first read, and saved and read again."""
    processor = load_processor(folder)
    processor.save_pretrained(tmp_path / "saved")
    for reader in (processor, load_processor(tmp_path / "saved")):
        assert reader.tokenizer.tokenize(TEXT) == ["a", "photo", "of", "word7"]


def test_a_captioner_of_the_hub_has_its_commit(folder, tmp_path, monkeypatch):
    (folder.parents[1] / "refs").mkdir()
    (folder.parents[1] / "refs/main").write_text(COMMIT)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    captioner = Captioner("me/blip", "a photo of", 5, "cpu")
    assert captioner.provenance["model"] == "me/blip"
    assert captioner.provenance["revision"] == COMMIT == commit_of(folder)
    assert captioner.processor.tokenizer.tokenize(TEXT)[-1] == "word7"
    assert commit_of(shutil.copytree(folder, tmp_path / "own")) is None
    with pytest.raises(OSError):
        commit_of("me/other")
