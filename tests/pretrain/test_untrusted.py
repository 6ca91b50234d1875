"""Hostile and broken inputs: each gets one line, exit status 2, and nothing is written."""

import io
import json
import pickle
import shutil
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BertTokenizerFast

from pretrain import convert
from pretrain.checkpoint import hub
from pretrain.checkpoint.untrusted import load_pickle
from pretrain.model.config import FusionEncoderConfig
from pretrain.model.fusion_encoder import FusionEncoder
from shards.files import InputError

TINY = FusionEncoderConfig(
    vocab_size=12, hidden_size=8, num_attention_heads=2, intermediate_size=16, text_layers=1,
    fusion_layers=1, max_position_embeddings=8, image_size=8, patch_size=4, vision_hidden_size=8,
    vision_layers=1, vision_heads=2, projection_size=4,
)  # fmt: skip


@pytest.fixture(scope="module")
def sound(tmp_path_factory) -> Path:
    """A model directory that loads."""
    folder = tmp_path_factory.mktemp("sound")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefg"]
    (folder / "vocab.txt").write_text("\n".join(words) + "\n")
    tokenizer = BertTokenizerFast.from_pretrained(folder)
    torch.manual_seed(0)
    FusionEncoder(TINY).save_pretrained(folder / "model", tokenizer)
    FusionEncoder.from_pretrained(folder / "model")
    return folder / "model"


