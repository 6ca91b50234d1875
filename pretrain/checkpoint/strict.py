"""Reading other people's directories strictly: nothing missing, foreign, or out of place.

Everything here raises `InputError` with one line that names the file and lists what is wrong.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from pretrain.checkpoint.checksums import check_member, require_readable
from pretrain.checkpoint.foreign import WRAPPED, check_settings, check_shards, unwrapped
from pretrain.checkpoint.untrusted import load_pickle
from pretrain.model.config import FusionEncoderConfig
from pretrain.model.library import library_parameters
from pretrain.model.promu import HeadsConfig
from shards.files import InputError
from shards.json_files import read_json

if TYPE_CHECKING:
    from transformers import PreTrainedModel

CONFIG_NAME = "config.json"
WEIGHTS_NAME = "model.safetensors"
Model = TypeVar("Model", bound="PreTrainedModel")
Colours = tuple[list[float], list[float]]
"""RGB mean and standard deviation of pixels in 0..1."""
_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def read_config(directory: Path) -> dict[str, Any]:
    """`config.json` of a local directory, of whatever model type."""
    path = member(directory, CONFIG_NAME)
    if (size := path.stat().st_size) > 1 << 24:
        raise InputError(f"{path}: {size:,} bytes are no model's configuration")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: damaged ({error})") from error
    if not isinstance(content, dict):
        raise InputError(f"{path}: damaged (not a JSON object)")
    return content


def colours_of(directory: Path, family: str = "clip") -> Colours:
    """Mean and deviation that a CLIP's pictures are normalised by: its own, else those of its
    family's first publisher. family: clip or siglip."""
    from transformers import image_utils as known

    theirs = (known.OPENAI_CLIP_MEAN, known.OPENAI_CLIP_STD)
    if family == "siglip":
        theirs = (known.IMAGENET_STANDARD_MEAN, known.IMAGENET_STANDARD_STD)
    path = directory / "preprocessor_config.json"
    pixels = read_json(path) if path.is_file() else {}
    mean, std = (pixels.get(f"image_{name}") for name in ("mean", "std"))
    return list(mean or theirs[0]), list(std or theirs[1])


def read_weights(directory: Path) -> dict[str, Tensor]:
    """`model.safetensors` of a local directory as float32 CPU tensors."""
    path = member(directory, WEIGHTS_NAME)
    try:
        state = load_file(path)
    except (SafetensorError, AttributeError, KeyError) as error:
        raise InputError(f"{path}: damaged or unknown safetensors file ({error})") from error
    check_values(state, str(path))
    return {unwrapped(name): tensor.float() for name, tensor in state.items()}


def check_values(state: dict[str, Tensor], name: str) -> None:
    """Raises: InputError for the first tensor that is no finite 16- or 32-bit float."""
    for key, tensor in state.items():
        if tensor.dtype not in _DTYPES:
            raise InputError(
                f"{name}: tensor {key} is {str(tensor.dtype).removeprefix('torch.')}; "
                "only float32, float16 and bfloat16 are read"
            )
        if not torch.isfinite(tensor).all():
            raise InputError(f"{name}: tensor {key} holds NaN or infinity")


def check_size(content: dict[str, Any], state: dict[str, Tensor], name: str) -> None:
    """Raises: InputError where `config.json` would have us build far more than is stored."""
    stored = sum(tensor.numel() for tensor in state.values())
    try:
        config = FusionEncoderConfig.from_dict(content)
        least = config.least_parameters + library_parameters(config)
        heads = HeadsConfig(**content.get("heads", {}))
        least += (heads.num_entities + heads.num_relations) * (heads.hidden_mult + 1)
    except (ValueError, TypeError) as error:
        raise InputError(f"{name}: {CONFIG_NAME}: {error}") from error
    if least > 4 * stored + 1_000_000:  # smaller differences are listed tensor by tensor
        raise InputError(
            f"{name}: {CONFIG_NAME} describes at least {least:,} parameters, {stored:,} are stored"
        )


