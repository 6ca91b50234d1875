"""Model directories locally, on a hub that runs in this process, and at URLs."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import fsspec
import pytest
import torch
import yaml
from fsspec.implementations.memory import MemoryFileSystem
from transformers import BertTokenizerFast

from pretrain.checkpoint import hub, remote
from pretrain.checkpoint.card import checkpoint_card, pretraining_card
from pretrain.model.config import FusionEncoderConfig
from pretrain.model.fusion_encoder import FusionEncoder
from shards.files import InputError

ROOT = Path(__file__).resolve().parents[2]
TINY = FusionEncoderConfig(
    vocab_size=12, hidden_size=8, num_attention_heads=2, intermediate_size=16, text_layers=1,
    fusion_layers=1, max_position_embeddings=8, image_size=8, patch_size=4, vision_hidden_size=8,
    vision_layers=1, vision_heads=2, projection_size=4,
)  # fmt: skip


@pytest.fixture(scope="module")
def directory(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefg"]
    (folder / "vocab.txt").write_text("\n".join(words) + "\n")
    torch.manual_seed(0)
    FusionEncoder(TINY).save_pretrained(folder / "out", BertTokenizerFast.from_pretrained(folder))
    return folder / "out"


def python(code: str, **environment: str) -> subprocess.CompletedProcess:
    """A process of its own: the hub client reads its environment when it is imported."""
    variables = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
    return subprocess.run(
        [sys.executable, "-c", f"{code}\nfrom shards.processes import leave\nleave()"],
        env=variables | {"HF_HUB_DISABLE_XET": "1", "OMP_NUM_THREADS": "1", **environment},
        cwd=ROOT, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip


ONLINE = """
import socket
import torch
from pretrain.checkpoint import hub
from pretrain.model.fusion_encoder import FusionEncoder
encoder, tokenizer = hub.load_fusion({directory!r})
print(encoder.push_to_hub("me/fusion", tokenizer))
pulled = FusionEncoder.from_pretrained("me/fusion", revision="main")
pairs = zip(encoder.parameters(), pulled.parameters(), strict=True)
print("same" if all(torch.equal(a, b) for a, b in pairs) else "different")
socket.socket.connect = None  # whatever reaches for the network now dies
FusionEncoder.from_pretrained("me/fusion", local_files_only=True)
print("from the cache")
"""
OFFLINE = """
from shards.files import InputError
from pretrain.model.fusion_encoder import FusionEncoder
FusionEncoder.from_pretrained("me/fusion")
print("from the cache")
try:
    FusionEncoder.from_pretrained("me/another")
except InputError as error:
    print(error)
