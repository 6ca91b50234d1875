"""What a seed is made of: `seed-N/inputs.json`, hashed before its first step.

Whoever takes the seed up again (to go on, to call it finished, to evaluate) compares what lies
there now, so that a figure never stands beside the hash of something else.
"""

import hashlib
import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, is_dataclass
from fnmatch import fnmatchcase
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from finetune.config import TrainConfig
from finetune.inputs.batch import Dataset
from finetune.inputs.split import LoadedSplit
from finetune.run.results import SEED_AGAIN, read_result
from finetune.tasks.base import Task
from finetune.tasks.reading import read_object
from finetune.tasks.splits import SPLITS
from pretrain import distributed
from pretrain.checkpoint.remote import resolve
from shards.files import InputError, digest
from shards.json_files import read_json, write_json

FILE = "inputs.json"
PACKAGES = ("fusion-mre", "torch", "transformers", "timm", "numpy", "safetensors")
MODEL_FILES = (
    *("config.json", "*.safetensors", "*.safetensors.index.json", "pytorch_model*.bin*"),
    *("tokenizer*", "vocab.txt", "vocab.json", "merges.txt", "added_tokens.json", "*.model"),
    *("special_tokens_map.json", "preprocessor_config.json"),
)
"""What decides weights, word pieces and pixels of a model directory, in whatever form it comes."""


@dataclass(frozen=True)
class Inputs:
    """Hashes of what a seed was trained on."""

    data: str
    """The folder, absolute."""
    files: Mapping[str, str]
    """Path -> SHA-256: label files, splits, side inputs, view manifests, initial weights."""
    pictures: Mapping[str, Mapping[str, str]]
    """Split -> `state` (of names, sizes and times) and `content` of the pictures that its rows
    name; empty where none were loaded."""
    versions: Mapping[str, str]
    """Of the code. Another one changes no data: it is recorded, not compared."""


def inputs_of(config: TrainConfig, task: Task, side: Iterable[Path], *, pictures: bool) -> Inputs:
    """Hash everything.

    Args:
        side: files that loading the splits has read. pictures: whether it has read any.
    """
    paths = [*data_files(config, task), *model_files(config), *side]
    loaded = [split for split in SPLITS if pictures and task.split_file(split)]
    return Inputs(
        data=str(task.folder.resolve()),
        # Absolute, but links stay: a hub's cache names its files by links.
        files={str(path.absolute()): digest(path) for path in paths if path.is_file()},
        pictures={split: picture_hashes(task, split, config.cache_dir) for split in loaded},
        versions=versions(),
    )


def versions() -> dict[str, str]:
    """Of Python and what decides numbers."""
    numbers = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            numbers[name] = version(name)
        except PackageNotFoundError:
            numbers[name] = "not installed"
    return numbers


def data_files(config: TrainConfig, task: Task) -> list[Path]:
    """Label files, splits and manifests."""
    paths = [Path(config.data) / name for name in task.SIDE_FILES]
    paths += [path for split in SPLITS if (path := task.split_file(split))]
    for view in config.view_paths:
        paths += sorted(view.glob("*.jsonl")) if view.is_dir() else [view]
    return paths


def model_files(config: TrainConfig) -> list[Path]:
    """Weights, sizes and vocabulary of what the run starts from, its other towers included, and
    the files that settings of the method name."""
    start = str(config.architecture or config.init)
    model = getattr(config, "model", None)
    settings = asdict(model) if is_dataclass(model) and not isinstance(model, type) else {}
    texts = [value for value in settings.values() if isinstance(value, str)]
    # os.path: of a text that is too long for a name, `Path.is_dir` raises.
    folders = [Path(resolve(start)), *(Path(text) for text in texts if os.path.isdir(text))]
    files = [Path(text) for text in texts if os.path.isfile(text)]
    members = [path for folder in folders for path in sorted(folder.glob("*")) if of_model(path)]
    return members + files


def of_model(path: Path) -> bool:
    """Whether a file's name is one of `MODEL_FILES`."""
    return any(fnmatchcase(path.name, pattern) for pattern in MODEL_FILES)