def load_strictly(module: nn.Module, state: dict[str, Tensor], name: str) -> None:
    """Load every tensor, or raise InputError with the list of missing, foreign, misshapen ones."""
    check_fits(module.state_dict(), state, name)
    module.load_state_dict(state)


def check_fits(expected: dict[str, Tensor], state: dict[str, Tensor], name: str) -> None:
    """Raises: InputError with the list of missing, foreign, misshapen tensors."""
    problems = [f"missing {key}" for key in expected if key not in state]
    problems += [f"foreign {key}" for key in state if key not in expected]
    problems += [
        f"{key} is {tuple(state[key].shape)}, expected {tuple(tensor.shape)}"
        for key, tensor in expected.items()
        if key in state and state[key].shape != tensor.shape
    ]
    if problems:
        listed = "; ".join(problems[:8]) + (f"; … {len(problems)} in all" if problems[8:] else "")
        raise InputError(f"{name}: {listed}")


def read_transformers(model_class: type[Model], directory: Path, **options: Any) -> Model:
    """A `transformers` model of a local directory, float32.

    Raises:
        InputError: another kind of model, a pickle that would run code, or tensors that are missing
            (`transformers` alone would draw those at random).
    """
    content, config_class = read_config(directory), model_class.config_class
    assert config_class  # None of abstract classes alone
    if (kind := content.get("model_type")) != (expected := config_class.model_type):
        raise InputError(f"{directory}: model_type is {kind!r}, not {expected!r}")
    check_settings(content, config_class, str(directory / CONFIG_NAME))
    check_shards(directory)
    for path in directory.glob("*.safetensors"):
        check_member(path)
    if not any(directory.glob("*.safetensors")):
        for pickled in directory.glob("pytorch_model*.bin"):
            load_pickle(pickled)  # refuses in one line what `transformers` would refuse in twenty
    options["key_mapping"] = {WRAPPED: ""} if _wrapped(directory) else None
    attention = "sdpa" if model_class._supports_sdpa else "eager"  # eager: OpenAI's first GPT
    options |= {"attn_implementation": attention, "dtype": torch.float32, "local_files_only": True}
    try:
        loaded: Any = model_class.from_pretrained(directory, output_loading_info=True, **options)
    except (OSError, RuntimeError, ValueError, SafetensorError) as error:
        raise InputError(f"{directory}: {str(error).strip().splitlines()[0]}") from error
    model, report = loaded  # a pair with `output_loading_info`; its annotation says a model
    if report["missing_keys"]:
        missing = sorted(report["missing_keys"])
        raise InputError(f"{directory}: {len(missing)} tensors missing, for example {missing[0]}")
    check_values(model.state_dict(), str(directory))
    return model


def _wrapped(directory: Path) -> bool:
    """Whether names of tensors hold what `torch.compile` or DDP put in."""
    names: set[str] = set()
    for path in directory.glob("model*.safetensors"):  # not what a method stores beside it
        try:
            with safe_open(path, "pt") as file:
                names |= set(file.keys())
        except (SafetensorError, OSError) as error:
            raise InputError(f"{path}: damaged or unknown safetensors file ({error})") from error
    if not names and (directory / "pytorch_model.bin").is_file():
        content = load_pickle(directory / "pytorch_model.bin")
        names = set(content) if isinstance(content, dict) else set()
    return any(unwrapped(name) != name for name in map(str, names))


def member(directory: Path, name: str) -> Path:
    """A file of a model directory that really lies in it (or in the hub cache behind it)."""
    path = directory / name
    require_readable(path)
    if not path.is_file():
        raise InputError(f"{directory}: not a model directory: no {name}")
    home = directory.resolve()
    # A snapshot of the hub cache is made of links into the `blobs` folder beside it.
    allowed = [home, home.parents[1] / "blobs"] if home.parent.name == "snapshots" else [home]
    if not any(path.resolve().is_relative_to(place) for place in allowed):
        raise InputError(
            f"{path}: a link out of the directory (to {path.resolve()}); copy the file"
        )
    return check_member(path)