"""


def test_push_pull_and_offline(directory, fake_hub, tmp_path):
    server, url = fake_hub
    (directory / "optimizer.pt").write_bytes(b"never to be uploaded")
    place = {"HF_ENDPOINT": url, "HF_TOKEN": "hf_x", "HF_HOME": str(tmp_path / "cache")}
    online = python(ONLINE.format(directory=str(directory)), **place)
    commit = f"{url}/me/fusion/commit/{server.revision('me/fusion')}"
    assert online.stdout.split("\n") == [commit, "same", "from the cache", ""], online.stderr
    assert "model of type" not in online.stderr, "transformers complains about our model type"
    files = server.repos["me/fusion"]
    assert {"config.json", "model.safetensors", "tokenizer.json", "README.md"} <= files.keys()
    assert files["model.safetensors"] == (directory / "model.safetensors").read_bytes()
    assert "optimizer.pt" not in files

    asked = len(server.requests)
    offline = python(OFFLINE, **place, HF_HUB_OFFLINE="1").stdout.split("\n")
    assert offline[0] == "from the cache"
    assert offline[1].startswith("me/another: neither a local model directory nor a hub model")
    assert len(server.requests) == asked, "offline touched the network"


def test_push_of_something_else(tmp_path):
    with pytest.raises(InputError, match="not a model directory"):
        remote.push_to_hub(tmp_path, "me/x")


# ---------------------------------------------------------------------- URLs


@pytest.mark.parametrize("place", ["memory://round/trip", "file://{tmp}/remote"])
def test_urls(directory, tmp_path, place):
    url = place.format(tmp=tmp_path)
    encoder, tokenizer = hub.load_fusion(directory)
    encoder.save_pretrained(url, tokenizer)
    again = FusionEncoder.from_pretrained(url)
    for a, b in zip(encoder.parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b)


class Unreliable(MemoryFileSystem):
    """Cuts the first upload short, fails the second."""

    protocol = "unreliable"
    store: dict = {}  # noqa: RUF012
    pseudo_dirs = [""]  # noqa: RUF012
    cachable = False
    attempts = 0

    def put_file(self, lpath, rpath, **kwargs) -> None:
        type(self).attempts += 1
        if self.attempts == 1:
            self.pipe_file(rpath, Path(lpath).read_bytes()[:-1])
        elif self.attempts == 2:
            raise OSError("connection reset")
        else:
            self.pipe_file(rpath, Path(lpath).read_bytes())


def test_uploads_are_verified_and_repeated(tmp_path):
    fsspec.register_implementation("unreliable", Unreliable, clobber=True)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(
        InputError, match=r"upload of config.json failed 2 times \(connection reset\)"
    ):
        remote.store(tmp_path, "unreliable://x/y", attempts=2, pause=0)
    Unreliable.attempts = 0
    remote.store(tmp_path, "unreliable://x/y", attempts=3, pause=0)
    assert fsspec.open("unreliable://x/y/config.json").open().read() == b"{}"


@pytest.mark.parametrize(
    ("url", "message"),
    [("nonsense://a/b", "nonsense"), ("memory://nothing/here", "nothing there")],
)
def test_bad_urls(url, message):
    with pytest.raises(InputError, match=message):
        remote.fetch(url)


# ---------------------------------------------------------------------- what travels with a model


def test_everything_travels(directory):
    config = json.loads((directory / "config.json").read_text())
    assert config["model_type"] == "fusion-mre" and config["format_version"] == 1
    preprocessor = json.loads((directory / "preprocessor_config.json").read_text())
    assert preprocessor["size"] == {"height": 8, "width": 8}
    card = (directory / "README.md").read_text()
    assert card.startswith("---\n") and "## Licence" in card and "## Cite" in card


def test_pretraining_card(tmp_path):
    lines = [{"step": 1, "itm_loss": 0.7}, {"step": 2, "itm_loss": 0.5, "val_itm_accuracy": 61.25}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "index.json").write_text("{}")
    config = {
        "data": {"train": str(tmp_path), "val": "shards/val"}, "seed": 7,
        "optim": {"steps": 2, "lr": 1e-4, "weight_decay": 1e-3}, "engine": {"precision": "fp32"},
        "loss": {"itm": 1.0, "cit": 0.5, "coe": 0, "cir": 0}, "model": {"init": None},
        "prompter": {"source": "runs/prompter/model"},
    }  # fmt: skip
    card = pretraining_card(config, tmp_path, samples_per_epoch=32)
    # sha256 of the two bytes {}
    digest = "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"
    rows = (
        "| steps | 2 |",
        "itm (1), cit (0.5)",
        "| itm_loss | 0.5 |",
        "| val_itm_accuracy | 61.25 |",
    )
    for expected in (digest, *rows, "1 x ", "FusionEncoder.from_pretrained"):
        assert expected in card, expected
    step = tmp_path / "checkpoints/step-1"
    step.mkdir(parents=True)
    assert checkpoint_card(step) is None
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    (step / "COMPLETE").write_text('{"world_size": 8}')
    (tmp_path / "index.json").unlink()
    card = checkpoint_card(step)
    for expected in ("| steps | 1 of 2 |", "| itm_loss | 0.7 |", "world size 8"):
        assert expected in card, expected
    assert "61.25" not in card, "a figure of a later step"


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json", "."])
def test_what_we_may_not_read_is_not_called_missing(directory, name):
    """Files, or the whole folder, of somebody else."""
    with tempfile.TemporaryDirectory() as folder:  # pytest's own is closed to others
        Path(folder).chmod(0o755)
        copy, user = Path(shutil.copytree(directory, Path(folder) / "model")), os.geteuid()
        FusionEncoder.from_pretrained(copy)  # another user could not import what that needs
        (copy / name).chmod(0)
        try:
            os.seteuid(65534 if user == 0 else user)  # root may read everything
            with pytest.raises(InputError, match=r"cannot be read \(Permission denied\); ask its"):
                FusionEncoder.from_pretrained(copy)
        finally:
            os.seteuid(user)
            (copy / name).chmod(0o755)


@pytest.mark.parametrize("pickled", ["pytorch_model.bin", "open_clip_pytorch_model.bin"])
def test_a_pickle_is_fetched_where_the_hub_has_no_safetensors(pickled, tmp_path, monkeypatch):
    """Of two kinds of files only those that will be read."""
    import fnmatch

    import huggingface_hub

    published = {"pytorch_model.bin": "config.json", "open_clip_pytorch_model.bin": "vocab.json"}

    def fetch(name, *, allow_patterns, **options):
        for file in (pickled, published[pickled], "other_pytorch_model.bin"):
            if any(fnmatch.fnmatch(file, pattern) for pattern in allow_patterns):
                (tmp_path / file).touch()
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    assert remote.resolve("somebody/clip") == tmp_path
    assert {path.name for path in tmp_path.iterdir()} == {pickled, published[pickled]}
