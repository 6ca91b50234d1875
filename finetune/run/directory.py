"""A run directory as a whole: its configuration, its seeds, its `result.json`."""

import json
import logging
from collections.abc import Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

import yaml

from finetune import registry
from finetune.config import TrainConfig
from finetune.inputs.load import read_views
from finetune.methods.profiles import in_present_names
from finetune.protocols import aggregate
from finetune.run import provenance
from finetune.run.results import images_of, read_seed
from finetune.tasks.base import Task
from pretrain import distributed, engine
from shards import threads
from shards.files import InputError, atomic_path, discard, sweep
from shards.json_files import write_json
from shards.options import dump_config, same_setting
from shards.redact import without_secrets

LOG = logging.getLogger(__name__)


def run(config: TrainConfig) -> dict[str, Any]:
    """Train every seed that is not finished, and write `result.json`."""

    engine.start(config.engine.kind)
    if distributed.is_main():
        LOG.info("%s", threads.account())
    task = registry.load("tasks", config.task)(existing_folder(config.data))
    with distributed.held(Path(config.out)):
        return _run(config, task)


def _run(config: TrainConfig, task: Task) -> dict[str, Any]:
    from finetune.run.train import SeedRun

    out = Path(config.out)
    if distributed.is_main():
        claim(out, config)
        sweep(config.cache_dir)
        sweep(config.cache_dir, ".*.lock")
    if task.split_file("test") is None and distributed.is_main():
        LOG.warning('%s: no test split: dev only, `"test": null`', config.data)
    per_seed = []
    for seed in config.seed_list:
        directory = out / f"seed-{seed}"
        if distributed.is_main():
            sweep(directory)
        finished = directory / "result.json"
        if finished.is_file():
            per_seed.append(read_seed(finished))
            if distributed.is_main():
                discard(directory / "resume")  # killed before it was gone
            if (before := provenance.kept_inputs(directory)) is not None:
                provenance.check(directory, before, config, task)
            LOG.info("%s: finished before", directory)
        else:
            per_seed.append(SeedRun(config, task, seed, directory).run())
    result = summarise(config, task, per_seed)
    if distributed.is_main():
        write_json(out / "result.json", result, checksum=True)
    distributed.barrier()
    return result


def existing_folder(path: str) -> Path:
    """`path`, which must be a folder."""
    if not Path(path).is_dir():
        raise InputError(f"--data {path}: no such folder")
    return Path(path)


def claim(out: Path, config: TrainConfig) -> None:
    """Write `config.yaml`, or refuse a directory that holds a run with other settings."""
    path, text = out / "config.yaml", without_secrets(dump_config(config))
    if path.is_file() and any(out.glob("seed-*")):  # nothing was trained yet: free to change
        try:
            before = dict(yaml.safe_load(without_secrets(path.read_text(encoding="utf-8"))))
            before = with_defaults(before, config)
            method = registry.load("methods", config.method)
            before["model"] = in_present_names(method.Config, before.get("model") or {})
        except (yaml.YAMLError, ValueError, TypeError):
            raise InputError(f"{path}: damaged; choose another --out or remove it") from None
        now = yaml.safe_load(text)
        # More seeds may join a run; how many pictures may be absent changes none that is there.
        for free in ("seeds", "cache", "out", "sweep", "max_missing"):
            before.pop(free, None)
            now.pop(free, None)
        if differing := differences(before, now):
            more = f" and {len(differing) - 8} more" if differing[8:] else ""
            raise InputError(
                f"{out}: holds a run with other settings: {', '.join(differing[:8])}{more}; "
                "choose another --out or remove it"
            )
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def differences(before: Mapping[str, Any], now: Mapping[str, Any], prefix: str = "") -> list[str]:
    """`optim.lr 0.001 there, 0.01 now` of every setting that differs; null: not set."""
    texts = []
    for key in dict.fromkeys([*now, *before]):
        old, new = before.get(key), now.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            texts += differences(old, new, f"{prefix}{key}.")
        elif not same_setting(old, new) and (key in now or prefix):
            old, new = (json.dumps(value) for value in (old, new))
            texts.append(f"{prefix}{key} {old} there, {new} now")
    return texts


def with_defaults(before: Mapping[str, Any], config: Any) -> dict[str, Any]:
    """Settings, and the defaults of options that there were not yet when they were written.

    A method's own settings are left as they are: what a new one replaces may have been another.
    """
    settings = dict(before)
    for entry in fields(config):
        value = getattr(config, entry.name)
        if entry.name in ("optim", "engine"):
            settings[entry.name] = with_defaults(settings.get(entry.name) or {}, value)
        elif entry.default is not MISSING:
            settings.setdefault(entry.name, entry.default)
    return settings


def summarise(config: TrainConfig, task: Task, per_seed: list[dict[str, Any]]) -> dict[str, Any]:
    """The content of `result.json`; figures in percent, beside the hashes of what they came of."""
    seeds = (Path(config.out) / f"seed-{seed}" for seed in config.seed_list)
    inputs = next(filter(None, map(provenance.kept_inputs, seeds)), None)
    if inputs is None:  # seeds of older code, whose run has no `result.json` yet
        side = [Path(path) for path in per_seed[0]["side_inputs"]]
        inputs = provenance.inputs_of(config, task, side, pictures=False)
    tested = all(seed["test"] is not None for seed in per_seed)
    return {
        "task": config.task,
        "method": config.method,
        "protocol": config.protocol,
        "leaky": any(seed["leaky"] for seed in per_seed),
        "images": images_of(per_seed, config.images),
        "views": [
            dict(view.header) for views in read_views(config.view_paths).values() for view in views
        ],
        "dev": aggregate([seed["dev"] for seed in per_seed]),
        "test": aggregate([seed["test"] for seed in per_seed]) if tested else None,
        "per_seed": per_seed,
        "provenance": {
            "config": yaml.safe_load(without_secrets(dump_config(config))),
            "kind": task.info.kind,
            "data": inputs.files,
            "pictures": {split: hashes["content"] for split, hashes in inputs.pictures.items()},
            "versions": inputs.versions,
            "seconds": round(sum(seed["seconds"] for seed in per_seed), 1),
            "audit": per_seed[0]["audit"],
        },
    }
