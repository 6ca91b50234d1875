"""`python -m finetune view`: draws what an experiment changes, and writes it as a view manifest.

Same files and seed give the same bytes. The rules are in `view_rules.py`, the file format in
`finetune/inputs/view.py`.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from finetune.data import view_options as options
from finetune.data import view_rules
from finetune.inputs.view import Change, View, read_view, write_view
from finetune.tasks import side_files
from finetune.tasks.base import Row, SideInput, Task
from finetune.tasks.region_cache import read_regions
from shards.command import Group, Tool
from shards.files import InputError
from shards.images import decoded

SCOPES = {
    "train": ("train",),
    "dev": ("val",),
    "test": ("test",),
    "train+dev": ("train", "val"),
    "all": ("train", "val", "test"),
}


def draw(config: options.ViewConfig, task: Task, split: str) -> View:
    """The view of one split that the options describe."""
    rows = task.read(split)
    caches = _caches(config.region_cache, rows, split)
    grounded, detected = (cache.values if cache else {} for cache in caches)
    seed = config.seed
    match config:
        case options.AlignNoise():
            lent = grounded if config.regions and config.vg == "donor" else None
            changes = view_rules.align_noise(
                rows, config.ratio, seed, unit=config.unit, grounded=lent
            )
            if config.vg == "reground":
                changes = _reground(config, changes, rows, task.image_folder(split))
        case options.AugNoise():
            chance = {"both": config.p_modify, "modify": 1, "delete": 0}[config.ops]
            changes = view_rules.aug_noise(
                rows, grounded, detected, config.ratio, seed, p_modify=float(chance),
                num_grounded=config.num_grounded, num_detected=config.num_detected,
            )  # fmt: skip
        case options.KeepFraction():
            changes = view_rules.fraction(rows, config.ratio, seed, stratified=config.stratified)
        case options.KShot():
            unlimited = None if config.include_none else task.info.negative
            changes = view_rules.kshot(rows, config.k, seed, unlimited=unlimited)
        case options.ImageDrop():
            changes = view_rules.image_drop(rows, config.keep, seed)
        case options.RegionGrid():
            changes = view_rules.region_grid(
                rows, grounded, detected, config.num_grounded, config.num_detected
            )
        case _:
            raise TypeError(f"no view is drawn for {type(config).__name__}")
    return View(split, changes, _header(config, split, task, [c for c in caches if c]))


def _caches(
    folder: Path | None, rows: Sequence[Row], split: str
) -> tuple[SideInput | None, SideInput | None]:
    """Grounded and detected regions, each None where it was not given."""
    if folder is None:
        return None, None
    grounded = read_regions(side_files.find(folder, "regions_vg_{split}.jsonl", split))
    grounded.require_rows(len(rows))
    if not (folder / "regions_od.jsonl").is_file():
        return grounded, None
    detected = read_regions(folder / "regions_od.jsonl")
    detected.of(rows)
    return grounded, detected


def _header(
    config: options.ViewConfig, split: str, task: Task, caches: Sequence[SideInput]
) -> dict[str, Any]:
    """What decided the view; nothing of where its files lie, so that it is the same anywhere."""
    paths = [path for path in [task.split_file(split)] if path] + [cache.path for cache in caches]
    tool = next(name for name, tool in TOOLS.items() if isinstance(config, tool.config))
    return {
        "tool": tool,
        "params": config.parameters(),
        "seed": config.seed,
        "split": split,
        "sources": {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in paths},
        "leaky": any(cache.leaky for cache in caches),
    }


def _reground(
    config: options.AlignNoise, changes: Mapping[int, Change], rows: Sequence[Any], folder: Path
) -> dict[int, Change]:
    """The receiving row's own phrases, looked for in the wrong picture."""
    from finetune.data.grounding import Grounder, keywords, spacy_tagger
    from finetune.data.region_files import pictures

    tag = None if config.tagger == "none" else spacy_tagger(config.tagger)
    grounder, by_row = Grounder(str(config.grounder)), {row.row: row for row in rows}
    paths = pictures(folder, (change.image_id for change in changes.values()), max_missing=0)
    regrounded = {}
    for row, change in changes.items():
        picture = decoded(paths[str(change.image_id)])  # each change names its wrong picture
        regrounded[row] = replace(change, vg=tuple(grounder(picture, keywords(by_row[row], tag))))
    return regrounded


# ---- command -------------------------------------------------------------------------------------


def write(config: options.ViewConfig) -> dict[Path, str]:
    """Write the manifest of every split of the scope that there is; path -> what it holds.

    Raises:
        InputError: no split is there, or one file is named for several.
    """
    task = config.open()
    splits = [split for split in SCOPES[config.scope] if task.split_file(split)]
    if not splits:
        raise InputError(f"{config.data}: no split of --scope {config.scope} is there")
    one_file = config.out.suffix == ".jsonl"
    if one_file and len(splits) > 1:
        raise InputError(f"--out {config.out}: {len(splits)} splits need a folder; or give --scope")
    written = {}
    for split in splits:
        path = config.out if one_file else config.out / f"{split}.jsonl"
        if path.exists():
            try:
                read_view(path)
            except InputError:
                raise InputError(f"{path}: exists and is no view; choose another --out") from None
        view = draw(config, task, split)
        write_view(path, view)
        written[path] = f"changes {len(view.changes)} rows of {split}"
    return written


def run(config: options.ViewConfig) -> None:
    """Write, and say what."""
    for path, text in write(config).items():
        print(f"{path}: {text}")
    task = config.open()
    for split in SCOPES[config.scope]:
        if not task.split_file(split):
            print(f"{config.data} has no {split} split: no view of it")


_DATA = "--data DATA/mnre"
TOOLS = {
    "align-noise": Tool(
        options.AlignNoise, run, f"{_DATA} --ratio 0.05 --out views/align-05", True
    ),
    "aug-noise": Tool(
        options.AugNoise, run, f"{_DATA} --ratio 0.05 --regions DATA/mnre --out views/aug", True
    ),
    "fraction": Tool(options.KeepFraction, run, f"{_DATA} --ratio 0.05 --out views/fraction", True),
    "kshot": Tool(options.KShot, run, f"{_DATA} --k 5 --out views/kshot", True),
    "image-drop": Tool(options.ImageDrop, run, f"{_DATA} --keep 0.4 --out views/image-drop", True),
    "region-grid": Tool(
        options.RegionGrid,
        run,
        f"{_DATA} --regions DATA/mnre --num-grounded 2 --num-detected 1 --out views/grid",
        True,
    ),
}
"""Name -> options, what writes it, example."""


def default_scope(name: str) -> options.Scope:
    """The splits that this tool changes where `--scope` is not given."""
    config_class: Any = TOOLS[name].config
    return config_class.scope


main = Group(
    "python -m finetune view", TOOLS,
    "Write a view manifest: what an experiment changes in a split.", "align-noise",
)  # fmt: skip