class Code:
    """Runs a command when unpickled."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self):
        import os

        return os.system, (self.command,)


def edit_config(folder: Path, **changes) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit_state(folder: Path, change: Callable[[dict], None]) -> None:
    state = load_file(folder / "model.safetensors")
    change(state)
    save_file(state, folder / "model.safetensors")


def truncate(path: Path, size: int) -> None:
    path.write_bytes(path.read_bytes()[:size])


def header_bomb(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes((2**62).to_bytes(8, "little") + path.read_bytes()[8:])


def beyond_the_end(folder: Path) -> None:
    header = {"x": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}}
    text = json.dumps(header).encode()
    (folder / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + b"1234")


def link_outside(folder: Path) -> None:
    outside = folder.parent / "secret.safetensors"
    shutil.move(folder / "model.safetensors", outside)
    (folder / "model.safetensors").symlink_to(outside)


def name_remote_code(folder: Path) -> None:
    path = folder / "tokenizer_config.json"
    content = json.loads(path.read_text())
    content |= {"tokenizer_class": "Evil", "auto_map": {"AutoTokenizer": ["evil.Evil", None]}}
    path.write_text(json.dumps(content))
    (folder / "evil.py").write_text("raise SystemExit('code of the directory ran')")


DIRECTORIES = {
    "truncated safetensors": (
        lambda d: truncate(d / "model.safetensors", 900),
        "model.safetensors: damaged or unknown safetensors file",
    ),
    "header bomb": (header_bomb, "model.safetensors: damaged or unknown safetensors file"),
    "tensor beyond the end": (beyond_the_end, "model.safetensors: damaged or unknown safetensors"),
    "wrong architecture": (
        lambda d: edit_config(d, text_layers=2),
        "missing text.encoder.layer.1.attention.self.query.weight",
    ),
    "wrong width": (
        lambda d: edit_config(d, projection_size=5),
        "text_proj.weight is (4, 8), expected (5, 8)",
    ),
    "giant": (
        lambda d: edit_config(d, vocab_size=10**12),
        "config.json describes at least 8,000,000,002,336 parameters, 2,792 are stored",
    ),
    "endless": (lambda d: edit_config(d, text_layers=10**9), "parameters, 2,792 are stored"),
    "senseless": (lambda d: edit_config(d, patch_size=0), "config.json: patch_size cannot be 0"),
    "another model": (
        lambda d: edit_config(d, model_type="llama"),
        "model_type 'llama' is none of ['fusion-mre', 'clip', 'bert'",
    ),
    "newer format": (
        lambda d: edit_config(d, format_version=99),
        "format_version 99 is newer than 4; update fusion-mre",
    ),
    "config is no JSON": (
        lambda d: truncate(d / "config.json", 40),
        "config.json: damaged",
    ),
    "renamed key": (
        lambda d: edit_state(d, lambda s: s.update({"proj.bias": s.pop("text_proj.bias")})),
        "missing text_proj.bias; foreign proj.bias",
    ),
    "NaN": (
        lambda d: edit_state(d, lambda s: s["text_proj.bias"].fill_(float("nan"))),
        "tensor text_proj.bias holds NaN or infinity",
    ),
    "fp8": (
        lambda d: edit_state(
            d, lambda s: s.update({"text_proj.bias": s["text_proj.bias"].to(torch.float8_e4m3fn)})
        ),
        "tensor text_proj.bias is float8_e4m3fn; only float32, float16 and bfloat16 are read",
    ),
    "link out of the directory": (link_outside, "a link out of the directory"),
    "code of its own": (name_remote_code, "its tokenizer cannot be loaded"),
    "no tokenizer": (
        lambda d: [path.unlink() for path in d.glob("tokenizer*")],
        "no tokenizer (tokenizer.json, vocab.txt, ",
    ),
}  # fmt: skip


def one_line(capsys, *arguments: object) -> str:
    with pytest.raises(SystemExit) as stop:
        convert.main([str(argument) for argument in arguments])
    assert stop.value.code == 2
    line = capsys.readouterr().err
    assert line.startswith("error: ") and line.count("\n") == 1, line
    return line


@pytest.mark.parametrize("case", DIRECTORIES)
def test_directories(case, sound, tmp_path, capsys):
    spoil, expected = DIRECTORIES[case]
    folder = shutil.copytree(sound, tmp_path / "model")
    (folder / "checksums.json").unlink()  # whoever means harm writes one that fits, or none
    spoil(folder)
    assert expected in one_line(capsys, folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


# ---------------------------------------------------------------------- pickled files


def zipped(path: Path, members: dict[str, bytes], compression=zipfile.ZIP_STORED) -> None:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(name, content)


def with_code(path: Path) -> None:
    torch.save({"temp": torch.ones(1), "x": Code(f"touch {path.parent / 'ran'}")}, path)


def plain_pickle_with_code(path: Path) -> None:
    path.write_bytes(pickle.dumps(Code(f"touch {path.parent / 'ran'}"), protocol=2))


def zip_bomb(path: Path) -> None:
    torch.save({"temp": torch.zeros(10)}, path)
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    zipped(path, members | {"archive/data/0": bytes(50_000_000)}, zipfile.ZIP_DEFLATED)


def expanded_tensor(path: Path) -> None:
    torch.save({"temp": torch.zeros(1).expand(1 << 20, 1 << 20)}, path)


def tar_archive(path: Path) -> None:
    with tarfile.open(path, "w") as archive:
        member = tarfile.TarInfo("../../escaped")
        archive.addfile(member, io.BytesIO(b""))


FILES = {
    "pickle with code": (with_code, "refused: loading it would run `posix.system`"),
    "bare pickle with code": (
        plain_pickle_with_code,
        "refused: loading it would run `posix.system`",
    ),
    "zip bomb": (zip_bomb, "is compressed, which PyTorch never does"),
    "path escape": (lambda p: zipped(p, {"../evil": b"x"}), "'../evil' leads out of the archive"),
    "tar": (tar_archive, "a tar archive, not a checkpoint"),
    "expanded tensor": (expanded_tensor, "claims (1048576, 1048576), more than the file stores"),
    "truncated": (
        lambda p: (torch.save({"temp": torch.zeros(999)}, p), truncate(p, 700)),
        "damaged or no PyTorch checkpoint",
    ),
    "empty": (lambda p: p.write_bytes(b""), "damaged or no PyTorch checkpoint"),
    "text": (lambda p: p.write_text("not found: 404"), "damaged or no PyTorch checkpoint"),
    "no state dict": (lambda p: torch.save([1, 2], p), "not a state dict"),
    "other model": (
        lambda p: torch.save({"conv1.weight": torch.zeros(1)}, p),
        "no BERT in it (text_encoder.bert.encoder.layer.*): neither PROMU nor ALPRO",
    ),
}


@pytest.mark.parametrize("case", FILES)
def test_files(case, tmp_path, capsys):
    spoil, expected = FILES[case]
    path = tmp_path / "checkpoint.pt"
    spoil(path)
    line = one_line(capsys, path, tmp_path / "out")
    assert expected in line and str(path) in line
    assert not (tmp_path / "ran").exists() and not (tmp_path / "out").exists()


def test_old_torch_format_is_read(tmp_path):
    state = {"temp": torch.tensor([0.07])}
    torch.save(state, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    assert torch.equal(load_pickle(tmp_path / "old.pt")["temp"], state["temp"])


def test_links_within_a_hub_snapshot_are_followed(sound, tmp_path):
    """The hub cache keeps its files in `blobs` and links them into `snapshots/<revision>`."""
    snapshot, blobs = tmp_path / "models--a--b/snapshots/main", tmp_path / "models--a--b/blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for path in sound.iterdir():
        shutil.copy(path, blobs / path.name)
        (snapshot / path.name).symlink_to(Path("../../blobs") / path.name)
    hub.load_fusion(snapshot)


def test_missing_file(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        load_pickle(tmp_path / "nothing.pt")


@pytest.mark.parametrize(
    "config",
    [
        TINY,
        FusionEncoderConfig(),
        FusionEncoderConfig(encoder_layout="shared_twice"),
        FusionEncoderConfig(vision_hidden_size=192, vision_heads=3, fusion_layers=0),
    ],
    ids=lambda config: f"{config.encoder_layout} {config.vision_hidden_size}",
)
def test_least_parameters_is_a_bound(config):
    with torch.device("meta"):
        stored = sum(tensor.numel() for tensor in FusionEncoder(config).state_dict().values())
    assert 0.6 * stored < config.least_parameters <= stored