def picture_hashes(task: Task, split: str, cache: Path) -> dict[str, str]:
    """`state` and `content` of a split's pictures; content is read once for each state."""
    paths, state = picture_state(task, split)
    cached = cache / f"pictures-{state[:20]}.json"
    with suppress(InputError, KeyError):  # none there, or damaged: hashed anew
        return {"state": state, "content": read_json(cached)["content"]}
    content = hashlib.sha256()
    for name, path in paths.items():
        content.update(f"\n{name}\t{digest(path) if path.is_file() else None}".encode())
    write_json(cached, {"content": content.hexdigest()}, checksum=True)
    return {"state": state, "content": content.hexdigest()}


def picture_state(task: Task, split: str) -> tuple[dict[str, Path], str]:
    """A split's pictures by name, and a hash of their folder, sizes and times: nothing is read."""
    folder = task.image_folder(split)
    names = sorted({row.image_id for row in task.read(split) if row.image_id is not None})
    state = hashlib.sha256(str(folder.resolve()).encode())
    for name in names:
        path = folder / name
        stat = path.stat() if path.is_file() else None
        state.update(f"\n{name}\t{(stat.st_size, stat.st_mtime_ns) if stat else None}".encode())
    return {name: folder / name for name in names}, state.hexdigest()


def begin(
    directory: Path, config: TrainConfig, task: Task, splits: Sequence[LoadedSplit | None]
) -> None:
    """Write `inputs.json` of a seed that begins; of one that goes on, compare with it.

    Raises:
        InputError: something changed since it began.
    """
    resumes = (directory / "resume" / "progress.json").is_file()
    if resumes and (before := kept_inputs(directory)) is not None:
        check(directory, before, config, task)
        return
    loaded = [split for split in splits if split is not None]
    side = sorted({path for split in loaded for path in split.files})
    pictures = config.images == "required" and any(split.dataset.pictures for split in loaded)
    inputs = inputs_of(config, task, side, pictures=pictures)
    if distributed.is_main():
        write_json(directory / FILE, asdict(inputs), checksum=True)


def kept_inputs(directory: Path) -> Inputs | None:
    """What a seed's `inputs.json` says; of an older seed, the hashes in its run's `result.json`;
    None where there are none.

    Raises:
        InputError: damaged.
    """
    if not (directory / FILE).is_file():
        if not (directory.parent / "result.json").is_file():
            return None
        recorded = read_result(directory.parent)["provenance"]
        folder = str(Path(recorded["config"]["data"]).resolve())
        return Inputs(folder, recorded["data"], {}, recorded["versions"])
    expected = {"data": str, "files": dict, "pictures": dict, "versions": dict}
    content = read_object(directory / FILE, expected, SEED_AGAIN)
    return Inputs(**{key: content[key] for key in expected})


def changes(before: Inputs, task: Task, cache: Path) -> list[str]:
    """What is another than `before`, by name; what is gone contradicts nothing."""
    changed = [
        path
        for path, hashed in before.files.items()
        if Path(path).is_file() and digest(Path(path)) != hashed
    ]
    # Older runs hold paths as they were typed: from another folder these tell nothing.
    if all(Path(path).is_absolute() or Path(path).exists() for path in before.files):
        known = {Path(path).resolve() for path in before.files}
        splits = [path for split in SPLITS if (path := task.split_file(split))]
        changed += [str(path) for path in splits if path.resolve() not in known]
    for split, hashes in before.pictures.items():
        if task.split_file(split) and task.image_folder(split).is_dir():
            if picture_state(task, split)[1] == hashes["state"]:
                continue
            if picture_hashes(task, split, cache)["content"] != hashes["content"]:
                changed.append(f"{task.image_folder(split)}: a picture of {split}")
    return changed


def check(directory: Path, before: Inputs, config: TrainConfig, task: Task) -> None:
    """Refuse to go on with a seed, or to call it finished, on other inputs.

    Raises:
        InputError: names what changed, and what to do.
    """
    if changed := changes(before, task, config.cache_dir):
        more = f" (and {len(changed) - 1} more)" if changed[1:] else ""
        raise InputError(
            f"{changed[0]}: changed since {directory} was trained on it{more}; restore it, choose "
            "another --out, or remove the seed's folder to train it again"
        )


def fields_read(dataset: Dataset) -> dict[str, list[str]]:
    """What a seed's rows come with, by the fields of a batch: `columns`, and those `pictures` of
    which any row has one."""
    pictures = dataset.pictures.items()
    seen = sorted(name for name, picture in pictures if (picture.index >= 0).any())
    return {"columns": sorted(dataset.columns), "pictures": seen}
