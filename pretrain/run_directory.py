"""A run directory belongs to one job at a time, one configuration, and one set of inputs."""

import hashlib
import json
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any, get_type_hints

import yaml

from pretrain.checkpoint.directory import ModelDirectory
from pretrain.config import PretrainConfig
from pretrain.model.config import FusionEncoderConfig
from pretrain.model.stated import ModelConfig
from shards.files import InputError, atomic_path, file_sha256
from shards.json_files import read_json, write_json
from shards.options import dump_config, same_setting
from shards.redact import without_secrets
from shards.stream import ShardReader
from shards.tars import TarReader

# What a resumed run may change without changing what is computed.
_FREE = (
    *("run_dir", "log", "checkpoint", "engine.kind", "engine.deepspeed", "data.workers"),
    *("optim.nonfinite", "extend"),
)


def remember_config(config: PretrainConfig, run_dir: Path, resumable: list[int]) -> str:
    """Write `config.yaml`; where checkpoints are, check that this is the run that made them.

    Returns:
        Under `extend`, a line that says what it means for this run; else "".

    Raises:
        InputError: other settings than those of the run in `run_dir`.
    """
    path, text = run_dir / "config.yaml", without_secrets(dump_config(config))
    extension = ""
    if path.exists() and resumable:
        # Beside a tokenizer that is given, the size of a vocabulary to learn says nothing.
        given = config.model.init or config.model.tokenizer
        free = (*_FREE, "model.vocab_size") if given else _FREE
        before = without_secrets(path.read_text(encoding="utf-8", errors="replace"))
        new = _flat(yaml.safe_load(text))
        try:
            # A setting that came later is by default what runs did before it.
            said = _flat(yaml.safe_load(before))
            old = _defaults(PretrainConfig) | said
            steps, more = said["optim.steps"], new["optim.steps"]
        except (yaml.YAMLError, AttributeError, KeyError):
            raise InputError(f"{path}: damaged; give another --run_dir or remove it") from None
        changed = {
            key
            for key in new
            if not same_setting(old.get(key), new[key]) and not key.startswith(free)
        }
        if config.extend and more > steps:
            changed.discard("optim.steps")
            extension = (
                f"extended from {steps} to {more} steps: from step {resumable[-1]} on the "
                f"learning rate is that of a run of {more}, which had been higher before, too"
            )
        if changed:
            listed = "; ".join(f"{key} ({old.get(key)} -> {new[key]})" for key in sorted(changed))
            longer = changed == {"optim.steps"} and more > steps
            advice = "; to train it longer, add --extend true" if longer else ""
            raise InputError(
                f"{run_dir} holds a run with another configuration: {listed}; "
                f"give another --run_dir, or the old settings to resume{advice}"
            )
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return extension


def remember_inputs(
    config: PretrainConfig,
    readers: dict[str, ShardReader],
    run_dir: Path,
    *,
    resumes: bool,
    init: ModelDirectory | None = None,
) -> None:
    """Write `inputs.json`, the checksums of what the run learns from; a run that resumes must find
    them again. Runs that kept none, of earlier versions, are taken as they are. Keys of tars that
    are no pairs are counted, and listed in `data.train.rejects.jsonl`.

    Args:
        readers: `data.train` and `data.val`, by these names.
        init: `model.init`.

    Raises:
        InputError: shards, a column, a vocabulary or the initial weights changed after the run
            began, by name.
    """
    digests: dict[str, str] = {}
    for setting, reader in readers.items():
        tars = [(shard.stem, shard.sha256, shard.matched) for shard in reader.index.shards]
        digests[f"{setting} (shards)"] = _digest(tars)
        for name, column in reader.columns.items():
            files = {stem: shard.sha256 for stem, shard in column.shards.items()}
            digests[f"{setting} ({name} column)"] = _digest(sorted(files.items()))
    for name in ("entities", "relations"):
        file = getattr(config.prompter, name)
        if file and (sha256 := file_sha256(Path(file))):
            digests[f"prompter.{name}"] = sha256
    if init:
        weights = [p for p in sorted(init.path.iterdir()) if p.suffix in (".safetensors", ".bin")]
        digests["model.init"] = _digest([(path.name, file_sha256(path)) for path in weights])
    path = run_dir / "inputs.json"
    if resumes and path.is_file():
        before = read_json(path, f"remove it to resume {run_dir} unchecked")
        changed = [name for name, digest in digests.items() if before.get(name, digest) != digest]
        if changed:
            raise InputError(
                f"{run_dir}: {', '.join(changed)} changed after this run began; put the old files "
                "back to resume it, or give another --run_dir"
            )
        digests = before | digests  # what is gone now may come back
    write_json(path, digests, checksum=True)
    for setting, reader in readers.items():
        if isinstance(reader, TarReader):
            rejects = run_dir / f"{setting}.rejects.jsonl"
            reader.write_rejects(rejects)
            print(f"{setting}: {reader.summary()}; every reject in {rejects}", flush=True)


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def _defaults(kind: type, prefix: str = "") -> dict[str, Any]:
    """Dotted name -> value of what need not be said, as `config.yaml` writes it."""
    values: dict[str, Any] = {}
    hints = get_type_hints(kind)
    for field in fields(kind):
        name = prefix + field.name
        if is_dataclass(hints[field.name]):
            values |= _defaults(hints[field.name], f"{name}.")
        elif field.default is not MISSING:
            values[name] = list(field.default) if type(field.default) is tuple else field.default
    if kind is ModelConfig:  # says nothing, but is written down as settled
        return values | _defaults(FusionEncoderConfig, prefix)
    return values


def _flat(content: dict, prefix: str = "") -> dict:
    flat: dict[str, Any] = {}
    for key, value in content.items():
        nested = isinstance(value, dict)
        flat |= _flat(value, f"{prefix}{key}.") if nested else {f"{prefix}{key}": value}
    return flat
