"""Frozen prompters from a model directory: one of ours, or an open CLIP."""

from pathlib import Path
from typing import NamedTuple

from transformers import PreTrainedTokenizerBase

from pretrain.checkpoint import hub
from pretrain.checkpoint.card import table
from pretrain.checkpoint.directory import ModelDirectory
from pretrain.checkpoint.remote import resolve
from pretrain.checkpoint.strict import read_transformers
from pretrain.prompter.clip import ClipEncoder, Encoder
from shards.files import InputError
from shards.json_files import parse_object, write_json

_PREPROCESSOR = "preprocessor_config.json"


class Prompter(NamedTuple):
    """What labelling and prompt banks need."""

    encoder: Encoder
    tokenizer: PreTrainedTokenizerBase
    temperature: float
    """Learned by the prompter; similarities are divided by it."""


def load_prompter(source: hub.Source) -> Prompter:
    """A fusion model directory with its temperature, or a CLIP, local or on the hub.

    Raises:
        InputError: neither of the two, or with the list of what is wrong.
    """
    directory = ModelDirectory.open(source)
    if directory.kind == "clip":
        clip = read_clip(directory.path)
        return Prompter(clip, hub.load_tokenizer(directory), clip.temperature)
    promu, tokenizer = hub.load_promu(directory)
    return Prompter(promu.encoder, tokenizer, promu.clamped_temperature().item())


def read_clip(directory: Path) -> ClipEncoder:
    """A `transformers` CLIP with the pixel statistics of its own preprocessor, float32."""
    from transformers import CLIPModel  # its modelling code takes two seconds to import

    path = directory / _PREPROCESSOR
    if not path.is_file():
        raise InputError(f"{directory}: a CLIP without {_PREPROCESSOR} (its pixel statistics)")
    preprocessor = parse_object(path.read_bytes(), str(path))
    try:
        statistics = {key: tuple(preprocessor[key]) for key in ("image_mean", "image_std")}
    except (KeyError, TypeError) as error:
        raise InputError(f"{path}: no `image_mean` and `image_std`") from error
    return ClipEncoder(read_transformers(CLIPModel, directory).eval(), **statistics)


def write_clip(out: hub.Source, source: hub.Source) -> str:
    """Copy a CLIP, of whatever dtype and file format, as float32 safetensors; what was written."""
    directory = resolve(source)
    encoder, tokenizer = read_clip(directory), hub.load_tokenizer(directory)
    state = encoder.clip.state_dict()
    summary = (
        f"{len(state)} tensors, float32, {sum(t.numel() for t in state.values()):,} parameters"
    )

    def write(folder: Path) -> None:
        encoder.clip.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        path = directory / _PREPROCESSOR
        write_json(folder / _PREPROCESSOR, parse_object(path.read_bytes(), str(path)))
        facts = table({"source": f"`{source}`", "tensors": summary})
        text = f"# CLIP as a prompter of Fusion-MRE\n\n{facts}\n\nThe licence is the source's.\n"
        (folder / "README.md").write_text(text, encoding="utf-8")

    hub.save_directory(out, write)
    return summary
